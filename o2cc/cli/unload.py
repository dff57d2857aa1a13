# SPDX-License-Identifier: Apache-2.0
"""`o2c unload`: take policies out of the kernel."""

from __future__ import annotations

import json

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import complete_loaded
from o2cc.cli.progress import ProgressBar
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import loader, state


@click.command()
@diagnostic_command
@click.argument("name", required=False, shell_complete=complete_loaded)
@click.option("--all", "every", is_flag=True, help="Every policy, and what killed loaders left behind.")
@click.option("--force", is_flag=True, help="Do not wait for objects in a private heap.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=loader.DRAIN_PATIENCE,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the last object of a private heap.",
)
@click.option("--json", "json_form", is_flag=True, help="Print the result as JSON.")
def unload(
    reporter: Reporter, name: str | None, every: bool, force: bool, wait: float, json_form: bool
) -> None:
    """Remove the policy NAME (needless when only one is loaded): every probe, map and pin of it.

    A private heap is drained first: while objects in it are in use, the policy stays in force, and the command ends with
    O2C0839 when the time is over. Also cleans up what a loader left behind that was killed. Needs root.

    \b
    Examples:
      o2c unload sctp --wait 60
      o2c unload --all --force
    """
    if every and name is not None:
        raise click.UsageError("NAME and --all exclude each other")
    names = sorted({*state.names(), *state.leftovers()}) if every else [state.only(name)]
    done: dict[str, int] = {}
    with ProgressBar(enabled=not json_form) as progress:
        for one in names:
            try:
                done[one] = loader.unload(one, progress, force=force, patience=wait)
            except DiagnosticError as problem:
                reporter.extend(problem.diagnostics)
    if json_form:
        click.echo(json.dumps({"unloaded": done}))
    else:
        for one, sites in done.items():
            click.echo(f"{one}: unloaded, {sites} sites detached")
        if not names:
            click.echo("no compartment is loaded")
