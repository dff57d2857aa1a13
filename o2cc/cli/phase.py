# SPDX-License-Identifier: Apache-2.0
"""`o2c phase`: show or change the phase of a loaded policy."""

from __future__ import annotations

import json

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.runtime.phases import NUMBERS, set_phase
from o2cc.runtime.state import only
from o2cc.runtime.status import gather


@click.command()
@diagnostic_command
@click.argument("name", required=False)
@click.argument("phase", required=False, metavar="[transition|final]")
@click.option("--json", "json_form", is_flag=True, help="Print as JSON.")
def phase(reporter: Reporter, name: str | None, phase: str | None, json_form: bool) -> None:
    """Show the phase of the policy NAME and why it is what it is, or change it.

    \b
      transition  access to objects from before loading is let through and noted
      final       it is a violation

    The switch is one store to a word that every check reads: there is no moment without checks.
    """
    if phase is None and name in NUMBERS:
        name, phase = None, name
    if phase is not None and phase not in NUMBERS:
        raise click.UsageError(f"no phase `{phase}`: transition or final")
    one = only(name)
    if phase is not None:
        set_phase(one, phase)
    now = gather(one)
    if json_form:
        click.echo(json.dumps({"name": one, "phase": now.phase, "reason": now.phase_reason}))
    else:
        click.echo(f"{one}: {now.phase}: {now.phase_reason}")
