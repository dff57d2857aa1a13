# SPDX-License-Identifier: Apache-2.0
"""Grants as tables: which bytes of which types a site may write.

Types are bits of a 64-bit mask.  An object whose type is `T` also has the type of every struct that lies at T's
offset 0 (an ``sctp_sock`` is an ``inet_sock`` is a ``sock``).  Functions that the same scoped rules speak of form
a *scope class*; a grant row holds the mask of the classes that it is for.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from o2cc.diagnostics import DiagnosticError, error
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.kernel.description import Description
from o2cc.kernel.type_table import TypeTable
from o2cc.lower.caches import CACHE_STRUCTS, INSTANCES, NAME_COLUMNS, SOCKET_BASES, name_words
from o2cc.lower.places import symbol_address
from o2cc.policy.model import CheckedPolicy, Scope, StructGrant, SymbolGrant
from o2cc.policy.ranges import decide, normalize

MAXIMUM_TYPES = 64
MAXIMUM_CLASSES = 64


@dataclass(frozen=True)
class Types:
    """Masks of the types that the policy numbers."""

    bits: Mapping[str, int]
    table: TypeTable

    def mask(self, struct: str | None) -> int:
        """Mask of a struct and of the structs at its offset 0, as far as the policy numbers them."""
        mask = 0
        seen: set[str] = set()
        while struct is not None and struct not in seen:
            seen.add(struct)
            mask |= self.bits.get(struct, 0)
            layout = self.table.struct_by_name.get(struct)
            first = next((m for m in layout.members if m.offset_bits == 0), None) if layout else None
            struct = first.type.name if first is not None and first.type.kind == "struct" else None
        return mask

    def mask_of_all(self, structs: Iterable[str]) -> int:
        """Mask of several structs together."""
        return functools.reduce(operator.or_, map(self.mask, structs), 0)


def number_types(policy: CheckedPolicy, description: Description) -> Types:
    """Raises DiagnosticError (O2C0511) when the policy names more types than a mask holds."""
    if len(policy.types) > MAXIMUM_TYPES:
        raise DiagnosticError(
            error(
                "O2C0511",
                f"this policy names {len(policy.types)} struct types; a compartment can have {MAXIMUM_TYPES}",
                policy.span,
                help="grant fewer structs, or split the compartment",
            )
        )
    return Types({t.struct: 1 << index for index, t in enumerate(policy.types)}, description.types)


ScopedRule = tuple[str, int]  # ("grant" | "icall", index in the policy)


@dataclass(frozen=True)
class Scopes:
    """Scope class of every function; class 0 is that of functions that no scoped rule speaks of."""

    classes: tuple[frozenset[ScopedRule], ...]  # per class: the scoped rules that speak of it
    representative: tuple[str | None, ...]
    of_function: Mapping[str, int]

    def mask(self, function: str) -> int:
        """The bit of the class of a function."""
        return 1 << self.of_function.get(function, 0)

    def mask_of_rule(self, rule: ScopedRule, scope: Scope | None) -> int:
        """The bits of the classes that a rule is for."""
        return sum(1 << n for n, members in enumerate(self.classes) if scope is None or rule in members)


def classify_functions(policy: CheckedPolicy) -> Scopes:
    """Raises DiagnosticError (O2C0511) when there are more classes than a mask holds."""
    memberships: dict[str, set[ScopedRule]] = {}
    rules = [(("grant", index), grant.scope) for index, grant in enumerate(policy.grants)]
    rules += [(("icall", index), targets.scope) for index, targets in enumerate(policy.scoped_indirect)]
    for rule, scope in rules:
        for function in scope.functions if scope else ():
            memberships.setdefault(function, set()).add(rule)
    classes: list[frozenset[ScopedRule]] = [frozenset()]
    representative: list[str | None] = [None]
    of_function: dict[str, int] = {}
    for function in sorted(memberships):
        members = frozenset(memberships[function])
        if members not in classes:
            classes.append(members)
            representative.append(function)
        of_function[function] = classes.index(members)
    if len(classes) > MAXIMUM_CLASSES:
        raise DiagnosticError(
            error(
                "O2C0511",
                f"the `in functions` blocks make {len(classes)} kinds of functions; there can be {MAXIMUM_CLASSES}",
                policy.span,
                help="use fewer overlapping `in functions` blocks",
            )
        )
    return Scopes(tuple(classes), tuple(representative), of_function)


def grant_table(policy: CheckedPolicy, types: Types, scopes: Scopes) -> ir.Table:
    """Rows (types, scopes, start, end): bytes [start, end) may be written at sites of these scope classes."""
    grants: Sequence[StructGrant] = [g for g in policy.grants if isinstance(g, StructGrant)]
    rows: dict[tuple[int, int, int], int] = {}
    for struct in sorted({g.struct for g in grants}):
        for number, function in enumerate(scopes.representative):
            allowed = normalize((d.start, d.end) for d in decide(grants, struct, function) if d.grant.allows)
            for start, end in allowed:
                key = (types.bits[struct], start, end)
                rows[key] = rows.get(key, 0) | 1 << number
    table_rows = tuple((key[0], mask, key[1], key[2]) for key, mask in sorted(rows.items()))
    columns = (("types", 8), ("scopes", 8), ("start", 4), ("end", 4))
    return searched_table("grants", columns, table_rows)


def searched_table(
    name: str, columns: tuple[tuple[str, int], ...], rows: tuple[tuple[int, ...], ...]
) -> ir.Table:
    """A table that a loop searches.  It counts as writable although nothing writes it: of constant data the BPF
    verifier knows the content, so that every comparison splits its states, and a search over 31 rows with two
    bounds exceeds its million instructions ("BPF program is too large", E2BIG)."""
    return ir.Table(name, columns, rows, max(1, len(rows)), writable=True)


def cache_table(types: Types) -> ir.Table:
    """Dedicated caches whose objects have a granted type: `NAME_COLUMNS`, types."""
    rows = tuple(
        (*name_words(name), mask)
        for name, struct in sorted(CACHE_STRUCTS.items())
        if (mask := types.mask_of_all((struct, *SOCKET_BASES.get(struct, ()))))
    )
    return searched_table("caches", (*NAME_COLUMNS, ("types", 8)), rows)


@dataclass(frozen=True)
class Instance:
    """A kernel object with a name: all of a granted symbol (types 0), or one whose type is known."""

    symbol: str
    offset: int
    size: int
    types: int
    scopes: int


def instances(
    policy: CheckedPolicy, description: Description, types: Types, scopes: Scopes
) -> tuple[Instance, ...]:
    """The named objects that the policy's grants reach."""
    found: list[Instance] = []
    for index, grant in enumerate(policy.grants):
        if isinstance(grant, SymbolGrant) and grant.allows:
            mask = scopes.mask_of_rule(("grant", index), grant.scope)
            found.append(Instance(grant.symbol, grant.offset, grant.size, 0, mask))
    for struct, names in sorted(INSTANCES.items()):
        layout = description.types.struct_by_name.get(struct)
        if layout is not None and types.mask(struct):
            found.extend(Instance(name, 0, layout.size, types.mask(struct), 0) for name in names)
    return tuple(found)


def instance_table(named: Sequence[Instance]) -> ir.Table:
    """Rows filled by ``resolve_symbols`` at run time."""
    columns = (("start", 8), ("end", 8), ("types", 8), ("scopes", 8))
    return ir.Table("instances", columns, (), max(1, len(named)), writable=True)


def emit_instances(code: Builder, description: Description, named: Sequence[Instance]) -> tuple[str, ...]:
    """Instructions that fill the table `instances`; the symbols that nothing can locate are given back."""
    lost: list[str] = []
    for row, instance in enumerate(named):
        symbol = symbol_address(code, description, instance.symbol)
        if symbol is None:
            lost.append(instance.symbol)
            continue
        present = code.binary(ir.BinaryOperator.NE, symbol, 0)
        start = code.add(symbol, instance.offset)
        end = code.add(start, instance.size)
        code.store("instances", row, "start", code.select(present, start, 0))
        code.store("instances", row, "end", code.select(present, end, 0))
        code.store("instances", row, "types", instance.types)
        code.store("instances", row, "scopes", instance.scopes)
    return tuple(lost)
