# SPDX-License-Identifier: Apache-2.0
"""Spans, positions, ordering and suggestions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import (
    Collector,
    Diagnostic,
    DiagnosticError,
    Severity,
    SourceFile,
    Span,
    did_you_mean,
    error,
    sorted_diagnostics,
    warning,
)


@settings(deadline=None)
@given(st.text(alphabet="ab\n\r\t§", max_size=60))
def test_position_agrees_with_counting(text: str) -> None:
    source = SourceFile("x", text)
    for offset in range(len(text) + 1):
        before = text[:offset]
        assert source.position(offset) == (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def test_positions_outside_are_clamped() -> None:
    source = SourceFile("x", "ab\nc")
    assert source.position(99) == (2, 2)
    assert source.position(-1) == (1, 1)


def test_lines() -> None:
    source = SourceFile("x", "one\r\ntwo\n\nfour")
    assert [source.line(number) for number in range(6)] == ["", "one", "two", "", "four", ""]


def test_span_cover() -> None:
    assert Span("a", 3, 5).to(Span("a", 1, 4)) == Span("a", 1, 5)
    with pytest.raises(ValueError, match="common cover"):
        Span("a", 0, 1).to(Span("b", 0, 1))


@pytest.mark.parametrize(("start", "end"), [(-1, 0), (2, 1)])
def test_span_must_be_a_range(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        Span("a", start, end)


@pytest.mark.parametrize("code", ["", "O2C", "O2C0000", "O2C1000", "O2C01234", "o2c0101"])
def test_code_must_have_its_form(code: str) -> None:
    with pytest.raises(ValueError, match="not a diagnostic code"):
        error(code, "x")


def test_sorted_by_place_and_each_once() -> None:
    ordered = [
        error("O2C0901", "about a run"),
        error("O2C0901", "about a file", path="a"),
        error("O2C0102", "x", Span("b", 1, 2)),
        error("O2C0101", "x", Span("b", 5, 6)),
        error("O2C0102", "x", Span("b", 5, 6)),
        error("O2C0101", "x", Span("c", 0, 1)),
    ]
    shuffled = ordered * 2
    random.Random(1).shuffle(shuffled)
    assert list(sorted_diagnostics(shuffled)) == ordered


def test_collector_raises_everything_if_anything_is_an_error() -> None:
    collector = Collector()
    collector.add(warning("O2C0201", "mild"))
    collector.raise_if_errors()
    collector.add(error("O2C0202", "bad"))
    with pytest.raises(DiagnosticError) as raised:
        collector.raise_if_errors()
    assert [d.severity for d in raised.value.diagnostics] == [Severity.WARNING, Severity.ERROR]


def test_error_text_is_short_whatever_it_carries() -> None:
    raised = DiagnosticError(error("O2C0101", f"m{i}") for i in range(1000))
    assert len(str(raised)) < 200
    assert "997 more" in str(raised)


def test_source_of_a_diagnostic() -> None:
    assert error("O2C0101", "x", Span("a", 0, 0)).source == "a"
    assert error("O2C0101", "x", path="b").source == "b"
    assert Diagnostic("O2C0101", Severity.NOTE, "x").source is None


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("compartmint", ["compartment", "const"], "compartment"),
        ("sk_er", ["sk_err", "sk_family"], "sk_err"),
        ("KMALLOC", ["kmalloc", "kfree"], "kmalloc"),
        ("xyz", ["compartment"], None),
        ("same", ["same"], None),
        ("", ["a"], None),
        ("a", [], None),
    ],
)
def test_did_you_mean(name: str, candidates: list[str], expected: str | None) -> None:
    assert did_you_mean(name, candidates) == (f"did you mean `{expected}`?" if expected else None)


@settings(deadline=None)
@given(st.permutations(["skb_put", "skb_pull", "skb_push", "skb_pup"]))
def test_did_you_mean_does_not_depend_on_order(candidates: list[str]) -> None:
    assert did_you_mean("skb_puf", candidates) == did_you_mean("skb_puf", sorted(candidates))
