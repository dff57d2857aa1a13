# SPDX-License-Identifier: Apache-2.0
"""Where probes can go, and which become jumps."""

import pytest

from o2cc.kernel.boost import Boost, boost_class
from o2cc.kernel.probes import RETURN_BEHIND

from .build import analyse, function, one, site

TAIL = "\nxor eax, eax\nxor eax, eax\nxor eax, eax\n1:\nret"


def test_a_plain_store_takes_an_optimized_probe() -> None:
    probe = site(one("mov [rdi], rsi" + TAIL), "store").probe
    assert (probe.offset, probe.jump_optimizable, probe.reason, probe.length) == (0, True, None, 3)


def test_no_jump_may_lead_into_the_five_bytes() -> None:
    inside = site(one("mov [rdi], rsi\n1:\nmov [rsi], rdi\nnop\nnop\nje 1b\nret"), "store").probe
    assert (inside.offset, inside.jump_optimizable) == (0, False)
    # The kernel counts the byte behind the jump as well.
    behind = site(one("mov [rdi], rsi\nmov eax, eax\n1:\nnop\nnop\nnop\nje 1b\nret"), "store").probe
    assert not behind.jump_optimizable
    beyond = site(one("mov [rdi], rsi\nmov rax, rax\n1:\nnop\nnop\nje 1b\nret"), "store").probe
    assert beyond.jump_optimizable


def test_the_displaced_instructions_must_be_movable() -> None:
    assert not site(one("mov [rdi], rsi\ncall g" + TAIL), "store").probe.jump_optimizable
    assert site(one("lock add dword ptr [rdi], 1" + TAIL), "read_modify_write").probe.jump_optimizable
    assert site(one("rep stosq" + TAIL), "string").probe.jump_optimizable
    assert not site(one("mov [rdi], rsi"), "store").probe.jump_optimizable


def test_a_return_behind_a_place_depends_on_the_machine() -> None:
    probe = site(one("mov [rdi + 8], rsi\njmp __x86_return_thunk\nint3"), "store").probe
    assert (probe.jump_optimizable, probe.reason) == (False, RETURN_BEHIND)


def test_groups_are_displaced_since_6_9() -> None:
    for release, expected in (("6.1.0-50-amd64", False), ("6.12.115+deb12-amd64", True)):
        described = one("inc dword ptr [rdi]" + TAIL, release)
        assert site(described, "read_modify_write").probe.jump_optimizable is expected


def test_a_call_names_an_earlier_place_that_is_faster() -> None:
    call = site(one("mov rdi, rbx\nmov eax, 0x1234\nmov edx, 0x1234\ncall g" + TAIL), "call")
    assert (call.probe.offset, call.probe.jump_optimizable) == (call.offset, False)
    # Without a prototype all argument registers must hold already what they hold at the call.
    assert call.earlier is None
    indirect = site(one("mov rbx, [rdi]\nmov edx, 0x1234\nmov eax, 0x1234\ncall rbx" + TAIL), "indirect_call")
    assert indirect.earlier is not None
    assert indirect.earlier.offset is not None
    assert (3 <= indirect.earlier.offset < indirect.offset, indirect.earlier.jump_optimizable) == (True, True)


def test_places_do_not_cross_calls_or_changes_of_the_operand() -> None:
    assert (
        site(one("mov eax, 0x1234\ncall h\nlock inc dword ptr [rbx]" + TAIL), "read_modify_write").earlier
        is None
    )
    changed = one("mov eax, 0x1234\nadd rbx, 8\nlock inc dword ptr [rbx]" + TAIL)
    assert site(changed, "read_modify_write").earlier is None


def test_calls_through_memory_take_no_probe() -> None:
    described = one("mov eax, 0x1234\nmov edx, 0x1234\ncall qword ptr [rdi + 8]" + TAIL)
    probe = site(described, "indirect_call").probe
    assert probe.offset == 5
    assert probe.reason is not None
    assert "through memory" in probe.reason
    alone = site(one("call qword ptr [rdi + 8]" + TAIL), "indirect_call").probe
    assert alone.offset is None


def test_calls_behind_a_prefix_take_no_probe() -> None:
    """Catches probes on `cs call thunk`, where the callee would return into the last byte of the call."""
    by_thunk = "mov eax, 0x1234\n{}call __x86_indirect_thunk_r8" + TAIL
    plain = site(one(by_thunk.format("")), "indirect_call")
    assert (plain.length, plain.probe.offset) == (5, plain.offset)
    prefixed = site(one(by_thunk.format(".byte 0x2e\n")), "indirect_call")
    assert prefixed.length == 6
    assert prefixed.probe.offset == 0
    assert prefixed.probe.reason is not None
    assert "prefix" in prefixed.probe.reason
    assert site(one(".byte 0x2e\ncall g" + TAIL), "call").probe.offset is None


