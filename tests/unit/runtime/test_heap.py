# SPDX-License-Identifier: Apache-2.0
"""The private heap at load: the shadow's size, and the calls that o2c.ko redirects."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping, Sequence
from typing import cast

import pytest
from elftools.elf.elffile import ELFFile

from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import HeapCallInfo, HeapInfo, read
from o2cc.bpf.layout import Layout
from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.ir.parser import parse_module
from o2cc.ir.printer import print_module
from o2cc.runtime import heap
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import (
    NO_PROGRAM,
    NO_REGISTER,
    Attached,
    EnforcerError,
    Feature,
    HeapOperation,
    Kind,
    Mode,
    Reason,
    Site,
)
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.running_kernel import Symbols
from tests.unit.bpf.elf_sections import section_named
from tests.unit.bpf.emulator import Emulator
from tests.unit.bpf.test_differential import context

IOMEM = """00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7ffd8fff : System RAM
  01000000-01e00fff : Kernel code
c0000000-febfffff : PCI Bus 0000:00
100000000-27fffffff : System RAM
"""
CALL = bytes.fromhex("e8112233449090")
JUMP = bytes.fromhex("e911223344cccc")


def calls() -> tuple[HeapCallInfo, ...]:
    return (
        HeapCallInfo("first", 0x10, False, "__kmalloc", "alloc", "rdi", "rsi"),
        HeapCallInfo("second", 0x20, True, "kmem_cache_free", "free_cache", "", ""),
        HeapCallInfo("twice", 0x30, False, "kmemdup", "duplicate", "rsi", "rdx"),
        HeapCallInfo("gone", 0x40, False, "kmemdup", "duplicate", "rsi", "rdx"),
    )


HEAP = HeapInfo(1 << 20, 72, 8, "made.o2c", 3, calls())


class Text:
    """Kernel memory with a few instructions."""

    def __init__(self, code: Mapping[int, bytes]) -> None:
        self.code = code

    def read(self, address: int, size: int) -> bytes:
        return self.code[address][:size]


class StandIn:
    """Takes everything but the addresses that a test names."""

    def __init__(self, never: Sequence[int] = (), problem: int = 0, features: int = 0) -> None:
        self.never, self.problem, self.features = never, problem, Feature(features)
        self.asked: list[tuple[object, ...]] = []
        self.sites: list[Site] = []

    def heap(self, *arguments: int, **offsets: int) -> str:
        if self.problem:
            raise EnforcerError("heap", self.problem)
        self.asked.append((*arguments, offsets))
        return "o2c-1-"

    def try_attach(self, sites: Sequence[Site]) -> list[Attached]:
        self.sites += sites
        return [
            Attached(None, Mode.OBSERVE, errno.EINVAL, Reason.PROBE)
            if one.address in self.never
            else Attached(number, Mode.SKIP, 0, Reason.NONE)
            for number, one in enumerate(sites)
        ]


def placed() -> tuple[tuple[heap.Redirected, ...], list[str]]:
    symbols = Symbols({"first": 0x1000, "second": 0x2000, "twice": 0x3000}, frozenset({"twice"}))
    text = cast("KernelText", Text({0x1010: CALL, 0x2020: JUMP}))
    found, lost = heap.place(HEAP, symbols, text)
    return found, [f"{item.place}: {item.reason}" for item in lost]


def test_calls_are_found_in_the_running_kernel() -> None:
    found, lost = placed()
    assert [(item.address, item.code) for item in found] == [(0x1010, CALL[:5]), (0x2020, JUMP[:5])]
    assert lost == [
        "twice+0x30: the call of `kmemdup` does not go to the private heap: several functions have that name",
        "gone+0x40: the call of `kmemdup` does not go to the private heap: "
        "the running kernel has no function of that name",
    ]


def test_what_is_asked_of_the_module() -> None:
    found, _ = placed()
    given = StandIn()
    assert heap.attach(cast("Enforcer", given), HEAP, 17, found) == ()
    assert given.asked == [(17, heap.OWNER, 1 << 20, {"ctor_offset": 72, "flags_offset": 8})]
    second, first = given.sites  # what frees comes first
    assert (first.kind, first.program, first.size) == (Kind.HEAP, NO_PROGRAM, HeapOperation.ALLOC)
    assert (first.base, first.index) == (7, 6)  # rdi, rsi
    assert second.size == HeapOperation.FREE_CACHE
    assert second.cookie == heap.COOKIE


def test_a_refused_call_is_named() -> None:
    found, _ = placed()
    (refused,) = heap.attach(cast("Enforcer", StandIn(never=[0x2020])), HEAP, 17, found)
    assert refused.place == "second+0x20"
    assert refused.reason.endswith("refused: kprobes refused the address")


def test_objects_that_could_not_be_freed_again_stay_the_kernels() -> None:
    """Catches a cache whose objects are made in the private heap and freed by the name of the kernel's cache: a WARNING."""
    allocation = HeapCallInfo("first", 0x10, False, "kmem_cache_alloc", "alloc_cache", "", "rsi")
    plain = HeapCallInfo("first", 0x10, False, "kmalloc", "alloc", "rdi", "rsi")
    free = HeapCallInfo("second", 0x20, True, "kmem_cache_free", "free_cache", "", "")
    made = HeapInfo(1 << 20, 72, 8, "made.o2c", 3, (allocation, plain, free))
    placed = [
        heap.Redirected(call, at, code)
        for call, at, code in zip(made.calls, (1, 2, 3), (b"a", b"b", b"c"), strict=True)
    ]
    whole, refused = StandIn(), StandIn(never=[3])
    assert heap.attach(cast("Enforcer", whole), made, 17, placed) == ()
    assert {site.address for site in whole.sites} == {1, 2, 3}
    reasons = [item.reason for item in heap.attach(cast("Enforcer", refused), made, 17, placed)]
    assert [text.split("`")[1] for text in reasons] == ["kmem_cache_free", "kmem_cache_alloc"]
    assert {site.address for site in refused.sites} == {2, 3}
    # a call that the running kernel does not have
    assert len(heap.attach(cast("Enforcer", StandIn()), made, 17, placed[:2])) == 1


