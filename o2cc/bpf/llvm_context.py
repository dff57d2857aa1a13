# SPDX-License-Identifier: Apache-2.0
"""What the writers of LLVM text share: names of symbols, spans as line numbers, metadata, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from o2cc.bpf.layout import TableLayout
from o2cc.diagnostics import Span
from o2cc.ir import nodes


class SymbolKind(StrEnum):
    """Prefixes of symbol names inside the LLVM module."""

    FUNCTION = "f."
    CHECK = "c."
    HOOK = "h."
    MAP = "m."
    TABLE = "t."
    KERNEL = "k."
    PARAMETER = "p."


class Role(StrEnum):
    """What a body is, which decides what it may read."""

    FUNCTION = "function"
    CHECK = "check"  # registers and parameters of the site
    PROBE_HOOK = "probe"  # registers
    TRACEPOINT_HOOK = "tracepoint"  # arguments
    PLAIN_HOOK = "plain"


class BodyError(Exception):
    """A body that cannot be compiled; ``code`` is a diagnostic code, ``span`` where it is."""

    def __init__(self, code: str, message: str, span: Span | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.span = code, message, span


@dataclass
class Spans:
    """Numbers spans; the number travels through LLVM as a line number.  0 means none."""

    list: list[Span] = field(default_factory=list)
    _numbers: dict[Span, int] = field(default_factory=dict)

    def number(self, span: Span | None) -> int:
        """The number of a span."""
        if span is None:
            return 0
        number = self._numbers.get(span)
        if number is None:
            self.list.append(span)
            number = self._numbers[span] = len(self.list)
        return number

    def span(self, number: int) -> Span | None:
        """The span of a number; None for 0 and for numbers that were never given."""
        return self.list[number - 1] if 1 <= number <= len(self.list) else None


@dataclass(frozen=True)
class SiteTable:
    """Where a check of the `shape` layout finds its parameters: in a table of words, a row a site.

    ``first`` is the attach cookie of the check's first site and ``count`` the number of its sites; ``offset``
    is where its rows begin in the table, in words.
    """

    table: str
    counter: str
    first: int
    count: int
    offset: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Scope:
    """What the bodies of a module can name."""

    functions: Mapping[str, nodes.Function]
    maps: Mapping[str, nodes.Map]
    tables: Mapping[str, nodes.Table]
    layouts: Mapping[str, TableLayout]


class Metadata:
    """Numbers metadata nodes of the text."""

    def __init__(self) -> None:
        self.lines = [
            "!llvm.dbg.cu = !{!0}",
            "!llvm.module.flags = !{!2, !3}",
            "!0 = distinct !DICompileUnit(language: DW_LANG_C99, file: !1, emissionKind: LineTablesOnly)",
            '!1 = !DIFile(filename: "o2c", directory: "/")',
            '!2 = !{i32 2, !"Debug Info Version", i32 3}',
            '!3 = !{i32 7, !"Dwarf Version", i32 4}',
            "!4 = !DISubroutineType(types: !5)",
            "!5 = !{null}",
        ]
        self.count = 6

    def add(self, text: str) -> int:
        """A node; returns its number."""
        self.lines.append(f"!{self.count} = {text}")
        self.count += 1
        return self.count - 1


class Context:
    """What all bodies of a module share: the names that they can use, declarations, spans, metadata."""

    def __init__(self, scope: Scope, spans: Spans) -> None:
        self.scope = scope
        self.spans = spans
        self.metadata = Metadata()
        self.declarations: dict[str, None] = {}
        self.called: dict[str, int] = {}  # functions, and how many words they take

    def declare(self, text: str) -> None:
        """Adds a declaration, once."""
        self.declarations[text] = None


def quote(name: str) -> str:
    if '"' in name or "\\" in name or "\0" in name:
        raise BodyError("O2C0600", f"`{name}` cannot be the name of a symbol")
    return f'@"{name}"'