def test_patched_places() -> None:
    source = function(
        "f",
        "mov eax, 1\n1:\ncall __x86_indirect_thunk_rbx\n2:\ncall __SCT__sample\n3:\nlock inc dword ptr [rdi]\nmov edx, ecx\n4:\nmov [rdi], rsi\n5:\n"
        "jmp __x86_return_thunk",
    ) + (
        '.section .retpoline_sites,"a"\n.long 1b - .\n.section .static_call_sites,"aw"\n.long 2b - ., 0\n'
        '.section .smp_locks,"a"\n.long 3b - .\n.section .return_sites,"a"\n.long 5b - .\n'
        '.section .altinstr_replacement,"ax"\n6:\nmov [rdi], rdx\n7:\n'
        '.section .altinstructions,"a"\n.long 4b - ., 6b - .\n.word 1\n.byte 3, 3\n'
    )
    described = analyse(source)[0]
    indirect, call, locked, replaced, returned = described.sites
    assert [item.patched for item in described.sites] == [
        "retpoline",
        "static_call",
        "lock",
        "alternative",
        "return",
    ]
    assert (indirect.probe.offset, indirect.probe.bytes_change) == (indirect.offset, True)
    assert call.probe.offset is None
    assert (locked.probe.offset, locked.probe.bytes_change) == (locked.offset, True)
    # The store is replaced: the probe goes to the instruction before it.
    assert replaced.probe.offset == replaced.offset - 2
    assert (returned.probe.offset, returned.probe.bytes_change) == (returned.offset, True)
    assert [patch.kind for patch in described.patches] == [
        "retpoline",
        "static_call",
        "lock",
        "alternative",
        "return",
    ]


def test_traps_of_the_bug_table_and_what_follows() -> None:
    source = function("f", "test edi, edi\njne 1f\nret\n1:\nud2\nmov [rsi], rdi\nret\n2:\nud2\n") + (
        '.section __bug_table,"aw"\n.long 1b - ., 0\n.word 7, 1\n.long 2b - ., 0\n.word 8, 0\n'
    )
    described = analyse(source)[0]
    assert site(described, "store").stack_height == 0
    assert not [problem for problem in described.problems if "no path" in problem and "+0x5" in problem]


def test_code_that_is_freed_or_rewritten_takes_no_probes() -> None:
    source = '.section .init.text,"ax"\n' + function("f", "mov [rdi], rsi\nret").replace(".text\n", "", 1)
    described = analyse(source)[0]
    assert described.initial
    assert described.sites[0].probe.offset is None


def test_a_jump_from_the_cold_part_is_a_hazard_that_the_kernel_does_not_see() -> None:
    source = (
        function("f", "test edi, edi\njne f.cold\nmov [rsi], rdi\nback:\nmov eax, eax\nmov eax, eax\nret")
        + '.section .text.unlikely,"ax"\n.type f.cold, @function\nf.cold:\njmp back\n.size f.cold, .-f.cold\n'
    )
    probe = site(analyse(source)[0], "store").probe
    assert (probe.jump_optimizable, probe.keep_int3) == (False, True)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("488937", Boost.ALWAYS),
        ("e800000000", Boost.NEVER),
        ("eb00", Boost.NEVER),
        ("7400", Boost.NEVER),
        ("f3aa", Boost.ALWAYS),
        ("f083c001", Boost.ALWAYS),
        ("f0480fb10f", Boost.ALWAYS),
        ("0fb6c0", Boost.ALWAYS),
        ("0f1f00", Boost.ALWAYS),
        ("0fba2f05", Boost.NEVER),
        ("0f0b", Boost.NEVER),
        ("48c1e003", Boost.SINCE_6_9),
        ("48f7d8", Boost.SINCE_6_9),
        ("ffc0", Boost.SINCE_6_9),
        ("ff10", Boost.NEVER),
        ("ffe0", Boost.ALWAYS),
        ("c3", Boost.ALWAYS),
        ("cc", Boost.NEVER),
        ("67488907", Boost.NEVER),
        ("c5f877", Boost.NEVER),
        ("48", Boost.NEVER),
        ("", Boost.NEVER),
    ],
)
def test_boost_classes(code: str, expected: Boost) -> None:
    assert boost_class(bytes.fromhex(code)) is expected
