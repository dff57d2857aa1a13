# SPDX-License-Identifier: Apache-2.0
"""One door to all renderers."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TextIO

from o2cc.diagnostics import Diagnostic
from o2cc.report.locate import Sources


class ErrorFormat(StrEnum):
    """Formats of `--error-format`."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"
    SARIF = "sarif"

    @property
    def is_document(self) -> bool:
        """Whether the output is one document, which is written even when there is nothing to say."""
        return self in (ErrorFormat.JSON, ErrorFormat.SARIF)


def render(diagnostics: Iterable[Diagnostic], sources: Sources, format: ErrorFormat) -> str:
    """The diagnostics as plain text of the format, sorted by place."""
    # Imported here: what a run does not need should not slow its start.
    match format:
        case ErrorFormat.TEXT:
            from o2cc.report.terminal import render_text

            return render_text(diagnostics, sources).plain
        case ErrorFormat.CONCISE:
            from o2cc.report.concise import render_concise

            return render_concise(diagnostics, sources)
        case ErrorFormat.JSON:
            from o2cc.report.json_format import render_json

            return render_json(diagnostics, sources)
        case ErrorFormat.SARIF:
            from o2cc.report.sarif import render_sarif

            return render_sarif(diagnostics, sources)


def write_diagnostics(
    diagnostics: Iterable[Diagnostic], sources: Sources, format: ErrorFormat, stream: TextIO
) -> None:
    """Render to a stream; colours only for text, on a terminal, and unless NO_COLOR is set."""
    if format is ErrorFormat.TEXT and stream.isatty():
        from rich.console import Console

        from o2cc.report.terminal import render_text

        console = Console(file=stream, highlight=False, soft_wrap=True, markup=False, emoji=False)
        console.print(render_text(diagnostics, sources), end="")
        return
    text = render(diagnostics, sources, format)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
