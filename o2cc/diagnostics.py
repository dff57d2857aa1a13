# SPDX-License-Identifier: Apache-2.0
"""The one type of every message that O2C gives about its input.

A stage collects `Diagnostic` values and raises them together in a `DiagnosticError`; the renderers of
`o2cc.report` turn them into text, JSON or SARIF. Nothing here does I/O.

Positions are offsets into the decoded text of a source (code points, not bytes), half open. A
`SourceFile` turns them into lines and columns, both counted from 1.

Ranges of codes: 01xx syntax, 02xx names, types and policy, 03xx standard library and gates, 04xx kernel
description, 05xx lowering and IR, 06xx object and back end, 07xx trees, 08xx loading and enforcement,
09xx command line and files. Every code has a page in `o2cc/report/explanations/`.

Style: messages are lower case, without a full stop, with the user's text in backticks.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TypedDict, Unpack

CODE_PATTERN = re.compile(r"O2C0[1-9][0-9]{2}\Z")


class Severity(StrEnum):
    """How bad it is: only an error makes a run fail."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Half-open range of offsets into the text of the source called `source`."""

    source: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"span {self.start}..{self.end} is not a range")

    def to(self, other: Span) -> Span:
        """The smallest span that covers this one and `other`, which is in the same source."""
        if other.source != self.source:
            raise ValueError(f"spans of `{self.source}` and `{other.source}` have no common cover")
        return Span(self.source, min(self.start, other.start), max(self.end, other.end))


@dataclass(frozen=True)
class SourceFile:
    """A source text with its name (a path, or a name in angle brackets for text that has no file)."""

    name: str
    text: str

    @cached_property
    def line_starts(self) -> tuple[int, ...]:
        """Offset of the first character of every line."""
        return (0, *(match.end() for match in re.finditer(r"\n", self.text)))

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of an offset; offsets past the end mean the end."""
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Text of a line (from 1) without its line end; empty for a line that is not there."""
        if not 1 <= number <= len(self.line_starts):
            return ""
        start = self.line_starts[number - 1]
        end = self.line_starts[number] if number < len(self.line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r\n")

    def span(self, start: int, end: int) -> Span:
        """Span of this source."""
        return Span(self.name, start, end)

    def slice(self, span: Span) -> str:
        """The text that a span of this source covers."""
        return self.text[span.start : span.end]


@dataclass(frozen=True, slots=True)
class Label:
    """A span with a few words about it (which may be empty)."""

    span: Span
    message: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """One message about the input.

    `primary` marks the place; `path` names a file instead, for what is wrong with a whole file (an
    ELF, a description, an output). `help` says what to do about it.
    """

    code: str
    severity: Severity
    message: str
    primary: Label | None = None
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if not CODE_PATTERN.match(self.code):
            raise ValueError(f"`{self.code}` is not a diagnostic code")

    @property
    def source(self) -> str | None:
        """Name of the source or file that this is about."""
        return self.primary.span.source if self.primary else self.path

    @property
    def sort_key(self) -> tuple[str, int, int, str, str]:
        """Orders by place, then code."""
        span = self.primary.span if self.primary else None
        return (
            self.source or "",
            span.start if span else -1,
            span.end if span else -1,
            self.code,
            self.message,
        )


class Details(TypedDict, total=False):
    """What a diagnostic may say beside its message and place; ``path``: the file that it is about as a whole."""

    secondary: Iterable[Label]
    notes: Iterable[str]
    help: str | None
    path: str | None


def _make(
    severity: Severity,
    code: str,
    message: str,
    span: Span | None,
    label: str,
    *,
    secondary: Iterable[Label] = (),
    notes: Iterable[str] = (),
    help: str | None = None,
    path: str | None = None,
) -> Diagnostic:
    primary = Label(span, label) if span is not None else None
    return Diagnostic(code, severity, message, primary, tuple(secondary), tuple(notes), help, path)


def error(
    code: str, message: str, span: Span | None = None, label: str = "", **details: Unpack[Details]
) -> Diagnostic:
    """An error at a span, or about the file `path`, or about the run as a whole."""
    return _make(Severity.ERROR, code, message, span, label, **details)


def warning(
    code: str, message: str, span: Span | None = None, label: str = "", **details: Unpack[Details]
) -> Diagnostic:
    """A warning; arguments as those of `error`."""
    return _make(Severity.WARNING, code, message, span, label, **details)


def note(
    code: str, message: str, span: Span | None = None, label: str = "", **details: Unpack[Details]
) -> Diagnostic:
    """A note; arguments as those of `error`."""
    return _make(Severity.NOTE, code, message, span, label, **details)


class DiagnosticError(Exception):
    """Stops a stage; carries everything that it found wrong, at least one of them an error."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        if isinstance(diagnostics, Diagnostic):
            diagnostics = (diagnostics,)
        self.diagnostics: tuple[Diagnostic, ...] = sorted_diagnostics(diagnostics)
        if not self.diagnostics:
            raise ValueError("a DiagnosticError needs a diagnostic")
        shown = "; ".join(f"{d.code}: {d.message}" for d in self.diagnostics[:3])
        more = len(self.diagnostics) - 3
        super().__init__(f"{shown}; and {more} more" if more > 0 else shown)


@dataclass
class Collector:
    """Gathers the diagnostics of a stage, so that one run shows all of them."""

    diagnostics: list[Diagnostic] = field(default_factory=list)

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep one more."""
        self.diagnostics.append(diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Keep several more."""
        self.diagnostics.extend(diagnostics)

    @property
    def has_errors(self) -> bool:
        """Whether any of them is an error."""
        return has_errors(self.diagnostics)

    def raise_if_errors(self) -> None:
        """Raise everything collected if any of it is an error."""
        if self.has_errors:
            raise DiagnosticError(self.diagnostics)


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether any is an error."""
    return any(d.severity is Severity.ERROR for d in diagnostics)


def sorted_diagnostics(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """By place, each one once."""
    return tuple(sorted(dict.fromkeys(diagnostics), key=lambda d: d.sort_key))


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """Help text that names the candidate nearest to `name`, or None when none is near.

    The nearest is by difflib's similarity, with ties broken by name so that output does not depend on
    the order of `candidates`. Bounded work: at most 20,000 candidates are compared.
    """
    lowered = name.lower()
    pool = sorted({c for c in candidates if c != name})[:20_000]
    by_lower = {c.lower(): c for c in reversed(pool)}
    best = difflib.get_close_matches(lowered, by_lower, n=1, cutoff=0.7)
    return f"did you mean `{by_lower[best[0]]}`?" if best else None
