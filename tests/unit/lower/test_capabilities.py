# SPDX-License-Identifier: Apache-2.0
"""What allocations, gates, entries and frees do to the right to write."""

from __future__ import annotations

import pytest

from o2cc.ir import nodes as ir
from o2cc.simulation.world import PAGE, PAGE_OFFSET, STACK_POINTER, USER, VMALLOC, VMEMMAP
from tests.unit.lower.confined import (
    FINAL,
    FOREIGN_FREE,
    HELD,
    LENT,
    OWN,
    REQUIREMENT,
    TRANSITION,
    TYPED,
    Confined,
    confined,
    failures,
    offset_of,
    sctp,
)

RULES = """
    write struct sock { sk_err, sk_err_soft }
    entry sctp_rcv(skb) { lends skb as packet until return }
    entry sctp_wfree(skb) { gives skb as packet }
    gate kfree_skb_reason(skb, reason) { require held(skb) }
    gate skb_set_owner_w(skb, sk) { transfer skb as packet to kernel }
    gate __pskb_pull_tail(skb, delta) { gives skb as packet }
"""
ZERO_SIZE_PTR = 16  # include/linux/slab.h
ERROR = 2**64 - 12  # ERR_PTR(-ENOMEM)


@pytest.fixture
def kernel() -> Confined:
    found = confined(RULES)
    found.store(USER)  # reads where the direct map begins, as the first check of all does
    return found


def _packet(kernel: Confined, head: int, *, room: int = 256) -> int:
    """A foreign packet with its buffer at ``head``."""
    skb = kernel.object(232, cache="skbuff_head_cache")
    memory = kernel.world.machine.memory
    memory.write_word(skb + offset_of("sk_buff", "head"), head)
    memory.write_word(skb + offset_of("sk_buff", "end"), room, 4)
    return skb


def _entry(kernel: Confined, function: str) -> ir.Site:
    return kernel.site(function, ir.SiteKind.ENTRY)


# --- packets ----------------------------------------------------------------------------------------------


def test_a_lent_packet_is_writable_until_the_entry_returns(kernel: Confined) -> None:
    """Catches capabilities that outlive the call that they were lent for."""
    buffer = kernel.object(1024)
    skb = _packet(kernel, buffer)
    assert kernel.store(skb + 8) == "deny"
    kernel.run(_entry(kernel, "sctp_rcv"), skb)
    assert kernel.store(skb + 8) == "allow"
    assert kernel.store(buffer + 100) == "allow"
    kernel.run(kernel.site("sctp_rcv", ir.SiteKind.RETURN), rsp=STACK_POINTER + 8)
    assert kernel.store(skb + 8) == "deny"
    assert kernel.store(buffer + 100) == "deny"


def test_the_compartment_cannot_lend_itself_what_it_names(kernel: Confined) -> None:
    """Catches entries that believe the arguments of a call that the compartment's own code made."""
    victim = kernel.object(1024)
    caller, call = next(
        (f, s)
        for f in sctp().functions
        for s in f.sites
        if f.section == ".text" and s.kind == "indirect_call"
    )
    text = kernel.world.sections[".text"]
    kernel.world.machine.memory.write_word(STACK_POINTER, text + caller.offset + call.offset + call.length)
    for entry in ("sctp_rcv", "sctp_wfree"):
        kernel.run(_entry(kernel, entry), victim)
        assert kernel.store(victim + 8) == "deny"
    kernel.world.machine.memory.write_word(STACK_POINTER, 0xFFFF_FFFF_8123_4567)  # in the kernel
    kernel.run(_entry(kernel, "sctp_wfree"), victim)
    assert kernel.store(victim + 8) == "allow"


def test_nested_lending_ends_with_the_outer_call(kernel: Confined) -> None:
    """Catches a return of the inner call that takes the capability from the outer one."""
    buffer = kernel.object(1024)
    skb = _packet(kernel, buffer)
    entry, leave = _entry(kernel, "sctp_rcv"), kernel.site("sctp_rcv", ir.SiteKind.RETURN)
    kernel.run(entry, skb)
    kernel.run(entry, skb, rsp=STACK_POINTER - 256)
    kernel.run(leave, rsp=STACK_POINTER - 256 + 8)
    assert kernel.store(skb + 8) == "allow"
    kernel.run(leave, rsp=STACK_POINTER + 8)
    assert kernel.store(skb + 8) == "deny"


