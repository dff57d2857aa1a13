# SPDX-License-Identifier: Apache-2.0
"""Kernel functions as confused deputies: arguments with which they would write, free or call for the compartment."""

from __future__ import annotations

import pytest

from o2cc.compiler import pass_context
from o2cc.ir import nodes as ir
from o2cc.simulation.world import PAGE, PAGE_OFFSET, STACK_POINTER, VMALLOC
from tests.unit.lower.confined import (
    HELD,
    OWN,
    TYPED,
    Confined,
    confined,
    offset_of,
    sctp,
)

USER_BUFFER = 0x7F00_0000_0000


@pytest.fixture
def kernel() -> Confined:
    made = confined(violation="deny")
    made.call("resolve", 0)
    return made


def _denied(kernel: Confined, function: str, *arguments: int) -> bool:
    outcome = kernel.run(kernel.noted(f"call of {function}"), *arguments)
    assert bool(outcome.value) == bool(kernel.kinds(outcome))
    return bool(outcome.value)


def _word(kernel: Confined, address: int, value: int) -> None:
    kernel.world.machine.memory.write_word(address, value)


def test_what_the_kernel_shares_is_not_of_the_compartments_making(kernel: Confined) -> None:
    """Catches a route whose operations the compartment has written: dst_release() calls the last one."""
    assert _denied(kernel, "dst_release", kernel.object(256, OWN))
    assert _denied(kernel, "dst_release", kernel.world.data("sctp_assocs_id"))
    assert not _denied(kernel, "dst_release", kernel.object(256))
    assert not _denied(kernel, "dst_release", 0)


def test_an_object_is_freed_to_no_cache_of_the_compartments_making(kernel: Confined) -> None:
    mine, cache = kernel.object(256, OWN), kernel.object(256)
    assert _denied(kernel, "kmem_cache_free", kernel.object(256, OWN), mine)
    assert not _denied(kernel, "kmem_cache_free", cache, mine)


def test_a_head_for_rcu_does_not_lead_to_another_object(kernel: Confined) -> None:
    """Catches a free of ``head - func`` (6.1) where ``func`` is checked alone, and a head in a foreign object."""
    mine, foreign = kernel.object(256, OWN), kernel.object(256)
    assert _denied(kernel, "kvfree_call_rcu", foreign + mine, mine)
    assert _denied(kernel, "kvfree_call_rcu", mine + 248, 248)  # written beyond the object's end
    assert _denied(kernel, "kvfree_call_rcu", foreign + 16, 16)
    assert not _denied(kernel, "kvfree_call_rcu", mine + 16, 16)
    assert not _denied(kernel, "kvfree_call_rcu", mine + 16, mine)
    assert not _denied(kernel, "kvfree_call_rcu", 0, mine)


def test_control_tables_print_as_many_bytes_as_the_buffer_has(kernel: Confined) -> None:
    """Catches the length behind a pointer that nobody looks at."""
    table, buffer, length = (kernel.object(64, OWN) for _ in range(3))
    for size, denied in ((64, False), (65, True), (1 << 40, True)):
        _word(kernel, length, size)
        assert _denied(kernel, "proc_dostring", table, 0, buffer, length, length + 8) is denied


def test_a_handler_of_a_control_table_may_fill_a_buffer_of_many_pages() -> None:
    """Catches reads of /proc/sys with large buffers that are refused: they lie outside the slab allocator."""
    kernel = confined("    entries of struct ctl_table", violation="deny")
    kernel.call("resolve", 0)
    entry = kernel.site("proc_sctp_do_hmac_alg", ir.SiteKind.ENTRY)
    buffer, length = VMALLOC + 64 * PAGE, kernel.object(64)
    _word(kernel, length, 8 * PAGE)
    kernel.run(entry, 0, 0, buffer, length, length + 8)
    table = kernel.object(64, OWN)
    assert not _denied(kernel, "proc_dostring", table, 0, buffer, length, length + 8)
    leave = kernel.site("proc_sctp_do_hmac_alg", ir.SiteKind.RETURN)
    kernel.run(leave, rsp=STACK_POINTER + 8)
    assert kernel.store(buffer) == "deny"
    assert kernel.store(buffer + 4 * PAGE) == "deny"


