# SPDX-License-Identifier: Apache-2.0
"""Every allocation of o2c.ko fails once: an error comes back, nothing is left behind, and it works the next time.

Only a kernel with fault injection can do this (scripts/build_debug_kernel.py); others collect nothing here.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, EnforcerError, Info, Kind, Site
from o2cc.runtime.kernel_calls import count_maps, count_programs
from tests.vm.guest.enforcer_support import (
    Forms,
    Shadow,
    Verdicts,
    load_module,
    pin,
    start_state,
    text_of,
    unload_module,
)
from tests.vm.guest.heap_support import OWNER, FormAlloc, Operation, allocate, give_heap, kernel_fields, load
from tests.vm.guest.hook_support import Counter, object_row
from tests.vm.guest.waiting import wait_until

FAIL_NTH = Path("/proc/thread-self/fail-nth")
KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
"""Unreferenced memory; only with ``kmemleak=on`` on the kernel's command line (``--append`` of tests.vm.machine)."""
KMEMLEAK_AGE = 6  # seconds: what is younger than 5 is not reported (mm/kmemleak.c, 6.1)
FAULTS = Path("/sys/kernel/debug")
STORE = "mov_64"
HOOKED = ("kfree", "kmem_cache_free", "mm_page_free", "mm_page_alloc", "percpu_free_percpu")
# Those of one request; most are the records of a return that is waited for, one like the other.
EACH = (*range(1, 24), *range(24, 400, 7))
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

    @dataclass(frozen=True)
    class Parts:
        """What compartments with hooks are made of: a program for sites, and one for hooks that is pinned as well."""

        forms: Forms
        verdicts: Verdicts
        counter: Counter
        path: Path

        def sites(self) -> list[Site]:
            """A poison site, a skip site, a call, a breakpoint of ftrace's, and a return."""
            form = self.forms.all[STORE]
            plain = {"action": Action.REPORT, "code": b"", "base": 255, "size": 0, "displacement": 0}
            return [
                form.site(0),
                *(self.forms.all[name].site(0) for name in ("add_32", "call_direct")),
                form.site(0, 1000, kind=Kind.ENTRY, address=form.function, **plain),
                form.site(0, 1001, kind=Kind.RETURN, address=form.function, **plain),
            ]

    def requests(parts: Parts, name: str) -> Mapping[str, Callable[[Enforcer], object]]:
        """A load, request by request."""

        def hook(point: str) -> Callable[[Enforcer], object]:
            words = parts.counter.id if point == "kfree" else 0
            return lambda enforcer: enforcer.tracepoint(point, 1, map=words)

        return {
            "create": lambda enforcer: enforcer.create(name, module="o2c_forms"),
            "program": lambda enforcer: enforcer.program(parts.verdicts.program),
            "program of hooks": lambda enforcer: enforcer.program(parts.counter.program),
            "program by path": lambda enforcer: enforcer.program(parts.path),
            **{f"tracepoint {point}": hook(point) for point in HOOKED},
            "attach": lambda enforcer: enforcer.attach(parts.sites()),
            "commit": lambda enforcer: enforcer.commit(),
        }

    def info_of(enforcer: Enforcer) -> Info | int:
        """What there is, or the error's number: no compartment yet."""
        try:
            return enforcer.info()
        except EnforcerError as error:
            return error.errno

    def with_a_fault(
        faults: int, count: int, ask: Callable[[Enforcer], object], enforcer: Enforcer
    ) -> tuple[bool, int]:
        """Make a request whose allocation of that number fails; whether it had so many, and the request's error number."""
        fail_nth(faults, count)
        try:
            ask(enforcer)
        except EnforcerError as error:
            has_failed(faults)
            return True, error.errno
        return has_failed(faults), 0

    def seen(parts: Parts, counter: Counter) -> int:
        """How often a hook sees a free at kfree."""
        pointer = int(allocate(parts.forms, Operation.KERNEL, 64).result)
        counter.begin(pointer, {object_row(pointer): 1})
        allocate(parts.forms, Operation.KFREE, pointer=pointer)
        return counter.seen

    def denied(parts: Parts) -> bool:
        form = parts.forms.all[STORE]
        before, pointers = start_state(form)
        return parts.forms.run(form, before, pointers).memory == before.memory

    def references(module: str) -> int:
        return int(Path(f"/sys/module/{module}/refcnt").read_text())

    def in_use() -> tuple[int, ...]:
        return (count_programs(), count_maps(), references("o2c"), references("o2c_forms"))

    def assert_gone(parts: Parts, before: tuple[int, ...]) -> None:
        assert wait_until(lambda: in_use() == before), (before, in_use())
        assert wait_until(lambda: all(text_of(form) == form.code for form in parts.forms.all.values()))
        assert not denied(parts)

    @pytest.fixture
    def parts(forms: Forms, verdicts: Verdicts) -> Iterator[Parts]:
        verdicts.set(forms.all[STORE].number, 1)
        counter = Counter(1)
        path = Path("/sys/fs/bpf/o2c_faults")
        pin(counter.program, path)
        yield Parts(forms, verdicts, counter, path)
        path.unlink()
        counter.close()

    def unreferenced() -> list[str]:
        """What kmemleak finds of o2c.ko's.  Memory that RCU is about to free can be among it, until that is done.

        Not the names of caches whose files in sysfs could not be made: the kernel itself loses these (mm/slub.c sysfs_slab_add(),
        6.1, puts no kobject), as the tests of the heap have it do.
        """
        KMEMLEAK.write_text("scan")
        found = KMEMLEAK.read_text().split("unreferenced object")
        return [item for item in found if "[o2c]" in item and "sysfs_slab_add" not in item]

    @pytest.fixture
    def nothing_leaks(forms: Forms) -> Iterator[None]:
        """Afterwards o2c.ko goes, and nothing that it allocated is left, where the kernel tells (kmemleak)."""
        watched = KMEMLEAK.exists()
        try:
            if watched:
                KMEMLEAK.write_text("scan")
                KMEMLEAK.write_text("clear")
        except OSError:  # switched off, when it takes "clear" only
            watched = False
        yield
        if watched:
            time.sleep(KMEMLEAK_AGE)
            assert wait_until(lambda: not unreferenced(), 60.0), unreferenced()
        print(f"kmemleak {'on' if watched else 'off'}")
        forms.close()
        assert unload_module("o2c") == 0
        load_module("o2c")
        forms.open()

    @pytest.mark.timeout(1800)
    @pytest.mark.usefixtures("nothing_leaks")
    @pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
    def test_every_request_of_a_load_fails_whole(parts: Parts, faults: int, beside: bool) -> None:
        """A request whose allocation fails has done nothing, and is done when it is made again."""
        before = in_use()
        failures = dict[str, int]()
        with ExitStack() as stack:
            other = Counter(1)
            stack.callback(other.close)
            if beside:  # its hooks are in the same arrays of the kernel
                neighbour = stack.enter_context(Enforcer())
                theirs = Parts(parts.forms, parts.verdicts, other, parts.path)
                for ask in requests(theirs, "beside").values():
                    ask(neighbour)
            loading = requests(parts, "faults")
            for failing in loading:
                for count in EACH:
                    met = False
                    with Enforcer() as enforcer:
                        for request, ask in loading.items():
                            if request == failing:
                                old = info_of(enforcer)
                                met, number = with_a_fault(faults, count, ask, enforcer)
                                if not number:  # nothing failed that mattered
                                    continue
                                assert number == errno.ENOMEM, (request, count)
                                assert info_of(enforcer) == old, (request, count)
                                failures[request] = failures.get(request, 0) + 1
                            ask(enforcer)
                        assert seen(parts, parts.counter) == 1, (failing, count)
                        assert denied(parts), (failing, count)
                        assert enforcer.info().hits, (failing, count)
                    assert seen(parts, parts.counter) == 0, (failing, count)
                    if beside:
                        assert seen(parts, other) == 1, (failing, count)
                    if not met:
                        break
                else:
                    pytest.fail(f"more than {EACH[-1]} allocations: {failing}")
            assert set(failures) == set(loading) - {"program of hooks"}, (
                failures
            )  # the first made room for it
            print(failures)
        assert_gone(parts, before)

    @pytest.mark.timeout(900)
    @pytest.mark.usefixtures("nothing_leaks")
    @pytest.mark.parametrize("close", [False, True], ids=["detach", "close"])
    def test_removing_survives_every_failed_allocation(parts: Parts, faults: int, close: bool) -> None:
        """A hook beside another one is taken out by a new array; where there is no memory for it, it must not run all the same."""
        before = in_use()
        other = Counter(1)
        theirs = Parts(parts.forms, parts.verdicts, other, parts.path)
        with Enforcer() as neighbour:
            for ask in requests(theirs, "beside").values():
                ask(neighbour)
            failed = 0
            for count in EACH:
                with Enforcer() as enforcer:
                    for ask in requests(parts, "faults").values():
                        ask(enforcer)
                    assert seen(parts, parts.counter) == 1
                    fail_nth(faults, count)
                    if close:
                        enforcer.close()
                    else:
                        enforcer.detach()
                    met = has_failed(faults)
                assert seen(parts, parts.counter) == 0, count
                assert seen(parts, other) == 1, count
                if not met:
                    break
                failed += 1
            else:
                pytest.fail(f"more than {EACH[-1]} allocations")
            print(failed)
            assert failed >= len(HOOKED)
            assert denied(parts)  # the neighbour's
        assert seen(parts, other) == 0
        other.close()
        assert_gone(parts, before)
