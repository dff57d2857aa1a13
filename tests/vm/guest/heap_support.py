# SPDX-License-Identifier: Apache-2.0
"""What the tests of the private heap share: allocating in the test module, its sites, what a heap is given."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from enum import IntEnum
from functools import cache
from pathlib import Path

from iced_x86 import Code, Decoder

from o2cc.kernel import store
from o2cc.kernel.btf import STRUCT, read_btf
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import (
    FREE_POINTER,
    NO_PROGRAM,
    NO_REGISTER,
    Action,
    HeapOperation,
    Kind,
    Site,
)
from tests.vm.guest.enforcer_support import Forms, Shadow

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
OWNER = 7
LIMIT = 8 << 20
PAGE = 4096
CONSTANT_SIZE, CACHE_SIZE = 200, 72
DEBUG_KERNEL = os.uname().release.endswith("-o2c-debug")


class Operation(IntEnum):
    """`enum form_operation` of the test module: those before KFREE have a call or tail jump to redirect."""

    KMALLOC = 0
    TAIL = 1
    CONSTANT = 2
    CACHE_ALLOC = 3
    CACHE_FREE = 4
    KREALLOC = 5
    KMEMDUP = 6
    KVMALLOC = 7
    PAGES = 8
    PAGES_ADDRESS = 9
    ZEROED_PAGE = 10
    BULK_ALLOC = 11
    BULK_FREE = 12
    KFREE = 13
    KERNEL = 14
    CHURN = 15
    KVFREE = 16
    FREE_PAGES = 17
    KFREE_RCU = 18
    CHURN_PAGES = 19
    PEEK = 20
    KFREE_THERE = 21
    """In an interrupt on the processor `size`."""


class FormAlloc(ctypes.Structure):
    """`struct form_alloc` of the test module."""

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


def allocate(
    forms: Forms, operation: Operation, size: int = 0, pointer: int = 0, data: bytes = b""
) -> FormAlloc:
    """Run an operation; `data` is written to the object `pointer` before, for those up to KERNEL."""
    request = FormAlloc(operation=operation, size=size, pointer=pointer)
    request.data[: len(data)] = list(data)
    forms.ioctl(3, request)
    return request


def free(forms: Forms, objects: Iterable[FormAlloc]) -> None:
    """kfree() each of the objects."""
    for object_ in objects:
        allocate(forms, Operation.KFREE, pointer=object_.result)


def _symbols() -> dict[int, str]:
    symbols: dict[int, str] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, _, name = line.split()[:3]
        plain = name.removesuffix("_noprof")
        if plain in _ALLOCATORS:
            symbols[int(address, 16)] = plain
    return symbols


# What the function does, where it takes the size (or cache, or order) and where the flags.
_ALLOCATORS = {
    "__kmalloc": (HeapOperation.ALLOC, RDI, RSI),
    "kmalloc_trace": (HeapOperation.ALLOC, RDX, RSI),
    "__kmalloc_cache": (HeapOperation.ALLOC, RDX, RSI),
    "kmem_cache_alloc": (HeapOperation.ALLOC_CACHE, RDI, RSI),
    "kmem_cache_free": (HeapOperation.FREE_CACHE, NO_REGISTER, RSI),
    "krealloc": (HeapOperation.REALLOC, RSI, RDX),
    "kmemdup": (HeapOperation.DUPLICATE, RSI, RDX),
    "kvmalloc_node": (HeapOperation.KVALLOC, RDI, RSI),
    "__kvmalloc_node": (HeapOperation.KVALLOC, RDI, RSI),
    "alloc_pages": (HeapOperation.PAGES, RSI, RDI),
    "__alloc_pages": (HeapOperation.PAGES, RSI, RDI),
    "__get_free_pages": (HeapOperation.PAGES_ADDRESS, RSI, RDI),
    "get_free_pages": (HeapOperation.PAGES_ADDRESS, RSI, RDI),
    "get_zeroed_page": (HeapOperation.PAGES_ADDRESS, NO_REGISTER, RDI),
    "kmem_cache_alloc_bulk": (HeapOperation.BULK_ALLOC, RDI, RSI),
    "kmem_cache_free_bulk": (HeapOperation.BULK_FREE, NO_REGISTER, RSI),
}


def _undo(forms: Forms, operation: Operation, made: FormAlloc) -> None:
    """Give back what `heap_site` had allocated."""
    if operation in (Operation.PAGES, Operation.PAGES_ADDRESS, Operation.ZEROED_PAGE):
        allocate(forms, Operation.FREE_PAGES, 0, made.result)
    elif operation is Operation.BULK_ALLOC:
        allocate(forms, Operation.BULK_FREE, made.size)
    elif made.result:
        allocate(forms, Operation.KFREE, pointer=made.result)


def _heap_site(forms: Forms, operation: Operation, symbols: dict[int, str]) -> Site:
    pages = operation in (Operation.PAGES, Operation.PAGES_ADDRESS, Operation.BULK_FREE)
    probe = allocate(forms, operation, 0 if pages else 8, 0)
    _undo(forms, operation, probe)
    for instruction in Decoder(64, bytes(probe.code), ip=probe.function):
        if instruction.code not in (Code.CALL_REL32_64, Code.JMP_REL32_64, Code.JMP_REL8_64):
            continue
        name = symbols.get(instruction.near_branch_target)
        if name is None:
            continue
        what, size, gfp = _ALLOCATORS[name]
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
            scale=int(name == "get_zeroed_page"),
            size=what,
        )
    raise AssertionError(f"no allocator is called in operation {operation}")


def heap_sites(forms: Forms) -> list[Site]:
    """The calls to allocators in the test module's functions, described as a loader would."""
    symbols = _symbols()
    return [_heap_site(forms, operation, symbols) for operation in Operation if operation < Operation.KFREE]


