# SPDX-License-Identifier: Apache-2.0
"""Templates: narrow loads where all values fit, and everything else moved along."""

from __future__ import annotations

import struct

import pytest

from o2cc.bpf.compiler import MachineCode, Relocation
from o2cc.bpf.elf_writer import RelocationType
from o2cc.bpf.template import Width, make_template, width_of

WORD = 1 << 64


def instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, immediate)


def load(target: int, value: int = 0) -> bytes:
    return instruction(0x18, target, immediate=value) + instruction(0, immediate=0)


EXIT = instruction(0x95)
PATCH = RelocationType.R_BPF_64_64


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ([0, 1, (1 << 31) - 1], Width.SIGNED_32),
        ([WORD - 1, WORD - (1 << 31)], Width.SIGNED_32),
        ([1 << 31], Width.UNSIGNED_32),
        ([0, (1 << 32) - 1], Width.UNSIGNED_32),
        ([1 << 31, WORD - 1], Width.FULL_64),
        ([WORD - (1 << 31) - 1], Width.FULL_64),
        ([1 << 32], Width.FULL_64),
    ],
)
def test_the_width_is_the_narrowest_that_holds_all_values(values: list[int], width: Width) -> None:
    assert width_of(values) is width


def machine() -> MachineCode:
    """A jump over a parameter, the parameter, a map, a jump back."""
    code = (
        instruction(0x15, 1, offset=3)  # 0: if r1 == 0 goto 4
        + load(2)  # 1, 2: the parameter
        + instruction(0x0F, 0, 2)  # 3
        + load(3)  # 4, 5: a map
        + instruction(0x05, offset=-4)  # 6: goto 3
        + instruction(0x85, immediate=5)  # 7: a helper; its offset field is not a distance
        + EXIT  # 8
    )
    relocations = (Relocation(8, "p.number", PATCH), Relocation(32, "m.map", PATCH))
    return MachineCode(code, relocations, ())


def test_a_narrow_parameter_takes_one_slot_and_everything_moves_along() -> None:
    template = make_template(machine(), {"number": Width.SIGNED_32})
    expected = (
        instruction(0x15, 1, offset=2)
        + instruction(0xB7, 2, immediate=-5)
        + instruction(0x0F, 0, 2)
        + load(3)
        + instruction(0x05, offset=-4)
        + instruction(0x85, immediate=5)
        + EXIT
    )
    assert bytes(template.fill({"number": WORD - 5})) == expected
    assert template.relocations == (Relocation(24, "m.map", PATCH),)


def test_an_unsigned_parameter_is_moved_without_a_sign() -> None:
    template = make_template(machine(), {"number": Width.UNSIGNED_32})
    assert bytes(template.fill({"number": 0xFFFFFFFE}))[8:16] == instruction(0xB4, 2, immediate=-2)


def test_a_wide_parameter_keeps_both_slots() -> None:
    template = make_template(machine(), {"number": Width.FULL_64})
    filled = bytes(template.fill({"number": 0x123456789ABCDEF0}))
    assert len(filled) == len(machine().code)
    assert struct.unpack_from("<I", filled, 12) == (0x9ABCDEF0,)
    assert struct.unpack_from("<I", filled, 20) == (0x12345678,)


def test_filling_one_site_leaves_the_template_alone() -> None:
    template = make_template(machine(), {"number": Width.SIGNED_32})
    first = bytes(template.fill({"number": 1}))
    template.fill({"number": 2})
    assert bytes(template.fill({"number": 1})) == first


@pytest.mark.parametrize("broken", [load(2, 8), instruction(0xB7, 2) + instruction(0xB7, 2)])
def test_a_parameter_that_is_not_plainly_loaded_is_refused(broken: bytes) -> None:
    code = MachineCode(broken + EXIT, (Relocation(0, "p.number", PATCH),), ())
    with pytest.raises(ValueError, match="`number`"):
        make_template(code, {"number": Width.SIGNED_32})


def folded(*code: bytes, width: Width = Width.SIGNED_32) -> list[bytes]:
    """The slots of a template for code that begins with a load of the parameter `number` into r5."""
    whole = load(5) + b"".join(code) + EXIT
    made = make_template(MachineCode(whole, (Relocation(0, "p.number", PATCH),), ()), {"number": width})
    filled = bytes(made.fill({"number": 7}))
    return [filled[place : place + 8] for place in range(0, len(filled), 8)]


REGISTER = instruction(0x79, 2, 1, offset=80)  # r2 = *(u64 *)(r1 + 80)
ADD = instruction(0x0F, 5, 2)  # r5 += r2
CLEAR = instruction(0xB7, 2, immediate=8)  # r2 = 8
CALL = instruction(0x85, immediate=5)
MOVED = instruction(0xB7, 5, immediate=7)  # r5 = 7


def test_a_parameter_goes_into_the_addition_that_uses_it() -> None:
    assert folded(REGISTER, ADD, CLEAR, CALL) == [
        instruction(0x79, 5, 1, offset=80),
        instruction(0x07, 5, immediate=7),
        CLEAR,
        CALL,
        EXIT,
    ]


def test_the_other_way_round_the_moved_register_goes() -> None:
    other = instruction(0x0F, 2, 5)  # r2 += r5
    assert folded(REGISTER, other) == [REGISTER, instruction(0x07, 2, immediate=7), EXIT]


@pytest.mark.parametrize(
    "code",
    [
        (REGISTER, ADD, CALL),  # r2 may be an argument
        (REGISTER, ADD, instruction(0xBF, 3, 2)),  # r2 is read afterwards
        (REGISTER, instruction(0xBF, 3, 2), ADD, CLEAR),  # r2 is read before
        (REGISTER, instruction(0xBF, 3, 5), ADD, CLEAR),  # so is the parameter
        (REGISTER, CALL, ADD, CLEAR),  # the block does not show what the call does
        (REGISTER, instruction(0x15, 1, offset=0), ADD, CLEAR),  # something jumps to the addition
        (ADD, CLEAR),  # r2 is not loaded here
        (instruction(0xBF, 2, 1), ADD, CLEAR),  # nor here
        (REGISTER, instruction(0x07, 2, immediate=1), ADD, CLEAR),  # it is changed
    ],
)
def test_an_addition_that_is_not_safe_to_fold_stays(code: tuple[bytes, ...]) -> None:
    assert folded(*code) == [MOVED, *code, EXIT]


@pytest.mark.parametrize("width", [Width.UNSIGNED_32, Width.FULL_64])
def test_only_a_signed_parameter_is_folded(width: Width) -> None:
    assert ADD in folded(REGISTER, ADD, CLEAR, width=width)
