# SPDX-License-Identifier: Apache-2.0
"""Stores to memory that a check on every path to them has just allowed.

For a store to bytes [a, b) of a value, every path back from it must come to a checked store of at least these
bytes of the same value, before it comes to anything that could make the answer stale:

* the entry of the unit, or a block that may be entered from elsewhere;
* a call, direct or not, of anything but `harmless` functions: it may free the object or give a capability back;
* the place where the value is defined, since before it the same number stands for another object; a value whose
  definition has no known place is given up on every edge along which code may run again.  (A definition is on
  every path to its uses, so that the search ends there at the latest; the rule does not lean on that.)

The covering stores may themselves be discharged by this pass.  INVARIANT: of the discharged stores of a run, take
the one that runs first; the store that covers it ran before it and so is checked.  Each later one is covered by
a checked store, or by one that a checked store covered, with nothing stale in between.

The pass requires that a violating store is not skipped: when it is, and the code goes on, the first store's check
has run and said no, and the second store would go through.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Function, Site, ValueSource
from o2cc.passes.graph import Graph, Node, UnitIndex
from o2cc.passes.manager import CONTROL_FLOW, DESCRIPTION, VIOLATIONS_NOT_SKIPPED, Pass, PassContext
from o2cc.passes.sites import KEPT_FLOW, Proof, SiteLookup, discharge, is_plain

# Kernel functions that neither free nor sleep nor call back: plain loops over memory, and what the compiler and
# the build put in (arch/x86/lib, lib/string.c, lib/list_debug.c, 6.1 and 6.12).
HARMLESS = (
    *("__fentry__", "__x86_return_thunk", "memcpy", "memmove", "memset", "__memcpy", "__memmove", "__memset"),
    *("memcmp", "memchr", "strcmp", "strncmp", "strlen", "strnlen", "csum_partial"),
    *("__list_add_valid", "__list_del_entry_valid"),
    *("__list_add_valid_or_report", "__list_del_entry_valid_or_report"),
)

_CALLS = ("call", "indirect_call")
_LEAVES = ("call", "tail_call")
_NEVER_REDEFINED = ("argument", "static", "stack", "constant")
_EVERYTHING = -1

Span = tuple[int, int]
Store = tuple[str, int]


@dataclass(frozen=True)
class DischargeCheckedBefore(Pass):
    """Discharges stores that an earlier check covers on every path.

    `harmless` are kernel functions whose call leaves memory and capabilities as they are; own functions that call
    nothing else count as well.
    """

    harmless: tuple[str, ...] = HARMLESS

    requires = frozenset({DESCRIPTION, CONTROL_FLOW, VIOLATIONS_NOT_SKIPPED})
    provides = frozenset({"checked-before"})

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        target = context.target
        index = context.units
        harmless = harmless_functions(index, frozenset(self.harmless))
        lookup = SiteLookup(target)
        checked: dict[str, set[Store]] = {}
        for site in module.sites:
            found = lookup(site)
            if site.kind is ir.SiteKind.STORE and found is not None and written_range(found[1]) is not None:
                checked.setdefault(index.owner(found[0]), set()).add((site.function, site.offset))
        covers: dict[Store, frozenset[Store]] = {}
        for owner, stores in checked.items():
            graph = index.graph(owner)
            if graph is not None:
                covers.update(_Unit(index.parts[owner], graph, stores, harmless).search())

        def prove(site: ir.Site, _function: Function, _place: Site) -> Proof | None:
            if (site.function, site.offset) not in covers:
                return None
            return Proof(_told((site.function, site.offset), covers), (KEPT_FLOW, *_PREMISES))

        return discharge(module, target, "checked-before", prove)


_PREMISES = (
    "a check that finds a violation reports it, and the store that it belongs to happens",
    "no check of the covering stores is missed (missed ones are counted by site)",
    "what another CPU frees in between is not seen, as between any check and its store",
)


def harmless_functions(index: UnitIndex, given: frozenset[str]) -> frozenset[str]:
    """The given names and those own functions that call, or jump to, nothing but harmless functions."""
    wanted: dict[str, set[str]] = {}
    for owner, parts in index.parts.items():
        if any(part.problems or part.ambiguous for part in parts) or len({p.name for p in parts}) != len(
            parts
        ):
            continue
        sites = [site for part in parts for site in part.sites]
        if any(site.kind in ("indirect_call", "indirect_jump") for site in sites):
            continue
        if any(site.kind in _LEAVES and site.target is None for site in sites):
            continue
        names = {part.name for part in parts}
        wanted[owner] = {site.target for site in sites if site.kind in _LEAVES and site.target is not None}
        wanted[owner] |= {name for part in parts for block in part.blocks for name, _ in block.jumps}
        wanted[owner] -= names
    found = set(given - {part.name for parts in index.parts.values() for part in parts})
    changed = True
    while changed:
        new = {owner for owner, names in wanted.items() if owner not in found and names <= found}
        found |= new
        changed = bool(new)
    return frozenset(found)


def has_place(source: ValueSource) -> bool:
    """Whether `site` says where a value is defined (loads: where the description gives it)."""
    if source.kind in ("load", "per_cpu"):
        return source.site != 0 or source.function is not None
    return source.kind in ("call", "merge", "unknown")


def written_range(place: Site) -> tuple[int, Span] | None:
    """The value whose bytes a store writes, and which; None if that is not known."""
    operand = place.operand
    if operand is None or not is_plain(place) or place.value is None:
        return None
    if operand.base is None or operand.segment is not None or operand.static is not None:
        return None
    start = place.value_offset + operand.displacement
    return place.value, (start, start + place.size)


@dataclass(frozen=True, slots=True)
class _Event:
    """Something at an instruction: a checked store of bytes of a value, or a `loss` of what is known.

    ``value`` `_EVERYTHING` with a loss: of every value.
    """

    offset: int
    value: int
    span: Span = (0, 0)
    store: Store | None = None


@dataclass
class _Unit:
    """The search in one unit."""

    parts: list[Function]
    graph: Graph
    checked: set[Store]
    harmless: frozenset[str]
    _events: dict[Node, list[_Event]] = field(init=False)
    _sources: Mapping[int, ValueSource] = field(init=False)

    def __post_init__(self) -> None:
        self._sources = dict(enumerate(next((p.values for p in self.parts if p.values), ())))
        losses = self._definitions()
        self._events = {}
        sites = {(part.name, site.offset): site for part in self.parts for site in part.sites}
        offsets: dict[str, list[int]] = {}
        for name, offset in {*sites, *losses}:
            offsets.setdefault(name, []).append(offset)
        ordered = {name: sorted(found) for name, found in offsets.items()}
        for (name, start), block in self.graph.blocks.items():
            events: list[_Event] = [_Event(start, value) for value in losses.get((name, start), ())]
            places = ordered.get(name, [])
            for offset in places[bisect_left(places, start) : bisect_left(places, block.end)]:
                place = sites.get((name, offset))
                written = (
                    written_range(place) if place is not None and (name, offset) in self.checked else None
                )
                if written is not None:
                    events.append(_Event(offset, written[0], written[1], (name, offset)))
                if place is not None and place.kind in _CALLS and place.target not in self.harmless:
                    events.append(_Event(offset, _EVERYTHING))
                events.extend(_Event(offset, value) for value in losses.get((name, offset), ()))
            self._events[name, start] = events

    def _definitions(self) -> dict[Store, list[int]]:
        """Which values are defined at which instructions (or at the start of which blocks)."""
        found: dict[Store, list[int]] = {}
        for value, source in self._sources.items():
            if has_place(source):
                names = [source.function] if source.function else [part.name for part in self.parts]
                for name in names:
                    found.setdefault((name, source.site), []).append(value)
        return found

    def search(self) -> dict[Store, frozenset[Store]]:
        """For each store that is covered on every path, the stores that cover it."""
        found: dict[Store, frozenset[Store]] = {}
        for node, events in self._events.items():
            for position, event in enumerate(events):
                if event.store is not None:
                    covering = self._covering(node, position, event)
                    if covering is not None:
                        found[event.store] = covering
        return found

    def _covering(self, node: Node, position: int, wanted: _Event) -> frozenset[Store] | None:
        source = self._sources.get(wanted.value)
        if source is None:
            return None
        keeps_going_back = source.kind in _NEVER_REDEFINED or has_place(source)
        order = self.graph.order
        covering: set[Store] = set()
        seen: set[tuple[Node, int]] = set()
        work = [(node, position)]
        while work:
            node, position = work.pop()
            answer = self._back(self._events[node][:position], wanted)
            if isinstance(answer, tuple):
                covering.add(answer)
                continue
            if answer is False or node in self.graph.entries:
                return None
            for edge in self.graph.incoming[node]:
                before = order.get(edge.source)
                if before is None or (order[node] <= before and not keeps_going_back):
                    return None
                step = (edge.source, self._end(edge.source, edge.at))
                if edge.at is not None and self._lost_at(edge.source, edge.at, wanted.value):
                    return None
                if step not in seen:
                    seen.add(step)
                    work.append(step)
        return frozenset(covering)

    @staticmethod
    def _back(events: list[_Event], wanted: _Event) -> Store | bool:
        """The covering store among events, the last one first; False if what was known is lost before, True if
        neither happens."""
        for event in reversed(events):
            if event.store is None:
                if event.value in (_EVERYTHING, wanted.value):
                    return False
            elif (
                event.value == wanted.value
                and event.span[0] <= wanted.span[0]
                and wanted.span[1] <= event.span[1]
            ):
                return event.store
        return True

    def _end(self, node: Node, at: int | None) -> int:
        """How many events of a block have happened when control leaves it (before the instruction `at`)."""
        events = self._events[node]
        return len(events) if at is None else sum(1 for event in events if event.offset < at)

    def _lost_at(self, node: Node, at: int, value: int) -> bool:
        """Whether the instruction that faulted defines the value or calls."""
        return any(
            event.offset == at and event.store is None and event.value in (_EVERYTHING, value)
            for event in self._events[node]
        )


def _told(store: Store, covers: Mapping[Store, frozenset[Store]]) -> str:
    """Which checks stand behind a discharged store: through other discharged ones to those that stay."""
    final: set[Store] = set()
    seen = {store}
    work = [store]
    while work:
        for other in covers[work.pop()]:
            if other not in covers:
                final.add(other)
            elif other not in seen:
                seen.add(other)
                work.append(other)
    names = [f"{name}+{offset:#x}" for name, offset in sorted(final)]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"on every path the check at {shown} has allowed these bytes, and nothing since could free them"