@cache
def kernel_fields() -> dict[str, int]:
    """Offsets of members of struct kmem_cache, from the bundled description, else from the kernel's own types."""
    if paths := store.bundled("sctp", os.uname().release):
        return {name: field.offset for name, field in store.load(paths[0]).kernel.fields.items()}
    where = "/sys/kernel/btf/vmlinux"
    btf = read_btf(Path(where).read_bytes(), where)
    cache = btf.find("kmem_cache", STRUCT)
    assert cache is not None
    return {f"kmem_cache.{member.name}": member.offset_bits // 8 for member in btf.members(cache)}


def slot(size: int) -> int:
    """The byte of a page that holds an object for so many bytes: slots are powers of two, from 16 on.

    Half of each slot is the checker's where KASAN is built in (OBJECT_SIZE in bpf_runtime/module/heap.c).
    """
    if DEBUG_KERNEL:
        return OWNER + max(7, (2 * size - 1).bit_length())
    return OWNER + max(4, (size + FREE_POINTER - 1).bit_length())


def give_heap(enforcer: Enforcer, shadow: Shadow, limit: int = LIMIT) -> str:
    """A private heap for a compartment that has the shadow's program; the prefix of its caches' names."""
    fields = kernel_fields()
    return enforcer.heap(
        shadow.id,
        OWNER,
        limit,
        ctor_offset=fields["kmem_cache.ctor"],
        flags_offset=fields["kmem_cache.flags"],
    )


def load(
    enforcer: Enforcer,
    shadow: Shadow,
    sites: list[Site],
    limit: int = LIMIT,
    *,
    name: str = "heap",
    keep: bool = False,
) -> str:
    """Create a compartment with a private heap and commit it; the prefix of its caches' names."""
    enforcer.create(name, keep=keep)
    enforcer.program(shadow.program)
    prefix = give_heap(enforcer, shadow, limit)
    enforcer.attach(sites)
    enforcer.commit()
    return prefix
