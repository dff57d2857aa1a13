# SPDX-License-Identifier: Apache-2.0
"""Which memory a store may touch: by owner, by grant, by type."""

from __future__ import annotations

from dataclasses import replace

import pytest

from o2cc.ir import nodes as ir
from o2cc.kernel import store
from o2cc.kernel.description import Operand
from o2cc.lower.constants import kernel_constants
from o2cc.lower.places import KIND_DATA, section_kind
from o2cc.lower.stores import _store_check
from o2cc.simulation.world import PAGE, PAGE_OFFSET, USER, VMEMMAP, World
from tests.unit.lower.confined import (
    FINAL,
    HELD,
    LENT,
    OWN,
    RELEASE,
    SECOND,
    TRANSITION,
    TYPED,
    Confined,
    confined,
    failures,
    offset_of,
    sctp,
)

GRANTS = """
    write struct sock { sk_err, sk_err_soft }
    in functions { sctp_outq_tail } { write struct sock { sk_drops } }
    write struct sctp_sock { whole, sctp_hmac_alg, pf, hmac, bind_hash, ep } except { inet, bind_hash, paddrparam }
"""


@pytest.fixture
def kernel() -> Confined:
    return confined(GRANTS)


def test_states_of_objects_lead_to_their_verdicts() -> None:
    """Catches a state of memory that is mistaken for another."""
    tests = """
test "own"       { given p: struct sctp_chunk owned      store sctp_outq_tail to p size 8  expect allow }
test "freed"     { given p: struct sctp_chunk freed      store sctp_outq_tail to p size 8  expect deny }
test "foreign"   { given p: struct sctp_chunk foreign    store sctp_outq_tail to p size 8  expect deny }
test "untracked" { given p: struct sctp_chunk untracked  store sctp_outq_tail to p size 8  expect deny }
test "user"      { given p: buffer 64 B user             store sctp_outq_tail to p size 8  expect deny }
test "held"      { given p: struct sk_buff held as packet  store sctp_outq_tail to p.len size 4  expect allow }
test "shared"    { given p: struct sock shared           store sctp_outq_tail to p.sk_prot_creator size 8  expect deny }
test "older" {
    given p: struct sctp_chunk untracked
    phase transition
    store sctp_outq_tail to p size 8
    expect audition
}
"""
    assert failures(tests, GRANTS) == []


def test_a_wrong_expectation_fails() -> None:
    """Catches a runner that agrees with everything."""
    tests = 'test "t" { given p: buffer 64 B foreign  store sctp_outq_tail to p size 8  expect allow }'
    assert failures(tests) == ["test `t`: expected `allow`, the verdict is `deny`"]


def test_a_store_across_the_end_of_an_own_object_is_denied(kernel: Confined) -> None:
    """Catches bounds that look at the first byte only."""
    p = kernel.object(64, OWN)
    assert kernel.store(p + 56, 8) == "allow"
    assert kernel.store(p + 57, 8) == "deny"
    assert kernel.store(p + 64, 1) == "deny"


def test_a_store_from_the_red_zone_into_an_object_is_denied(kernel: Confined) -> None:
    """Catches offsets that wrap below an object: with red zones (slub_debug=Z) the bytes before it are nobody's."""
    p = kernel.world.slab_object(64)
    _set_red_zone(kernel, p, 16)
    first = p + 16  # the object begins behind its red zone
    assert kernel.call("gain", first, 40, OWN, 0) == 1
    assert kernel.store(first, 8) == "allow"
    assert kernel.store(first - 8, 16) == "deny"


def test_a_store_that_wraps_around_memory_is_denied(kernel: Confined) -> None:
    """Catches `address + size` that overflows to a small number."""
    p = kernel.object(64, OWN)
    assert kernel.store(p, 2**64 - 8) == "deny"


def test_a_store_of_nothing_needs_nothing(kernel: Confined) -> None:
    """Catches `rep movs` with a count of zero that is reported."""
    assert kernel.store(USER, 0) == "allow"


