# SPDX-License-Identifier: Apache-2.0
"""Where a breakpoint can take the place of a probe at a function's entry."""

from __future__ import annotations

import pytest

from o2cc.runtime.entry_points import Ends, behind_entry

ENDBR, SEALED, NOP, CALL = "f30f1efa", "660f1f00", "0f1f440000", "e800000000"
PUSH, RET, NOTHING = "55", "c3", "90"
JUMP_BACK = "ebfd"  # from its own second byte on, three back: onto the byte before it
BRANCH_BACK = "75fd"


@pytest.mark.parametrize(
    ("code", "behind"),
    [
        (NOP + PUSH + RET, 5),
        (ENDBR + NOP + PUSH + RET, 9),
        (ENDBR + CALL + PUSH + RET, 9),
        (SEALED + NOP + PUSH + RET, 9),
        (SEALED + PUSH + RET, 0),
        (CALL + PUSH + RET, 5),
        (PUSH + RET, 0),
        (ENDBR + PUSH + RET, 0),
        ("", 0),
        # a loop to the first instruction of its own would run the probe again and again
        (ENDBR + NOP + NOTHING + JUMP_BACK + RET, 0),
        (NOP + NOTHING + BRANCH_BACK + RET, 0),
        # one to the second does not
        (NOP + PUSH + NOTHING + BRANCH_BACK + RET, 5),
    ],
)
def test_the_first_instruction_behind_the_place_of_ftrace(code: str, behind: int) -> None:
    assert behind_entry(bytes.fromhex(code)) == behind


def test_a_function_ends_where_the_next_one_begins() -> None:
    ends = Ends.of({"b": 0x1040, "a": 0x1000, "alias": 0x1000})
    assert ends.size(0x1000) == 0x40
    assert ends.size(0x1040) == 1 << 16
    assert ends.size(0x1010) == 0x30
