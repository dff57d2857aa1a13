# SPDX-License-Identifier: Apache-2.0
"""The warnings about functions that a policy allows and that no library speaks of (O2C0300).

A first policy of a module allows dozens of them with one rule. Each of a few is worth a warning of its own; of many only
one is read, with what is not checked first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from o2cc.diagnostics import Diagnostic, Span, warning

# As many of one rule get a warning each.
_SINGLY = 5
# As many that are checked by type are named in the warning about all.
_NAMED = 8
_ANY_ADDRESS = "of a shared type, so that any kernel address passes which is not the compartment's own"


@dataclass(frozen=True, slots=True)
class UnknownCallee:
    """A function that ``span`` allows.  ``checked``, ``shared`` and ``unchecked`` are its pointer parameters, by whether their
    types say what they must be, or only whose they must not be; ``opaque`` is why no parameter is known, if none is."""

    function: str
    span: Span
    checked: tuple[str, ...]
    shared: tuple[str, ...]
    unchecked: tuple[str, ...]
    opaque: str | None


def unknown_warnings(found: Iterable[UnknownCallee]) -> Iterator[Diagnostic]:
    """Warnings in the order of what was found, those about many functions of one rule at the first of them."""
    by_span: dict[Span, list[UnknownCallee]] = {}
    for callee in found:
        by_span.setdefault(callee.span, []).append(callee)
    for span, callees in by_span.items():
        if len(callees) <= _SINGLY:
            yield from map(_about_one, callees)
        else:
            yield _about_many(span, callees)


def _about_one(callee: UnknownCallee) -> Diagnostic:
    notes = [callee.opaque] if callee.opaque else []
    if callee.checked:
        notes.append(f"checked by type: {_quoted(callee.checked)}")
    if callee.shared:
        notes.append(f"{_ANY_ADDRESS}: {_quoted(callee.shared)}")
    if callee.unchecked:
        notes.append(f"not checked, since their types say nothing: {_quoted(callee.unchecked)}")
    written = callee.function if callee.function.isidentifier() else f'"{callee.function}"'
    return warning(
        "O2C0300",
        f"what `{callee.function}` does with its arguments is not known",
        callee.span,
        "allowed here",
        notes=notes,
        help=f"say it with `gate {written}(...) {{ ... }}` or `extern fn {written}(...)`",
    )


def _about_many(span: Span, callees: list[UnknownCallee]) -> Diagnostic:
    opaque = [callee.function for callee in callees if callee.opaque]
    vague = [f"{_quoted(callee.unchecked)} of `{callee.function}`" for callee in callees if callee.unchecked]
    typed = [
        callee.function
        for callee in callees
        if not callee.opaque and not callee.unchecked and (callee.checked or not callee.shared)
    ]
    notes = []
    if opaque:
        notes.append(f"none of the arguments is checked of {_quoted(opaque)}")
    if vague:
        notes.append(f"not checked, since their types say nothing: {'; '.join(vague)}")
    shared = [f"{_quoted(callee.shared)} of `{callee.function}`" for callee in callees if callee.shared]
    if shared:
        notes.append(f"{_ANY_ADDRESS}: {'; '.join(shared[:_NAMED])}{_and_more(len(shared) - _NAMED)}")
    if typed:
        notes.append(f"checked by type: {_quoted(typed[:_NAMED])}{_and_more(len(typed) - _NAMED)}")
    return warning(
        "O2C0300",
        f"what {len(callees)} functions do with their arguments is not known",
        span,
        "allowed here",
        notes=notes,
        help="`o2c gates MODULE` lists them with their parameters; say it with `gate F(...) { ... }` or "
        "`extern fn F(...)`, of the unchecked ones first",
    )


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
