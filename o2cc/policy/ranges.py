# SPDX-License-Identifier: Apache-2.0
"""Byte ranges, and which of several overlapping grants decides a byte.

The rule of the language: the narrower wins.  A rule for some functions is narrower than one for all, one for
fewer functions narrower than one for more, and among rules for equally many functions the one whose range has
fewer bytes.  Ranges are half open, ``(start, end)``, and counted in bytes from the start of the struct.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from o2cc.policy.model import StructGrant

Range = tuple[int, int]

_ALL_FUNCTIONS = 1 << 62


def normalize(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sorted, disjoint, neighbours joined; empty ranges dropped."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def subtract(ranges: Iterable[Range], removed: Iterable[Range]) -> tuple[Range, ...]:
    """What of ``ranges`` lies in none of ``removed``."""
    left = list(normalize(ranges))
    for start, end in normalize(removed):
        following: list[Range] = []
        for low, high in left:
            if end <= low or high <= start:
                following.append((low, high))
                continue
            if low < start:
                following.append((low, start))
            if end < high:
                following.append((end, high))
        left = following
    return tuple(left)


def intersect(ranges: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """What lies in both."""
    first = normalize(ranges)
    return subtract(first, subtract(first, others))


def covers(ranges: Iterable[Range], start: int, end: int) -> bool:
    """Whether one or several of the ranges hold all bytes of ``start..end``."""
    return not subtract([(start, end)], ranges)


@dataclass(frozen=True, slots=True)
class Decision:
    """Bytes ``[start, end)`` of a struct are decided by ``grant``."""

    start: int
    end: int
    grant: StructGrant


def narrowness(grant: StructGrant, covering: Range) -> tuple[int, int]:
    """Sort key of a grant for a byte that its range ``covering`` holds: the smaller, the narrower."""
    functions = len(grant.scope.functions) if grant.scope is not None else _ALL_FUNCTIONS
    return functions, covering[1] - covering[0]


def applies(grant: StructGrant, struct: str, function: str | None) -> bool:
    """Whether the grant speaks of ``struct`` in code of ``function`` (None: only unscoped grants do)."""
    if grant.struct != struct:
        return False
    return grant.scope is None or (function is not None and function in grant.scope.functions)


def decide(grants: Sequence[StructGrant], struct: str, function: str | None) -> tuple[Decision, ...]:
    """Who decides each byte of ``struct`` in code of ``function``.

    The answer is sorted and disjoint; bytes that no grant mentions are in no decision.  Between grants that are
    equally narrow the first in ``grants`` wins; where these disagree the checker has refused the policy.
    """
    candidates = [
        (narrowness(grant, covering), order, covering, grant)
        for order, grant in enumerate(grants)
        if applies(grant, struct, function)
        for covering in grant.ranges
    ]
    edges = sorted({edge for _, _, covering, _ in candidates for edge in covering})
    decisions: list[Decision] = []
    for start, end in pairwise(edges):
        inside = [
            (key, order, grant)
            for key, order, (low, high), grant in candidates
            if low <= start and end <= high
        ]
        if not inside:
            continue
        _, _, grant = min(inside, key=lambda item: (item[0], item[1]))
        if decisions and decisions[-1].end == start and decisions[-1].grant is grant:
            decisions[-1] = Decision(decisions[-1].start, end, grant)
        else:
            decisions.append(Decision(start, end, grant))
    return tuple(decisions)
