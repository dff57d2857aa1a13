# SPDX-License-Identifier: Apache-2.0
"""`o2c gates`: the kernel functions that a target calls and that the stdlib does not know."""

from __future__ import annotations

import json
from pathlib import Path

import click

from o2cc.cli.common import CONTEXT_SETTINGS, Reporter, diagnostic_command
from o2cc.cli.completion import FILE
from o2cc.cli.scan import describe_target, kernel_option
from o2cc.kernel import store
from o2cc.policy.library import FileResolver
from o2cc.policy.unknown import Callees, callees_of


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.argument("target", metavar="MODULE|X.o2k", type=FILE)
@kernel_option
@click.option("--callers", is_flag=True, help="Also print which functions call each.")
@click.option("--json", "json_form", is_flag=True, help="Print as JSON.")
def gates(reporter: Reporter, target: str, kernel_name: str | None, callers: bool, json_form: bool) -> None:
    """List the kernel functions that MODULE calls and that the stdlib does not know.

    Their arguments are checked by type only: pointers to structs and to functions, nothing else; those to structs
    that stdlib calls `shared` only not to be the compartment's own. A policy can say more with `gate` or `extern fn`. Calls through pointers are not listed. The last line says which modules of the
    stdlib know the others: a policy knows what it brings in with `use`.

    \b
    Examples:
      o2c gates sctp.o2k --callers
      o2c gates sctp -k 6.1.0-57-amd64
    """
    if target.endswith(".o2k"):
        description = store.load(Path(target))
    else:
        description = describe_target(target, None, kernel_name, None)
    resolver = FileResolver()
    libraries = tuple(name for name in resolver.names() if name.startswith("std."))
    found = callees_of(description, libraries, resolver)
    if json_form:
        click.echo(json.dumps(_document(description.target.name, description.release, found), indent=1))
        return
    for gate in found.unknown:
        click.echo(gate.signature)
        if gate.shared:
            click.echo(f"    any kernel address passes that is not own: {', '.join(gate.shared)}")
        if gate.unchecked:
            click.echo(f"    not checked: {', '.join(gate.unchecked)}")
        if callers:
            click.echo(f"    called by: {', '.join(gate.callers)}")
    click.echo(
        f"{len(found.unknown)} of the {found.total} kernel functions that {description.target.name} calls are unknown"
    )
    if found.known:
        click.echo(
            "the others a policy knows by: "
            + ", ".join(f"use {name} ({count})" for name, count in found.known.items())
        )


def _document(name: str, release: str, found: Callees) -> dict[str, object]:
    return {
        "target": name,
        "release": release,
        "callees": found.total,
        "known": found.known,
        "unknown": [
            {
                "function": gate.function,
                "signature": gate.signature,
                "callers": list(gate.callers),
                "checked_by_type": list(gate.by_type),
                "shared": list(gate.shared),
                "unchecked": list(gate.unchecked),
            }
            for gate in found.unknown
        ],
    }
