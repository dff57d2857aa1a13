# SPDX-License-Identifier: Apache-2.0
"""One probe for several stores to the same object: their checks run together at the first of them.

A group is made of stores in one basic block whose base registers hold the same value (plus known offsets), with
nothing in between that could end the block early or make an answer stale.  The first store's site gets a check that
asks, silently, for the whole range of the group, and only if that is not allowed checks each store by itself, with
its own site number.  What is reported is what the single checks would report: an allowed range allows its parts.

It requires that violating stores are not skipped: the first store's probe cannot step over a later store.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.walk import MASK
from o2cc.kernel.description import Description, Function, Site
from o2cc.passes.checked_before import HARMLESS, harmless_functions, has_place, written_range
from o2cc.passes.graph import UnitIndex
from o2cc.passes.manager import CONTROL_FLOW, DESCRIPTION, VIOLATIONS_NOT_SKIPPED, Pass, PassContext
from o2cc.passes.sites import SiteLookup

TABLE = "store_groups"
FUNCTION = "check_store_group"
_MAXIMUM_LENGTH = 4096  # bytes; a longer range is hardly one object
_COLUMNS = (("displacement", 8), ("size", 4), ("site", 4), ("count", 4))


@dataclass(frozen=True)
class MergeChecks(Pass):
    """Decides the stores of one value in one block at the first of them.

    `check` is the function that decides and reports one store, `decide` the one that only decides; both take
    address, size, site, and then the same registers.  `maximum` bounds a group.
    """

    check: str = "check_store"
    decide: str = "store_verdict"
    maximum: int = 16
    harmless: tuple[str, ...] = HARMLESS

    requires = frozenset({DESCRIPTION, CONTROL_FLOW, VIOLATIONS_NOT_SKIPPED})
    provides = frozenset({"checks-merged"})

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        arity = {function.name: len(function.parameters) for function in module.functions}
        if FUNCTION in arity or not {self.check, self.decide} <= arity.keys():
            return module
        shapes = {check.name: shape for check in module.checks if (shape := _shape(check, self.check))}
        if arity[self.check] != arity[self.decide] or not shapes:
            return module
        others = next(iter(shapes.values())).others
        bases = {name: shape.base for name, shape in shapes.items() if shape.others == others}
        groups = list(self._groups(module, context.units, bases))
        if not groups:
            return module
        rows: list[tuple[int, ...]] = []
        changed: dict[int, ir.Site] = {}
        used: set[str] = set()
        for group in groups:
            leader = group[0].site
            base = bases[leader.check]
            used.add(base)
            given = tuple(sorted((*leader.parameters, ("first", len(rows)))))
            changed[leader.number] = replace(leader, check=_group_name(base), parameters=given)
            for member in group[1:]:
                changed[member.site.number] = replace(member.site, covered_by=leader.number)
            rows.extend(_rows(group))
        return replace(
            module,
            tables=(*module.tables, ir.Table(TABLE, _COLUMNS, tuple(rows), len(rows))),
            functions=(*module.functions, self._function(others)),
            checks=(*module.checks, *(_group_check(base, others) for base in sorted(used))),
            sites=tuple(changed.get(site.number, site) for site in module.sites),
        )

    def _groups(
        self, module: ir.Module, units: UnitIndex, bases: Mapping[str, str]
    ) -> Iterator[list[_Member]]:
        """Groups of at least two stores, in the order of their first ones."""
        target = units.target
        harmless = harmless_functions(units, frozenset(self.harmless))
        lookup = SiteLookup(target)
        members: dict[str, dict[int, _Member]] = {}
        for site in module.sites:
            found = lookup(site)
            member = _member(site, found[1], bases) if found is not None else None
            if found is not None and member is not None and not found[0].problems:
                members.setdefault(site.function, {})[site.offset] = member
        for function in target.functions:
            if function.name in members and target.function_by_name[function.name] is function:
                yield from self._groups_of(target, function, members[function.name], harmless)

    def _groups_of(
        self,
        target: Description,
        function: Function,
        members: Mapping[int, _Member],
        harmless: frozenset[str],
    ) -> Iterator[list[_Member]]:
        defined = _definitions(target, function)
        finished: list[list[_Member]] = []
        offsets = sorted({site.offset for site in function.sites} | defined.keys())
        for block in function.blocks:
            faults = {offset for offset, _ in block.faults}
            group: dict[int, list[_Member]] = {}
            for offset in sorted(
                {*offsets[bisect_left(offsets, block.start) : bisect_left(offsets, block.end)], *faults}
            ):
                if offset in faults:
                    group.clear()
                    continue
                member = members.get(offset)
                if member is not None:
                    started = group.get(member.value)
                    if started is None or not self._fits(started, member):
                        started = group[member.value] = []
                        finished.append(started)
                    started.append(member)
                place = function.site_by_offset.get(offset)
                if (
                    place is not None
                    and place.kind in ("call", "indirect_call")
                    and place.target not in harmless
                ):
                    group.clear()
                for value in defined.get(offset, ()):
                    group.pop(value, None)
        yield from (group for group in finished if len(group) > 1)

    def _fits(self, group: list[_Member], member: _Member) -> bool:
        ends = [m.start + m.place.size for m in (*group, member)]
        length = max(ends) - min(m.start for m in (*group, member))
        same_height = group[0].place.stack_height == member.place.stack_height
        return len(group) < self.maximum and same_height and length <= _MAXIMUM_LENGTH

    def _function(self, others: tuple[str, ...]) -> ir.Function:
        """``check_store_group(base, first, registers...)``: row `first` of the table is the whole range, its `count`
        rows follow."""
        code = Builder()
        base, first = ir.Value("base"), ir.Value("first")
        registers = [ir.Value(name) for name in others]
        displacement = code.load(TABLE, first, "displacement")
        size = code.load(TABLE, first, "size")
        site = code.load(TABLE, first, "site")
        count = code.load(TABLE, first, "count")
        whole = code.call(self.decide, code.add(base, displacement), size, site, *registers)
        code.branch(whole, "each", "good")
        code.start("good")
        code.decide(ir.Verdict.ALLOW)
        code.start("each")
        row, worst = code.assign("row", 0), code.assign("worst", 0)
        code.jump("next")
        code.start("next")
        code.branch(code.binary(ir.BinaryOperator.ULT, row, self.maximum), "bound", "done")
        code.start("bound")
        code.branch(code.binary(ir.BinaryOperator.ULT, row, count), "inspect", "done")
        code.start("inspect")
        following = code.add(row, 1)
        index = code.add(first, following)
        address = code.add(base, code.load(TABLE, index, "displacement"))
        member = code.load(TABLE, index, "size"), code.load(TABLE, index, "site")
        answer = code.call(self.check, address, *member, *registers)
        denied = code.binary(ir.BinaryOperator.EQ, worst, ir.Verdict.DENY.code)
        worse = code.select(answer, answer, worst)
        code.assign("worst", code.select(denied, worst, worse))
        code.assign("row", following)
        code.jump("next")
        code.start("done")
        code.give_back(worst)
        return ir.Function(FUNCTION, ("base", "first", *others), code.finish())


@dataclass(frozen=True)
class _Member:
    """A store that may be in a group: its first byte is `start` from `value`, its base register `base_offset`."""

    site: ir.Site
    place: Site
    value: int
    start: int
    base_offset: int


def _member(site: ir.Site, place: Site, bases: Mapping[str, str]) -> _Member | None:
    written = written_range(place)
    operand = place.operand
    if (
        site.kind is not ir.SiteKind.STORE
        or site.covered_by is not None
        or written is None
        or operand is None
    ):
        return None
    wanted = {"displacement": operand.displacement & MASK, "size": place.size, "site": site.number}
    if bases.get(site.check) != operand.base or dict(site.parameters) != wanted:
        return None
    value, (start, _) = written
    return _Member(site, place, value, start, place.value_offset)


def _rows(group: list[_Member]) -> list[tuple[int, ...]]:
    """The rows of a group: the whole range with the number of stores, then each store."""
    base = group[0].base_offset
    low = min(member.start for member in group)
    high = max(member.start + member.place.size for member in group)
    rows: list[tuple[int, ...]] = [((low - base) & MASK, high - low, group[0].site.number, len(group))]
    rows += [((m.start - base) & MASK, m.place.size, m.site.number, 1) for m in group]
    return rows


def _definitions(target: Description, function: Function) -> dict[int, list[int]]:
    """Which values are defined at which instructions of a function."""
    owner = target.function_by_name.get(function.parent or function.name, function)
    found: dict[int, list[int]] = {}
    for value, source in enumerate(owner.values):
        if has_place(source) and source.function in (None, function.name):
            found.setdefault(source.site, []).append(value)
    return found


@dataclass(frozen=True)
class _Shape:
    """A check of the form ``return check(reg + param displacement, param size, param site, registers...)``."""

    base: str
    others: tuple[str, ...]


def _shape(check: ir.Check, function: str) -> _Shape | None:
    """The form of a check, or None if it does anything else."""
    if len(check.blocks) != 1:
        return None
    block = check.blocks[0]
    parts: dict[ir.Operand, ir.Instruction] = {}
    for instruction in block.instructions:
        if not isinstance(instruction, ir.Register | ir.Parameter | ir.Call | ir.Binary):
            return None
        parts[instruction.result] = instruction
    end = block.terminator
    called = parts.pop(end.value, None) if isinstance(end, ir.Return) else None
    if not isinstance(called, ir.Call) or called.function != function or len(called.arguments) < 3:
        return None
    if any(isinstance(part, ir.Call) for part in parts.values()):
        return None
    address, size, site, *rest = (parts.get(argument) for argument in called.arguments)
    if not isinstance(address, ir.Binary) or address.operator is not ir.BinaryOperator.ADD:
        return None
    base = parts.get(address.left)
    if [_read(size), _read(site)] != ["param size", "param site"]:
        return None
    if not isinstance(base, ir.Register) or _read(parts.get(address.right)) != "param displacement":
        return None
    others = tuple(part.register for part in rest if isinstance(part, ir.Register))
    return _Shape(base.register, others) if len(others) == len(rest) else None


def _read(instruction: ir.Instruction | None) -> str:
    if isinstance(instruction, ir.Register):
        return f"reg {instruction.register}"
    return f"param {instruction.name}" if isinstance(instruction, ir.Parameter) else ""


def _group_name(base: str) -> str:
    return f"store_{base}_group"


def _group_check(base: str, others: tuple[str, ...]) -> ir.Check:
    code = Builder()
    first = code.parameter("first")
    registers = [code.register(name) for name in others]
    code.give_back(code.call(FUNCTION, code.register(base), first, *registers))
    return ir.Check(_group_name(base), code.finish())
