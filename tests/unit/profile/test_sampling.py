# SPDX-License-Identifier: Apache-2.0
"""The sampling programs, run by the reference interpreter on a made-up kernel memory."""

from __future__ import annotations

import struct
from functools import cache

import pytest

from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.kernel.description import Field, KernelFacts
from o2cc.profile.program import SamplingProgram, make_program, record_fields
from o2cc.profile.samples import Sample, decode

PAGE_OFFSET = 0xFF11_0000_0000_0000
VMALLOC = 0xFF62_0000_0000_0000
VMEMMAP = 0xFFE8_0000_0000_0000
VARIABLES = 0xFFFF_FFFF_8200_0000
CACHE, CACHE_NAME = PAGE_OFFSET + 0x10_0000, PAGE_OFFSET + 0x11_0000
SLAB = PAGE_OFFSET + 0x20_0000
SITE, OTHER_SITE = 0xFFFF_FFFF_8100_1234, 0xFFFF_FFFF_8100_5678
PER_SITE = 5
SIZE = 96
SLAB_BIT = 9

OFFSETS = {
    "page.flags": 0,
    "page.compound_head": 8,
    "page.mapping": 24,
    "page._mapcount": 48,
    "slab.slab_cache": 24,
    "kmem_cache.size": 0,
    "kmem_cache.object_size": 4,
    "kmem_cache.flags": 8,
    "kmem_cache.name": 16,
    "kmem_cache.refcount": 24,
    "kmem_cache.red_left_pad": 28,
    "task_struct.comm": 0,
    "hlist_node.next": 0,
    "hlist_node.pprev": 8,
}


@cache
def program() -> SamplingProgram:
    facts = KernelFacts(
        {name: Field(offset, 8) for name, offset in OFFSETS.items()},
        {"page": 64},
        {"PG_slab": SLAB_BIT, "PG_reserved": 11, "PG_lru": 5},
        frozenset(),
        {},
        "",
    )
    return make_program(facts, "6.1.0-test", per_site=PER_SITE)


class Kernel:
    """One slab page of a cache `sctp_chunk`, and the interpreter that runs the hooks."""

    def __init__(self) -> None:
        machine = Machine(program().module)
        machine.symbols = {
            name: VARIABLES + 8 * number
            for number, name in enumerate(
                ("page_offset_base", "vmalloc_base", "vmemmap_base", "max_pfn", "_stext", "_etext", "_end")
            )
        }
        for number, value in enumerate((PAGE_OFFSET, VMALLOC, VMEMMAP, 0x8_0000)):
            machine.memory.write(VARIABLES + 8 * number, struct.pack("<Q", value))
        machine.memory.write(CACHE, struct.pack("<IIQQI", SIZE, SIZE, 0x2000, CACHE_NAME, 1))
        machine.memory.write(CACHE_NAME, b"sctp_chunk".ljust(24, b"\0"))
        page = VMEMMAP + (SLAB - PAGE_OFFSET >> 12) * 64
        machine.memory.write(page, struct.pack("<QQQQ", 1 << SLAB_BIT, 0, 0, CACHE))
        machine.memory.write(SLAB, bytes(4096))
        self.machine = machine
        self._interpreter = Interpreter(machine)

    def allocate(self, number: int, site: int = SITE, asked: int = 0) -> None:
        if asked:
            self._interpreter.run_hook("o2c_kmalloc", arguments=(site, SLAB + SIZE * number, asked, SIZE))
        else:
            self._interpreter.run_hook("o2c_cache_alloc", arguments=(site, SLAB + SIZE * number, CACHE))

    def free(self, number: int) -> None:
        self._interpreter.run_hook("o2c_cache_free", arguments=(0, SLAB + SIZE * number, CACHE))

    def free_in_bulk(self, *numbers: int) -> None:
        array = PAGE_OFFSET + 0x30_0000
        self.machine.memory.write(
            array, struct.pack(f"<{len(numbers)}Q", *(SLAB + SIZE * n for n in numbers))
        )
        self._interpreter.run_hook("o2c_bulk_free", registers={"rsi": len(numbers), "rdx": array})

    def samples(self) -> list[Sample]:
        found = [
            decode(struct.pack(f"<{len(event.fields)}Q", *event.fields)) for event in self.machine.events
        ]
        assert None not in found
        return [sample for sample in found if sample is not None]


def test_a_record_has_the_words_that_are_decoded() -> None:
    assert len(record_fields(program().module)) == 11 + 32


def test_an_object_is_recorded_when_it_is_freed() -> None:
    kernel = Kernel()
    kernel.machine.memory.write(SLAB + SIZE, struct.pack("<Q", 77) + b"text" * 2)
    kernel.allocate(1)
    assert kernel.samples() == []
    kernel.free(1)
    (sample,) = kernel.samples()
    assert (sample.moment, sample.site, sample.address) == ("free", SITE, SLAB + SIZE)
    assert (sample.cache, sample.size, sample.flags, sample.references) == ("sctp_chunk", SIZE, 0x2000, 1)
    assert len(sample.words) == SIZE // 8
    assert sample.words[:2] == (77, int.from_bytes(b"texttext", "little"))
    kernel.free(1)
    assert len(kernel.samples()) == 1


def test_the_size_that_was_asked_for_is_kept() -> None:
    kernel = Kernel()
    kernel.allocate(3, asked=88)
    kernel.free(3)
    assert [sample.asked for sample in kernel.samples()] == [88]


def test_an_object_in_use_is_recorded_when_its_site_gives_another() -> None:
    kernel = Kernel()
    kernel.allocate(1)
    kernel.allocate(2)
    kernel.allocate(3)
    moments = [(sample.moment, sample.address) for sample in kernel.samples()]
    assert moments == [("live", SLAB + SIZE * 2)], "the site's first allocation only makes the site known"


@pytest.mark.parametrize("way", ["free", "bulk", "other site"])
def test_what_is_gone_is_not_taken_for_an_object_in_use(way: str) -> None:
    kernel = Kernel()
    kernel.allocate(1)
    kernel.allocate(2)
    if way == "free":
        kernel.free(2)
    elif way == "bulk":
        kernel.free_in_bulk(7, 2)
    else:  # it was freed in a way that nobody saw, and its place was given to another
        kernel.allocate(2, site=OTHER_SITE)
    kernel.allocate(3)
    assert not [sample for sample in kernel.samples() if sample.moment == "live"]


def test_a_site_gives_no_more_than_its_limit() -> None:
    kernel = Kernel()
    for _ in range(40):
        kernel.allocate(1)
        kernel.free(1)
    assert len(kernel.samples()) == PER_SITE
    kernel.allocate(2, site=OTHER_SITE)
    kernel.free(2)
    assert len(kernel.samples()) == PER_SITE + 1, "another site has a limit of its own"


def test_memory_that_is_no_slab_gives_no_sample() -> None:
    kernel = Kernel()
    page = VMEMMAP + (SLAB - PAGE_OFFSET >> 12) * 64
    kernel.machine.memory.write(page, bytes(8))
    kernel.allocate(1)
    kernel.free(1)
    assert kernel.samples() == []


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(0, 1), (63, 1), (64, 1), (65, 0), (1024, 1), (1028, 0), (16384, 1), (16400, 0), (16512, 1)],
)
def test_the_more_a_site_allocates_the_fewer_are_taken(count: int, wanted: int) -> None:
    assert Interpreter(Machine(program().module)).run_function("wanted", count).value == wanted
