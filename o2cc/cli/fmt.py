# SPDX-License-Identifier: Apache-2.0
"""`o2c fmt`: canonical layout for policies."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import click

from o2cc.cli.common import CONTEXT_SETTINGS, EXIT_CLEAN, EXIT_ERRORS, Reporter, diagnostic_command
from o2cc.cli.completion import FILE
from o2cc.diagnostics import DiagnosticError
from o2cc.files import STANDARD_STREAM, write_atomic
from o2cc.syntax.formatter import format_source


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is not formatted.")
@click.option("--diff", "show_diff", is_flag=True, help="Write nothing; print what would change.")
@click.argument("files", nargs=-1, required=True, metavar="FILES...", type=FILE)
def fmt(reporter: Reporter, check: bool, show_diff: bool, files: tuple[str, ...]) -> int:
    """Bring policies into the canonical layout, in place.

    FILES are policies, directories (all .o2c files in them), or `-` to format the standard input to the
    standard output. Comments are kept; what a policy means never changes. A file with syntax errors is
    left as it is.
    """
    changed = 0
    for name in _expand(files):
        try:
            source = reporter.read_source(name)
            formatted = format_source(source)
        except DiagnosticError as problem:
            reporter.extend(problem.diagnostics)
            continue
        differs = formatted != source.text
        changed += differs
        if show_diff:
            click.echo(_diff(source.name, source.text, formatted), nl=False)
        if check or show_diff:
            if differs and check:
                click.echo(f"{name}: not formatted", err=True)
        elif name == STANDARD_STREAM:
            click.echo(formatted, nl=False)
        elif differs:
            write_atomic(name, formatted)
            click.echo(f"{name}: formatted", err=True)
    return EXIT_ERRORS if check and changed else EXIT_CLEAN


def _expand(files: tuple[str, ...]) -> Iterator[str]:
    for name in files:
        path = Path(name)
        if name != STANDARD_STREAM and path.is_dir():
            found = sorted(path.rglob("*.o2c"))
            if not found:
                click.echo(f"{name}: no policies (*.o2c) in this directory", err=True)
            yield from map(str, found)
        else:
            yield name


def _diff(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, f"{name} (formatted)"
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
