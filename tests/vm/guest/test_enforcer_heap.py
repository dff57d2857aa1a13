# SPDX-License-Identifier: Apache-2.0
"""The private heap of o2c.ko: allocations of the compartment's code, and an exact owner shadow."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from iced_x86 import Code, Decoder

from o2cc.kernel import store
from o2cc.runtime.enforcer import (
    FREE_POINTER,
    NO_PROGRAM,
    NO_REGISTER,
    Action,
    Enforcer,
    EnforcerError,
    HeapOperation,
    Kind,
    Reason,
    Site,
)
from tests.vm.guest.enforcer_support import (
    Forms,
    Shadow,
    load_module,
    unload_module,
    wait_until,
)

KMALLOC, TAIL, CONSTANT, CACHE_ALLOC, CACHE_FREE, KREALLOC, KMEMDUP, KFREE, KERNEL, CHURN = range(10)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
OWNER = 7
LIMIT = 8 << 20
CONSTANT_SIZE, CACHE_SIZE = 200, 72


class _FormAlloc(ctypes.Structure):
    _fields_ = (
        ("operation", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("pointer", ctypes.c_uint64),
        ("result", ctypes.c_uint64),
        ("frame", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
        ("code", ctypes.c_uint8 * 128),
        ("data", ctypes.c_uint8 * 64),
    )


def allocate(forms: Forms, operation: int, size: int = 0, pointer: int = 0, data: bytes = b"") -> _FormAlloc:
    request = _FormAlloc(operation=operation, size=size, pointer=pointer)
    request.data[: len(data)] = list(data)
    forms.ioctl(3, request)
    return request


def _symbols() -> dict[int, str]:
    symbols: dict[int, str] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, _, name = line.split()[:3]
        if name.startswith(("__kmalloc", "kmalloc", "kmem_cache", "krealloc", "kmemdup")):
            symbols[int(address, 16)] = name
    return symbols


def heap_site(forms: Forms, operation: int, symbols: dict[int, str]) -> Site:
    """The call to the allocator in one of the test module's functions, described as a loader would."""
    probe = allocate(forms, operation, 8, 0)
    if probe.result:
        allocate(forms, KFREE, pointer=probe.result)
    for instruction in Decoder(64, bytes(probe.code), ip=probe.function):
        if instruction.code not in (Code.CALL_REL32_64, Code.JMP_REL32_64, Code.JMP_REL8_64):
            continue
        name = symbols.get(instruction.near_branch_target)
        if name is None:
            continue
        what, size, gfp = {
            "__kmalloc": (HeapOperation.ALLOC, RDI, RSI),
            "__kmalloc_noprof": (HeapOperation.ALLOC, RDI, RSI),
            "kmalloc_trace": (HeapOperation.ALLOC, RDX, RSI),
            "__kmalloc_cache_noprof": (HeapOperation.ALLOC, RDX, RSI),
            "kmem_cache_alloc": (HeapOperation.ALLOC_CACHE, RDI, RSI),
            "kmem_cache_alloc_noprof": (HeapOperation.ALLOC_CACHE, RDI, RSI),
            "kmem_cache_free": (HeapOperation.FREE_CACHE, NO_REGISTER, RSI),
            "krealloc": (HeapOperation.REALLOC, RSI, RDX),
            "krealloc_noprof": (HeapOperation.REALLOC, RSI, RDX),
            "kmemdup": (HeapOperation.DUPLICATE, RSI, RDX),
            "kmemdup_noprof": (HeapOperation.DUPLICATE, RSI, RDX),
        }[name]
        start = instruction.ip - probe.function
        return Site(
            address=instruction.ip,
            cookie=operation,
            program=NO_PROGRAM,
            kind=Kind.HEAP,
            action=Action.REPORT,
            code=bytes(probe.code)[start : start + instruction.len],
            base=size,
            index=gfp,
            size=what,
        )
    raise AssertionError(f"no allocator is called in operation {operation}")


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    load_module("o2c")
    device = Forms()
    yield device
    device.close()


