# SPDX-License-Identifier: Apache-2.0
"""Which grant decides a byte, against a map with one entry for each byte."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from o2cc.diagnostics import Span
from o2cc.policy.model import Action, Scope, StructGrant
from o2cc.policy.ranges import covers, decide, intersect, normalize, subtract

SIZE = 24
FUNCTIONS = ("a", "b", "c")
SPAN = Span("x", 0, 0)

ranges = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair))), max_size=4
)
scopes = st.none() | st.sets(st.sampled_from(FUNCTIONS), min_size=1).map(
    lambda names: Scope(tuple(sorted(names)), SPAN)
)


@st.composite
def grants(draw: st.DrawFn) -> StructGrant:
    return StructGrant(
        struct=draw(st.sampled_from(["s", "t"])),
        type_id=1,
        ranges=normalize(draw(ranges)),
        fields=(),
        whole=False,
        scope=draw(scopes),
        action=Action.REPORT,
        span=SPAN,
        reason="",
        allows=draw(st.booleans()),
    )


def bytes_of(some: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> set[int]:
    return {byte for start, end in some for byte in range(start, end)}


@given(ranges)
def test_normalize_keeps_the_bytes(some: list[tuple[int, int]]) -> None:
    joined = normalize(some)
    assert bytes_of(joined) == bytes_of(some)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(joined))
    assert all(start < end for start, end in joined)


@given(ranges, ranges)
def test_subtract_and_intersect(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    assert bytes_of(subtract(some, others)) == bytes_of(some) - bytes_of(others)
    assert bytes_of(intersect(some, others)) == bytes_of(some) & bytes_of(others)


@given(ranges, st.integers(0, SIZE), st.integers(1, 8))
def test_covers(some: list[tuple[int, int]], start: int, length: int) -> None:
    assert covers(some, start, start + length) == (set(range(start, start + length)) <= bytes_of(some))


def brute_force(all_grants: list[StructGrant], struct: str, function: str | None) -> dict[int, StructGrant]:
    """For each byte, look at every grant: fewer functions, then the shorter range, then the earlier rule."""
    decided: dict[int, StructGrant] = {}
    for byte in range(SIZE):
        best: tuple[int, int, int] | None = None
        for order, grant in enumerate(all_grants):
            if grant.struct != struct:
                continue
            if grant.scope is not None and function not in grant.scope.functions:
                continue
            for start, end in grant.ranges:
                if not start <= byte < end:
                    continue
                functions = len(grant.scope.functions) if grant.scope is not None else 1000
                if best is None or (functions, end - start, order) < best:
                    best = functions, end - start, order
                    decided[byte] = grant
    return decided


@given(st.lists(grants(), max_size=6), st.sampled_from(["s", "t"]), st.none() | st.sampled_from(FUNCTIONS))
def test_the_narrower_wins(all_grants: list[StructGrant], struct: str, function: str | None) -> None:
    decisions = decide(all_grants, struct, function)
    assert all(first.end <= second.start for first, second in itertools.pairwise(decisions))
    by_byte = {byte: item.grant for item in decisions for byte in range(item.start, item.end)}
    expected = brute_force(all_grants, struct, function)
    assert by_byte.keys() == expected.keys()
    assert all(by_byte[byte] is expected[byte] for byte in expected)
