# SPDX-License-Identifier: Apache-2.0
"""`o2c status`: what is loaded, and what one should know of it."""

from __future__ import annotations

import json

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import complete_loaded
from o2cc.diagnostics import DiagnosticError, warning
from o2cc.runtime import state
from o2cc.runtime.status import gather, lines


@click.command()
@diagnostic_command
@click.argument("name", required=False, shell_complete=complete_loaded)
@click.option("--all", "every", is_flag=True, help="Print long lists whole.")
@click.option("--json", "json_form", is_flag=True, help="Print as JSON, lists whole.")
def status(reporter: Reporter, name: str | None, every: bool, json_form: bool) -> None:
    """Show loaded policies (or the one called NAME).

    The phase and why it is what it is, checks that are not there, violations by site, skipped checks, lost events,
    and objects from before loading that were touched. Needs root. The exit status does not tell whether something is wrong
    with a policy: ask the JSON for `problems`, `enforced`, `counters`.
    """
    found = []
    for one in [state.check_name(name)] if name is not None else state.names():
        try:
            found.append(gather(one))
        except DiagnosticError as problem:
            reporter.extend(problem.diagnostics)
    for leftover in state.leftovers() if name is None else ():
        reporter.add(
            warning(
                "O2C0842",
                f"a loader of `{leftover}` is at work, or was killed and left pins behind",
                help=f"`o2c unload {leftover}` removes them",
            )
        )
    if json_form:
        click.echo(json.dumps({"compartments": [item.document() for item in found]}, indent=1))
        return
    for item in found:
        for line in lines(item, every=every):
            click.echo(line)
    if not found and not reporter.has_errors:
        click.echo("no compartment is loaded")