def test_what_the_module_cannot_do_is_named_and_left_to_the_kernel() -> None:
    """Catches a site of an operation that an older o2c.ko does not know: it would refuse the whole batch."""
    page = HeapCallInfo("first", 0x10, False, "get_zeroed_page", "zeroed_page", "", "rdi")
    call = heap.Redirected(page, 0x1010, CALL[:5])
    old, new = StandIn(), StandIn(features=Feature.PAGES)
    (lost,) = heap.attach(cast("Enforcer", old), HEAP, 17, [call])
    assert lost.reason.endswith("this build of o2c.ko cannot do that")
    assert old.sites == []
    assert heap.attach(cast("Enforcer", new), HEAP, 17, [call]) == ()
    (site,) = new.sites
    assert (site.size, site.scale, site.base, site.index) == (HeapOperation.PAGES_ADDRESS, 1, NO_REGISTER, 7)


def test_a_refused_heap_is_an_error() -> None:
    with pytest.raises(EnforcerError):
        heap.attach(cast("Enforcer", StandIn(problem=errno.EOPNOTSUPP)), HEAP, 17, ())


def test_the_shadow_reaches_to_the_last_frame() -> None:
    """Catches a size by the amount of memory: with holes the frames reach further."""
    assert heap.frames_of(IOMEM) == 0x280000
    assert heap.frames_of("00000000-00000000 : System RAM\n") == 1  # what other users than root see
    assert heap.frames_of("") == 0


def test_hidden_addresses_are_a_diagnostic(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hidden:
        def read_text(self) -> str:
            return "00000000-00000000 : System RAM\n"

        def __str__(self) -> str:
            return "/proc/iomem"

    monkeypatch.setattr(heap, "_IOMEM", Hidden())
    with pytest.raises(DiagnosticError) as refusal:
        heap.page_frames()
    assert [item.code for item in refusal.value.diagnostics] == ["O2C0838"]


def shadow_module(length: int) -> ir.Module:
    code = Builder()
    code.give_back(code.load(heap.SHADOW, code.register("rdi"), "slot"))
    check = ir.Check("look", code.finish())
    return ir.Module(
        "m",
        (),
        tables=(
            ir.Table(heap.SHADOW, (("slot", 1),), (), length, resizable=True),
            ir.Table("counters", (("count", 8),), (), 4, writable=True),
        ),
        checks=(check,),
        sites=(ir.Site(0, "f", 0, ir.SiteKind.STORE, "look", ()),),
    )


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("frames", [8, 4096])
def test_the_compiled_shadow_has_the_size_that_the_loader_gives_it(layout: Layout, frames: int) -> None:
    """Catches a bound that stays behind the map's size, or the other way round, and code that differs from its meaning."""
    module = shadow_module(8)
    data = emit_object(module, layout=layout, sources={}).data
    resized = heap.resized(data, read(data), frames)
    section = section_named(ELFFile(io.BytesIO(resized)), heap.SHADOW_SECTION)
    assert section["sh_size"] == frames
    assert section["sh_type"] == "SHT_NOBITS"
    machine = Machine(module)
    emulator = Emulator(resized, machine)
    last = frames - 1
    for row, value in ((0, 5), (7, 1), (last, 14)):
        machine.tables[heap.SHADOW].store(row, "slot", value)
        emulator.data[heap.SHADOW_SECTION][row] = value
    (site,) = read(data).sites
    interpreter = Interpreter(machine)
    for index in (0, 3, 7, last, frames, frames + 1, 1 << 40, 2**64 - 1):
        registers = {"rdi": index}
        emulator.cookie = site.cookie or 0
        assert emulator.run(site.program, context(registers)) == interpreter.run_site(0, registers).value
    assert interpreter.run_site(0, {"rdi": last}).value == 14


def test_an_object_without_a_shadow_stays_as_it_is() -> None:
    code = Builder()
    code.decide(ir.Verdict.ALLOW)
    module = ir.Module(
        "m",
        (),
        checks=(ir.Check("c", code.finish()),),
        sites=(ir.Site(0, "f", 0, ir.SiteKind.STORE, "c", ()),),
    )
    data = emit_object(module, layout=Layout.SITE, sources={}).data
    assert heap.resized(data, read(data), 4096) == data


def test_the_heap_reads_back_from_the_object() -> None:
    data = emit_object(shadow_module(8), layout=Layout.SITE, sources={}, heap=HEAP).data
    assert read(data).heap == HEAP


def test_a_resizable_table_has_a_text() -> None:
    module = shadow_module(8)
    text = print_module(module)
    assert "table owner (slot 1) length 8 resizable {}" in text
    assert parse_module(SourceFile("m.ir", text)).tables == module.tables


def test_a_resizable_table_is_not_written_and_is_alone() -> None:
    module = shadow_module(8)
    (shadow, counters) = module.tables
    two = ir.Module(
        "m",
        (),
        tables=(shadow, ir.Table("other", (("slot", 1),), (), 8, resizable=True), counters),
        checks=module.checks,
        sites=module.sites,
    )
    with pytest.raises(DiagnosticError):
        emit_object(two, layout=Layout.SITE, sources={})