def test_granted_fields_and_no_others(kernel: Confined) -> None:
    """Catches grants that open the whole struct."""
    sk = kernel.object(2048, TYPED, "sock")
    err = sk + offset_of("sock", "sk_err")
    assert kernel.store(err, 4) == "allow"
    assert kernel.store(sk + offset_of("sock", "sk_prot_creator"), 8) == "deny"


def test_neighbouring_granted_fields_make_one_range(kernel: Confined) -> None:
    """Catches a store over two granted fields that is denied because no single rule covers it."""
    sk = kernel.object(2048, TYPED, "sock")
    first, second = offset_of("sock", "sk_err"), offset_of("sock", "sk_err_soft")
    assert second == first + 4
    assert kernel.store(sk + first, 8) == "allow"


def test_a_store_from_a_granted_field_into_another_is_denied(kernel: Confined) -> None:
    """Catches a range test that checks where a store begins and not where it ends."""
    sk = kernel.object(2048, TYPED, "sock")
    assert kernel.store(sk + offset_of("sock", "sk_err_soft"), 8) == "deny"
    assert kernel.store(sk + offset_of("sock", "sk_err") - 4, 8) == "deny"


def test_scoped_grants_are_for_their_functions_only(kernel: Confined) -> None:
    """Catches scopes that leak into the whole compartment."""
    sk = kernel.object(2048, TYPED, "sock")
    drops = sk + offset_of("sock", "sk_drops")
    assert kernel.store(drops, 4, "sctp_outq_tail") == "allow"
    assert kernel.store(drops, 4, "sctp_outq_init") == "deny"


def test_except_takes_bytes_out_of_a_whole_struct(kernel: Confined) -> None:
    """Catches `except` that is read and forgotten."""
    sk = kernel.object(4096, TYPED, "sctp_sock")
    assert kernel.store(sk + offset_of("sctp_sock", "default_ppid"), 4) == "allow"
    assert kernel.store(sk + offset_of("sctp_sock", "bind_hash"), 8) == "deny"
    assert kernel.store(sk + offset_of("sctp_sock", "paddrparam"), 4) == "deny"


def test_a_struct_is_what_lies_at_its_start(kernel: Confined) -> None:
    """Catches grants for `struct sock` that do not reach a `struct sctp_sock`, and the other way round."""
    derived = kernel.object(4096, TYPED, "sctp_sock")
    plain = kernel.object(2048, TYPED, "sock")
    assert kernel.store(derived + offset_of("sock", "sk_err"), 4) == "allow"
    assert kernel.store(plain + offset_of("sctp_sock", "default_ppid"), 4) == "deny"


def test_an_unmerged_cache_tells_the_type_of_its_objects(kernel: Confined) -> None:
    """Catches trust in the name of a cache into which others are merged."""
    sk = kernel.object(2048, cache="SCTP")
    field = sk + offset_of("sock", "sk_err")
    assert kernel.store(field, 4) == "allow"
    facts = kernel.world.description.kernel.fields
    head = _head(kernel, sk)
    memory = kernel.world.machine.memory
    cache = memory.read(head + facts["slab.slab_cache"].offset, 8)
    assert cache is not None
    memory.write_word(cache + facts["kmem_cache.refcount"].offset, 2, 4)
    assert kernel.store(field, 4) == "deny"


def test_a_cache_name_is_compared_to_its_end(kernel: Confined) -> None:
    """Catches `SCTPv6_evil` taken for `SCTPv6`, and `SCTPv6` for `SCTP`."""
    for name in ("SCTPv6_evil", "SCTP_", "sctp"):
        sk = kernel.object(2048, cache=name)
        assert kernel.store(sk + offset_of("sock", "sk_err"), 4) == "deny", name


