# SPDX-License-Identifier: Apache-2.0
"""The reason of a rule: the comment on its line, or the comment lines directly above it."""

from __future__ import annotations

import re

from o2cc.diagnostics import SourceFile, Span
from o2cc.syntax import nodes

_MARKS = re.compile(r"^\s*(?://+!?|/\*+|\*+/?)\s?|\s*\*+/\s*$")


class Reasons:
    """Comments of a source, by line."""

    def __init__(self, source: SourceFile, file: nodes.PolicyFile) -> None:
        self.source = source
        self.trailing: dict[int, str] = {}
        self.own: dict[int, tuple[int, str]] = {}  # by last line: first line and text
        for comment in file.comments:
            first, _ = source.position(comment.span.start)
            last, _ = source.position(max(comment.span.start, comment.span.end - 1))
            text = " ".join(
                part for line in comment.text.splitlines() if (part := _MARKS.sub("", line).strip())
            )
            if comment.own_line:
                self.own[last] = (first, text)
            else:
                self.trailing[first] = text

    def of(self, span: Span) -> str:
        """The reason of the rule at ``span``; empty if nobody gave one."""
        first, _ = self.source.position(span.start)
        last, _ = self.source.position(max(span.start, span.end - 1))
        for line in (last, first):
            if self.trailing.get(line):
                return self.trailing[line]
        lines: list[str] = []
        line = first - 1
        while line in self.own:
            above, text = self.own[line]
            lines.insert(0, text)
            line = above - 1
        return " ".join(text for text in lines if text)