def test_transforms_are_the_kernels(kernel: Confined) -> None:
    """Catches a forged transform, whose functions the kernel would call, and another object freed in its place."""
    mine, transform, victim = kernel.object(256, OWN), kernel.object(256), kernel.object(256)
    assert _denied(kernel, "crypto_shash_setkey", mine, mine, 8)
    assert not _denied(kernel, "crypto_shash_setkey", transform, mine, 8)
    assert _denied(kernel, "crypto_destroy_tfm", transform, mine)
    assert _denied(kernel, "crypto_destroy_tfm", victim + (1 << 30), transform)
    assert not _denied(kernel, "crypto_destroy_tfm", transform, transform + 8)
    assert not _denied(kernel, "crypto_destroy_tfm", 0, 8)


def test_control_messages_go_to_user_space_only(kernel: Confined) -> None:
    """Catches put_cmsg() to an address that a held message was made to name."""
    message, size = kernel.object(256, HELD, "msghdr"), 8
    control, length = (message + offset_of("msghdr", path) for path in ("msg_control", "msg_controllen"))
    _word(kernel, length, 64)
    _word(kernel, control, USER_BUFFER)
    assert not _denied(kernel, "put_cmsg", message, 0, 0, size, message)
    _word(kernel, control, kernel.object(64))
    assert _denied(kernel, "put_cmsg", message, 0, 0, size, message)
    _word(kernel, control, kernel.object(64, OWN))
    assert not _denied(kernel, "put_cmsg", message, 0, 0, size, message)


def test_a_timer_is_taken_out_of_the_list_that_it_hangs_in(kernel: Confined) -> None:
    """Catches a forged link, through which timer_delete() writes a word of the forger's where it leads."""
    timer, other, vector, foreign = kernel.object(64, OWN), *(kernel.object(64) for _ in range(3))
    back, flags = offset_of("hlist_node", "pprev"), timer + offset_of("timer_list", "flags")
    assert not _denied(kernel, "timer_delete", timer)  # it waits for nothing
    _word(kernel, timer + back, vector)
    assert _denied(kernel, "timer_delete", timer)
    _word(kernel, vector, timer)
    assert not _denied(kernel, "timer_delete", timer)  # the only one of its list
    _word(kernel, timer, foreign)
    assert _denied(kernel, "timer_delete", timer)
    _word(kernel, timer, other)
    _word(kernel, other + back, timer)
    assert not _denied(kernel, "timer_delete", timer)
    _word(kernel, vector, other)
    assert _denied(kernel, "timer_delete", timer)
    _word(kernel, flags, 0x40000)  # it moves to another processor: the kernel waits
    assert not _denied(kernel, "timer_delete", timer)
    _word(kernel, flags, 0)
    _word(kernel, timer + back, 8)  # where nothing can be read
    assert _denied(kernel, "timer_delete", timer)


