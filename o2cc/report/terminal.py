# SPDX-License-Identifier: Apache-2.0
"""Diagnostics for a person at a terminal: message, place, source lines with marks, notes, help."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.text import Text

from o2cc.diagnostics import Diagnostic, Label, Severity, SourceFile, sorted_diagnostics
from o2cc.report.locate import Sources, locate, printable

# A source line longer than this is shown only around its label.
MAX_LINE_CELLS = 140
_CONTEXT_BEFORE = 60

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
_FRAME = "blue"


def render_text(diagnostics: Iterable[Diagnostic], sources: Sources) -> Text:
    """All diagnostics by place, with a summary line, as styled text."""
    ordered = sorted_diagnostics(diagnostics)
    result = Text()
    for diagnostic in ordered:
        result.append_text(_one(diagnostic, sources))
        result.append("\n")
    summary = _summary(ordered)
    if summary:
        result.append(summary + "\n", "bold")
    return result


def _summary(ordered: tuple[Diagnostic, ...]) -> str:
    counts = [
        (sum(d.severity is severity for d in ordered), word)
        for severity, word in ((Severity.ERROR, "error"), (Severity.WARNING, "warning"))
    ]
    return ", ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count)


def _one(diagnostic: Diagnostic, sources: Sources) -> Text:
    style = _STYLES[diagnostic.severity]
    text = Text()
    text.append(f"{diagnostic.severity}[{diagnostic.code}]", style)
    text.append(f": {printable(diagnostic.message)}\n", "bold")
    labels = ((diagnostic.primary,) if diagnostic.primary else ()) + diagnostic.secondary
    shown = [label for label in labels if locate(label.span, sources)]
    width = max((len(str(_line_of(label, sources))) for label in shown), default=1)
    if diagnostic.primary:
        first = diagnostic.primary.span.source
        names = [first, *dict.fromkeys(label.span.source for label in labels if label.span.source != first)]
        for name in names:
            own = [label for label in labels if label.span.source == name]
            _excerpt(
                text, own, diagnostic.primary, sources, style, width, arrow="-->" if name == first else ":::"
            )
    elif diagnostic.path:
        text.append(" " * width + "--> ", _FRAME)
        text.append(f"{printable(diagnostic.path)}\n")
    for note in diagnostic.notes:
        _remark(text, width, "note", note)
    if diagnostic.help:
        _remark(text, width, "help", diagnostic.help)
    return text


def _remark(text: Text, width: int, kind: str, message: str) -> None:
    lines = printable(message).splitlines() or [""]
    text.append(" " * width + " = ", _FRAME)
    text.append(f"{kind}: ", "bold")
    text.append(lines[0] + "\n")
    for line in lines[1:]:
        text.append(" " * (width + 3 + len(kind) + 2) + line + "\n")


def _line_of(label: Label, sources: Sources) -> int:
    location = locate(label.span, sources)
    return location.line if location else 0


def _excerpt(
    text: Text,
    labels: list[Label],
    primary: Label,
    sources: Sources,
    style: str,
    width: int,
    *,
    arrow: str,
) -> None:
    name = labels[0].span.source
    source = sources.get(name)
    text.append(" " * width + f"{arrow} ", _FRAME)
    location = locate(labels[0].span, sources)
    if source is None or location is None:
        text.append(printable(name) + "\n")
        return
    text.append(f"{printable(name)}:{location.line}:{location.column}\n")
    text.append(" " * width + " |\n", _FRAME)
    by_line: dict[int, list[Label]] = {}
    for label in labels:
        by_line.setdefault(_line_of(label, sources), []).append(label)
    previous: int | None = None
    for number in sorted(by_line):
        if previous is not None and number > previous + 1:
            text.append("...\n", _FRAME)
        previous = number
        _marked_line(text, source, number, by_line[number], primary, style, width)
    text.append(" " * width + " |\n", _FRAME)


def _marked_line(
    text: Text,
    source: SourceFile,
    number: int,
    labels: list[Label],
    primary: Label,
    style: str,
    width: int,
) -> None:
    line = source.line(number)
    line_start = source.line_starts[number - 1]
    first = min(label.span.start - line_start for label in labels)
    left = 0
    # The second test is the exact one; it must not be made on a line of megabytes for every label.
    if len(line) > MAX_LINE_CELLS or cell_len(printable(line)) > MAX_LINE_CELLS:
        left = max(0, first - _CONTEXT_BEFORE)
        line = line[left : left + MAX_LINE_CELLS]
    ellipsis = "..." if left else ""
    text.append(f"{number:>{width}} | ", _FRAME)
    text.append(f"{ellipsis}{printable(line)}".rstrip() + "\n")
    for label in sorted(labels, key=lambda label: (label is not primary, label.span.start)):
        start = min(max(0, label.span.start - line_start - left), len(line))
        end = min(max(start, label.span.end - line_start - left), len(line))
        indent = cell_len(ellipsis + printable(line[:start]))
        length = max(1, cell_len(printable(line[start:end])))
        mark_style = style if label is primary else "bold blue"
        text.append(" " * width + " | ", _FRAME)
        text.append(" " * indent + ("^" if label is primary else "-") * length, mark_style)
        if label.message:
            text.append(f" {printable(label.message)}", mark_style)
        text.append("\n")
