# SPDX-License-Identifier: Apache-2.0
"""The phase that counts, out of the words that the checks share, and why it is what it is."""

from __future__ import annotations

import pytest

from o2cc.runtime.phases import FINAL, INERT, TRANSITION, phase_of, reason

SECOND = 10**9
NEVER = 2**64 - 1
START = 1000 * SECOND


def words(phase: int = TRANSITION, **changes: int) -> dict[str, int]:
    return {
        "phase": phase,
        "started": START,
        "last_untracked": 0,
        "quiet": 5 * SECOND,
        "at_most": 60 * SECOND,
    } | changes


@pytest.mark.parametrize(
    ("changes", "after", "objects", "number", "expected"),
    [
        ({"phase": FINAL}, 1, 0, FINAL, "is a violation"),
        ({"phase": INERT}, 1, 0, INERT, "nothing is checked"),
        ({}, 1, 0, TRANSITION, "no object from before loading was touched yet"),
        ({}, 1, 0, TRANSITION, "when none is touched for another 4 s, at the latest in 59 s"),
        ({"quiet": NEVER}, 1, 0, TRANSITION, "the transition ends in 59 s"),
        (
            {"quiet": NEVER, "at_most": NEVER},
            10**6,
            0,
            TRANSITION,
            "yet; the transition does not end by itself; `o2c phase NAME final` ends it now",
        ),
        ({"last_untracked": START + 6 * SECOND}, 8, 2, TRANSITION, "2 objects from before loading in use"),
        ({"last_untracked": START + 6 * SECOND}, 8, 2, TRANSITION, "the last one touched 2 s ago"),
        ({"last_untracked": START + 6 * SECOND}, 8, 0, TRANSITION, "are gone, the last touch was 2 s ago"),
        ({}, 5.5, 0, FINAL, "no object from before loading was touched for 5 s, which ends"),
        ({"last_untracked": START + 6 * SECOND}, 11.5, 1, FINAL, "touched for 5 s, which ends"),
        ({"last_untracked": START + 60 * SECOND}, 60.5, 1, FINAL, "60 s are over, which ends"),
    ],
)
def test_the_phase_has_a_reason(
    changes: dict[str, int], after: float, objects: int, number: int, expected: str
) -> None:
    phase = phase_of(words(**changes), START + int(after * SECOND))
    assert phase.number == number
    assert expected in reason(phase, objects)


@pytest.mark.parametrize("started", [0, 2**63])
def test_a_transition_that_has_not_begun_does_not_end(started: int) -> None:
    """Catches a loader that attaches for longer than `at most`, and loads straight into the final phase."""
    phase = phase_of(words(started=started), START + 3600 * SECOND)
    assert (phase.name, phase.left) == ("transition", 60)


def test_a_touch_that_is_newer_than_the_clock_ends_nothing() -> None:
    """Catches a difference below zero that counts as an eternity."""
    assert phase_of(words(last_untracked=START + 2 * SECOND), START + SECOND).number == TRANSITION
