# SPDX-License-Identifier: Apache-2.0
"""Compiled checks and hooks -> the programs of an object, in either layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from o2cc.bpf.btf_writer import LineInfo
from o2cc.bpf.compiler import MachineCode, Relocation
from o2cc.bpf.info import SiteInfo
from o2cc.bpf.llvm_context import SiteTable, SymbolKind
from o2cc.bpf.source_lines import SourceLines
from o2cc.bpf.template import Template, make_template, width_of
from o2cc.ir import nodes
from o2cc.ir.walk import MASK, instructions

SITES_TABLE = "o2c_sites"
STRAY_COUNTER = "o2c_stray_cookies"
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")
_NAME_LIMIT = 63


@dataclass(frozen=True, slots=True)
class Program:
    """A program: its symbol, its section (which tells libbpf its type and place), code and line information."""

    name: str
    section: str
    code: bytes | bytearray
    relocations: tuple[Relocation, ...]
    lines: Sequence[LineInfo]


def parameters_read(check: nodes.Check) -> tuple[str, ...]:
    """Names of the parameters that a check reads, sorted."""
    return tuple(sorted({i.name for i in instructions(check) if isinstance(i, nodes.Parameter)}))


def _short_name(prefix: str, name: str) -> str:
    """A symbol name; what makes it unique is in front, since the kernel keeps only 15 characters."""
    return f"{prefix}_{NOT_IN_NAMES.sub('_', name)}"[:_NAME_LIMIT]


def _probe_offset(site: nodes.Site) -> int:
    return site.offset if site.probe_offset is None else site.probe_offset


def _site_info(site: nodes.Site, program: str, cookie: int | None, lines: SourceLines) -> SiteInfo:
    file, _, line, _ = lines.place(site.span)
    return SiteInfo(
        site.number,
        site.function,
        site.offset,
        _probe_offset(site),
        site.kind.value,
        site.check,
        program,
        cookie,
        site.kind is nodes.SiteKind.RETURN,
        file,
        line,
        site.note,
    )


def hook_program(hook: nodes.Hook, machine: MachineCode, lines: SourceLines) -> Program:
    """The program of a hook."""
    section = hook.kind.value
    if hook.kind is not nodes.HookKind.SYSCALL:
        section += f"/{hook.target}"
    return Program(
        hook.name, section, machine.code, machine.relocations, lines.body(hook.name, hook.span, machine.lines)
    )


# --- layout `site` ----------------------------------------------------------------------------------------


def site_programs(
    module: nodes.Module,
    machine: Mapping[str, MachineCode],
    by_check: Mapping[str, list[nodes.Site]],
    lines: SourceLines,
) -> tuple[list[Program], list[SiteInfo]]:
    """A program for each site, its parameters in its code, its section the place that it is for."""
    templates: dict[str, Template] = {}
    given = {site.number: dict(site.parameters) for site in module.sites}
    for check in module.checks:
        if check.name in by_check:
            names = parameters_read(check)
            sites = by_check[check.name]
            widths = {name: width_of(given[site.number][name] for site in sites) for name in names}
            templates[check.name] = make_template(machine[SymbolKind.CHECK + check.name], widths)
    programs: list[Program] = []
    infos: list[SiteInfo] = []
    for site in module.sites:
        if site.covered_by is not None:
            infos.append(_site_info(site, "", None, lines))
            continue
        template = templates[site.check]
        name = _short_name(f"o2c_{site.number}", site.function)
        if site.kind is nodes.SiteKind.RETURN:
            section = f"kretprobe/{site.function}"
        else:
            section = f"kprobe/{site.function}+0x{_probe_offset(site):x}"
        code = template.fill(given[site.number])
        programs.append(Program(name, section, code, template.relocations, (lines.site(site),)))
        infos.append(_site_info(site, name, None, lines))
    return programs, infos


# --- layout `shape` ---------------------------------------------------------------------------------------


def shape_tables(
    module: nodes.Module, by_check: Mapping[str, list[nodes.Site]]
) -> tuple[dict[str, SiteTable], tuple[nodes.Table, ...]]:
    """Where each check finds its sites' parameters, and the tables that hold them.

    Cookies count the sites check by check, so that a check's own cookies are one range.
    """
    tables: dict[str, SiteTable] = {}
    words: list[tuple[int]] = []
    first = 0
    for check in module.checks:
        sites = by_check.get(check.name)
        if sites is None:
            continue
        names = parameters_read(check)
        tables[check.name] = SiteTable(SITES_TABLE, STRAY_COUNTER, first, len(sites), len(words), names)
        first += len(sites)
        for site in sites:
            given = dict(site.parameters)
            words += [(given[name] & MASK,) for name in names]
    data = [nodes.Table(STRAY_COUNTER, (("count", 8),), (), 1, writable=True)]
    if words:
        data.append(nodes.Table(SITES_TABLE, (("word", 8),), tuple(words), len(words)))
    return tables, tuple(data) if tables else ()


def shape_programs(
    module: nodes.Module,
    machine: Mapping[str, MachineCode],
    by_check: Mapping[str, list[nodes.Site]],
    tables: Mapping[str, SiteTable],
    lines: SourceLines,
) -> tuple[list[Program], list[SiteInfo]]:
    """A program for each check that has sites."""
    programs: list[Program] = []
    infos: list[SiteInfo] = []
    for number, check in enumerate(module.checks):
        sites = by_check.get(check.name)
        if sites is None:
            continue
        name = _short_name(f"shape_{number}", check.name)
        code = machine[SymbolKind.CHECK + check.name]
        span = check.span or sites[0].span
        programs.append(
            Program(name, "kprobe", code.code, code.relocations, lines.body(check.name, span, code.lines))
        )
        first = tables[check.name].first
        infos += [_site_info(site, name, first + i, lines) for i, site in enumerate(sites)]
    infos += [_site_info(site, "", None, lines) for site in module.sites if site.covered_by is not None]
    infos.sort(key=lambda info: info.number)
    return programs, infos
