# SPDX-License-Identifier: Apache-2.0
"""IR module -> BPF object.

LLVM compiles shared functions, hooks and every check once; this file then makes the object: a program for
each site (layout `site`) or for each check (layout `shape`), data, BTF, BTF.ext and the description that our
loader reads.  docs/object.md describes the result.  The same module gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from o2cc.bpf.assembly import Assembler
from o2cc.bpf.compiler import CompiledText, MachineCode, compile_ahead, compile_texts, data_layout
from o2cc.bpf.info import HeapInfo, HookInfo, OpsTargetsInfo
from o2cc.bpf.layout import Layout, table_layout
from o2cc.bpf.limits import check_stacks
from o2cc.bpf.llvm_context import BodyError, Scope, SiteTable, Spans, SymbolKind
from o2cc.bpf.llvm_text import ModuleText
from o2cc.bpf.programs import (
    NOT_IN_NAMES,
    hook_program,
    parameters_read,
    shape_programs,
    shape_tables,
    site_programs,
)
from o2cc.bpf.source_lines import SourceLines
from o2cc.diagnostics import Collector, DiagnosticError, error
from o2cc.ir import nodes
from o2cc.ir.walk import Body, calls
from o2cc.second_process import Task


@dataclass(frozen=True, slots=True)
class Statistics:
    """``instructions`` counts the slots of all programs and subprograms, each once; ``program_instructions``
    gives (name, slots) by program, without the subprograms that it calls."""

    programs: int
    subprograms: int
    instructions: int
    bytes: int
    program_instructions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """An object, ready to be written to a file."""

    data: bytes
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class Ahead:
    """Shared code that need not wait for the object: `compile_shared` of a module before it was optimized.

    ``functions`` are those of that module; None: all.  What passes add to them is compiled with the checks, whether or
    not anything was compiled before: the object does not depend on it.
    """

    functions: frozenset[str] | None = None
    task: Task[CompiledText | None] | None = None


def emit_object(
    module: nodes.Module,
    *,
    layout: Layout,
    sources: Mapping[str, str],
    ops_targets: Sequence[OpsTargetsInfo] = (),
    heap: HeapInfo | None = None,
    codes: Mapping[tuple[str, int], str] | None = None,
    breakpoints: Collection[tuple[str, int]] = (),
    ahead: Ahead = Ahead(),
) -> ObjectFile:
    """Compiles a module.  ``sources`` gives the text of every source that a span names, ``ops_targets`` what the loader
    must look up in other modules, ``heap`` the private heap that it must ask for, ``codes`` the instructions where probes
    go, by function and offset, ``breakpoints`` the places of probes that the kernel must not make jumps of.  ``ahead``
    says what was compiled before.

    Raises DiagnosticError: O2C0600 to O2C0607.
    """
    return _emit(module, layout, sources, ops_targets, heap, codes, breakpoints, ahead)


def emit_test_object(module: nodes.Module, *, sources: Mapping[str, str]) -> ObjectFile:
    """The sites' programs of layout `site` as programs that the kernel test-runs.

    Each is of type `syscall` and takes a ``struct pt_regs`` as its context; names and code are byte for byte
    those of `emit_object`.  Hooks are left out, except those of kind `syscall`.
    """
    hooks = tuple(hook for hook in module.hooks if hook.kind is nodes.HookKind.SYSCALL)
    return _emit(replace(module, hooks=hooks), Layout.SITE, sources, (), as_test=True)


def _emit(
    module: nodes.Module,
    layout: Layout,
    sources: Mapping[str, str],
    ops_targets: Sequence[OpsTargetsInfo],
    heap: HeapInfo | None = None,
    codes: Mapping[tuple[str, int], str] | None = None,
    breakpoints: Collection[tuple[str, int]] = (),
    ahead: Ahead = Ahead(),
    *,
    as_test: bool = False,
) -> ObjectFile:
    _check_module(module)
    by_check = _sites_by_check(module)
    tables: dict[str, SiteTable] = {}
    if layout is Layout.SHAPE:
        tables, data = shape_tables(module, by_check)
        module = replace(module, tables=(*module.tables, *data))
        _check_module(module)
    functions = _reachable(module, (*(c for c in module.checks if c.name in by_check), *module.hooks))
    machine, spans = _compile(module, functions, by_check, tables, ahead)
    roots = {SymbolKind.CHECK + c.name: c.span for c in module.checks if c.name in by_check}
    roots |= {SymbolKind.HOOK + h.name: h.span for h in module.hooks}
    if deep := check_stacks(machine, roots):
        raise DiagnosticError(deep)
    lines = SourceLines(sources, spans)
    assembler = Assembler(module, layout, lines)
    assembler.add_functions([(f, machine[SymbolKind.FUNCTION + f.name]) for f in functions if not f.inline])
    if layout is Layout.SITE:
        programs, sites = site_programs(module, machine, by_check, lines)
    else:
        programs, sites = shape_programs(module, machine, by_check, tables, lines)
    if as_test:
        programs = [replace(program, section="syscall") for program in programs]
    programs += [hook_program(hook, machine[SymbolKind.HOOK + hook.name], lines) for hook in module.hooks]
    hooks = [HookInfo(hook.name, hook.kind.value, hook.target, hook.name) for hook in module.hooks]
    assembler.add_programs(programs)
    known = codes or {}
    places = [(site.function, site.probe_offset) for site in sites]
    sites = [
        replace(site, code=known.get(place, ""), keep_int3=place in breakpoints)
        for site, place in zip(sites, places, strict=True)
    ]
    content = assembler.write(sites, hooks, ops_targets, heap)
    sizes = tuple(assembler.program_sizes)
    return ObjectFile(
        content,
        Statistics(
            programs=len(sizes),
            subprograms=assembler.subprograms,
            instructions=sum(size for _, size in sizes) + assembler.subprogram_slots,
            bytes=len(content),
            program_instructions=sizes,
        ),
    )


# --- what is compiled -------------------------------------------------------------------------------------


def _check_module(module: nodes.Module) -> None:
    """Names that clash, sites whose check is missing: reported together."""
    problems = Collector()
    seen: dict[str, str] = {}
    named = [
        *((m.name, "map") for m in module.maps),
        *((t.name, "table") for t in module.tables),
        *((f.name, "function") for f in module.functions),
        *((h.name, "hook") for h in module.hooks),
    ]
    for name, kind in named:
        if name in seen:
            problems.add(error("O2C0602", f"`{name}` is the name of a {seen[name]} and of a {kind}"))
        elif NOT_IN_NAMES.search(name) or not name or name[0].isdigit():
            problems.add(error("O2C0602", f"`{name}` cannot be the name of a {kind} in a BPF object"))
        seen[name] = kind
    checks = {check.name: parameters_read(check) for check in module.checks}
    if len(checks) != len(module.checks):
        problems.add(error("O2C0602", "two checks have the same name"))
    numbers: set[int] = set()
    for site in module.sites:
        place = f"{site.function}+0x{site.offset:x}"
        if site.check not in checks:
            problems.add(
                error(
                    "O2C0600",
                    f"site `{place}` names the check `{site.check}`, which does not exist",
                    site.span,
                )
            )
        given = {name for name, _ in site.parameters}
        for name in checks.get(site.check, ()):
            if name not in given:
                problems.add(
                    error(
                        "O2C0601",
                        f"site `{place}` does not give the parameter `{name}` of its check `{site.check}`",
                        site.span,
                    )
                )
        if site.number in numbers:
            problems.add(
                error("O2C0602", f"site `{place}` has the number {site.number} of another site", site.span)
            )
        numbers.add(site.number)
    for table in module.tables:
        if (
            any(size not in (1, 2, 4, 8) for _, size in table.columns)
            or not table.columns
            or table.length < 1
        ):
            problems.add(
                error(
                    "O2C0600", f"table `{table.name}` has no columns, no rows or a column of a strange size"
                )
            )
    resizable = [table for table in module.tables if table.resizable]
    if len(resizable) > 1 or any(table.writable for table in resizable):
        problems.add(error("O2C0600", "a module has at most one resizable table, which is not written"))
    problems.raise_if_errors()


def _sites_by_check(module: nodes.Module) -> dict[str, list[nodes.Site]]:
    """The sites with a program of each check that has any, checks in the module's order."""
    found: dict[str, list[nodes.Site]] = {check.name: [] for check in module.checks}
    for site in module.sites:
        if site.covered_by is None:
            found[site.check].append(site)
    return {name: sites for name, sites in found.items() if sites}


