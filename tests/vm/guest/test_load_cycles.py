# SPDX-License-Identifier: Apache-2.0
"""Loading and unloading again and again while the confined code runs: nothing is left, and proper use never fails.

The policy denies and has a transition, so that objects from before each load are let through.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from o2cc.bpf.info import read as read_info
from o2cc.runtime import kernel_calls, loader, state
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.plan import tracking_sites
from tests.vm.guest.enforcer_support import load_module, unload_module
from tests.vm.guest.victim_support import (
    NAME,
    PROPER,
    Footprint,
    Victim,
    footprint,
    in_child,
    settled,
    status_of,
    unload_all,
)
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import guest_object

POLICY = "transition-deny"
WARM_UP = 2  # the first cycles fill caches that stay
PROGRESS = 20  # cycles between two words about it
GAPS = LoadOptions(accept_gaps=True)


class ProperUse:
    """A process that uses the victim properly, over and over, until it is stopped."""

    def __init__(self) -> None:
        end, self._end = os.pipe()
        self._answer, answer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._end)
            victim, runs, failed = Victim(), 0, 0
            while not select.select([end], [], [], 0)[0]:
                failed += victim.run(PROPER) != 0
                runs += 1
                time.sleep(0.02)
            os.write(answer, f"{runs} {failed}".encode())
            os._exit(0)
        os.close(end)
        os.close(answer)

    def stop(self) -> tuple[int, int]:
        """How often it ran, and how often it failed."""
        os.close(self._end)
        with os.fdopen(self._answer) as answer:
            runs, failed = (int(word) for word in answer.read().split())
        os.waitpid(self._child, 0)
        return runs, failed


@dataclass(frozen=True)
class Memory:
    """Kernel memory in KiB (/proc/meminfo), after what can be given back has been."""

    slab: int
    vmalloc: int
    per_cpu: int


def memory() -> Memory:
    Path("/proc/sys/vm/drop_caches").write_text("3")
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    unreclaimable, vmalloc, per_cpu = (
        int(words[name].split()[0]) for name in ("SUnreclaim", "VmallocUsed", "Percpu")
    )
    return Memory(unreclaimable, vmalloc, per_cpu)


def listed(kind: str) -> int:
    """What bpftool lists of programs, maps or links."""
    done = subprocess.run(["bpftool", "-j", kind, "list"], capture_output=True, text=True, check=True)
    return done.stdout.count('"id":')


@pytest.fixture
def module() -> Iterator[None]:
    unload_all()
    load_module("o2c")
    Victim().close()
    yield
    unload_all()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("cycles", [10, pytest.param(200, marks=pytest.mark.full)])
def test_cycles_under_use_leave_nothing(module: None, cycles: int) -> None:
    data = guest_object(POLICY).read_bytes()
    tracking = tracking_sites(read_info(data))
    few = LoadOptions(
        wanted=lambda site: site.number in tracking or site.function == "store_word", accept_gaps=True
    )
    use = ProperUse()
    denied = 0
    before: tuple[Footprint, Memory, tuple[int, ...]] | None = None
    kinds = ("prog", "map", "link")
    for cycle in range(WARM_UP + cycles):
        if cycle == WARM_UP:
            before = settled(), memory(), tuple(listed(kind) for kind in kinds)
        loaded = loader.load(data, options=few)
        assert loaded.enforced
        with Enforcer() as enforcer:
            enforcer.open(NAME)
            denied += enforcer.info().denied
        assert loader.unload(NAME) == loaded.attached
        if cycle % PROGRESS == PROGRESS - 1:
            print(f"{cycle + 1} cycles: {memory()}", flush=True)
    runs, failed = use.stop()
    assert before is not None
    assert settled() == before[0]
    assert tuple(listed(kind) for kind in kinds) == before[2]
    now = memory()
    print(f"{cycles} cycles, {runs} runs, before {before[1]}, after {now}")
    assert runs > 5 * cycles
    assert failed == 0
    assert denied == 0
    # a page a cycle would be 800 KiB in the long run; pages that per-CPU lists and lazy unmapping hold come and go
    assert now.slab - before[1].slab < 1500
    assert now.vmalloc - before[1].vmalloc < 600
    assert now.per_cpu - before[1].per_cpu < 300


@dataclass(frozen=True)
class Hold:
    """What o2c.ko has of the policy: how many sites, and whether they are in force."""

    sites: int
    committed: bool


def hold() -> Hold:
    with Enforcer() as enforcer:
        try:
            enforcer.open(NAME)
        except EnforcerError:
            return Hold(0, False)
        info = enforcer.info()
        return Hold(info.sites, info.committed)


def probes_in_victim() -> int:
    lines = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    return sum("[victim]" in line for line in lines)


@pytest.mark.full
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kills", [5, 50])
def test_loaders_killed_at_random_points_leave_all_or_nothing(module: None, kills: int) -> None:
    """Killed while loading, while unloading, or a moment after: every site is in force, or none is left."""
    data = guest_object(POLICY).read_bytes()
    tracking = tracking_sites(read_info(data))
    few = LoadOptions(
        wanted=lambda site: site.number in tracking or site.function == "store_word", accept_gaps=True
    )

    def load_and_unload() -> None:
        loader.load(data, options=few)
        time.sleep(span)
        loader.unload(NAME)

    for _ in range(WARM_UP):
        begin = time.monotonic()
        loader.load(data, options=few)
        full = hold()
        loader.unload(NAME)
        span = time.monotonic() - begin
    assert full.committed
    before = settled()
    use, chance = ProperUse(), random.Random(2)
    met = {full: 0, Hold(0, False): 0}
    for number in range(kills):
        child = in_child(load_and_unload)
        time.sleep(chance.random() * 3 * span)  # it takes longer beside the use
        os.kill(child, signal.SIGKILL)
        assert status_of(child) in (-signal.SIGKILL, 7)
        found = hold()
        assert found in met
        met[found] += 1
        print(f"kill {number + 1}: {found}", flush=True)
        if not found.sites:
            assert wait_until(lambda: probes_in_victim() == 0)
        unload_all()
        assert hold() == Hold(0, False)
    runs, failed = use.stop()
    print(
        f"{span:.1f} s to load and unload, {runs} runs, in force {met[full]}, nothing {met[Hold(0, False)]}"
    )
    assert min(met.values()) >= kills // 10
    assert failed == 0
    assert wait_until(lambda: footprint() == before), (before, footprint())


def test_the_modules_can_go_after_the_cycles(module: None) -> None:
    """No reference to o2c.ko or to the module that it pinned is left."""
    assert unload_module("o2c") == 0
    assert unload_module("victim") == 0
    load_module("o2c")
    load_module("victim")


def test_a_second_load_is_refused_and_others_live_beside_it(module: None) -> None:
    """The same name is taken; another compartment, on another module, has probes of its own."""
    before = settled()
    loader.load(guest_object(POLICY).read_bytes(), options=GAPS)
    with Enforcer() as other:
        with pytest.raises(EnforcerError):
            other.create(NAME)
        other.create("other")
        assert other.info().sites == 0
    assert state.names() == (NAME,)
    loader.unload(NAME)
    assert wait_until(lambda: footprint() == before)
    assert kernel_calls.count_programs() == before.programs
