# SPDX-License-Identifier: Apache-2.0
"""Formatting keeps the meaning and the comments of any policy, and settles at once."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.syntax.formatter import format_source
from o2cc.syntax.nodes import PolicyFile, without_spans
from o2cc.syntax.parser import parse

from .derivations import policy_texts


def _parsed(text: str) -> PolicyFile | None:
    try:
        return parse(SourceFile("x.o2c", text))
    except DiagnosticError:
        return None


def _comments(file: PolicyFile) -> list[str]:
    return [
        "\n".join(line.rstrip() for line in c.text.replace("\r\n", "\n").split("\n")) for c in file.comments
    ]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(policy_texts())
def test_formatting_keeps_meaning_and_comments_and_is_idempotent(text: str) -> None:
    before = _parsed(text)
    assume(before is not None)
    assert before is not None
    formatted = format_source(SourceFile("x.o2c", text))
    after = _parsed(formatted)
    assert after is not None, formatted
    assert without_spans(after).items == without_spans(before).items
    assert _comments(after) == _comments(before)
    assert format_source(SourceFile("x.o2c", formatted)) == formatted


@settings(max_examples=100, deadline=None)
@given(st.lists(policy_texts(), min_size=1, max_size=3))
def test_most_derived_texts_parse(texts: list[str]) -> None:
    """The generator is worth nothing if what it derives is refused; names read as keywords may be."""
    for text in texts:
        try:
            parse(SourceFile("x.o2c", text))
        except DiagnosticError as problem:
            # Refusals must come from rules beyond the grammar, or from a name in a keyword's place.
            assert any(word in text for word in ("size", "entry", "whole", "free")) or all(
                d.code not in ("O2C0102", "O2C0103", "O2C0104") for d in problem.diagnostics
            )