def test_a_packet_with_a_forged_head_is_no_packet(kernel: Confined) -> None:
    """Catches `held(skb)` that looks at the packet and not at what its buffer is now."""
    buffer, victim = kernel.object(1024), kernel.object(1024)
    skb = _packet(kernel, buffer)
    kernel.run(_entry(kernel, "sctp_wfree"), skb)
    gate = kernel.noted("call of kfree_skb_reason")
    assert kernel.kinds(kernel.run(gate, skb)) == []
    kernel.world.machine.memory.write_word(skb + offset_of("sk_buff", "head"), victim)
    assert kernel.kinds(kernel.run(gate, skb)) == [REQUIREMENT]


def test_a_forged_end_reaches_no_further_than_the_buffer(kernel: Confined) -> None:
    """Catches ranges that are checked at their start only."""
    buffer = kernel.object(1024)
    skb = _packet(kernel, buffer)
    kernel.run(_entry(kernel, "sctp_wfree"), skb)
    kernel.world.machine.memory.write_word(skb + offset_of("sk_buff", "end"), 4096, 4)
    assert kernel.kinds(kernel.run(kernel.noted("call of kfree_skb_reason"), skb)) == [REQUIREMENT]


def test_a_buffer_in_own_data_must_end_there(kernel: Confined) -> None:
    """Catches memory outside the slab allocator of which only the first byte is looked at."""
    section = sctp().section_by_name[".data"]
    near_end = kernel.world.sections[".data"] + section.size - 16
    assert kernel.call("is_covered", near_end, 16, 0, STACK_POINTER, 0) == 1
    assert kernel.call("is_covered", near_end, 17, 0, STACK_POINTER, 0) == 0
    assert kernel.call("is_covered", near_end, 2**64 - 8, 0, STACK_POINTER, 0) == 0


def test_a_transferred_packet_is_the_kernels(kernel: Confined) -> None:
    """Catches a gate that takes an object which the compartment then goes on writing."""
    buffer = kernel.object(1024)
    skb = _packet(kernel, buffer)
    kernel.run(_entry(kernel, "sctp_wfree"), skb)
    gate = next((s for s in kernel.module.sites if s.note == "call of skb_set_owner_w"), None)
    if gate is None:  # inlined in this build: the same effects through the library
        kernel.call("lose", buffer)
        kernel.call("lose", skb)
    else:
        kernel.run(gate, skb, kernel.object(2048, TYPED, "sock"))
    assert kernel.store(skb + 8) == "deny"
    assert kernel.store(buffer + 8) == "deny"


def test_a_packet_that_is_told_anew_is_given_away_once(kernel: Confined) -> None:
    """Catches a capability that is counted twice, so that it stays when the packet is handed to the kernel."""
    old, new = kernel.object(1024), kernel.object(1024)
    skb = _packet(kernel, old)
    kernel.run(_entry(kernel, "sctp_wfree"), skb)
    kernel.run(kernel.noted("call of __pskb_pull_tail"), skb, 8)
    kernel.world.machine.memory.write_word(skb + offset_of("sk_buff", "head"), new)
    kernel.run(kernel.noted("result of __pskb_pull_tail"), rax=skb)
    assert kernel.store(skb + 8) == "allow"
    assert kernel.store(new + 100) == "allow"
    kernel.run(kernel.noted("call of skb_set_owner_w"), skb, 0)
    assert kernel.store(skb + 8) == "deny"
    assert kernel.store(new + 100) == "deny"


def test_what_a_capability_names_is_open_and_nothing_else() -> None:
    """Catches the file around a sequence's private object, and identities that open memory outside the slab."""
    kernel = confined(
        "entry sctp_rcv(skb) { gives skb as private }\n    entry sctp_wfree(skb) { gives skb as identity }",
        before="caps private(s: struct sk_buff) { s.head[0 .. 64] }\ncaps identity(s: struct sk_buff) {}\n",
    )
    kernel.store(USER)
    buffer = kernel.object(64)
    skb = _packet(kernel, buffer)
    kernel.run(_entry(kernel, "sctp_rcv"), skb)
    assert kernel.store(buffer) == "allow"
    assert kernel.store(skb) == "deny"
    elsewhere = VMALLOC + 5 * PAGE
    kernel.run(_entry(kernel, "sctp_wfree"), elsewhere)
    assert kernel.store(elsewhere) == "deny"


def test_two_holders_of_one_object_give_it_back_twice(kernel: Confined) -> None:
    """Catches a first `lose` that ends what a second capability still holds."""
    p = kernel.object(64, HELD)
    kernel.call("gain", p, 64, HELD, 0)
    kernel.call("lose", p)
    assert kernel.store(p) == "allow"
    kernel.call("lose", p)
    assert kernel.store(p) == "deny"


