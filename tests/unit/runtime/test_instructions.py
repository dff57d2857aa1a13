# SPDX-License-Identifier: Apache-2.0
"""What o2c.ko is told of an instruction, from its bytes."""

from __future__ import annotations

from typing import Any

import pytest

from o2cc.runtime.enforcer_types import NO_REGISTER, RIP, Action, Kind
from o2cc.runtime.instructions import NotDeniable, Placed, enforced, observed
from tests.unit.runtime.made import site

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
NOPS = bytes([0x90] * 8)


def placed(code: str, kind: str = "store", *, height: int = 8, **changes: Any) -> Placed:
    return Placed(
        site(1, kind=kind, **changes), 0xFFFFFFFFC0001000, bytes.fromhex(code) + NOPS, Action.DENY, height
    )


def test_a_probe_that_must_stay_a_breakpoint_is_strict() -> None:
    """Catches a jump in place of a breakpoint into the middle of which other code jumps: the kernel would run its bytes."""
    for keep in (False, True):
        made = placed("48895618", keep_int3=keep)
        assert enforced(made, 4).strict is keep
        assert observed(made, 4).strict is keep
    entry = placed("48895618", "entry", keep_int3=True)
    assert not observed(entry, 4).strict  # through ftrace, which takes no breakpoint


@pytest.mark.parametrize(
    ("code", "kind", "size", "operand"),
    [
        ("48895618", Kind.STORE, 8, (RSI, NO_REGISTER, 0, 0x18)),  # mov [rsi+0x18], rdx
        ("c6430500", Kind.STORE, 1, (RBX, NO_REGISTER, 0, 5)),  # mov byte [rbx+5], 0
        ("488914f7", Kind.STORE, 8, (RDI, RSI, 8, 0)),  # mov [rdi+rsi*8], rdx
        ("48c745f800000000", Kind.STORE, 8, (RBP, NO_REGISTER, 0, -8)),
        ("4489059b000000", Kind.STORE, 4, (RIP, NO_REGISTER, 0, 0x9B)),  # mov [rip+0x9b], r8d
        ("f0480fab37", Kind.RMW, 8, (RDI, NO_REGISTER, 0, 0)),  # lock bts [rdi], rsi
        ("8307ff", Kind.RMW, 4, (RDI, NO_REGISTER, 0, 0)),  # add dword [rdi], -1
        ("f00fb111", Kind.RMW, 4, (RCX, NO_REGISTER, 0, 0)),  # lock cmpxchg [rcx], edx
        ("f3a4", Kind.STRING, 1, (RDI, NO_REGISTER, 0, 0)),  # rep movsb
        ("f348ab", Kind.STRING, 8, (RDI, NO_REGISTER, 0, 0)),  # rep stosq
    ],
)
def test_writes(code: str, kind: Kind, size: int, operand: tuple[int, int, int, int]) -> None:
    found = enforced(placed(code), 4)
    assert (found.kind, found.size, found.program) == (kind, size, 4)
    assert (found.base, found.index, found.scale, found.displacement) == operand
    assert found.code.hex() == code
    assert found.action is Action.DENY


@pytest.mark.parametrize(
    ("code", "site_kind", "kind"),
    [
        ("e800000000", "call", Kind.CALL),
        ("e900000000", "tail_call", Kind.TAIL_JUMP),
        ("e800000000", "indirect_call", Kind.ICALL),  # of a thunk
        ("ffd0", "indirect_call", Kind.ICALL),
        ("ffe7", "indirect_jump", Kind.IJUMP),
        ("e900000000", "indirect_jump", Kind.IJUMP),
    ],
)
def test_transfers(code: str, site_kind: str, kind: Kind) -> None:
    found = enforced(placed(code, site_kind, height=0), 0)
    assert (found.kind, found.size, found.base, found.index) == (kind, 0, NO_REGISTER, NO_REGISTER)
    assert found.tail == (kind in (Kind.TAIL_JUMP, Kind.IJUMP))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (placed("48895618", "entry"), "only be observed"),
        (placed("48895618", probe_offset=8), "before the instruction"),
        (placed("cc895618"), "another probe is at the instruction"),
        (placed("e900000000"), "writes nothing"),  # another's optimized probe
        (placed("488b5618"), "writes nothing"),  # a load
        (placed("48895618", "call"), "not the call"),
        (placed("0f1f440000", "tail_call"), "not the call"),
        (placed("ffe7", "indirect_jump", height=16), "stepped over"),
        (placed("ffe7", "indirect_jump", height=0xFFFF), "stepped over"),
    ],
)
def test_what_cannot_be_denied_says_why(given: Placed, why: str) -> None:
    with pytest.raises(NotDeniable, match=why):
        enforced(given, 0)


def test_bytes_that_end_too_early() -> None:
    cut = Placed(site(1), 0xFFFFFFFFC0001000, bytes.fromhex("4889"), Action.DENY, 8)
    with pytest.raises(NotDeniable, match="no instruction"):
        enforced(cut, 0)


@pytest.mark.parametrize(
    ("kind", "expected"), [("store", Kind.OBSERVE), ("entry", Kind.ENTRY), ("return", Kind.RETURN)]
)
def test_observed_sites_carry_no_bytes_and_deny_nothing(kind: str, expected: Kind) -> None:
    found = observed(placed("48895618", kind), 3)
    assert (found.kind, found.action, found.code, found.cookie) == (expected, Action.REPORT, b"", 101)
