# SPDX-License-Identifier: Apache-2.0
"""Formatting keeps the meaning and the comments of any policy, and settles at once."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.syntax.formatter import format_source
from o2cc.syntax.nodes import PolicyFile, without_spans
from o2cc.syntax.parser import parse

from .derivations import derive_text, policy_texts


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


def test_most_derived_texts_parse() -> None:
    """The property above is worth nothing if what is derived is refused."""
    parsed = sum(_parsed(derive_text(seed)) is not None for seed in range(200))
    assert parsed > 120
