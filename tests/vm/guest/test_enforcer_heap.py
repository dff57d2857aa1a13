# SPDX-License-Identifier: Apache-2.0
"""The private heap of o2c.ko: allocations of the compartment's code, and an exact owner shadow."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import FREE_POINTER, EnforcerError, Reason, Site
from tests.vm.guest.enforcer_support import Forms, Shadow, unload_module
from tests.vm.guest.heap_support import (
    CACHE_SIZE,
    CONSTANT_SIZE,
    LIMIT,
    OWNER,
    FormAlloc,
    Operation,
    allocate,
    free,
    load,
    slot,
)
from tests.vm.guest.waiting import meanwhile, wait_until


def test_allocations_are_owned_and_can_be_freed_by_anybody(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        for size in (1, 8, 9, 64, 100, 192, 200, 1024, 4097, 8192):
            for operation in (Operation.KMALLOC, Operation.TAIL):
                object_ = allocate(forms, operation, size)
                assert object_.result
                assert shadow.owner(object_.frame) == slot(size)
                assert bytes(object_.data) == bytes(64)  # __GFP_ZERO
                allocate(forms, Operation.KFREE, pointer=object_.result)
                assert shadow.owner(object_.frame) == slot(size)  # the slab is kept
        constant = allocate(forms, Operation.CONSTANT)
        assert shadow.owner(constant.frame) == slot(CONSTANT_SIZE)
        pattern = bytes(range(64))
        larger = allocate(forms, Operation.KREALLOC, 500, constant.result, pattern)
        assert shadow.owner(larger.frame) == slot(500)
        assert bytes(larger.data) == pattern
        copy = allocate(forms, Operation.KMEMDUP, 64, larger.result, pattern)
        assert copy.result != larger.result
        assert bytes(copy.data) == pattern
        assert shadow.owner(copy.frame) == slot(64)
        cached = allocate(forms, Operation.CACHE_ALLOC)
        assert cached.result
        assert shadow.owner(cached.frame) == slot(CACHE_SIZE)
        allocate(forms, Operation.CACHE_FREE, pointer=cached.result)
        before_loading = allocate(forms, Operation.KERNEL, 72)
        assert shadow.owner(before_loading.frame) == 0
        free(forms, (copy, larger, before_loading))
        stats = enforcer.heap_stats()
        assert stats.allocations == 24
        assert (stats.failures, stats.passed) == (0, 0)
        assert 0 < stats.bytes <= LIMIT
    assert shadow.owned() == 0


def one_a_page(objects: Sequence[FormAlloc]) -> tuple[list[FormAlloc], list[FormAlloc]]:
    """One object of each page, and the others.  A page without any object may go back to the kernel at any time."""
    kept = {object_.frame: object_ for object_ in objects}
    return list(kept.values()), [object_ for object_ in objects if object_ is not kept[object_.frame]]


def test_the_kernel_never_gets_an_owned_page(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        kept, spare = one_a_page([allocate(forms, Operation.KMALLOC, 512) for _ in range(300)])
        frames = {object_.frame for object_ in kept}
        free(forms, spare)
        owned = shadow.owned()
        others = [allocate(forms, Operation.KERNEL, 512) for _ in range(2000)]
        assert not frames & {object_.frame for object_ in others}
        assert shadow.owners(object_.frame for object_ in others) == {0}
        free(forms, others)
        assert shadow.owned() == owned
        assert owned * 4096 == enforcer.heap_stats().bytes
        free(forms, kept)


def test_what_is_written_to_a_freed_object_means_nothing_to_the_allocator(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        size = 64 - FREE_POINTER
        kept, freed = one_a_page([allocate(forms, Operation.KMALLOC, size) for _ in range(20)])
        free(forms, freed)
        kernel = allocate(forms, Operation.KERNEL, size)
        forged = struct.pack("<Q", kernel.result) * 8
        for object_ in freed:  # writes the first 56 bytes of the object that is named
            taken = allocate(forms, Operation.KMALLOC, 1000, object_.result, forged)
            allocate(forms, Operation.KFREE, pointer=taken.result)
        again = [allocate(forms, Operation.KMALLOC, size) for _ in range(500)]
        assert shadow.owners(object_.frame for object_ in again) == {slot(size)}
        assert len({object_.result for object_ in again}) == len(again)
        assert all(object_.result % 64 == 0 for object_ in again)
        free(forms, (*again, *kept, kernel))


def test_the_limit_holds(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites, limit=256 << 10)
        objects = []
        while (object_ := allocate(forms, Operation.KMALLOC, 1000)).result:
            objects.append(object_)
            assert len(objects) < 1000
        assert len(objects) >= 128
        stats = enforcer.heap_stats()
        assert stats.failures == 1
        assert stats.bytes <= 256 << 10
        assert shadow.owned() * 4096 == stats.bytes
        free(forms, objects)


def test_objects_outlive_the_compartment(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    slab = Path("/sys/kernel/slab")
    with Enforcer() as enforcer:
        prefix = load(enforcer, shadow, sites)
        kept = allocate(forms, Operation.KMALLOC, 300)
        enforcer.detach()
        assert shadow.owned() == 0
        assert list(slab.glob(f"{prefix}*"))
    assert unload_module("o2c") != 0
    allocate(forms, Operation.KFREE, pointer=kept.result)
    assert wait_until(lambda: not list(slab.glob(f"{prefix}*")))
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        assert (
            shadow.owner(
                allocate(forms, Operation.KFREE, pointer=allocate(forms, Operation.KMALLOC, 300).result).frame
            )
            == 0
        )
    assert wait_until(lambda: not list(slab.glob("o2c-*-*")))


def test_allocating_on_all_cpus_while_loading_and_unloading(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    wrong: list[int] = []

    def churn() -> None:
        wrong.append(allocate(forms, Operation.CHURN, pointer=3000).result)

    with meanwhile([churn] * ((os.cpu_count() or 1) + 1)):
        for _ in range(4):
            with Enforcer() as enforcer:
                load(enforcer, shadow, sites)
                assert wait_until(lambda: enforcer.heap_stats().allocations > 200)
                assert wait_until(lambda: shadow.owned() * 4096 == enforcer.heap_stats().bytes)
            assert shadow.owned() == 0
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