def test_what_it_allocated_stays_its_own_when_it_gives_it_away(kernel: Confined) -> None:
    """Catches a transfer that takes the compartment's own memory from it."""
    p = kernel.object(64, OWN)
    kernel.call("gain", p, 64, HELD, 0)
    kernel.call("lose", p)
    kernel.call("lose", p)
    assert kernel.store(p) == "allow"


# --- parts of objects -------------------------------------------------------------------------------------


def test_a_part_of_an_object_may_be_lent_and_nothing_around_it(kernel: Confined) -> None:
    """Catches a lent interior part that opens the object that it lies in."""
    outer = kernel.object(512)
    assert kernel.call("gain", outer + 128, 64, HELD | LENT, 0) == 1
    assert kernel.store(outer + 128) == "allow"
    assert kernel.store(outer + 184, 8) == "allow"
    assert kernel.store(outer + 188, 8) == "deny"
    assert kernel.store(outer) == "deny"
    kernel.call("lose", outer + 128)
    assert kernel.store(outer + 128) == "deny"


def test_a_part_that_was_not_lent_is_not_recorded(kernel: Confined) -> None:
    """Catches an interior pointer that makes the compartment the owner of an object; the loss is counted."""
    outer = kernel.object(512)
    before = kernel.counter("lost_tracking")
    assert kernel.call("gain", outer + 128, 64, OWN, 0) == 0
    assert kernel.counter("lost_tracking") == before + 1
    assert kernel.store(outer + 128) == "deny"


@pytest.mark.parametrize("pointer", [0, ZERO_SIZE_PTR, ERROR], ids=["null", "zero-size", "error"])
def test_failed_allocations_give_nothing(kernel: Confined, pointer: int) -> None:
    """Catches error pointers that are recorded as memory."""
    assert kernel.call("gain", pointer, 64, OWN, 0) == 0
    maps = kernel.world.machine.maps
    assert (maps["objects"].entries, maps["ranges"].entries) == ({}, {})


# --- frees ------------------------------------------------------------------------------------------------


def _free(kernel: Confined, pointer: int) -> list[int]:
    return kernel.kinds(kernel.run(kernel.noted("call of kfree"), pointer))


def test_frees_take_the_first_byte_of_own_objects_only(kernel: Confined) -> None:
    """Catches frees of interior pointers and of other people's objects."""
    own, foreign = kernel.object(64, OWN), kernel.object(64)
    assert _free(kernel, own) == []
    assert _free(kernel, own + 8) == [FOREIGN_FREE]
    assert _free(kernel, foreign) == [FOREIGN_FREE]
    assert _free(kernel, kernel.object(64, HELD)) == []


@pytest.mark.parametrize("pointer", [0, ZERO_SIZE_PTR, ERROR], ids=["null", "zero-size", "error"])
def test_frees_of_nothing_are_no_violations(kernel: Confined, pointer: int) -> None:
    """Catches `kfree(NULL)` that is reported: kernel code does that all the time."""
    assert _free(kernel, pointer) == []


def test_a_typed_object_is_not_freeable(kernel: Confined) -> None:
    """Catches a shared object that a field grant lets the compartment free."""
    assert _free(kernel, kernel.object(2048, TYPED, "sock")) == [FOREIGN_FREE]


@pytest.mark.parametrize("hook", ["o2c_kfree", "o2c_cache_free"])
def test_an_object_ends_when_anybody_frees_it(kernel: Confined, hook: str) -> None:
    """Catches use after free, and double free."""
    p = kernel.object(64, OWN)
    kernel.hook(hook, 0, p)
    assert kernel.store(p) == "deny"
    assert _free(kernel, p) == [FOREIGN_FREE]


def test_bulk_frees_end_every_object_in_the_array(kernel: Confined) -> None:
    """Catches kfree_rcu, which frees in bulk and passes no tracepoint."""
    objects = [kernel.object(64, OWN) for _ in range(5)]
    array = kernel.object(64)
    for index, p in enumerate(objects):
        kernel.world.machine.memory.write_word(array + 8 * index, p)
    kernel.hook("o2c_bulk_free", registers={"rsi": 3, "rdx": array})
    assert [kernel.store(p) for p in objects] == ["deny"] * 3 + ["allow"] * 2


# --- allocations ------------------------------------------------------------------------------------------


def test_an_allocation_is_recorded_by_its_result() -> None:
    """Catches the second probe of an allocation that is lost or misplaced."""
    tests = """
test "allocated" {
    call __kmalloc(64, 0) as p
    store sctp_outq_tail to p size 8
    expect allow
    call kfree(p)
    expect allow
    store sctp_outq_tail to p size 8
    expect deny
}
"""
    assert failures(tests, RULES) == []