@pytest.fixture
def shadow() -> Iterator[Shadow]:
    owner = Shadow()
    yield owner
    owner.close()


@pytest.fixture
def sites(forms: Forms) -> list[Site]:
    symbols = _symbols()
    return [heap_site(forms, operation, symbols) for operation in range(KFREE)]


def kernel_fields() -> dict[str, int]:
    """Offsets in the kernel's own structures."""
    (path,) = store.bundled("sctp", os.uname().release)
    return {name: field.offset for name, field in store.load(path).kernel.fields.items()}


def owner(size: int) -> int:
    """The byte of a page that holds an object for so many bytes: slots are powers of two, from 16 on."""
    return OWNER + max(4, (size + FREE_POINTER - 1).bit_length())


def load(enforcer: Enforcer, shadow: Shadow, sites: list[Site], limit: int = LIMIT) -> str:
    enforcer.create("heap")
    enforcer.program(shadow.program)
    fields = kernel_fields()
    prefix = enforcer.heap(
        shadow.id,
        OWNER,
        limit,
        ctor_offset=fields["kmem_cache.ctor"],
        flags_offset=fields["kmem_cache.flags"],
    )
    enforcer.attach(sites)
    enforcer.commit()
    return prefix


def test_allocations_are_owned_and_can_be_freed_by_anybody(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        for size in (1, 8, 9, 64, 100, 192, 200, 1024, 4097, 8192):
            for operation in (KMALLOC, TAIL):
                object_ = allocate(forms, operation, size)
                assert object_.result
                assert shadow.owner(object_.frame) == owner(size)
                assert bytes(object_.data) == bytes(64)  # __GFP_ZERO
                allocate(forms, KFREE, pointer=object_.result)
                assert shadow.owner(object_.frame) == owner(size)  # the slab is kept
        constant = allocate(forms, CONSTANT)
        assert shadow.owner(constant.frame) == owner(CONSTANT_SIZE)
        pattern = bytes(range(64))
        larger = allocate(forms, KREALLOC, 500, constant.result, pattern)
        assert shadow.owner(larger.frame) == owner(500)
        assert bytes(larger.data) == pattern
        copy = allocate(forms, KMEMDUP, 64, larger.result, pattern)
        assert copy.result != larger.result
        assert bytes(copy.data) == pattern
        assert shadow.owner(copy.frame) == owner(64)
        cached = allocate(forms, CACHE_ALLOC)
        assert cached.result
        assert shadow.owner(cached.frame) == owner(CACHE_SIZE)
        allocate(forms, CACHE_FREE, pointer=cached.result)
        before_loading = allocate(forms, KERNEL, 72)
        assert shadow.owner(before_loading.frame) == 0
        for object_ in (copy, larger, before_loading):
            allocate(forms, KFREE, pointer=object_.result)
        stats = enforcer.heap_stats()
        assert stats.allocations == 24
        assert (stats.failures, stats.passed) == (0, 0)
        assert 0 < stats.bytes <= LIMIT
        # too large for the caches: the kernel's own allocator, and not ours
        large = allocate(forms, KMALLOC, 20000)
        assert large.result
        assert shadow.owner(large.frame) == 0
        allocate(forms, KFREE, pointer=large.result)
        assert enforcer.heap_stats().passed == 1
    assert shadow.owned() == 0


def test_the_kernel_never_gets_an_owned_page(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        ours = [allocate(forms, KMALLOC, 512) for _ in range(300)]
        for object_ in ours:
            allocate(forms, KFREE, pointer=object_.result)
        frames = {object_.frame for object_ in ours}
        owned = shadow.owned()
        others = [allocate(forms, KERNEL, 512) for _ in range(2000)]
        assert not frames & {object_.frame for object_ in others}
        assert shadow.owners(object_.frame for object_ in others) == {0}
        for object_ in others:
            allocate(forms, KFREE, pointer=object_.result)
        assert shadow.owned() == owned
        assert owned * 4096 == enforcer.heap_stats().bytes


def test_what_is_written_to_a_freed_object_means_nothing_to_the_allocator(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        size = 64 - FREE_POINTER
        freed = [allocate(forms, KMALLOC, size) for _ in range(20)]
        for object_ in freed:
            allocate(forms, KFREE, pointer=object_.result)
        kernel = allocate(forms, KERNEL, size)
        forged = struct.pack("<Q", kernel.result) * 8
        for object_ in freed:  # writes the first 56 bytes of the object that is named
            taken = allocate(forms, KMALLOC, 1000, object_.result, forged)
            allocate(forms, KFREE, pointer=taken.result)
        again = [allocate(forms, KMALLOC, size) for _ in range(500)]
        assert shadow.owners(object_.frame for object_ in again) == {owner(size)}
        assert len({object_.result for object_ in again}) == len(again)
        assert all(object_.result % 64 == 0 for object_ in again)
        for object_ in (*again, kernel):
            allocate(forms, KFREE, pointer=object_.result)


def test_the_limit_holds(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites, limit=256 << 10)
        objects = []
        while (object_ := allocate(forms, KMALLOC, 1000)).result:
            objects.append(object_)
            assert len(objects) < 1000
        assert len(objects) >= 128
        stats = enforcer.heap_stats()
        assert stats.failures == 1
        assert stats.bytes <= 256 << 10
        assert shadow.owned() * 4096 == stats.bytes
        for object_ in objects:
            allocate(forms, KFREE, pointer=object_.result)


def test_objects_outlive_the_compartment(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    slab = Path("/sys/kernel/slab")
    with Enforcer() as enforcer:
        prefix = load(enforcer, shadow, sites)
        kept = allocate(forms, KMALLOC, 300)
        enforcer.detach()
        assert shadow.owned() == 0
        assert list(slab.glob(f"{prefix}*"))
    assert unload_module("o2c") != 0
    allocate(forms, KFREE, pointer=kept.result)
    assert wait_until(lambda: not list(slab.glob(f"{prefix}*")))
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        assert shadow.owner(allocate(forms, KFREE, pointer=allocate(forms, KMALLOC, 300).result).frame) == 0
    assert wait_until(lambda: not list(slab.glob("o2c-*-*")))


def test_allocating_on_all_cpus_while_loading_and_unloading(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    wrong: list[int] = []
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            wrong.append(allocate(forms, CHURN, pointer=3000).result)

    threads = [threading.Thread(target=churn) for _ in range((os.cpu_count() or 1) + 1)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            with Enforcer() as enforcer:
                load(enforcer, shadow, sites)
                assert wait_until(lambda: enforcer.heap_stats().allocations > 200)
                assert wait_until(lambda: shadow.owned() * 4096 == enforcer.heap_stats().bytes)
            assert shadow.owned() == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong
    assert not any(wrong)
    assert wait_until(lambda: not list(Path("/sys/kernel/slab").glob("o2c-*-*")))


def test_what_does_not_fit_is_refused(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    def number_of(enforcer: Enforcer, *arguments: int) -> int:
        with pytest.raises(EnforcerError) as caught:
            enforcer.heap(*arguments)
        return caught.value.errno

    with Enforcer() as enforcer:
        enforcer.create("heap")
        with pytest.raises(EnforcerError) as refused:
            enforcer.attach(sites)
        assert refused.value.reason is Reason.HEAP
        assert number_of(enforcer, shadow.id, OWNER, LIMIT) == errno.ENOENT  # no program uses it
        enforcer.program(shadow.program)
        assert number_of(enforcer, shadow.id, 0, LIMIT) == errno.EINVAL
        assert number_of(enforcer, shadow.id, 241, LIMIT) == errno.EINVAL
        assert number_of(enforcer, shadow.id, OWNER, 0) == errno.EINVAL
        enforcer.heap(shadow.id, OWNER, LIMIT)
        assert number_of(enforcer, shadow.id, OWNER, LIMIT) == errno.EBUSY
        assert struct.calcsize("IIQIHH") == 24
