# SPDX-License-Identifier: Apache-2.0
"""What the interface to private heaps and draining refuses, and that hostile requests about them do no harm."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import NO_REGISTER, EnforcerError, HeapOperation, Reason, Site
from tests.vm.guest.enforcer_support import Forms, Shadow, detach_what_is_left
from tests.vm.guest.heap_support import LIMIT, OWNER, Operation, allocate, load
from tests.vm.guest.waiting import wait_until

_LIBC = ctypes.CDLL(None, use_errno=True)
_PROGRAM, _ATTACH, _COMMIT, _DETACH, _HEAP, _HEAP_STATS, _DRAIN = 3, 4, 5, 8, 9, 10, 11
_SIZES = {1: 112, _PROGRAM: 24, _ATTACH: 40, _COMMIT: 0, _DETACH: 0, _HEAP: 24, _HEAP_STATS: 32, _DRAIN: 32}
_DIRECTIONS = {1: 1, _COMMIT: 0, _DETACH: 0, _HEAP_STATS: 2}


def _request(number: int, size: int | None = None) -> int:
    length = _SIZES[number] if size is None else size
    return _DIRECTIONS.get(number, 3) << 30 | length << 16 | 0xC2 << 8 | number


def test_operations_that_do_not_fit_are_refused(shadow: Shadow, sites: list[Site]) -> None:
    by_operation = {HeapOperation(site.size): site for site in sites}
    kvalloc = by_operation[HeapOperation.KVALLOC]
    bulk = by_operation[HeapOperation.BULK_ALLOC]
    bad = [
        replace(kvalloc, size=HeapOperation.BULK_FREE + 1),
        replace(kvalloc, size=0),
        replace(kvalloc, scale=1),
        replace(kvalloc, base=16),
        replace(kvalloc, index=NO_REGISTER),
        replace(kvalloc, program=0),
        replace(kvalloc, base=NO_REGISTER, displacement=-1),
        replace(bulk, base=NO_REGISTER),
        replace(by_operation[HeapOperation.PAGES_ADDRESS], scale=2),
    ]
    with Enforcer() as enforcer:
        enforcer.create("refusals")
        enforcer.program(shadow.program)
        enforcer.heap(shadow.id, OWNER, LIMIT)
        for site in bad:
            with pytest.raises(EnforcerError) as caught:
                enforcer.attach([site])
            assert caught.value.reason is Reason.HEAP, site
        enforcer.attach(sites)
        assert enforcer.info().sites == len(sites)


def _as_nobody(attempt: Callable[[], object]) -> int:
    """The error number that an attempt of an ordinary user ends with; 0 when it is allowed."""
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            attempt()
        except EnforcerError as error:
            os._exit(error.errno)
        os._exit(0)
    return os.WEXITSTATUS(os.waitpid(child, 0)[1])


def test_draining_is_not_for_users(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        assert _as_nobody(lambda: enforcer.drain(auto=True)) == errno.EPERM
        assert _as_nobody(enforcer.heap_stats) == errno.EPERM
        assert _as_nobody(enforcer.detach) == errno.EPERM
        object_ = allocate(forms, Operation.KMALLOC, 100)
        assert shadow.owner(object_.frame)
        allocate(forms, Operation.KFREE, pointer=object_.result)


def _arguments(chance: random.Random, number: int, shadow: Shadow, sites: bytes) -> bytearray:
    """An argument that is nearly right more often than not."""
    wild = [0, 1, 2, 3, 4, 255, 256, 4096, 1 << 20, 0xFFFFFFFF, 0xFFFF888000000000, (1 << 64) - 1]
    data = bytearray(struct.pack("<16Q", *(chance.choice(wild) for _ in range(16))))
    if number == 1:
        data[:112] = bytes(112)
        struct.pack_into("<II8s", data, 0, chance.randrange(2), 0, chance.choice([b"heap-a", b"heap-b"]))
    elif number == _PROGRAM:
        struct.pack_into("<iIQQ", data, 0, shadow.program, 0, 0, 0)
    elif number == _HEAP and chance.random() < 0.8:
        owner = chance.choice([0, 1, 7, 240, 241, 255, 256])
        limit = chance.choice([0, 1, 4096, 1 << 16, 1 << 20, (1 << 63) - 1, 1 << 63])
        offsets = (chance.choice([0, 8, 80, 65535]), chance.choice([0, 8, 65535]))
        struct.pack_into("<IIQIHH", data, 0, shadow.id, owner, limit, 0, *offsets)
    elif number == _DRAIN and chance.random() < 0.8:
        struct.pack_into("<IIQQQ", data, 0, chance.choice([0, 1, 1, 2, 3, 4, 0xFFFFFFFF]), 0, 0, 0, 0)
    elif number == _ATTACH:
        count = chance.choice([1, len(sites) // 80])
        address = ctypes.addressof(ctypes.c_char.from_buffer(_KEPT))
        struct.pack_into("<QQIIIIII", data, 0, address, 0, count, 80, chance.randrange(2), 0, 0, 0)
    return data


_KEPT = bytearray(80 * 64)


def _encoded(sites: list[Site]) -> bytes:
    encoded = b""
    for site in sites:
        record = bytearray(80)
        struct.pack_into("<QQqI", record, 0, site.address, site.cookie, 0, 0xFFFFFFFF)
        operand = [site.base, site.index, site.scale, site.size]
        record[28:36] = bytes([site.kind, site.action, 0, len(site.code), *operand])
        record[40 : 40 + len(site.code)] = site.code
        record[56 : 56 + len(site.code)] = b"\xff" * len(site.code)
        encoded += record
    return encoded


@pytest.mark.parametrize("seed", range(3))
def test_hostile_requests_do_no_harm(forms: Forms, shadow: Shadow, sites: list[Site], seed: int) -> None:
    """Heaps with nonsense in them, allocations through those, draining at any time: errors, and no splat."""
    chance = random.Random(seed)
    encoded = _encoded(sites)
    descriptors = [os.open("/dev/o2c", os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
    numbers = [1, _PROGRAM, _HEAP, _HEAP, _ATTACH, _ATTACH, _COMMIT, _HEAP_STATS, _DRAIN, _DRAIN]
    held: list[int] = []
    reached: set[int] = set()
    for _ in range(600):
        at = chance.randrange(len(descriptors))
        number = _DETACH if chance.random() < 0.02 else chance.choice(numbers)
        _KEPT[: len(encoded)] = encoded
        if chance.random() < 0.2:
            _KEPT[chance.randrange(28, 80)] = chance.randrange(256)
        data = _arguments(chance, number, shadow, encoded)
        argument = (ctypes.c_char * len(data)).from_buffer(data)
        size = chance.randrange(16384) if chance.random() < 0.03 else None
        target = ctypes.c_void_p(chance.choice([0, 8, 0xFFFF888000000000]))
        wrong = chance.random() < 0.03
        request = ctypes.c_ulong(_request(number, size))
        if _LIBC.ioctl(descriptors[at], request, target if wrong else ctypes.byref(argument)) == 0:
            reached.add(number)
        if chance.random() < 0.3:
            made = allocate(forms, Operation.KVMALLOC, chance.choice([1, 100, 8192, 20_000]))
            if made.result > 16:
                held.append(made.result)
        if held and chance.random() < 0.3:
            allocate(forms, Operation.KVFREE, pointer=held.pop(chance.randrange(len(held))))
        if chance.random() < 0.05:
            os.close(descriptors[at])
            descriptors[at] = os.open("/dev/o2c", os.O_RDWR | os.O_CLOEXEC)
    assert {1, _PROGRAM, _HEAP, _ATTACH, _COMMIT, _DRAIN} <= reached
    for descriptor in descriptors:
        os.close(descriptor)
    detach_what_is_left("heap-a", "heap-b")
    for address in held:
        allocate(forms, Operation.KVFREE, pointer=address)
    assert shadow.owned() == 0
    assert wait_until(lambda: not list(Path("/sys/kernel/slab").glob("o2c-*-*")))
