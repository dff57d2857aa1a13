# SPDX-License-Identifier: Apache-2.0
"""A group of subcommands that imports only the one that runs.

Start-up stays fast, and a missing optional package breaks only the command that needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from o2cc.cli.start import one_thread, quiet_interrupt
from o2cc.diagnostics import DiagnosticError, did_you_mean, error


@dataclass(frozen=True)
class LazyCommand:
    """Where a subcommand is, and its line in the group's help."""

    module: str
    attribute: str
    summary: str
    extra: str | None = None  # the package's extra that brings its dependencies


class LazyGroup(click.Group):
    """A click group over a table of LazyCommand. Commands whose module is not there are not offered."""

    def __init__(self, *args: Any, table: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names on offer, in the order of the table."""
        return [name for name, entry in self.table.items() if importlib.util.find_spec(entry.module)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and give the command. Raises DiagnosticError (O2C0906) when a package is missing."""
        if name not in self.list_commands(ctx):
            return None
        entry = self.table[name]
        if entry.extra != "trees":  # training has large arrays
            one_thread()
        try:
            with quiet_interrupt():
                module = importlib.import_module(entry.module)
        except ModuleNotFoundError as problem:
            if problem.name is None or problem.name.partition(".")[0] == "o2cc":
                raise
            extra = f"pip install 'o2c[{entry.extra}]'" if entry.extra else f"pip install {problem.name}"
            raise DiagnosticError(
                error(
                    "O2C0906",
                    f"`o2c {name}` needs the Python package `{problem.name}`, which is not installed",
                    help=f"install it with `{extra}`",
                )
            ) from None
        command = getattr(module, entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}:{entry.attribute} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest name when there is no such command."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as problem:
            nearest = did_you_mean(args[0], self.list_commands(ctx))
            if not nearest:
                raise
            message = f"{problem.message} {nearest[0].upper()}{nearest[1:]}"
            raise click.UsageError(message, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        rows = [(name, self.table[name].summary) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
