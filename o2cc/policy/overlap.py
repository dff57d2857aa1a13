# SPDX-License-Identifier: Apache-2.0
"""Grants that say nothing new: O2C0231 the same rule twice, O2C0233 a rule that another one makes needless."""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.diagnostics import Collector, Label, warning
from o2cc.policy.model import BehindGrant, Grant, PernetGrant, Scope, StructGrant, SymbolGrant
from o2cc.policy.ranges import subtract
from o2cc.policy.substitute import same_expression


def check_overlaps(grants: Sequence[Grant], collector: Collector) -> None:
    """Warn of each grant that another one repeats or contains.  Of two equal ones the later is reported."""
    groups: dict[tuple[str, str], list[Grant]] = {}
    for grant in grants:
        groups.setdefault(_subject(grant), []).append(grant)
    for (_, subject), group in groups.items():
        for index, grant in enumerate(group):
            for other_index, other in enumerate(group):
                if index == other_index or other.action is not grant.action:
                    continue
                equal = _contains(other, grant) and _contains(grant, other)
                if equal and other_index < index:
                    _report("O2C0231", f"{subject} is granted twice", grant, other, collector)
                    break
                if not equal and _contains(other, grant):
                    message = f"this grant of {subject} has no effect"
                    _report("O2C0233", message, grant, other, collector)
                    break


def _report(code: str, message: str, grant: Grant, other: Grant, collector: Collector) -> None:
    same = code == "O2C0231"
    label = "first granted here" if same else "this wider rule grants it already"
    collector.add(warning(code, message, grant.span, secondary=[Label(other.span, label)]))


def _subject(grant: Grant) -> tuple[str, str]:
    match grant:
        case StructGrant():
            return "struct", f"`struct {grant.struct}`"
        case SymbolGrant():
            return "symbol", f"`{grant.symbol}`"
        case PernetGrant():
            return "pernet", f"`{grant.variable}`"
        case BehindGrant():
            return "behind", f"`struct {grant.struct}`.`{grant.field}`"


def _contains(outer: Grant, inner: Grant) -> bool:
    """Whether ``outer`` grants everything that ``inner`` does."""
    if not _scope_contains(outer.scope, inner.scope):
        return False
    match outer, inner:
        case StructGrant(), StructGrant():
            return not subtract(inner.ranges, outer.ranges)
        case SymbolGrant(), SymbolGrant():
            return not subtract(
                [(inner.offset, inner.offset + inner.size)], [(outer.offset, outer.offset + outer.size)]
            )
        case PernetGrant(), PernetGrant():
            return outer.struct is None or (
                inner.struct is not None and not subtract(inner.ranges, outer.ranges)
            )
        case BehindGrant(), BehindGrant():
            return (
                outer.field == inner.field
                and same_expression(outer.start, inner.start)
                and same_expression(outer.length, inner.length)
            )
        case _:
            return False


def _scope_contains(outer: Scope | None, inner: Scope | None) -> bool:
    if outer is None:
        return True
    return inner is not None and set(inner.functions) <= set(outer.functions)