def _set_red_zone(kernel: Confined, address: int, size: int) -> None:
    """Switch the red zone of the object's cache on (mm/slub.c calculate_sizes, 6.1)."""
    facts = kernel.world.description.kernel
    memory = kernel.world.machine.memory
    cache = memory.read(_head(kernel, address) + facts.fields["slab.slab_cache"].offset, 8)
    assert cache is not None
    constants = kernel_constants(facts, kernel.world.description.release)
    memory.write_word(cache + facts.fields["kmem_cache.flags"].offset, constants["const(SLAB_RED_ZONE)"], 4)
    memory.write_word(cache + facts.fields["kmem_cache.red_left_pad"].offset, size, 4)


def _head(kernel: Confined, address: int) -> int:
    kernel.store(USER)  # reads where the direct map begins
    head = kernel.call("page_head", address)
    assert head
    return head


def test_objects_of_several_pages_are_found_from_their_last_page(kernel: Confined) -> None:
    """Catches tail pages taken for pages of nobody."""
    p = kernel.object(3 * PAGE, OWN)
    assert kernel.store(p + 3 * PAGE - 8, 8) == "allow"
    assert kernel.store(p + 3 * PAGE - 4, 8) == "deny"


def test_own_data_may_be_written_and_not_what_is_read_only(kernel: Confined) -> None:
    """Catches sections with the wrong kind: a write to .rodata or to code."""
    sections = {s.name: s for s in kernel.world.description.sections}
    starts = kernel.world.sections
    assert kernel.store(starts[".data"] + 16, 8) == "allow"
    assert kernel.store(starts[".data"] + sections[".data"].size - 4, 8) == "deny"
    assert kernel.store(starts[".rodata"] + 16, 8) == "deny"
    assert kernel.store(starts[".text"] + 16, 8) == "deny"


def test_the_end_of_memory_is_nobodys(kernel: Confined) -> None:
    """Catches `address + 1` that wraps to 0 and so lies before every end: error pointers as own data."""
    kernel.store(USER)  # reads the addresses of the sections
    assert kernel.call("in_own_data", 2**64 - 1, 1) == 0
    assert kernel.call("is_owned", 2**64 - 1, 0, 0, 0) == 0


def test_own_constants_are_own_and_not_writable(kernel: Confined) -> None:
    """Catches a table of the module's own that is refused as an argument, and one that may be written."""
    constant = kernel.world.sections[".rodata"] + 16
    assert kernel.store(constant, 8) == "deny"
    assert kernel.call("is_owned", constant, 0, 0, 0) == 1
    assert kernel.call("is_freeable", constant, 0, 0) == 0


def test_data_of_the_kernel_is_not_that_of_built_in_code() -> None:
    """Catches a compartment of built-in functions that owns all of the kernel's data."""
    (path,) = store.bundled("ip6_output", RELEASE)
    target = store.load(path).target
    section = sctp().section_by_name[".data"]
    assert section_kind(section, sctp().target) == KIND_DATA
    assert section_kind(section, target) == 0


def test_granted_fields_of_a_named_object_may_be_written() -> None:
    """Catches `init_net`, which lies in no slab and has its type by its name."""
    kernel = confined("    write struct net { sctp.addr_waitq }")
    net = kernel.world.data("init_net")
    assert kernel.store(net + offset_of("net", "sctp.addr_waitq"), 8) == "allow"
    assert kernel.store(net + offset_of("net", "sctp.addr_waitq") + 16, 8) == "deny"
    assert kernel.store(kernel.world.data("init_task") + 64, 8) == "deny"


def test_held_memory_is_written_whole_whatever_its_type(kernel: Confined) -> None:
    """Catches held objects that only grants open."""
    p = kernel.object(256, HELD)
    assert kernel.store(p + 8, 8) == "allow"


def test_phases_decide_about_untracked_objects(kernel: Confined) -> None:
    """Catches an untracked object that stays allowed in the final phase, and a tracked one that is auditioned."""
    older = kernel.object(64)
    typed = kernel.object(2048, TYPED, "sock")
    kernel.phase(TRANSITION)
    assert kernel.store(older) == "audition"
    assert kernel.store(typed + offset_of("sock", "sk_prot_creator")) == "deny"
    kernel.phase(FINAL)
    assert kernel.store(older) == "deny"


