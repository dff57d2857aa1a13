# SPDX-License-Identifier: Apache-2.0
"""Private memory beyond kmalloc: pages, large objects, kvmalloc, bulk; given back by whoever, in whatever way.

What the shadow says must be true at all times: nobody else gets a page while it is marked.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Feature, Site
from tests.vm.guest.enforcer_support import Forms, Shadow
from tests.vm.guest.heap_support import (
    CACHE_SIZE,
    OWNER,
    PAGE,
    FormAlloc,
    Operation,
    allocate,
    free,
    load,
    slot,
)
from tests.vm.guest.waiting import meanwhile, wait_until

ORDER_SIZES = (8193, 20000, 64 << 10, 300_000)


def frames(block: FormAlloc, length: int) -> range:
    return range(block.frame, block.frame + -(-length // PAGE))


def test_large_objects_are_owned_until_anybody_frees_them(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    with Enforcer() as enforcer:
        wanted = Feature.DRAIN | Feature.KVMALLOC | Feature.PAGES | Feature.BULK | Feature.LARGE
        wanted |= Feature.TRACEPOINT | Feature.FREE_BULK
        assert enforcer.features == wanted
        load(enforcer, shadow, sites)
        for operation in (Operation.KMALLOC, Operation.KVMALLOC):
            for size in ORDER_SIZES:
                large = allocate(forms, operation, size)
                assert large.result
                assert shadow.owners(frames(large, size)) == {OWNER}
                assert bytes(large.data) == bytes(64)
                allocate(forms, Operation.KVFREE, pointer=large.result)
        small = allocate(forms, Operation.KVMALLOC, 100)
        assert shadow.owner(small.frame) == slot(100)
        moved = allocate(forms, Operation.KREALLOC, 30_000, small.result, bytes(range(64)))
        assert shadow.owners(frames(moved, 30_000)) == {OWNER}
        assert bytes(moved.data) == bytes(range(64))
        allocate(forms, Operation.KFREE, pointer=moved.result)
        stats = enforcer.heap_stats()
        assert (stats.failures, stats.passed) == (0, 0)
        # nothing of it was given back to the kernel while it was marked; now all of it is
        assert wait_until(lambda: OWNER not in shadow.values())
        assert wait_until(lambda: enforcer.heap_stats().bytes == shadow.owned() * PAGE)
        # what kmalloc itself cannot give is vmalloc's: the shadow knows no such addresses
        huge = allocate(forms, Operation.KVMALLOC, 5 << 20)
        assert huge.result
        assert enforcer.heap_stats().passed == 1
        allocate(forms, Operation.KVFREE, pointer=huge.result)


def test_pages_are_owned(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        blocks = []
        for operation, order in (
            (Operation.PAGES, 0),
            (Operation.PAGES, 3),
            (Operation.PAGES_ADDRESS, 0),
            (Operation.PAGES_ADDRESS, 2),
            (Operation.ZEROED_PAGE, 0),
        ):
            block = allocate(forms, operation, order)
            assert block.result
            assert bytes(block.data) == bytes(64)
            assert shadow.owners(frames(block, PAGE << order)) == {OWNER}
            blocks.append((block, order))
        assert enforcer.heap_stats().bytes == shadow.owned() * PAGE == (1 + 8 + 1 + 4 + 1) * PAGE
        for block, order in blocks:
            allocate(forms, Operation.FREE_PAGES, order, block.result)
            # still marked, so still held: the kernel cannot have handed it out
        assert wait_until(lambda: shadow.owned() == 0)
        stats = enforcer.heap_stats()
        assert (stats.bytes, stats.allocations, stats.failures, stats.passed) == (0, 5, 0, 0)


def test_objects_in_bulk(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        made = allocate(forms, Operation.BULK_ALLOC, 20)
        assert made.size == 20
        assert shadow.owner(made.frame) == slot(CACHE_SIZE)
        allocate(forms, Operation.BULK_FREE, made.size)
        assert enforcer.heap_stats().allocations == 20
        again = allocate(forms, Operation.BULK_ALLOC, 20)
        assert shadow.owner(again.frame) == slot(CACHE_SIZE)
        allocate(forms, Operation.BULK_FREE, again.size)


def test_freed_by_rcu(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    """kfree_rcu() frees later, from a worker of the kernel's: slabs stay, pages are given back."""
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        for size in (100, 20_000):
            for _ in range(20):
                object_ = allocate(forms, Operation.KMALLOC, size)
                assert object_.result
                allocate(forms, Operation.KFREE_RCU, pointer=object_.result)
        assert wait_until(lambda: OWNER not in shadow.values())
        assert wait_until(lambda: shadow.owned() * PAGE == enforcer.heap_stats().bytes)


