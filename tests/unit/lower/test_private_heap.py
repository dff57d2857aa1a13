# SPDX-License-Identifier: Apache-2.0
"""The private heap: the owner shadow decides before anything is looked up, and to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import read
from o2cc.bpf.layout import Layout
from o2cc.compiler import library_sources
from o2cc.ir import nodes as ir
from o2cc.ir.verifier import verify
from o2cc.lower.heap import HeapOperation, allocates
from o2cc.runtime import heap as heap_loader
from o2cc.simulation.world import PAGE, PAGE_OFFSET, STACK_POINTER, World
from tests.unit.bpf.emulator import Emulator
from tests.unit.bpf.test_differential import context
from tests.unit.lower.confined import (
    FORBIDDEN,
    FOREIGN_FREE,
    HELD,
    OWN,
    TRANSITION,
    Confined,
    confined,
    failures,
    sctp,
)

HEAP = "heap private 1 MiB"
EXHAUSTED = 8


@pytest.fixture
def kernel() -> Confined:
    made = confined(heap=HEAP, violation="deny")
    made.call("resolve", 0)
    return made


def test_a_slot_may_be_written_but_for_the_allocators_bytes(kernel: Confined) -> None:
    """Catches a fast path that believes whole pages: SLUB's free pointers would be the attacker's."""
    for size, slot in ((8, 16), (56, 64), (57, 128), (64, 128), (4088, 4096), (8192, 16384)):
        p = kernel.world.private_object(size)
        assert p % slot == 0
        assert kernel.store(p, 1) == "allow"
        assert kernel.store(p + slot - 16, 8) == "allow"
        assert kernel.store(p + slot - 9, 1) == "allow"
        assert kernel.store(p + slot - 8, 1) == "deny"
        assert kernel.store(p + slot - 15, 8) == "deny"
        assert kernel.store(p, slot - 8) == "allow"
        assert kernel.store(p, slot - 7) == "deny"
        assert kernel.store(p, 1 << 63) == "deny"


def test_a_store_across_the_end_of_the_last_slot_of_a_slab_is_denied(kernel: Confined) -> None:
    p = kernel.world.private_object(56)
    neighbour = kernel.object(64)
    assert kernel.store(p + PAGE - 9, 1) == "allow"
    assert kernel.store(p + PAGE - 8, 16) == "deny"
    assert kernel.store(p + PAGE, 1) == "deny"
    assert kernel.store(neighbour, 8) == "deny"


def test_whole_pages_may_be_written_from_end_to_end(kernel: Confined) -> None:
    p = kernel.world.private_object(3 * PAGE)
    assert kernel.store(p, 8) == "allow"
    assert kernel.store(p + PAGE - 4, 8) == "allow"
    assert kernel.store(p, 3 * PAGE) == "allow"
    assert kernel.store(p + 2 * PAGE, PAGE + 1) == "deny"
    assert kernel.store(p + 3 * PAGE - 4, 8) == "deny"
    assert kernel.store(p - 1, 2) == "deny"


def test_own_memory_is_own_in_every_guard(kernel: Confined) -> None:
    site = kernel.site("sctp_outq_tail").number
    p, foreign = kernel.world.private_object(100), kernel.object(64)
    assert [kernel.call("is_owned", a, site, STACK_POINTER, 0) for a in (p, p + 8, foreign)] == [1, 1, 0]
    assert [kernel.call("is_held", a, 0, site, STACK_POINTER, 0) for a in (p, foreign)] == [1, 0]
    assert [kernel.call("is_shared", a, site, STACK_POINTER, 0) for a in (p, foreign)] == [0, 1]
    assert [kernel.call("is_freeable", a, site, STACK_POINTER) for a in (p, p + 8, foreign)] == [1, 0, 0]
    assert [kernel.call("is_covered", p, n, site, STACK_POINTER, 0) for n in (0, 120, 121)] == [1, 1, 0]
    assert [kernel.call("is_writable", p, n, site, STACK_POINTER, 0) for n in (120, 121)] == [1, 0]


def test_own_memory_needs_no_table(kernel: Confined) -> None:
    """Catches entries that outlive a free which no hook sees, and a table that fills up."""
    p = kernel.world.private_object(100)
    assert kernel.call("gain", p, 100, OWN, 0) == 2
    assert kernel.call("gain", p, 100, HELD, 0) == 2
    assert kernel.call("gain", p + 16, 32, HELD | 16, 0) == 2
    assert kernel.world.machine.maps["objects"].entries == {}
    assert kernel.world.machine.maps["ranges"].entries == {}
    assert kernel.call("lose", p) == 0
    assert kernel.store(p, 8) == "allow"


def test_own_memory_is_never_older_than_the_policy(kernel: Confined) -> None:
    """Catches a transition that lets the allocator's bytes through as an untracked object."""
    kernel.phase(TRANSITION)
    p, old = kernel.world.private_object(56), kernel.world.slab_object(64)
    site = kernel.site("sctp_outq_tail").number
    assert kernel.store(p, 8) == "allow"
    assert kernel.store(p + 56, 8) == "deny"
    assert kernel.store(old, 8) == "audition"
    assert kernel.call("is_freeable", p + 8, site, STACK_POINTER) == 0
    assert kernel.call("is_granted", p, 1, site, STACK_POINTER) == 0
    assert kernel.call("is_granted", old, 1, site, STACK_POINTER) == 1


