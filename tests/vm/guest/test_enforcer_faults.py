# SPDX-License-Identifier: Apache-2.0
"""Every allocation of o2c.ko fails once: an error comes back, nothing is left behind, and it works the next time.

Only a kernel with fault injection can do this (scripts/build_debug_kernel.py); others collect nothing here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError, Site
from tests.vm.guest.enforcer_support import Forms, Shadow, Verdicts, load_module, start_state, text_of
from tests.vm.guest.heap_support import OWNER, FormAlloc, Operation, allocate, give_heap, kernel_fields, load
from tests.vm.guest.waiting import wait_until

FAIL_NTH = Path("/proc/thread-self/fail-nth")
FAULTS = Path("/sys/kernel/debug")
STORE = "mov_64"
# Most are those of sysfs, for each cache of the heap, over and over.
COUNTS = (*range(1, 40), *range(40, 4000, 23))

if FAIL_NTH.exists():

    @pytest.fixture(scope="module")
    def forms() -> Iterator[Forms]:
        load_module("o2c")
        device = Forms()
        # allocations that may sleep fail as well, and nothing is printed about it
        for kind in ("failslab", "fail_page_alloc"):
            (FAULTS / kind / "ignore-gfp-wait").write_text("N")
            (FAULTS / kind / "verbose").write_text("0")
        (FAULTS / "fail_page_alloc/min-order").write_text("0")
        yield device
        device.close()

    @pytest.fixture(scope="module")
    def shadow() -> Iterator[Shadow]:
        owner = Shadow()
        yield owner
        owner.close()

    @pytest.fixture(scope="module")
    def verdicts() -> Iterator[Verdicts]:
        program = Verdicts()
        yield program
        program.close()

    @pytest.fixture(scope="module")
    def faults(forms: Forms) -> Iterator[int]:
        """An open file: opening it while a fault is due would meet that."""
        descriptor = os.open(FAIL_NTH, os.O_RDWR)
        yield descriptor
        os.close(descriptor)

    def fail_nth(faults: int, count: int) -> None:
        os.pwrite(faults, str(count).encode(), 0)

    def has_failed(faults: int) -> bool:
        """Whether the fault has happened, which is called off otherwise."""
        left = int(os.pread(faults, 16, 0).split(b"\n")[0])
        if left:
            fail_nth(faults, 0)
        return left == 0

    @pytest.mark.timeout(1800)
    def test_loading_survives_every_failed_allocation(
        forms: Forms, shadow: Shadow, verdicts: Verdicts, sites: list[Site], faults: int
    ) -> None:
        form = forms.all[STORE]
        kernel_fields()  # reads files, which must not fail
        numbers: set[int] = set()
        verdicts.set(form.number, 1)
        before, pointers = start_state(form)
        for count in COUNTS:
            with suppress(EnforcerError), Enforcer() as enforcer:
                try:
                    fail_nth(faults, count)
                    enforcer.create("faults", module="o2c_forms")
                    enforcer.program(shadow.program)
                    program = enforcer.program(verdicts.program)
                    give_heap(enforcer, shadow)
                    enforcer.attach([*sites, form.site(program)])
                    enforcer.commit()
                except EnforcerError as error:
                    numbers.add(error.errno)
                    has_failed(faults)
                    raise
                except OSError as error:  # what failed was a file of sysfs that the client reads
                    if error.errno != errno.ENOMEM or not has_failed(faults):
                        raise
                    raise EnforcerError("heap", errno.ENOMEM) from error
                failed = has_failed(faults)
                # a failure that did not matter, as of memory that the kernel takes elsewhere then
                assert forms.run(form, before, pointers).memory == before.memory
                if not failed:
                    break
            assert wait_until(lambda: text_of(form) == form.code), count
            assert shadow.owned() == 0
        else:
            pytest.fail(f"more than {COUNTS[-1]} allocations")
        assert count > 30
        assert errno.ENOMEM in numbers
        # a cache that sysfs knows only in part is one that the client cannot trust
        assert numbers <= {errno.ENOMEM, errno.EOPNOTSUPP, errno.ENOSPC}, numbers

    @pytest.mark.timeout(900)
    def test_private_allocations_survive_failed_ones(
        forms: Forms, shadow: Shadow, sites: list[Site], faults: int
    ) -> None:
        with Enforcer() as enforcer:
            load(enforcer, shadow, sites, name="faults")
            none, some = 0, list[tuple[Operation, int, FormAlloc]]()
            for operation in (Operation.KMALLOC, Operation.KVMALLOC, Operation.PAGES_ADDRESS):
                for size in (0, 1, 2) if operation is Operation.PAGES_ADDRESS else (64, 2000, 20_000):
                    for count in range(1, 5):
                        fail_nth(faults, count)
                        made = allocate(forms, operation, size)
                        has_failed(faults)
                        if not made.result:
                            none += 1
                            continue
                        assert shadow.owner(made.frame)
                        # freed later: where o2c.ko can give a block back, it tries again after a failure
                        some.append((operation, size, made))
            for operation, size, made in some:
                if operation is Operation.PAGES_ADDRESS:
                    allocate(forms, Operation.FREE_PAGES, size, made.result)
                else:
                    allocate(forms, Operation.KVFREE, pointer=made.result)
            print(f"{none} of {none + len(some)} allocations failed")
            assert none > 5
            assert len(some) > 5
            assert enforcer.heap_stats().failures == none
            # whatever failed, what is marked and what is counted are the same
            assert wait_until(lambda: OWNER not in shadow.values())
            assert shadow.owned() * 4096 == enforcer.heap_stats().bytes
        assert shadow.owned() == 0