def test_a_missed_probe_at_the_call_grants_nothing(kernel: Confined) -> None:
    """Catches arguments of an earlier call that are taken for this one's."""
    behind = next(
        s
        for s in kernel.module.sites
        if s.note.startswith("result of ") and _reads_pending(kernel.module, s.check)
    )
    kernel.run(behind, rax=kernel.object(64))
    assert kernel.world.machine.maps["objects"].entries == {}


def _reads_pending(module: ir.Module, check: str) -> bool:
    body = next(c for c in module.checks if c.name == check)
    return any(
        isinstance(i, ir.Lookup) and i.map == "pending" for block in body.blocks for i in block.instructions
    )


# --- memory outside the slab allocator --------------------------------------------------------------------


def _page(number: int) -> int:
    return VMALLOC + (1 << 30) + number * PAGE


def test_ranges_are_known_on_all_their_pages(kernel: Confined) -> None:
    """Catches a range that only its first page knows."""
    start = _page(0) + 256
    assert kernel.call("gain", start, 3 * PAGE, OWN, 0) == 1
    assert kernel.store(start) == "allow"
    assert kernel.store(_page(1) - 4, 8) == "allow"
    assert kernel.store(_page(3) + 248, 8) == "allow"
    assert kernel.store(_page(3) + 252, 8) == "deny"
    assert kernel.store(start - 1, 1) == "deny"


def test_a_page_holds_four_ranges_and_counts_the_fifth(kernel: Confined) -> None:
    """Catches a fifth range that overwrites another, or is lost without a trace."""
    starts = [_page(0) + 512 * index for index in range(5)]
    assert [kernel.call("gain", start, 64, HELD, 0) for start in starts] == [1, 1, 1, 1, 0]
    assert [kernel.store(start) for start in starts] == ["allow"] * 4 + ["deny"]
    assert kernel.counter("lost_tracking") == 1
    kernel.call("lose", starts[1])
    assert kernel.store(starts[1]) == "deny"
    assert kernel.call("gain", starts[4], 64, HELD, 0) == 1
    assert kernel.store(starts[4]) == "allow"


def test_a_range_that_grows_takes_its_new_end(kernel: Confined) -> None:
    """Catches buffers that are used again with a larger size and take a second slot."""
    start = _page(0)
    for size in (64, 128):
        kernel.call("gain", start, size, HELD, 0)
    assert kernel.store(start + 120) == "allow"
    assert kernel.store(start + 128) == "deny"
    (entry,) = kernel.world.machine.maps["ranges"].snapshot().values()
    assert [entry[f"start{n}"] for n in range(4)] == [start, 0, 0, 0]


def test_a_range_that_two_capabilities_hold_is_given_back_twice(kernel: Confined) -> None:
    """Catches a clone whose end takes the shared buffer from the packet that it was cloned from, and a range that
    takes a second slot, of which a copy stays writable."""
    other, start = _page(0), _page(0) + 512
    kernel.call("gain", other, 64, HELD, 0)
    kernel.call("gain", start, 64, HELD, 0)
    kernel.call("lose", other)
    kernel.call("gain", start, 128, HELD, 0)
    kernel.call("lose", start)
    assert kernel.store(start) == "allow"
    kernel.call("lose", start)
    assert kernel.store(start) == "deny"


def test_a_range_of_more_than_128_pages_is_counted_as_lost(kernel: Confined) -> None:
    """Catches the bound of the page loop: what lies behind it must be denied and counted, not forgotten."""
    assert kernel.call("gain", _page(0), 127 * PAGE, OWN, 0) == 1
    assert kernel.call("gain", _page(200), 129 * PAGE, OWN, 0) == 0
    assert kernel.counter("lost_tracking") == 1
    assert kernel.store(_page(328)) == "deny"


def test_a_range_of_exactly_128_pages_is_whole(kernel: Confined) -> None:
    """Catches an off-by-one at the bound of the page loop."""
    assert kernel.call("gain", _page(0), 128 * PAGE, OWN, 0) == 1
    assert kernel.store(_page(128) - 8) == "allow"


