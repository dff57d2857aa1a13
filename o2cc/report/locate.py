# SPDX-License-Identifier: Apache-2.0
"""What all renderers share: sources by name, positions, and text that is safe to print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from o2cc.diagnostics import SourceFile, Span

Sources = Mapping[str, SourceFile]


def sources_by_name(sources: Iterable[SourceFile]) -> dict[str, SourceFile]:
    """The mapping that renderers take."""
    return {source.name: source for source in sources}


@dataclass(frozen=True, slots=True)
class Location:
    """Start and end of a span as lines and columns from 1; the end column is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


def locate(span: Span, sources: Sources) -> Location | None:
    """Where a span is, or None when the text of its source is not at hand."""
    source = sources.get(span.source)
    if source is None:
        return None
    return Location(*source.position(span.start), *source.position(span.end))


def printable(text: str) -> str:
    """Without characters that could steer a terminal; line feeds stay, tabs become four spaces."""
    return "".join(
        "    "
        if char == "\t"
        else char
        if char == "\n" or char.isprintable()
        else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )
