# SPDX-License-Identifier: Apache-2.0
"""`o2c phase`: show or change the phase of a loaded policy."""

from __future__ import annotations

import json

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import complete_loaded_or_phase, complete_phase
from o2cc.runtime.phases import NUMBERS, require_no_old_objects, set_phase
from o2cc.runtime.state import only
from o2cc.runtime.status import gather


@click.command()
@diagnostic_command
@click.argument("name", required=False, shell_complete=complete_loaded_or_phase)
@click.argument("phase", required=False, metavar="[transition|final]", shell_complete=complete_phase)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0,
    metavar="SECONDS",
    help="With `final`: how long to wait for the end of objects from before loading.",
)
@click.option("--force", is_flag=True, help="With `final`: though objects from before loading are in use.")
@click.option("--json", "json_form", is_flag=True, help="Print as JSON.")
def phase(
    reporter: Reporter, name: str | None, phase: str | None, wait: float, force: bool, json_form: bool
) -> None:
    """Show the phase of the policy NAME and why it is what it is, or change it.

    \b
      transition  access to objects from before loading is let through and noted
      final       it is a violation

    The switch is one store to a word that every check reads: there is no moment without checks.  Where violations are denied,
    `final` is refused while objects from before loading are in use.  Needs root.
    """
    if phase is None and name in NUMBERS:
        name, phase = None, name
    if phase is not None and phase not in NUMBERS:
        raise click.UsageError(f"no phase `{phase}`: transition or final")
    one = only(name)
    if phase is not None:
        if phase == "final" and not force:
            require_no_old_objects(lambda: gather(one), wait)
        set_phase(one, phase)
    now = gather(one)
    if json_form:
        click.echo(json.dumps({"name": one, "phase": now.phase, "reason": now.phase_reason}))
    else:
        click.echo(f"{one}: {now.phase}: {now.phase_reason}")