def test_a_shrunk_cache_does_not_falsify_the_shadow(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    """SLUB gives empty slabs back when somebody says so: they are unmarked before they are free."""
    with Enforcer() as enforcer:
        prefix = load(enforcer, shadow, sites)
        ours = [allocate(forms, Operation.KMALLOC, 1000) for _ in range(200)]
        before = shadow.owned()
        kept = ours.pop()
        free(forms, ours)
        for cache in Path("/sys/kernel/slab").glob(f"{prefix}*"):
            (cache / "shrink").write_text("1")
        assert wait_until(lambda: shadow.owned() < before // 2)
        assert wait_until(lambda: shadow.owned() * PAGE == enforcer.heap_stats().bytes)
        assert shadow.owner(kept.frame) == slot(1000)
        others = [allocate(forms, Operation.KERNEL, 1000) for _ in range(1000)]
        assert shadow.owners(other.frame for other in others) == {0}
        free(forms, (*others, kept))


def test_the_limit_counts_pages_and_objects_alike(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    limit = 256 << 10
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites, limit)
        assert not allocate(forms, Operation.KMALLOC, 300_000).result
        blocks: list[tuple[int, int]] = []
        while (block := allocate(forms, Operation.PAGES_ADDRESS, 2)).result:
            blocks.append((block.result, 2))
            assert len(blocks) <= 16
        assert len(blocks) == 16
        assert not allocate(forms, Operation.KMALLOC, 100).result
        assert not allocate(forms, Operation.KVMALLOC, 10_000).result
        assert not allocate(forms, Operation.BULK_ALLOC, 4).size
        assert enforcer.heap_stats().bytes == limit == shadow.owned() * PAGE
        # what others gave back counts no longer, at once
        address, order = blocks.pop()
        allocate(forms, Operation.FREE_PAGES, order, address)
        object_ = allocate(forms, Operation.KMALLOC, 100)
        assert object_.result
        assert shadow.owner(object_.frame) == slot(100)
        assert enforcer.heap_stats().bytes <= limit
        allocate(forms, Operation.KFREE, pointer=object_.result)
        for address, order in blocks:
            allocate(forms, Operation.FREE_PAGES, order, address)


def test_pages_outlive_the_compartment(forms: Forms, shadow: Shadow, sites: list[Site]) -> None:
    with Enforcer() as enforcer:
        load(enforcer, shadow, sites)
        kept = [allocate(forms, Operation.PAGES_ADDRESS, order) for order in (0, 3)]
        large = allocate(forms, Operation.KVMALLOC, 100_000)
        enforcer.detach()
        assert shadow.owned() == 0
    for order, block in zip((0, 3), kept, strict=True):
        allocate(forms, Operation.FREE_PAGES, order, block.result)
    allocate(forms, Operation.KVFREE, pointer=large.result)


def test_pages_on_all_cpus_while_loading_and_unloading(
    forms: Forms, shadow: Shadow, sites: list[Site]
) -> None:
    """The module's churn fills each block and finds it unchanged: no block is with two owners."""
    wrong: list[int] = []

    def churn(operation: Operation) -> None:
        wrong.append(allocate(forms, operation, pointer=500).result)

    operations = (Operation.CHURN_PAGES, Operation.CHURN) * (os.cpu_count() or 1)
    with meanwhile([partial(churn, operation) for operation in operations]):
        for _ in range(2):
            with Enforcer() as enforcer:
                load(enforcer, shadow, sites)
                assert wait_until(lambda: enforcer.heap_stats().allocations > 300)
                assert OWNER in shadow.values()
            assert shadow.owned() == 0
    assert wrong
    assert not any(wrong)
