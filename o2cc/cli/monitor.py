# SPDX-License-Identifier: Apache-2.0
"""`o2c monitor`: violations as they happen."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import complete_loaded
from o2cc.runtime.events import Event
from o2cc.runtime.monitor import Losses, follow
from o2cc.runtime.state import only


@click.command()
@diagnostic_command
@click.argument("name", required=False, shell_complete=complete_loaded)
@click.option("--json", "json_form", is_flag=True, help="One JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End after that time (0: at once).",
)
def monitor(
    reporter: Reporter, name: str | None, json_form: bool, count: int | None, seconds: float | None
) -> None:
    """Print the violations of the policy NAME (needless when only one is loaded) as they happen.

    Events wait in a buffer until they are read, so those from before come first. Each is delivered once. What was not
    sent (more than 20 violations a second at one site) or was lost (a full buffer) is said. Ends with --count,
    --for, when the policy is unloaded, or when interrupted. Needs root.

    \b
    Examples:
      o2c monitor sctp --for 60
      o2c monitor sctp --json >> sctp.events
    """
    shown = 0
    for item in follow(only(name), seconds=seconds):
        if isinstance(item, Losses):
            _print_losses(item, json_form)
            continue
        _print_event(item, json_form)
        shown += 1
        if count is not None and shown >= count:
            return


def _print_event(event: Event, json_form: bool) -> None:
    click.echo(json.dumps({"event": "violation", **event.document()}) if json_form else event.sentence())
    sys.stdout.flush()


def _print_losses(losses: Losses, json_form: bool) -> None:
    if json_form:
        click.echo(json.dumps({"event": "losses", **asdict(losses)}))
        sys.stdout.flush()
    else:
        click.echo(losses.sentence(), err=True)
