# SPDX-License-Identifier: Apache-2.0
"""What the shell offers for a word that is being typed: files, kernels, codes, loaded policies.

For a parameter that is a plain string click offers nothing, and the shells then no file either.  `click.Path` would offer them, but
asks the file system first, and has messages and an exit status of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from o2cc.diagnostics import DiagnosticError


class _PathName(click.types.StringParamType):
    """A path as it was given; what is there is for whoever opens it to say."""

    name = "path"

    def __init__(self, offered: str) -> None:
        self._offered = offered

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What the shell is to look for."""
        return [CompletionItem(incomplete, type=self._offered)]


FILE = _PathName("file")
DIRECTORY = _PathName("dir")


def complete_kernel(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Releases that a description is known for; files where the word is not the beginning of one."""
    from o2cc.kernel import store  # late: only a completion needs it here
    from o2cc.resources import resource_directory

    releases: set[str] = set()
    for root in (store.user_descriptions(), resource_directory("descriptions")):
        with suppress(OSError):
            releases.update(entry.name for entry in root.iterdir() if any(entry.glob("*.o2k")))
    found = _beginning_with(incomplete, sorted(releases, key=store.release_key))
    return found or [CompletionItem(incomplete, type="file")]


def complete_code(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Codes of diagnostics, with their titles where the shell shows such."""
    from o2cc.report.explain import explanation, known_codes, title

    return [
        CompletionItem(code, help=title(explanation(code) or ""))
        for code in known_codes()
        if code.startswith(incomplete.upper())
    ]


def complete_loaded(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of what is loaded; nothing for who may not know."""
    from o2cc.runtime import state

    with suppress(DiagnosticError):
        return _beginning_with(incomplete, sorted({*state.names(), *state.leftovers()}))
    return []


def complete_phase(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The phases."""
    from o2cc.runtime.phases import NUMBERS

    return _beginning_with(incomplete, NUMBERS)


def complete_loaded_or_phase(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """What may be the first argument where the name can be left out."""
    return [
        *complete_loaded(context, parameter, incomplete),
        *complete_phase(context, parameter, incomplete),
    ]


def _beginning_with(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]