def test_ranges_end_when_their_pages_are_freed(kernel: Confined) -> None:
    """Catches page fragments that stay writable when the page goes to somebody else."""
    size = sctp().kernel.sizes["page"]
    start = PAGE_OFFSET + 64 * PAGE
    kernel.world.machine.memory.write(VMEMMAP + 64 * size, bytes(4 * size))
    assert kernel.call("gain", start, 4 * PAGE, OWN, 0) == 1
    assert kernel.store(start + 3 * PAGE) == "allow"
    kernel.hook("o2c_page_free", VMEMMAP + 66 * size, 1)
    assert [kernel.store(start + n * PAGE) for n in range(4)] == ["allow", "allow", "deny", "deny"]


def test_an_untracked_buffer_is_let_through_in_the_transition_only(kernel: Confined) -> None:
    """Catches gates that refuse a packet from before loading."""
    skb = _packet(kernel, kernel.object(1024))
    gate = kernel.noted("call of kfree_skb_reason")
    kernel.phase(TRANSITION)
    assert kernel.kinds(kernel.run(gate, skb)) == []
    kernel.phase(FINAL)
    assert kernel.kinds(kernel.run(gate, skb)) == [REQUIREMENT]


# --- words with flags, per-CPU memory, the second of a pair ---------------------------------------------------


ROUTES = """
    write struct dst_entry { lastuse }
    entry sctp_rcv(skb) {
        lends skb as packet until return
        lends skb._skb_refdst as route until return
        lends skb.dev as device until return
    }
    gate skb_set_owner_w(skb, sk) { transfer skb as packet to kernel }
"""
DEFINED = (
    "caps route(d: struct dst_entry) {}\ncaps device(d: struct net_device) { percpu d.pcpu_refcnt[8] }\n"
)
AREA = 0xFFFF_8880_3D00_0000  # of processor 0


@pytest.mark.parametrize("flag", [0, 1])
def test_a_word_with_flags_leads_to_its_object(flag: int) -> None:
    """Catches `_skb_refdst` taken for a pointer: its lowest bit says who counts the reference."""
    kernel = confined(ROUTES, before=DEFINED)
    kernel.store(USER)
    skb, route = _packet(kernel, 0), kernel.object(192)
    lastuse, output = (route + offset_of("dst_entry", field) for field in ("lastuse", "output"))
    kernel.world.machine.memory.write_word(skb + offset_of("sk_buff", "_skb_refdst"), route | flag)
    assert kernel.store(lastuse) == "deny"
    kernel.run(_entry(kernel, "sctp_rcv"), skb)
    assert kernel.store(lastuse) == "allow"
    assert kernel.store(output) == "deny"


def test_per_cpu_memory_of_an_object_is_lent_where_the_policy_says_so() -> None:
    """Catches counters behind a pointer of alloc_percpu, which looks like one of user space, that cannot be lent."""
    for word, verdicts in (("percpu ", ["allow", "deny", "deny"]), ("", ["deny", "deny", "deny"])):
        kernel = confined(ROUTES, before=DEFINED.replace("percpu ", word))
        kernel.world.machine.memory.write_word(kernel.world.machine.symbols["__per_cpu_offset"], AREA)
        kernel.store(USER)
        skb, device, cookie = _packet(kernel, 0), kernel.object(2048), 0x2_F000
        kernel.world.machine.memory.write_word(skb + offset_of("sk_buff", "dev"), device)
        kernel.world.machine.memory.write_word(device + offset_of("net_device", "pcpu_refcnt"), cookie)
        kernel.run(_entry(kernel, "sctp_rcv"), skb)
        place = (cookie + AREA) % (1 << 64)
        assert [kernel.store(place), kernel.store(place + 8), kernel.store(cookie)] == verdicts
        kernel.run(kernel.site("sctp_rcv", ir.SiteKind.RETURN), rsp=STACK_POINTER + 8)
        assert kernel.store(place) == "deny"


def test_the_second_of_a_pair_is_lent_without_the_first() -> None:
    """Catches TCP's packets, clones in one object with what it keeps, that cannot be lent, or are lent with it."""
    kernel = confined(ROUTES, before=DEFINED)
    kernel.store(USER)
    size = 232  # of struct sk_buff
    first = kernel.object(2 * size + 8, cache="skbuff_fclone_cache")
    second = first + size
    kernel.run(_entry(kernel, "sctp_rcv"), second)
    assert (kernel.store(first), kernel.store(second), kernel.store(second + size - 8)) == (
        "deny",
        "allow",
        "allow",
    )
    assert kernel.counter("lost_tracking") == 0
    passes = kernel.noted("call of skb_set_owner_w")
    assert kernel.kinds(kernel.run(passes, first)) == [REQUIREMENT]
    assert kernel.kinds(kernel.run(passes, second)) == []
    assert kernel.store(second) == "deny"
