# SPDX-License-Identifier: Apache-2.0
"""`o2c explain`: how a site is checked, or why it needs no check."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import FILE, complete_kernel
from o2cc.cli.opt import parse_valid
from o2cc.diagnostics import DiagnosticError, SourceFile, error
from o2cc.files import read_source
from o2cc.ir import nodes as ir
from o2cc.ir.explain import explain_function, explain_place, facts, parse_place
from o2cc.kernel.description import Description, Site


@click.command("explain")
@diagnostic_command
@click.argument("place", metavar="FUNCTION[+OFFSET]")
@click.argument("file", metavar="POLICY", type=FILE)
@click.option(
    "-k",
    "--kernel",
    metavar="RELEASE|FILE",
    shell_complete=complete_kernel,
    help="The kernel or description that a policy is compiled for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(reporter: Reporter, place: str, file: str, kernel: str | None, as_json: bool) -> None:
    """Say how the instruction at FUNCTION+OFFSET is checked, or why it needs no check.

    With FUNCTION alone: one line for each of its instructions that needs a decision. POLICY is a policy (.o2c), or
    a module in the text form of the intermediate representation (.ir, from `o2cc --emit ir`).

    \b
    Examples:
      o2c explain sctp_rcv sctp.o2c -k 6.1.0-57-amd64
      o2c explain sctp_rcv+0x12d sctp.o2c -k 6.1.0-57-amd64
    """
    where = parse_place(place) if "+" in place or place.endswith((".o2c", ".ir")) else None
    source = reporter.read_source(file)
    known = _module(source) if file.endswith(".ir") else _policy(reporter, source, kernel)
    _require_lasting(known.description, where[0] if where is not None else place)
    if as_json:
        function, offset = where or (place, None)
        found = facts(known.module, function, offset, known.sources, known.unchecked)
        click.echo(json.dumps(found, indent=1))
        return
    if where is None:
        told = explain_function(known.module, place, known.unchecked)
    else:
        told = explain_place(known.module, *where, known.sources, known.unchecked)
        told += _instruction(known.description, *where)
    click.echo(told, nl=False)


def _require_lasting(target: Description | None, function: str) -> None:
    """Raises DiagnosticError (O2C0541) for code of the initialization: that is no unknown function."""
    found = target.function_by_name.get(function) if target is not None else None
    if found is not None and found.initial:
        raise DiagnosticError(
            error(
                "O2C0541",
                f"`{function}` is code of the initialization: it is not checked, and gone after loading",
                help="policies are loaded after the module; only what stays in memory is confined",
            )
        )


@dataclass(frozen=True)
class _Known:
    """What there is to tell of a module."""

    module: ir.Module
    sources: dict[str, SourceFile]
    unchecked: dict[tuple[str, int], str]
    description: Description | None


def _module(source: SourceFile) -> _Known:
    module = parse_valid(source, {})
    return _Known(module, readable_sources(module), {}, None)


def _policy(reporter: Reporter, source: SourceFile, kernel: str | None) -> _Known:
    from o2cc.compiler import Options, Stopwatch  # late: a module in text form needs none of it
    from o2cc.driver import compile_source, fallback_note
    from o2cc.options import CompileOptions

    compiled, _ = compile_source(source, CompileOptions(kernel=kernel), Options(), Stopwatch())
    reporter.extend(fallback_note(compiled.description, kernel, source))
    return _Known(
        compiled.module,
        {name: SourceFile(name, text) for name, text in compiled.sources.items()},
        {(place.function, place.offset): place.reason for place in compiled.unchecked},
        compiled.description,
    )


def _instruction(target: Description | None, function: str, offset: int) -> str:
    """What the description says of the instruction itself."""
    found = target.function_by_name.get(function) if target is not None else None
    place = found.site_by_offset.get(offset) if found is not None else None
    if place is None:
        return ""
    written = ""
    if place.writes and place.size:
        written = f", {place.size} bytes{' each time' if place.rep else ''}"
    called = f" {place.target}" if place.target else ""
    return f"  instruction: {place.mnemonic}{called} {_operand(place)}".rstrip() + f"{written}\n"


def _operand(place: Site) -> str:
    operand = place.operand
    if operand is None or not operand.is_memory:
        return operand.base or "" if operand is not None else ""
    parts = [operand.base] if operand.base else []
    if operand.index:
        parts.append(f"{operand.index}*{operand.scale}")
    if operand.static is not None:
        parts.append(f"{operand.static.symbol or operand.static.section}+{operand.static.offset:#x}")
    if operand.displacement or not parts:
        parts.append(f"{operand.displacement:#x}")
    return (f"{operand.segment}:" if operand.segment else "") + f"[{' + '.join(parts)}]"


def readable_sources(module: ir.Module) -> dict[str, SourceFile]:
    """The sources of a module's sites that are files which can be read here."""
    spans = [site.span for site in module.sites] + [proof.span for proof in module.discharged]
    names = {span.source for span in spans if span is not None}
    return {name: read_source(name) for name in sorted(names) if os.path.isfile(name)}
