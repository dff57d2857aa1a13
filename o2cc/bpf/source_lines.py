# SPDX-License-Identifier: Apache-2.0
"""Spans -> the file, line and text that BTF line information shows.

The verifier prints these lines beside the instructions that it refuses, so they are the policy's.
"""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.bpf.btf_writer import LineInfo
from o2cc.bpf.llvm_context import Spans
from o2cc.diagnostics import SourceFile, Span
from o2cc.ir import nodes

_TEXT_LIMIT = 120  # characters of a line; a policy's lines are shorter, a generated file's may not be


class SourceLines:
    """Looks up lines of sources, and the spans behind LLVM's line numbers."""

    def __init__(self, sources: Mapping[str, str], spans: Spans) -> None:
        self._files = {name: SourceFile(name, text) for name, text in sources.items()}
        self._spans = spans
        self._places: dict[Span, tuple[str, str, int, int]] = {}

    def place(self, span: Span | None) -> tuple[str, str, int, int]:
        """File, text of the line, line and column (from 1); ("", "", 0, 0) when there is no span."""
        if span is None:
            return "", "", 0, 0
        found = self._places.get(span)
        if found is None:
            file = self._files.get(span.source)
            if file is None:
                found = (span.source, "", 0, 0)
            else:
                line, column = file.position(span.start)
                found = (span.source, file.line(line).strip()[:_TEXT_LIMIT].replace("\0", " "), line, column)
            self._places[span] = found
        return found

    def info(self, offset: int, span: Span | None, fallback: str = "") -> LineInfo:
        """Line information from a byte offset on; ``fallback`` is the text when there is no source."""
        file, text, line, column = self.place(span)
        return LineInfo(offset, file, text or fallback, line, column)

    def site(self, site: nodes.Site) -> LineInfo:
        """A site's program comes from its policy line as a whole."""
        return self.info(0, site.span, f"{site.kind.value} at {site.function}+0x{site.offset:x}")

    def body(self, name: str, span: Span | None, lines: tuple[tuple[int, int], ...]) -> list[LineInfo]:
        """A compiled body, statement by statement.  ``lines`` are LLVM's (byte offset, number of span)."""
        infos = [self.info(0, span, name)]
        for offset, number in lines:
            here = self._spans.span(number)
            info = self.info(offset, here or span, name)
            last = infos[-1]
            if (info.file, info.line, info.text) == (last.file, last.line, last.text):
                continue
            if offset == last.offset:
                infos.pop()
            infos.append(info)
        return infos
