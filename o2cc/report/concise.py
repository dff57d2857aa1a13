# SPDX-License-Identifier: Apache-2.0
"""One line a diagnostic, as editors and grep like it: `file:line:column: severity[CODE]: message`."""

from __future__ import annotations

from collections.abc import Iterable

from o2cc.diagnostics import Diagnostic, sorted_diagnostics
from o2cc.report.locate import Sources, locate, printable


def render_concise(diagnostics: Iterable[Diagnostic], sources: Sources) -> str:
    """The lines, each with its line end."""
    return "".join(_line(diagnostic, sources) for diagnostic in sorted_diagnostics(diagnostics))


def _line(diagnostic: Diagnostic, sources: Sources) -> str:
    place = diagnostic.source or ""
    if diagnostic.primary:
        location = locate(diagnostic.primary.span, sources)
        if location:
            place += f":{location.line}:{location.column}"
    text = f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}"
    if diagnostic.help:
        text += f" ({diagnostic.help})"
    line = f"{place}: {text}" if place else text
    return printable(line).replace("\n", " ") + "\n"
