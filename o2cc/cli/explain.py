# SPDX-License-Identifier: Apache-2.0
"""`o2c explain`: how a site is checked, or why it needs no check."""

from __future__ import annotations

import os

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.opt import parse_valid
from o2cc.diagnostics import SourceFile
from o2cc.files import read_source
from o2cc.ir import nodes as ir
from o2cc.ir.explain import explain_place, parse_place


@click.command("explain")
@diagnostic_command
@click.argument("place", metavar="FUNCTION+OFFSET")
@click.argument("file")
def explain(reporter: Reporter, place: str, file: str) -> None:
    """Say how the instruction at FUNCTION+OFFSET is checked, or why it needs no check.

    FILE is a module in the text form of the intermediate representation (`o2cc --emit ir`).
    """
    function, offset = parse_place(place)
    module = parse_valid(reporter.read_source(file), {})
    click.echo(explain_place(module, function, offset, readable_sources(module)), nl=False)


def readable_sources(module: ir.Module) -> dict[str, SourceFile]:
    """The sources of a module's sites that are files which can be read here."""
    spans = [site.span for site in module.sites] + [proof.span for proof in module.discharged]
    names = {span.source for span in spans if span is not None}
    return {name: read_source(name) for name in sorted(names) if os.path.isfile(name)}