def test_a_list_in_motion_is_looked_at_again(kernel: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the denial of a timer that another processor puts into its list in this moment."""
    timer, vector = kernel.object(64, OWN), kernel.object(64)
    memory = kernel.world.machine.memory
    _word(kernel, timer + offset_of("hlist_node", "pprev"), vector)
    looks = 0
    read = memory.read

    def slow(address: int, size: int) -> int | None:
        nonlocal looks
        looks += address == vector
        if looks == 60:
            memory.write_word(vector, timer)
        return read(address, size)

    monkeypatch.setattr(memory, "read", slow)
    assert not _denied(kernel, "timer_delete", timer)
    memory.write_word(vector, 0)
    looks = 100
    assert _denied(kernel, "timer_delete", timer)


def test_a_fragment_is_not_freed_as_pages(kernel: Confined) -> None:
    """Catches kfree() of a packet's buffer in a page that other packets use as well: it takes their reference away."""
    page = PAGE_OFFSET + 5000 * PAGE
    for address, denied in ((page, False), (page + 512, True)):
        assert kernel.call("gain", address, 256, HELD, 0) == 1
        assert _denied(kernel, "kfree", address) is denied


def test_memory_outside_the_direct_map_ends_with_its_free(kernel: Confined) -> None:
    """Catches vmalloc and per-CPU memory that stays writable after it was freed: no hook sees that."""
    area = VMALLOC + 100 * PAGE
    cookie = 0x2_F000
    neighbour = cookie + 64
    assert kernel.call("gain", area, 3 * PAGE, OWN, 0) == 1
    assert kernel.call("gain", cookie, 64, OWN, 0) == 1
    assert kernel.call("gain", neighbour, 64, OWN, 0) == 1
    assert not _denied(kernel, "kfree", area)
    assert [kernel.store(area + n * PAGE) for n in range(3)] == ["deny"] * 3
    assert not _denied(kernel, "free_percpu", cookie)
    site = kernel.site("sctp_outq_tail").number
    assert kernel.call("check_per_cpu", cookie, 8, site, STACK_POINTER) == 1
    assert kernel.call("check_per_cpu", neighbour, 8, site, STACK_POINTER) == 0


def test_a_range_that_is_given_back_ends_on_all_its_pages(kernel: Confined) -> None:
    """Catches a loan on a kernel stack that stays writable on the stack's next page."""
    start = VMALLOC + 200 * PAGE - 64
    assert kernel.call("gain", start, 128, HELD, 0) == 1
    assert kernel.store(start + 64) == "allow"
    kernel.call("lose", start)
    assert kernel.store(start) == "deny"
    assert kernel.store(start + 64) == "deny"
    assert all(not any(e.values()) for e in kernel.world.machine.maps["ranges"].snapshot().values())


def test_entries_that_jump_to_each_other_give_everything_back() -> None:
    """Catches a loan that is forgotten since a second entry, or a call with the same stack pointer, keeps its arguments
    in the same place."""
    lends = "(skb, info) { lends skb as packet until return }"
    kernel = confined(
        f"    entry sctp_v4_err{lends}\n    entry sctp_wfree(skb) {{ lends skb as packet until return }}"
    )
    kernel.call("resolve", 0)
    packets = [kernel.object(232, cache="skbuff_head_cache") for _ in range(2)]
    names = ("sctp_v4_err", "sctp_wfree")
    for name, packet in zip(names, packets, strict=True):
        kernel.run(kernel.site(name, ir.SiteKind.ENTRY), packet)
    assert [kernel.store(p) for p in packets] == ["allow"] * 2
    for name in reversed(names):
        kernel.run(kernel.site(name, ir.SiteKind.RETURN), rsp=STACK_POINTER + 8)
    assert [kernel.store(p) for p in packets] == ["deny"] * 2


def test_results_are_those_of_the_call_right_before(kernel: Confined) -> None:
    """Catches arguments of an earlier call, whose return was not seen, that are taken for those of a denied one."""
    allocation = kernel.noted("call of __kmalloc")
    kernel.run(allocation, kernel.object(232))
    grown = kernel.noted("call of __pskb_pull_tail")
    assert kernel.run(grown, kernel.object(232)).value == 1
    kernel.run(kernel.noted("result of __pskb_pull_tail"), rax=0)
    assert kernel.world.machine.maps["objects"].entries == {}


@pytest.mark.parametrize(
    ("rules", "kept", "skips"),
    [
        ("on violation of icall report", False, True),
        ("on violation of call report", True, True),
        ("on violation of write report", True, False),
        ("on violation of write kill", True, True),
    ],
)
def test_proofs_lean_on_control_flow_only_where_calls_are_denied(rules: str, kept: bool, skips: bool) -> None:
    """Catches stores that are denied but for those whose proof a hijacked call has made false, and a killed task's
    store that a later one leans on."""
    policy = confined(f"    {rules}", violation="deny" if "write" not in rules else "panic").policy
    context = pass_context(policy, sctp())
    assert context.control_flow_kept is kept
    assert context.skips_violations is skips


def test_what_is_only_read_is_still_asked_by_its_type(kernel: Confined) -> None:
    """Catches `reads sk whole`, which took the check by type away: the functions of a forged socket are called."""
    packet = kernel.object(256, HELD, "sk_buff")
    assert _denied(kernel, "__xfrm_policy_check", kernel.object(1024, OWN), 0, packet, 2)
    assert _denied(kernel, "__xfrm_policy_check", kernel.object(1024), 0, packet, 2)
    assert not _denied(kernel, "__xfrm_policy_check", kernel.object(1024, TYPED, "sock"), 0, packet, 2)
    assert not _denied(kernel, "__xfrm_policy_check", 0, 0, packet, 2)