def test_untracked_objects_are_remembered_with_times_and_counts(kernel: Confined) -> None:
    """Catches a transition that ends unseen: status shows these entries."""
    kernel.phase(TRANSITION)
    older = kernel.object(64)
    kernel.store(older)
    first = kernel.world.machine.now
    kernel.store(older + 8)
    entry = kernel.world.machine.maps["untracked"].snapshot()[(older,)]
    assert (entry["first"], entry["last"], entry["count"]) == (first, kernel.world.machine.now, 2)
    kernel.hook("o2c_kfree", 0, older)
    assert (older,) not in kernel.world.machine.maps["untracked"].snapshot()


def _old_page(kernel: Confined, flags: int = 0, mapping: int = 0, kind: int = 0xFFFFFFFF) -> tuple[int, int]:
    """A page that the kernel handed out before loading: its address, and that of its struct page."""
    head = VMEMMAP + 64 * sctp().kernel.sizes["page"]
    memory, places = kernel.world.machine.memory, sctp().kernel.fields
    memory.write(head, bytes(sctp().kernel.sizes["page"]))
    memory.write_word(head + places["page.flags"].offset, flags)
    memory.write_word(head + places["page.mapping"].offset, mapping)
    memory.write_word(head + places["page._mapcount"].offset, kind, 4)
    return PAGE_OFFSET + 64 * PAGE, head


def test_page_fragments_from_before_loading_are_let_through_in_the_transition(kernel: Confined) -> None:
    """Catches a packet that was built before loading, whose header is completed after it."""
    page, head = _old_page(kernel)
    kernel.phase(TRANSITION)
    assert kernel.store(page + 0x104, 4) == "audition"
    assert list(kernel.world.machine.maps["untracked"].snapshot()) == [(page,)]
    kernel.hook("o2c_page_free", head, 0)
    assert list(kernel.world.machine.maps["untracked"].snapshot()) == []
    kernel.phase(FINAL)
    assert kernel.store(page + 0x104, 4) == "deny"


def test_a_page_from_after_loading_is_not_an_old_one(kernel: Confined) -> None:
    page, head = _old_page(kernel)
    kernel.phase(TRANSITION)
    kernel.hook("o2c_page_alloc", head, 0)
    assert kernel.store(page) == "deny"


@pytest.mark.parametrize(
    "kind",
    [
        {"flags": 1 << sctp().kernel.enums["PG_reserved"]},
        {"flags": 1 << sctp().kernel.enums["PG_lru"]},
        {"mapping": 0xFFFF888000001000},
        {"kind": 0},
        {"kind": 0xFFFFFBFF},
    ],
    ids=["kernel image", "page cache", "file", "mapped by a process", "page table"],
)
def test_pages_that_are_no_buffers_stay_out_of_reach(kernel: Confined, kind: dict[str, int]) -> None:
    """Catches page tables, kernel text, and user memory that the transition would open."""
    page, _ = _old_page(kernel, **kind)
    kernel.phase(TRANSITION)
    assert kernel.store(page) == "deny"


@pytest.mark.parametrize(
    ("limits", "pauses", "verdicts"),
    [
        ("until quiescent for 5 s", (3, 3, 3, 6), "audition audition audition deny"),
        ("at most 10 s", (3, 3, 3, 3), "audition audition audition deny"),
        ("until quiescent for 5 s, at most 10 s", (3, 6, 1, 1), "audition deny deny deny"),
        ("until quiescent", (50, 50, 50, 61), "audition audition audition deny"),
    ],
)
def test_a_transition_ends_by_itself(limits: str, pauses: tuple[int, ...], verdicts: str) -> None:
    """Catches limits that are read and forgotten: old objects then stay writable for good."""
    kernel = confined(f"    transition {{ {limits} }}")
    older = kernel.object(64)
    kernel.phase(TRANSITION)
    kernel.world.machine.tables["globals"].store(0, "started", kernel.world.machine.now)
    found = []
    for seconds in pauses:
        kernel.world.machine.now += seconds * 10**9 - 2 * SECOND  # a store takes two seconds
        found.append(kernel.store(older))
    assert found == verdicts.split()
    assert kernel.counter("phase") == FINAL
    assert kernel.store(kernel.object(64, OWN)) == "allow"


