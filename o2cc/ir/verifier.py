# SPDX-License-Identifier: Apache-2.0
"""The rules that every module of the intermediate representation keeps; checked between passes.

`verify` returns everything that is wrong, `require_valid` raises it.  The rules are listed in docs/ir.md.
Limits of the kernel: 8 frames of calls (MAX_CALL_FRAMES, include/linux/bpf_verifier.h, 6.1 and 6.12), of which
a stub and its check take two; 5 parameters and names without a collision come from the BPF calling convention
and from one name space in the object.

Codes: O2C0502 two things of one name, O2C0503 a name that nothing has, O2C0504 use before definition,
O2C0505 an instruction in the wrong place, O2C0506 an entry that may be absent, O2C0507 wrong count or size,
O2C0508 a loop without bound, O2C0509 recursion or too deep calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from o2cc.diagnostics import Collector, Diagnostic, DiagnosticError, Span, did_you_mean, error
from o2cc.ir import nodes as ir
from o2cc.ir.flow import Place, check_definitions, check_handles
from o2cc.ir.loops import unbounded_loop
from o2cc.ir.printer import CONSTANT_PATTERN, NAME_PATTERN
from o2cc.ir.walk import (
    Body,
    block_spans,
    calls,
    instructions,
    operands,
    successors,
)

REGISTERS = frozenset(
    ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip", "flags")
)
"""Names that `Register` may read."""

MAXIMUM_PARAMETERS = 5
MAXIMUM_FRAMES = 8
MAXIMUM_KEY_WORDS = 8
_PAGE_SIZE = 4096
_WORD = 1 << 64
_SIZES = (1, 2, 4, 8)


def verify(module: ir.Module, valid: ir.Module | None = None) -> tuple[Diagnostic, ...]:
    """Everything that is wrong with a module; empty if it is sound.

    With `valid`, a module that is known to be sound: what is the same object in both is not looked at again.
    """
    verifier = _Verifier(module, valid)
    verifier.run()
    return tuple(verifier.errors.diagnostics)


def require_valid(module: ir.Module) -> None:
    """Raise `DiagnosticError` with everything that `verify` finds."""
    found = verify(module)
    if found:
        raise DiagnosticError(found)


_Named = TypeVar("_Named", ir.Map, ir.Table, ir.Function)


def _bodies(module: ir.Module) -> list[Body]:
    return [*module.functions, *module.checks, *module.hooks]


def _same_code(module: ir.Module, valid: ir.Module) -> bool:
    """Whether nothing but sites can differ from a valid module."""
    return (
        module.maps is valid.maps
        and module.tables is valid.tables
        and module.functions is valid.functions
        and module.checks is valid.checks
        and module.hooks is valid.hooks
    )


def _same_bodies(module: ir.Module, valid: ir.Module, called: Mapping[int, frozenset[str]]) -> frozenset[int]:
    """Identities of the tables and bodies of a module that are as they were in a valid one, and so is whatever
    they name.  ``called`` gives the functions that each body calls, by its identity."""
    tables = {id(table) for table in valid.tables}
    known = {id(table) for table in module.tables if id(table) in tables}
    names = {table.name for table in module.tables}
    if module.maps != valid.maps or not names >= {table.name for table in valid.tables}:
        return frozenset(known)
    if len(known) < len(valid.tables):
        return frozenset(known)
    arity = {function.name: len(function.parameters) for function in module.functions}
    before = {function.name: len(function.parameters) for function in valid.functions}
    moved = {name for name, count in before.items() if arity.get(name) != count}
    old = {id(body) for body in _bodies(valid)}
    known |= {id(body) for body in _bodies(module) if id(body) in old and moved.isdisjoint(called[id(body)])}
    return frozenset(known)


class _Verifier:
    def __init__(self, module: ir.Module, valid: ir.Module | None = None) -> None:
        self.errors = Collector()
        self._module = module
        self._valid = valid
        self._bodies = _bodies(module)
        self._called: dict[int, frozenset[str]] = {}
        self._maps = {m.name: m for m in module.maps}
        self._tables = {t.name: t for t in module.tables}
        self._functions = {f.name: f for f in module.functions}
        self._checks = {c.name: c for c in module.checks}

    def _report(self, code: str, message: str, place: Place, help: str | None = None) -> None:
        span = place.span or place.body.span
        self.errors.add(error(code, message, span, notes=(place.note(),), help=help))

    def _plain(self, code: str, message: str, span: Span | None = None, help: str | None = None) -> None:
        self.errors.add(error(code, message, span, help=help))

    def run(self) -> None:
        known: frozenset[int] = frozenset()
        if self._valid is not None and _same_code(self._module, self._valid):
            known = frozenset(id(check) for check in self._module.checks)
        else:
            known = self._code()
        self._sites(known)

    def _code(self) -> frozenset[int]:
        """Everything but the sites; gives the identities of what was known to be sound."""
        self._called = {id(body): calls(body) for body in self._bodies}
        known = (
            _same_bodies(self._module, self._valid, self._called) if self._valid is not None else frozenset()
        )
        self._names()
        for map_ in self._module.maps:
            self._map(map_)
        for table in self._module.tables:
            if id(table) not in known:
                self._table(table)
        for body in self._bodies:
            if id(body) not in known:
                self._body(body)
        self._call_graph()
        return known

    # --- names and data -----------------------------------------------------------------------------------

    def _names(self) -> None:
        module = self._module
        seen: dict[str, str] = {}
        groups: list[tuple[str, Iterable[tuple[str, Span | None]]]] = [
            ("map", [(m.name, None) for m in module.maps]),
            ("table", [(t.name, None) for t in module.tables]),
            ("function", [(f.name, f.span) for f in module.functions]),
            ("check", [(c.name, c.span) for c in module.checks]),
            ("hook", [(h.name, h.span) for h in module.hooks]),
        ]
        for kind, named in groups:
            for name, span in named:
                if not NAME_PATTERN.match(name) or name in ("offset", "size", "const") or "." in name:
                    self._plain("O2C0507", f"`{name}` cannot be the name of a {kind}", span)
                if name in seen:
                    self._plain("O2C0502", f"{kind} `{name}` has the name of a {seen[name]}", span)
                seen[name] = kind

    def _map(self, map_: ir.Map) -> None:
        name = map_.name
        self._distinct((*map_.key, *map_.fields), f"map `{name}`")
        if not map_.fields:
            self._plain("O2C0507", f"map `{name}` has no fields")
        if map_.kind is ir.MapKind.RING_BUFFER:
            size = map_.capacity
            if map_.key:
                self._plain("O2C0507", f"ring buffer `{name}` cannot have a key")
            if size < _PAGE_SIZE or size & (size - 1) or size >= 1 << 32:
                self._plain(
                    "O2C0507", f"the capacity of ring buffer `{name}` must be a power of two of at least 4096"
                )
            return
        if not 1 <= len(map_.key) <= MAXIMUM_KEY_WORDS:
            self._plain("O2C0507", f"map `{name}` needs a key of 1 to {MAXIMUM_KEY_WORDS} words")
        if not 1 <= map_.capacity < 1 << 32:
            self._plain("O2C0507", f"map `{name}` has a capacity outside 1 to 2^32 - 1")

    def _table(self, table: ir.Table) -> None:
        name = table.name
        self._distinct([column for column, _ in table.columns], f"table `{name}`")
        if not table.columns or table.length < 1:
            self._plain("O2C0507", f"table `{name}` is empty")
        for column, size in table.columns:
            if size not in _SIZES:
                self._plain(
                    "O2C0507", f"column `{column}` of table `{name}` must have 1, 2, 4 or 8 bytes, not {size}"
                )
        if table.resizable and (table.writable or table.rows):
            self._plain("O2C0507", f"resizable table `{name}` is neither written nor has it rows")
        if table.length < len(table.rows):
            self._plain("O2C0507", f"table `{name}` has {len(table.rows)} rows but the length {table.length}")
        limits = [1 << (8 * size) for _, size in table.columns]
        for number, row in enumerate(table.rows):
            if len(row) != len(limits):
                self._plain("O2C0507", f"row {number} of table `{name}` does not have {len(limits)} numbers")
            elif not all(0 <= value < limit for value, limit in zip(row, limits, strict=True)):
                self._plain(
                    "O2C0507", f"row {number} of table `{name}` has a number that its column cannot hold"
                )

    def _distinct(self, names: Iterable[str], owner: str) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                self._plain("O2C0502", f"{owner} has `{name}` twice")
            if not NAME_PATTERN.match(name) or "." in name:
                self._plain("O2C0507", f"{owner}: `{name}` cannot be a name")
            seen.add(name)

    # --- bodies -------------------------------------------------------------------------------------------

    def _body(self, body: Body) -> None:
        place = Place(body)
        if not body.blocks:
            self._report("O2C0507", f"`{body.name}` has no blocks", place)
            return
        names = [block.name for block in body.blocks]
        for name in sorted(
            {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
        ):
            self._report("O2C0502", f"two blocks are called `{name}`", place)
        before = len(self.errors.diagnostics)
        for block in body.blocks:
            if block.spans and len(block.spans) != len(block.instructions):
                self._report(
                    "O2C0507",
                    "the spans of a block must be parallel to its instructions",
                    Place(body, block.name),
                )
            for target in successors(block.terminator):
                if target not in names:
                    place = Place(body, block.name, block.terminator)
                    self._report(
                        "O2C0503", f"there is no block `{target}`", place, did_you_mean(target, names)
                    )
        if isinstance(body, ir.Function):
            self._distinct(body.parameters, f"function `{body.name}`")
            if len(body.parameters) > MAXIMUM_PARAMETERS:
                message = f"function `{body.name}` has {len(body.parameters)} parameters, more than 5"
                self._report("O2C0507", message, Place(body))
        if len(self.errors.diagnostics) > before or len(set(names)) < len(names):
            return
        check_definitions(body, self._report)
        check_handles(body, self._report)
        for block in body.blocks:
            for instruction, span in zip(block.instructions, block_spans(block), strict=False):
                self._instruction(instruction, Place(body, block.name, instruction, span))
            self._terminator(block.terminator, Place(body, block.name, block.terminator))
        loop = unbounded_loop(body)
        if loop is not None:
            self._report(
                "O2C0508",
                f"the loop through block `{loop}` has no bound",
                Place(body, loop),
                "count with one variable: `%n = add $i, 1`, `$i = %n`, and leave by `ult $i, 64`",
            )

    # --- single instructions ------------------------------------------------------------------------------

    def _instruction(self, instruction: ir.Instruction, bare: Place) -> None:
        place = Place(bare.body, bare.block, instruction, bare.span)
        for operand in operands(instruction):
            self._operand(operand, place)
        body = place.body
        match instruction:
            case ir.Register(_, register):
                allowed = isinstance(body, ir.Check) or (
                    isinstance(body, ir.Hook) and body.kind in (ir.HookKind.KPROBE, ir.HookKind.KRETPROBE)
                )
                if not allowed:
                    self._misplaced("reg", "checks and hooks on kernel functions", place)
                if register not in REGISTERS:
                    near = did_you_mean(register, REGISTERS)
                    self._report("O2C0503", f"there is no register `{register}`", place, near)
            case ir.Parameter():
                if not isinstance(body, ir.Check):
                    self._misplaced("param", "checks", place)
            case ir.Argument(_, index):
                if not (isinstance(body, ir.Hook) and body.kind is ir.HookKind.RAW_TRACEPOINT):
                    self._misplaced("arg", "hooks on raw tracepoints", place)
                if index > 11:
                    self._report("O2C0507", "a raw tracepoint has at most 12 arguments", place)
            case ir.Read(_, size, _):
                if size not in _SIZES:
                    self._report("O2C0507", f"a read has 1, 2, 4 or 8 bytes, not {size}", place)
            case ir.Load(_, table, _, column):
                self._cell(table, column, place)
            case ir.Store(table, _, column, _):
                self._cell(table, column, place, write=True)
            case ir.FetchAdd(_, table, _, column, _):
                self._cell(table, column, place, write=True, least=4)
            case ir.CompareExchange(_, table, _, column, _, _):
                self._cell(table, column, place, write=True, least=8)
            case ir.Lookup(_, name, key) | ir.Delete(_, name, key):
                self._keyed(name, key, place)
            case ir.Update(_, name, key, fields):
                map_ = self._keyed(name, key, place)
                if map_ is not None:
                    self._count("fields", name, len(fields), len(map_.fields), place)
            case (
                ir.EntryLoad(_, _, name, field)
                | ir.EntryStore(_, name, field, _)
                | ir.EntryFetchAdd(_, _, name, field, _)
                | ir.EntryCompareExchange(_, _, name, field, _, _)
            ):
                map_ = self._keyed(name, None, place)
                if map_ is not None and field not in map_.fields:
                    near = did_you_mean(field, map_.fields)
                    self._report("O2C0503", f"map `{name}` has no field `{field}`", place, near)
            case ir.Emit(_, name, fields):
                map_ = self._named(self._maps, name, "map", place)
                if map_ is not None and map_.kind is not ir.MapKind.RING_BUFFER:
                    self._report("O2C0505", f"`emit` needs a ring buffer, and `{name}` is none", place)
                elif map_ is not None:
                    self._count("fields", name, len(fields), len(map_.fields), place)
            case ir.Call(_, name, arguments):
                function = self._named(self._functions, name, "function", place)
                if function is not None:
                    self._count("arguments", name, len(arguments), len(function.parameters), place)

    def _terminator(self, terminator: ir.Terminator, bare: Place) -> None:
        place = Place(bare.body, bare.block, terminator)
        for operand in operands(terminator):
            self._operand(operand, place)
        if isinstance(terminator, ir.Decide) and isinstance(place.body, ir.Hook):
            self._misplaced("verdict", "checks and functions", place)
        if isinstance(terminator, ir.Return) and isinstance(place.body, ir.Check):
            value = terminator.value
            if isinstance(value, ir.Constant) and value.value >= len(ir.Verdict):
                self._report("O2C0507", f"{value.value} is not the code of a verdict", place)

    def _operand(self, operand: ir.Operand, place: Place) -> None:
        if isinstance(operand, ir.Constant):
            if not 0 <= operand.value < _WORD:
                self._report("O2C0507", f"the constant {operand.value} does not fit 64 bits", place)
            if operand.name is not None and not CONSTANT_PATTERN.match(operand.name):
                message = f"`{operand.name}` cannot name a constant"
                self._report(
                    "O2C0507", message, place, "write it as `offset(...)`, `size(...)` or `const(...)`"
                )

    def _misplaced(self, word: str, where: str, place: Place) -> None:
        self._report("O2C0505", f"`{word}` is only allowed in {where}", place)

    def _count(self, what: str, owner: str, given: int, wanted: int, place: Place) -> None:
        if given != wanted:
            self._report("O2C0507", f"`{owner}` takes {wanted} {what}, not {given}", place)

    def _named(self, table: dict[str, _Named], name: str, kind: str, place: Place) -> _Named | None:
        found = table.get(name)
        if found is None:
            self._report("O2C0503", f"there is no {kind} `{name}`", place, did_you_mean(name, table))
        return found

    def _keyed(self, name: str, key: tuple[ir.Operand, ...] | None, place: Place) -> ir.Map | None:
        map_ = self._named(self._maps, name, "map", place)
        if map_ is None:
            return None
        if map_.kind is ir.MapKind.RING_BUFFER:
            self._report("O2C0505", f"`{name}` is a ring buffer: it has no entries", place)
            return None
        if key is not None:
            self._count("words of key", name, len(key), len(map_.key), place)
        return map_

    def _cell(self, name: str, column: str, place: Place, *, write: bool = False, least: int = 1) -> None:
        table = self._named(self._tables, name, "table", place)
        if table is None:
            return
        sizes = dict(table.columns)
        if column not in sizes:
            near = did_you_mean(column, sizes)
            self._report("O2C0503", f"table `{name}` has no column `{column}`", place, near)
        elif sizes[column] < least:
            self._report(
                "O2C0507",
                f"this needs a column of {'4 or 8' if least == 4 else least} bytes, `{column}` has {sizes[column]}",
                place,
            )
        if write and not table.writable:
            self._report("O2C0505", f"table `{name}` is constant", place, f"declare `{name}` writable")

    # --- calls and sites ----------------------------------------------------------------------------------

    def _call_graph(self) -> None:
        depth: dict[str, int] = {}
        active: list[str] = []
        reported: set[str] = set()

        def height(name: str) -> int:
            """Frames that a call of this function takes at most, its own included."""
            if name in depth:
                return depth[name]
            function = self._functions.get(name)
            if function is None:
                return 0
            if name in active:
                cycle = [*active[active.index(name) :], name]
                if name not in reported:
                    reported.update(cycle)
                    path = " -> ".join(f"`{step}`" for step in cycle)
                    self._report("O2C0509", f"function `{name}` calls itself: {path}", Place(function))
                return 0
            active.append(name)
            below = max((height(callee) for callee in sorted(self._called[id(function)])), default=0)
            active.pop()
            depth[name] = below + (0 if function.inline else 1)
            return depth[name]

        for body in self._bodies:
            if isinstance(body, ir.Function):
                height(body.name)
                continue
            own = 2 if isinstance(body, ir.Check) else 1
            frames = own + max((height(callee) for callee in sorted(self._called[id(body)])), default=0)
            if frames > MAXIMUM_FRAMES:
                message = f"`{body.name}` needs {frames} frames of calls, the kernel allows {MAXIMUM_FRAMES}"
                self._report("O2C0509", message, Place(body))

    def _sites(self, known: frozenset[int]) -> None:
        """All sites; those that were in the valid module with the same check are looked at for their number only."""
        sites = self._module.sites
        sound = {check.name for check in self._module.checks if id(check) in known}
        old = {id(site) for site in self._valid.sites} if self._valid is not None else set()
        reads: dict[str, frozenset[str]] = {}
        if len({site.number for site in sites}) < len(sites):
            self._equal_numbers()
        leaders = {site.number for site in sites if site.covered_by is None}
        for site in sites:
            if site.covered_by is not None:
                if site.covered_by not in leaders:
                    message = f"is covered by {site.covered_by}, which is no site with a check of its own"
                    self._plain("O2C0503", f"{_place(site)} {message}", site.span)
            elif id(site) in old and site.check in sound:
                continue
            given = dict(site.parameters)
            if len(given) < len(site.parameters):
                self._plain("O2C0502", f"{_place(site)} gives a parameter twice", site.span)
            if not all(0 <= value < _WORD for value in given.values()):
                self._plain(
                    "O2C0507", f"{_place(site)} gives a parameter that does not fit 64 bits", site.span
                )
            wanted = reads.get(site.check)
            if wanted is None and site.check in self._checks:
                wanted = reads[site.check] = _parameters_read(self._checks[site.check])
            if wanted is None:
                near = did_you_mean(site.check, self._checks)
                message = f"{_place(site)}: there is no check `{site.check}`"
                self._plain("O2C0503", message, site.span, near)
            elif not wanted <= given.keys():
                for name in sorted(wanted - given.keys()):
                    message = f"{_place(site)} gives no `{name}`, which check `{site.check}` reads"
                    self._plain("O2C0503", message, site.span, did_you_mean(name, given))

    def _equal_numbers(self) -> None:
        numbers: set[int] = set()
        for site in self._module.sites:
            if site.number in numbers:
                self._plain("O2C0502", f"two sites have the number {site.number}", site.span)
            numbers.add(site.number)


def _parameters_read(check: ir.Check) -> frozenset[str]:
    return frozenset(i.name for i in instructions(check) if isinstance(i, ir.Parameter))


def _place(site: ir.Site) -> str:
    return f"site {site.number} (`{site.function}+{site.offset:#x}`)"