def _reachable(module: nodes.Module, roots: Iterable[Body]) -> list[nodes.Function]:
    """The functions that something calls, in the module's order."""
    by_name = {function.name: function for function in module.functions}
    wanted: set[str] = set()
    work: list[Body] = list(roots)
    while work:
        for name in calls(work.pop()):
            if name in by_name and name not in wanted:
                wanted.add(name)
                work.append(by_name[name])
    return [function for function in module.functions if function.name in wanted]


def compile_shared(module: nodes.Module) -> CompiledText | None:
    """Compiles shared functions and hooks, before the object is made: as long as they stay what they are in this module,
    whatever becomes of sites and checks.  None where something is wrong, which `emit_object` will tell."""
    try:
        functions = _reachable(module, (*module.checks, *module.hooks))
        text = _module_text(module, (*functions, *module.hooks), {}, Spans())
    except DiagnosticError:
        return None
    return compile_ahead(text.text(), text.largest)


def _compile(
    module: nodes.Module,
    functions: Sequence[nodes.Function],
    by_check: Mapping[str, list[nodes.Site]],
    tables: Mapping[str, SiteTable],
    ahead: Ahead,
) -> tuple[dict[str, MachineCode], Spans]:
    """Runs LLVM over everything that the object needs, in three parts that take about as long: shared functions and
    hooks, and checks."""
    spans = Spans()
    checks = [check for check in module.checks if check.name in by_check]
    shared = [f for f in functions if ahead.functions is None or f.name in ahead.functions]
    added = [f for f in functions if ahead.functions is not None and f.name not in ahead.functions]
    inline = [f for f in shared if f.inline]
    middle = len(checks) // 2
    texts = [_module_text(module, (*shared, *module.hooks), tables, spans)]
    parts: tuple[tuple[Body, ...], ...] = ((*added, *checks[:middle]), tuple(checks[middle:]))
    texts += [_module_text(module, (*inline, *part), tables, spans) for part in parts if part]
    machine = compile_texts([text.text() for text in texts], max(text.largest for text in texts), ahead.task)
    return machine, spans


def llvm_text(module: nodes.Module) -> str:
    """The LLVM IR of a module as it goes to the optimizer (layout `site`), in one piece.  Raises DiagnosticError."""
    _check_module(module)
    by_check = _sites_by_check(module)
    checks = [check for check in module.checks if check.name in by_check]
    functions = _reachable(module, (*checks, *module.hooks))
    return _module_text(module, (*functions, *checks, *module.hooks), {}, Spans()).text()


def _module_text(
    module: nodes.Module, bodies: Iterable[Body], tables: Mapping[str, SiteTable], spans: Spans
) -> ModuleText:
    scope = Scope(
        {function.name: function for function in module.functions},
        {map_.name: map_ for map_ in module.maps},
        {table.name: table for table in module.tables},
        {table.name: table_layout(table) for table in module.tables},
    )
    text = ModuleText(scope, data_layout(), spans)
    problems = Collector()
    for body in bodies:
        try:
            match body:
                case nodes.Function():
                    text.add_function(body)
                case nodes.Check():
                    text.add_check(body, tables.get(body.name))
                case nodes.Hook():
                    text.add_hook(body)
        except BodyError as problem:
            problems.add(error(problem.code, problem.message, problem.span or body.span))
    problems.raise_if_errors()
    return text