def test_a_transition_does_not_end_before_it_begins() -> None:
    """Catches a time that runs while a loader still attaches probes."""
    kernel = confined("    transition { until quiescent for 5 s, at most 10 s }")
    older = kernel.object(64)
    kernel.phase(TRANSITION)
    kernel.world.machine.tables["globals"].store(0, "started", 2**63)
    for _ in range(3):
        kernel.world.machine.now += 3600 * 10**9
        assert kernel.store(older) == "audition"


def test_the_end_of_a_transition_does_not_undo_the_end_of_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches checks that kill again, and go on so, after the loader has ended them: it unloads, and their hooks go."""
    kernel = confined("    transition { at most 10 s }")
    older = kernel.object(64)
    kernel.phase(TRANSITION)
    words = kernel.world.machine.tables["globals"]
    load = words.load

    def read(index: int, column: str) -> int:
        if column == "at_most":  # after the look at the phase
            words.store(0, "phase", 0)
        return load(index, column)

    monkeypatch.setattr(words, "load", read)
    kernel.world.machine.now += 3600 * 10**9
    kernel.store(older)
    assert kernel.counter("phase") == 0


BEHIND = """
    write struct sctp_sock { whole, sctp_hmac_alg, pf, hmac, bind_hash, ep } except { inet, bind_hash, paddrparam }
    write behind struct sctp_globals {
        ep_hashtable[0 .. ep_hashsize * sizeof(struct sctp_hashbucket)],
        transport_hashtable.ht.tbl[0 .. sizeof(struct bucket_table) + transport_hashtable.ht.tbl.size * 8],
    }
    write behind struct sctp_sock { ep[0 .. sizeof(struct sctp_endpoint)] }
"""


def _behind() -> tuple[Confined, int, int]:
    """A policy with grants behind pointers, the module's globals, and the table that one of them points to."""
    kernel = confined(BEHIND)
    kernel.store(USER)
    globals_at = kernel.world.data("sctp_globals")
    table = kernel.world.slab_object(512)
    memory = kernel.world.machine.memory
    memory.write(table, bytes(512))
    memory.write_word(globals_at + offset_of("sctp_globals", "ep_hashtable"), table)
    memory.write_word(globals_at + offset_of("sctp_globals", "ep_hashsize"), 4, 4)
    return kernel, globals_at, table


def test_what_a_grant_behind_a_pointer_hangs_on_cannot_be_written() -> None:
    """Catches a compartment that aims such a grant, or lengthens it, by a store to its own data."""
    kernel, globals_at, table = _behind()
    assert kernel.store(table) == "allow"
    assert kernel.store(table + 256) == "deny"
    pointer = globals_at + offset_of("sctp_globals", "ep_hashtable")
    for place, size in ((pointer, 8), (pointer + 7, 1), (pointer - 8, 16)):
        assert kernel.store(place, size) == "deny"
    assert kernel.store(globals_at + offset_of("sctp_globals", "ep_hashsize"), 4) == "deny"
    assert kernel.store(globals_at + offset_of("sctp_globals", "transport_hashtable.ht.tbl")) == "deny"
    assert kernel.store(globals_at + offset_of("sctp_globals", "transport_hashtable.ht.nelems"), 4) == "allow"


