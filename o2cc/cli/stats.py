# SPDX-License-Identifier: Apache-2.0
"""`o2c stats`: the figures of a compilation, for a person."""

from __future__ import annotations

import click

from o2cc.cli.common import CONTEXT_SETTINGS, Reporter, diagnostic_command
from o2cc.cli.completion import FILE
from o2cc.report.figures import lines, read_figures


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.argument("file", type=FILE)
@click.option("--json", "json_form", is_flag=True, help="Print the document as it is, once it is checked.")
def stats(reporter: Reporter, file: str, json_form: bool) -> None:
    """Show what was compiled, from the FILE that `o2cc --stats FILE` wrote (`-`: the standard input).

    How many instructions need a decision and how each is decided, the size of the object, the time by stage, and
    every grant with its reason.
    """
    source = reporter.read_source(file)
    figures = read_figures(source)
    if json_form:
        click.echo(source.text, nl=not source.text.endswith("\n"))
        return
    for line in lines(figures):
        click.echo(line)