def test_frames_beyond_the_shadow_and_addresses_outside_the_direct_map_are_not_own(kernel: Confined) -> None:
    kernel.world.private_object(56)
    for address in (PAGE_OFFSET - PAGE, PAGE_OFFSET + (1 << 45), 0, PAGE, 2**64 - PAGE):
        assert kernel.call("object_flags", address) == 0


def test_before_addresses_are_known_nothing_is_own() -> None:
    """Catches a shadow that is asked with a direct map at 0: low addresses would be somebody's frames."""
    kernel = confined(heap=HEAP)
    kernel.world.private_object(56)  # frame 1
    assert kernel.world.machine.tables["globals"].load(0, "ready") == 0
    assert kernel.store(PAGE + 8, 8) == "deny"


def test_a_tracked_heap_has_no_shadow() -> None:
    kernel = confined()
    assert not [table for table in kernel.module.tables if table.resizable]
    assert kernel.lowered.heap is None


def test_a_failed_allocation_is_told_and_nothing_else_happens(kernel: Confined) -> None:
    site = kernel.noted("result of __kmalloc")
    asked = kernel.noted("call of __kmalloc")
    kernel.run(asked, 64, 0)
    outcome = kernel.run(site, rax=0)
    assert kernel.kinds(outcome) == [EXHAUSTED]
    assert outcome.value == 0
    kernel.run(asked, 64, 0)
    assert kernel.kinds(kernel.run(site, rax=kernel.world.private_object(64))) == []


def test_what_the_kernels_allocator_served_is_tracked(kernel: Confined) -> None:
    """Catches proper use of an allocation that o2c.ko left to the kernel, e.g. for DMA."""
    kernel.run(kernel.noted("call of __kmalloc"), 64, 0)
    p = kernel.world.slab_object(64)
    kernel.run(kernel.noted("result of __kmalloc"), rax=p)
    assert kernel.store(p, 64) == "allow"
    kernel.hook("o2c_kfree", 0, p)
    assert kernel.store(p, 8) == "deny"


def test_a_foreign_or_inner_address_is_not_freed(kernel: Confined) -> None:
    site = kernel.noted("call of kfree")
    p, foreign = kernel.world.private_object(100), kernel.object(64)
    assert kernel.kinds(kernel.run(site, p)) == []
    assert kernel.kinds(kernel.run(site, p + 8)) == [FOREIGN_FREE]
    assert kernel.kinds(kernel.run(site, foreign)) == [FOREIGN_FREE]


def test_policy_tests_know_the_private_heap() -> None:
    """A freed object is still the compartment's own memory: nobody else gets it."""
    tests = """
test "own"     { given p: struct sctp_chunk owned    store sctp_outq_tail to p size 8  expect allow }
test "end"     { given p: buffer 56 B owned  store sctp_outq_tail to p + 56 size 8  expect deny }
test "large"   { given p: buffer 64 KiB owned  store sctp_outq_tail to p + 65528 size 8  expect allow }
test "freed"   { given p: struct sctp_chunk freed    store sctp_outq_tail to p size 8  expect allow }
test "foreign" { given p: struct sctp_chunk foreign  store sctp_outq_tail to p size 8  expect deny }
"""
    assert failures(tests, heap=HEAP) == []
    assert failures(tests) != []