def test_an_object_that_leads_to_granted_memory_keeps_its_pointer() -> None:
    """Catches the endpoint of the control socket: its pointer lies in a granted field, in any other socket too."""
    kernel, _, _ = _behind()
    control = kernel.object(2048, TYPED, "sctp_sock")
    other = kernel.object(2048, TYPED, "sctp_sock")
    memory = kernel.world.machine.memory
    memory.write_word(kernel.world.symbol("init_net") + offset_of("net", "sctp.ctl_sock"), control)
    assert kernel.store(control + offset_of("sctp_sock", "ep")) == "deny"
    assert kernel.store(other + offset_of("sctp_sock", "ep")) == "allow"


def test_the_kernel_may_be_asked_to_change_a_table_that_it_keeps() -> None:
    """Catches a hash table of the module that nothing can be inserted into any more."""
    kernel, globals_at, _ = _behind()
    table = globals_at + offset_of("sctp_globals", "transport_hashtable.ht")
    number = kernel.site("sctp_outq_tail").number
    assert kernel.call("is_writable", table, 64, number, 0, 0) == 0
    assert kernel.call("is_writable_or_own", table, 64, number, 0, 0) == 1
    assert kernel.call("is_writable_or_own", kernel.world.slab_object(64), 64, number, 0, 0) == 0


@pytest.mark.parametrize(
    ("size", "index", "distance"),
    [
        (8, 64, 8),
        (8, 2**64 - 1, -8),
        (4, 32, 4),
        (4, 0xFFFF_FFFF, -4),
        (4, 0x8000_0000, -(2**28)),
        (2, 0xFFFF, -2),
    ],
)
def test_bit_strings_are_addressed_as_the_processor_does(size: int, index: int, distance: int) -> None:
    """Catches a 32-bit bit number that is taken for a 64-bit one: the bit before the object passes for one behind it."""
    place = next(s for f in sctp().functions for s in f.sites if s.writes and s.operand is not None)
    place = replace(place, operand=Operand("rdi"), size=size, bit_index="rsi", rep=False)
    kernel = confined()
    check = ir.Check("bits", _store_check(sctp(), place))
    world = World(replace(kernel.module, checks=(*kernel.module.checks, check)), sctp())
    parameters = {"displacement": 0, "size": size, "site": 0}
    outcome = world.interpreter.run_check("bits", {"rdi": USER + 2**30, "rsi": index}, parameters)
    names = world.machine.rings["events"].definition.fields
    event = outcome.events[0].fields
    assert (event[names.index("address")] - USER - 2**30, event[names.index("size")]) == (distance, size)


AREA = 0xFFFF_8880_3D00_0000  # of processor 0
COOKIE = 0x0000_4080_0000_1000


def test_memory_for_each_processor_is_written_through_plain_pointers(kernel: Confined) -> None:
    """Catches counters that are known by what alloc_percpu gave only (nft_counter_eval takes the address first)."""
    kernel.world.machine.memory.write_word(kernel.world.machine.symbols["__per_cpu_offset"], AREA)
    assert kernel.call("gain", COOKIE, 16, OWN, 0) == 1
    place = (COOKIE + AREA) % (1 << 64)
    assert kernel.store(place) == kernel.store(place + 8) == "allow"
    assert kernel.store(place + 16) == kernel.store(place - 8) == "deny"


def test_user_memory_that_is_lent_opens_nothing(kernel: Confined) -> None:
    """Catches a user's pointer that is taken for a cookie: the user would choose the kernel address."""
    kernel.world.machine.memory.write_word(kernel.world.machine.symbols["__per_cpu_offset"], AREA)
    kernel.call("gain", COOKIE, 16, HELD | LENT, 0)
    assert kernel.store((COOKIE + AREA) % (1 << 64)) == "deny"
    assert kernel.store(COOKIE) == "deny"


def test_checks_of_a_policy_that_is_being_unloaded_say_nothing() -> None:
    """Catches a check that outlives the hooks that feed it, and kills proper use."""
    kernel = confined()
    foreign = kernel.object(64)
    assert kernel.store(foreign) == "deny"
    kernel.phase(0)
    assert kernel.store(foreign) == "allow"
    assert kernel.counter("lost_events") == 0
