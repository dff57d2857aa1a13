# SPDX-License-Identifier: Apache-2.0
"""Stores to the compartment's own static data at an address that is fixed when the module is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description, Function, Section, Site, StaticAddress, Symbol
from o2cc.passes.manager import DESCRIPTION, Pass, PassContext
from o2cc.passes.sites import Proof, discharge, is_plain

_PREMISE = "the module's sections lie in memory as they lie in its file"


@dataclass(frozen=True)
class DischargeStaticData(Pass):
    """Discharges stores to own data at a fixed address.

    These are rip-relative stores into own writable sections, and gs-relative ones into own per-CPU data.

    Sections of a module: ``.data*`` and ``.bss*`` that stay writable after initialization; where a symbol covers
    the place the whole range must be inside it.  For built-in code nothing is own by itself: only the symbols of
    `PassContext.own_symbols`, with the sizes that the description gives.
    """

    requires = frozenset({DESCRIPTION})
    provides = frozenset({"static-data"})

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        target = context.target
        objects = _objects(target)

        def prove(_site: ir.Site, _function: Function, place: Site) -> Proof | None:
            return _prove(target, objects, context, place)

        return discharge(module, target, "static-data", prove)


def _objects(target: Description) -> dict[str, list[Symbol]]:
    found: dict[str, list[Symbol]] = {}
    for symbol in target.symbols:
        if symbol.is_object and symbol.size > 0:
            found.setdefault(symbol.section, []).append(symbol)
    return found


def _prove(
    target: Description, objects: dict[str, list[Symbol]], context: PassContext, place: Site
) -> Proof | None:
    operand = place.operand
    if operand is None or not is_plain(place) or operand.base is not None:
        return None
    address = operand.static
    if address is None or operand.segment not in (None, "gs"):
        return None
    start = address.offset + operand.displacement
    if target.target.kind == "builtin":
        return _prove_symbol(target, context.own_symbols, address, start, place.size, operand.segment)
    section = target.section_by_name.get(address.section or "")
    if section is None or not _is_own_data(section, operand.segment):
        return None
    end = start + place.size
    if start < 0 or end > section.size:
        return None
    covering = [s for s in objects.get(section.name, ()) if s.offset < end and start < s.offset + s.size]
    if any(not (s.offset <= start and end <= s.offset + s.size) for s in covering):
        return None
    if any(s.name in context.aiming_symbols for s in covering):
        return None  # the check denies it: what a grant reaches hangs on it
    where = f"`{covering[0].name}` in section `{section.name}`" if covering else f"section `{section.name}`"
    kind = "own per-CPU data" if section.per_cpu else "own data"
    return Proof(f"writes {place.size} bytes of {where}, {kind} at a fixed address", (_PREMISE,))


def _is_own_data(section: Section, segment: str | None) -> bool:
    named = section.name.startswith((".data", ".bss"))
    kept = section.writable and not (section.after_init_readonly or section.executable or section.initial)
    return named and kept and section.per_cpu == (segment == "gs")


def _prove_symbol(
    target: Description,
    own_symbols: frozenset[str],
    address: StaticAddress,
    start: int,
    size: int,
    segment: str | None,
) -> Proof | None:
    symbol = target.symbol_by_name.get(address.symbol or "")
    if symbol is None or symbol.name not in own_symbols or segment is not None or symbol.ambiguous:
        return None
    offset = start - symbol.offset if address.section is not None else start
    if not 0 <= offset <= symbol.size - size:
        return None
    return Proof(f"writes {size} bytes of `{symbol.name}`, which the policy grants as a whole")
