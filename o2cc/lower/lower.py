# SPDX-License-Identifier: Apache-2.0
"""Checked policy and description to IR: every instruction that needs a decision becomes a site with a check.

`lower` is pure.  It makes a site for everything that it cannot prove by looking at the instruction alone; the
passes then discharge what the code around it proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from o2cc.diagnostics import Diagnostic, SourceFile, warning
from o2cc.ir import nodes as ir
from o2cc.ir.parser import parse_library
from o2cc.kernel.description import Description
from o2cc.lower import generated
from o2cc.lower.audition import audition_parts
from o2cc.lower.behind import NAMESPACE, behind_parts, grants_of, with_room
from o2cc.lower.constants import kernel_constants, merged
from o2cc.lower.context import Lowering, Unchecked
from o2cc.lower.entries import lower_entry
from o2cc.lower.gates import lower_calls
from o2cc.lower.heap import PrivateHeap, library_part, own_memory_is_plain, private_heap
from o2cc.lower.indirect import check_arguments, lower_indirect, target_gates
from o2cc.lower.phases import transition_constants
from o2cc.lower.places import layout_table, return_table, target_table
from o2cc.lower.rules import (
    cache_table,
    classify_functions,
    grant_table,
    instance_table,
    instances,
    number_types,
)
from o2cc.lower.stores import lower_stores
from o2cc.lower.targets import OpsTables, kernel_targets, ops_targets, own_targets
from o2cc.policy.model import CheckedPolicy

if TYPE_CHECKING:
    from o2cc.trees.tree import IntegerTree

_COMMON = (
    "state",
    "known",
    "address",
    "store",
    "report",
    "capability",
    "ranges",
    "predicates",
    "audition",
    "hooks",
)
_PLACES = 12
"""Places without a probe that a warning names for each reason."""
LIBRARY = (*_COMMON, "private_heap", "tracked_heap")
"""All parts of the library; a module has the common ones and one of the last two."""

# result: what a denied call returns, a signed number.
_SITE_COLUMNS = (("scopes", 8), ("height", 2), ("result", 2), ("saved", 1), ("bp_slot", 1), ("action", 1))


@dataclass(frozen=True)
class Lowered:
    """A module, what cannot be checked at all, what the engineer should know, which modules' tables the loader must look
    up, and the private heap if there is one."""

    module: ir.Module
    unchecked: tuple[Unchecked, ...]
    warnings: tuple[Diagnostic, ...]
    ops_targets: tuple[OpsTables, ...]
    heap: PrivateHeap | None


def lower(
    policy: CheckedPolicy,
    description: Description,
    library: dict[str, SourceFile],
    tree: IntegerTree | None = None,
) -> Lowered:
    """The module of a policy for one target.  ``library`` has the library's texts by stem; ``tree`` is that of the
    policy's audition.

    Raises DiagnosticError (O2C0510: the description lacks a fact; O2C0511: a limit is exceeded; O2C0512: call targets
    that nothing can list).
    """
    types = number_types(policy, description)
    scopes = classify_functions(policy)
    lowering = Lowering(policy, description, types, scopes, target_gates(policy))
    for function in description.functions:
        if function.initial:
            continue
        lower_entry(lowering, function)
        lower_stores(lowering, function)
        lower_indirect(lowering, function)
        lower_calls(lowering, function)
    return _assemble(lowering, library, tree)


def _assemble(lowering: Lowering, library: dict[str, SourceFile], tree: IntegerTree | None) -> Lowered:
    policy, description = lowering.policy, lowering.description
    named = instances(policy, description, lowering.types, lowering.scopes)
    outside = kernel_targets(lowering)
    tables_of_modules = ops_targets(lowering)
    returns, return_probes = return_table(description)
    targets, target_probes = target_table(description, own_targets(lowering))
    grants = grant_table(policy, lowering.types, lowering.scopes)
    caches = cache_table(lowering.types)
    resolve, lost = generated.resolve_symbols(lowering, named, outside)
    behind, behind_hooks = behind_parts(lowering)
    judges, judge_tables, judge_constants = audition_parts(lowering, tree)
    constants = merged(
        judge_constants,
        kernel_constants(description.kernel, description.release),
        {
            **transition_constants(policy),
            "const(SITES)": max(1, len(lowering.sites)),
            "const(SECTIONS)": len(description.sections),
            "const(RETURN_MASK)": returns.length - 1,
            "const(RETURN_PROBES)": return_probes,
            "const(TARGET_MASK)": targets.length - 1,
            "const(TARGET_PROBES)": target_probes,
            "const(GRANTS)": len(grants.rows),
            "const(CACHES)": len(caches.rows),
            "const(INSTANCES)": len(named),
            "const(KERNEL_TARGETS)": len(outside),
            "const(KERNEL_CALLBACKS)": len(policy.kernel_callbacks),
            "const(PRIVATE_PLAIN)": int(own_memory_is_plain(policy)),
        },
    )
    parts = [parse_library(library[name], constants) for name in (*_COMMON, library_part(policy))]
    tables = (
        ir.Table("sites", _SITE_COLUMNS, tuple(lowering.rows), max(1, len(lowering.rows))),
        layout_table(description),
        returns,
        targets,
        grants,
        caches,
        instance_table(named),
        ir.Table(
            "kernel_callbacks", (("address", 8),), (), max(1, len(policy.kernel_callbacks)), writable=True
        ),
        ir.Table(
            "kernel_targets",
            (("address", 8), ("scopes", 8), ("gate", 8)),
            tuple((0, t.scopes, t.gate) for t in outside),
            max(1, len(outside)),
            writable=True,
        ),
    )
    functions = (
        generated.is_slab(lowering),
        generated.preempt_count(lowering),
        generated.per_cpu_cookie(lowering),
        resolve,
        *behind,
        *judges,
        *([check_arguments(lowering)] if lowering.target_gates else []),
    )
    module = ir.Module(
        name=policy.name,
        identity=(
            ("release", description.release),
            ("target", description.target.name),
            ("kind", description.target.kind),
            ("build_id", description.target.build_id),
            ("srcversion", description.target.srcversion),
            ("kernel_build_id", description.kernel.build_id),
        ),
        maps=tuple(with_room(lowering, (m for part in parts for m in part.maps))),
        tables=(*(t for part in parts for t in part.tables), *tables, *judge_tables),
        functions=(*functions, *(f for part in parts for f in part.functions)),
        checks=tuple(lowering.checks.values()),
        sites=tuple(lowering.sites),
        hooks=(*(h for part in parts for h in part.hooks), *behind_hooks),
        discharged=tuple(lowering.discharged),
    )
    return Lowered(
        module,
        tuple(lowering.unchecked),
        _warnings(lowering, lost),
        tables_of_modules,
        private_heap(lowering),
    )


def _is_given(policy: CheckedPolicy, struct: str) -> bool:
    """Whether an entry gets an object of this struct."""
    return any(parameter.type.struct == struct for entry in policy.entries for parameter in entry.parameters)


def _named(places: list[str]) -> str:
    rest = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    return f"{', '.join(places[:_PLACES])}{rest}"


def _warnings(lowering: Lowering, lost: tuple[str, ...]) -> tuple[Diagnostic, ...]:
    found: list[Diagnostic] = []
    for symbol in lost:
        grant = next((g for g in lowering.policy.grants if getattr(g, "symbol", None) == symbol), None)
        found.append(
            warning(
                "O2C0520",
                f"the address of `{symbol}` cannot be found at run time, so that the grant has no effect",
                grant.span if grant else None,
                help="grant a symbol whose section has a symbol that is unique in the kernel",
            )
        )
    namespaces = next((grant for _, grant in grants_of(lowering, NAMESPACE)), None)
    if namespaces is not None and not _is_given(lowering.policy, NAMESPACE):
        found.append(
            warning(
                "O2C0522",
                "what a network namespace leads to is known only for those that are there at loading",
                namespaces.span,
                help="`entries of struct pernet_operations` lets the compartment see new ones",
            )
        )
    if lowering.unchecked:
        by_reason: dict[str, list[str]] = {}
        for place in sorted(lowering.unchecked, key=lambda item: (item.function, item.offset)):
            by_reason.setdefault(place.reason, []).append(f"`{place.function}+{place.offset:#x}`")
        count = len(lowering.unchecked)
        found.append(
            warning(
                "O2C0521",
                "1 place needs a decision and cannot carry a probe"
                if count == 1
                else f"{count:,} places need a decision and cannot carry a probe",
                lowering.policy.span,
                notes=tuple(f"{reason}: {_named(places)}" for reason, places in sorted(by_reason.items())),
                help="what they do is not checked; `o2c explain FUNCTION+OFFSET` says more of one",
            )
        )
    return tuple(found)
