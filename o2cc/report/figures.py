# SPDX-License-Identifier: Apache-2.0
"""The figures of one compilation (`o2cc --stats`), checked and set out for a person.

The document is a JSON object: counts are numbers, `seconds` maps stages to seconds, `discharged_by` proofs to counts,
`grants` is a list of objects with `place`, `rule` and `reason`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from o2cc.diagnostics import DiagnosticError, SourceFile, error

WIDTH = 110
_INDENT = " " * 4

COUNTS = (
    "sites",
    "stores",
    "stores_discharged",
    "stores_covered",
    "stores_probed",
    "stores_unchecked",
    "indirect_calls",
    "gate_calls",
    "entries",
    "unchecked",
    "checks",
    "programs",
    "subprograms",
    "instructions",
    "object_bytes",
)

# The passes' names for their proofs, for a person; others are printed as they are.
_PROOFS = {
    "barrier": "only orders memory, writes nothing",
    "checked-before": "an earlier check on every path covers them",
    "granted-call": "calls that the policy grants and that need no look at their arguments",
    "own-frame": "within the function's own stack frame",
    "preempt-count": "the processor's own preemption counter",
    "static-data": "within the module's own data",
}


@dataclass(frozen=True)
class Grant:
    """A rule that lets the compartment write what is not its own."""

    place: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Figures:
    """What one compilation came to. Times in seconds, sizes in bytes."""

    target: str
    release: str
    counts: dict[str, int]
    discharged_by: dict[str, int]
    seconds: dict[str, float]
    grants: tuple[Grant, ...]


def read_figures(source: SourceFile) -> Figures:
    """The figures in a document. Raises DiagnosticError (O2C0907) where it is not one of `o2cc --stats`."""
    try:
        document = json.loads(source.text)
    except (ValueError, RecursionError) as problem:
        raise _refused(source, f"it is not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise _refused(source, "it is not a JSON object")
    grants = document.get("grants")
    if not isinstance(grants, list):
        raise _refused(source, "`grants` is not a list")
    return Figures(
        target=_text(source, document, "target"),
        release=_text(source, document, "release"),
        counts={name: int(_number(source, document, name)) for name in COUNTS},
        discharged_by={name: int(value) for name, value in _table(source, document, "discharged_by").items()},
        seconds=_table(source, document, "seconds"),
        grants=tuple(_grant(source, item) for item in grants),
    )


def _refused(source: SourceFile, why: str) -> DiagnosticError:
    return DiagnosticError(
        error(
            "O2C0907",
            f"`{source.name}` holds no figures of a compilation",
            notes=(why,),
            help="`o2cc POLICY --stats FILE` writes them",
            path=source.name,
        )
    )


def _text(source: SourceFile, document: dict[str, object], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise _refused(source, f"`{name}` is not a string")
    return value


def _number(source: SourceFile, document: dict[str, object], name: str) -> float:
    value = document.get(name)
    # NaN and infinities, which the JSON reader accepts, fail the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise _refused(source, f"`{name}` is not a number")
    return value


def _table(source: SourceFile, document: dict[str, object], name: str) -> dict[str, float]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise _refused(source, f"`{name}` is not an object")
    return {key: _number(source, value, key) for key in value}


def _grant(source: SourceFile, item: object) -> Grant:
    if not isinstance(item, dict):
        raise _refused(source, "a grant is not an object")
    return Grant(*(_text(source, item, name) for name in ("place", "rule", "reason")))


def lines(figures: Figures) -> Iterator[str]:
    """The figures for a person, at most `WIDTH` columns where words allow it."""
    counts = figures.counts
    yield f"{figures.target} of {figures.release}"
    yield ""
    yield from _rows(
        [
            (counts["sites"], "instructions need a decision"),
            (counts["indirect_calls"], "of them indirect calls and jumps"),
            (counts["gate_calls"], "of them calls of kernel functions"),
            (counts["entries"], "of them entries into the compartment, and returns from them"),
            (counts["stores"], "of them stores:"),
            (counts["stores_discharged"], "    proved safe: no check"),
            (counts["stores_covered"], "    covered by the check of another store"),
            (counts["stores_probed"], "    checked at run time"),
            (counts["stores_unchecked"], "    without a place for a check"),
            (counts["unchecked"], "of all these are without a place for a check (O2C0521 names them)"),
        ]
    )
    yield ""
    yield "Decided at compile time, by reason:"
    by_count = sorted(figures.discharged_by.items(), key=lambda item: (-item[1], item[0]))
    yield from _rows([(count, f"{name}: {_PROOFS.get(name, name)}") for name, count in by_count])
    yield ""
    yield "The object:"
    programs = counts["programs"]
    each = counts["instructions"] / programs if programs else 0.0
    yield from _rows(
        [
            (counts["checks"], "distinct checks"),
            (programs, f"programs, and {counts['subprograms']} shared subprograms"),
            (counts["instructions"], f"instructions, {each:.1f} a program"),
            (counts["object_bytes"], "bytes"),
        ]
    )
    stages = ", ".join(
        f"{name} {seconds:.2f}" for name, seconds in figures.seconds.items() if name != "total"
    )
    yield f"  compiled in {figures.seconds.get('total', sum(figures.seconds.values())):.2f} s ({stages})"
    yield ""
    yield from _grants(figures.grants)


def _rows(rows: list[tuple[int, str]]) -> Iterator[str]:
    width = max((len(f"{count:,}") for count, _ in rows), default=0)
    for count, what in rows:
        yield f"  {count:>{width},}  {what}"


def _grants(grants: tuple[Grant, ...]) -> Iterator[str]:
    if not grants:
        yield "It grants no memory beyond the compartment's own."
        return
    yield "What it may write beyond its own memory:"
    for grant in grants:
        line = grant.place.rpartition(":")[2]
        yield f"  line {line}: {grant.reason or '(no reason given)'}"
        yield from textwrap.wrap(
            grant.rule,
            WIDTH,
            initial_indent=_INDENT,
            subsequent_indent=_INDENT * 2,
            break_long_words=False,
            break_on_hyphens=False,
        )
