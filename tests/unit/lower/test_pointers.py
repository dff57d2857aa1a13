# SPDX-License-Identifier: Apache-2.0
"""Calls through pointers to functions outside the compartment: their arguments are asked as those of direct calls."""

from __future__ import annotations

import pytest

from o2cc.ir import nodes as ir
from o2cc.lower.indirect import target_gates
from o2cc.simulation.world import STACK_POINTER
from tests.unit.lower.confined import (
    FOREIGN_FREE,
    HELD,
    INDIRECT_DENIED,
    OWN,
    REQUIREMENT,
    TYPED,
    Confined,
    call_through_pointer,
    confined,
    indirect_site,
    offset_of,
    sctp,
)

TARGETS = "icall self, { kfree, memcpy, consume_skb }"


@pytest.mark.parametrize("kind", [ir.SiteKind.INDIRECT_CALL, ir.SiteKind.INDIRECT_JUMP])
def test_a_pointer_to_kfree_frees_own_objects_only(kind: ir.SiteKind) -> None:
    """Catches an indirect call that is checked as a target only."""
    kernel = confined(targets=TARGETS)
    own, foreign = kernel.object(64, OWN), kernel.object(64)
    assert call_through_pointer(kernel, "kfree", own, kind=kind) == []
    assert call_through_pointer(kernel, "kfree", foreign, kind=kind) == [FOREIGN_FREE]
    assert call_through_pointer(kernel, "kfree", own + 8, kind=kind) == [FOREIGN_FREE]
    assert call_through_pointer(kernel, "kfree", 0, kind=kind) == []


def test_a_pointer_to_memcpy_copies_into_own_memory_only() -> None:
    kernel = confined(targets=TARGETS)
    own, foreign = kernel.object(64, OWN), kernel.object(64)
    assert call_through_pointer(kernel, "memcpy", own, foreign, 64) == []
    assert call_through_pointer(kernel, "memcpy", own, foreign, 65) == [REQUIREMENT]
    assert call_through_pointer(kernel, "memcpy", foreign, own, 8) == [REQUIREMENT]


def test_own_functions_take_what_they_are_given() -> None:
    """Catches a gate that is asked for another target's sake."""
    kernel = confined(targets=TARGETS)
    site, register = indirect_site(kernel)
    taken = next(f.name for f in sctp().functions if f.address_taken and not f.initial)
    foreign = kernel.object(64)
    assert kernel.kinds(kernel.run(site, foreign, **{register: kernel.world.function(taken)})) == []
    assert kernel.kinds(kernel.run(site, foreign, **{register: kernel.world.function("commit_creds")})) == [
        INDIRECT_DENIED
    ]


def test_a_packet_handed_over_through_a_pointer_is_held_no_longer() -> None:
    """Catches a transfer that only direct calls make."""
    kernel = confined(targets=TARGETS)
    packet = _packet(kernel)
    assert kernel.store(packet) == "allow"
    assert call_through_pointer(kernel, "consume_skb", packet) == []
    assert kernel.store(packet) == "deny"
    assert call_through_pointer(kernel, "consume_skb", packet) == [REQUIREMENT]


def test_a_tail_jump_keeps_what_an_entry_was_lent() -> None:
    """Catches arguments of a jump that take the place of an entry's, which has the same stack pointer."""
    kernel = confined("    entry sctp_wfree(skb) { lends skb as packet until return }", targets=TARGETS)
    packet = _packet(kernel, held=False)
    entry = kernel.site("sctp_wfree", ir.SiteKind.ENTRY)
    back = kernel.site("sctp_wfree", ir.SiteKind.RETURN)
    kernel.run(entry, packet)
    assert kernel.store(packet) == "allow"
    assert call_through_pointer(kernel, "kfree", 0, kind=ir.SiteKind.INDIRECT_JUMP) == []
    kernel.run(back, rsp=STACK_POINTER + 8)
    assert kernel.store(packet) == "deny"


def test_a_call_whose_arguments_are_lost_is_reported() -> None:
    """Catches a full map that lets a call through unseen."""
    kernel = confined(targets=TARGETS)
    site, _ = indirect_site(kernel)
    number = target_gates(kernel.policy)["kfree"]
    outcome = kernel.world.interpreter.run_function(
        "check_arguments", number, site.number, STACK_POINTER, 0, 0
    )
    assert kernel.kinds(outcome) == [REQUIREMENT]


def test_members_of_other_modules_tables_are_asked_by_type() -> None:
    """Catches functions of tables that take any argument: a queue of chunks and the chunks."""
    kernel = confined('    icall ops struct sctp_sched_ops of modules "x"')
    (tables,) = kernel.lowered.ops_targets
    gates = dict(tables.gates)
    assert "enqueue" in gates, gates
    site, register = indirect_site(kernel)
    scopes = kernel.world.machine.tables["sites"].load(site.number, "scopes")
    target = 0xFFFF_FFFF_C100_0000
    kernel.world.machine.maps["call_targets"].update((target,), (scopes, gates["enqueue"]))
    own, foreign = kernel.object(512, OWN), kernel.object(512)
    assert kernel.kinds(kernel.run(site, own, own, **{register: target})) == []
    assert kernel.kinds(kernel.run(site, foreign, own, **{register: target})) == [REQUIREMENT]
    assert kernel.kinds(kernel.run(site, own, foreign, **{register: target})) == [REQUIREMENT]


def _packet(kernel: Confined, *, held: bool = True) -> int:
    """A packet with its buffer, as a gate gives it."""
    layout = sctp().types.struct_by_name
    packet = kernel.object(
        layout["sk_buff"].size, HELD | TYPED if held else 0, "sk_buff", "skbuff_head_cache"
    )
    buffer = kernel.object(1024, HELD if held else 0)
    memory = kernel.world.machine.memory
    memory.write_word(packet + offset_of("sk_buff", "head"), buffer, 8)
    memory.write_word(packet + offset_of("sk_buff", "end"), 704, 4)
    memory.write_word(packet + offset_of("sk_buff", "users"), 1, 4)
    return packet