def test_calls_that_are_redirected() -> None:
    heap = confined(heap=HEAP).lowered.heap
    assert heap is not None
    assert heap.limit == 1 << 20
    fields = sctp().kernel.fields
    assert heap.ctor_offset == fields["kmem_cache.ctor"].offset
    assert heap.flags_offset == fields["kmem_cache.flags"].offset
    registers = {(call.called, call.operation, call.size, call.flags) for call in heap.calls}
    assert registers == {
        ("__kmalloc", HeapOperation.ALLOC, "rdi", "rsi"),
        ("__kmalloc_node_track_caller", HeapOperation.ALLOC, "rdi", "rsi"),
        ("kmalloc_trace", HeapOperation.ALLOC, "rdx", "rsi"),
        ("kmem_cache_alloc", HeapOperation.ALLOC_CACHE, "rdi", "rsi"),
        ("kmem_cache_free", HeapOperation.FREE_CACHE, None, None),
        ("kmemdup", HeapOperation.DUPLICATE, "rsi", "rdx"),
    }
    places = {(function.name, site.offset): site for function in sctp().functions for site in function.sites}
    for call in heap.calls:
        site = places[call.function, call.offset]
        assert site.target == call.called
        assert (site.kind == "tail_call") == call.tail
    assert not allocates("kfree")


def test_a_forbidden_call_is_not_redirected() -> None:
    kernel = confined(heap=HEAP, calls="call imports except { kmem_cache_alloc }")
    assert kernel.lowered.heap is not None
    assert "kmem_cache_alloc" not in {call.called for call in kernel.lowered.heap.calls}
    assert kernel.kinds(kernel.run(kernel.noted("call of kmem_cache_alloc"))) == [FORBIDDEN]


def test_a_grant_behind_a_pointer_in_own_memory_keeps_its_words() -> None:
    """Catches a fast path past `aims_grant`: the length of such a grant could be enlarged."""
    rules = """
    write behind struct net { gen[0 .. gen.s.len] }
"""
    kernel = confined(rules, heap=HEAP)
    kernel.call("resolve", 0)
    world: World = kernel.world
    generic = world.private_object(120)
    net = world.symbol("init_net")
    gen = sctp().types.find_field("net", "gen")
    length = sctp().types.find_field("net_generic", "s.len")
    assert gen is not None
    assert length is not None
    world.machine.memory.write_word(net + gen.offset, generic)
    assert kernel.store(generic + length.offset, 4) == "deny"
    assert kernel.store(generic + 64, 8) == "allow"


@pytest.mark.parametrize("heap", [HEAP, "heap tracked"])
def test_the_library_of_both_heaps_is_valid(heap: str) -> None:
    assert verify(confined(heap=heap).module) == ()


def test_compiled_checks_of_stores_agree_with_the_interpreter(kernel: Confined) -> None:
    """The whole way of a store's check, library and shadow included, for addresses around objects of all kinds."""
    sites = tuple(site for site in kernel.module.sites if site.function == "sctp_outq_tail")
    sites = tuple(site for site in sites if site.kind is ir.SiteKind.STORE and "rbx" in site.check)
    assert sites
    module = replace(kernel.module, sites=sites)
    sources = {source.name: source.text for source in library_sources().values()}
    data = emit_object(module, layout=Layout.SITE, sources=sources).data
    world = kernel.world
    objects = [world.private_object(n) for n in (8, 56, 120, 5000, 3 * PAGE)] + [kernel.object(64, OWN)]
    emulator = Emulator(heap_loader.resized(data, read(data), FRAMES), world.machine)
    for name in ("globals", "layout"):
        copy_table(world, emulator, data, name)
    for frame, row in world.machine.tables["owner"].rows.items():
        emulator.data[heap_loader.SHADOW_SECTION][frame] = row[0]
    programs = {site.number: site.program for site in read(data).sites}
    seen = set()
    for base in objects:
        for distance in (
            -8,
            -1,
            0,
            1,
            8,
            40,
            47,
            48,
            49,
            56,
            63,
            64,
            112,
            113,
            120,
            PAGE - 8,
            PAGE - 4,
            3 * PAGE,
        ):
            for site in sites:
                displacement = dict(site.parameters)["displacement"]
                registers = {"rbx": (base + distance - displacement) & (2**64 - 1), "rsp": STACK_POINTER}
                expected = world.interpreter.run_site(site.number, registers).value
                assert emulator.run(programs[site.number], context(registers)) == expected, (base, distance)
                seen.add(expected)
    assert seen == {0, 1}


FRAMES = 4096


def copy_table(world: World, emulator: Emulator, data: bytes, name: str) -> None:
    """The interpreter's table, to where the compiled code looks."""
    (info,) = (table for table in read(data).tables if table.name == name)
    for row in range(info.length):
        for column, offset, size in info.columns:
            place = info.offset + row * info.stride + offset
            value = world.machine.tables[name].load(row, column)
            emulator.data[info.section][place : place + size] = value.to_bytes(size, "little")
