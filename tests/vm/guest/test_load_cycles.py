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
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import cycle
from pathlib import Path

import pytest

from o2cc.bpf.info import read as read_info
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import kernel_calls, loader, state
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.plan import tracking_sites
from tests.vm.guest.enforcer_support import Forms, Verdicts, load_module, start_state, unload_module
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
PATIENCE = 300.0  # seconds
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


def few_sites(data: bytes) -> LoadOptions:
    """What is tracked, and one function's stores."""
    tracking = tracking_sites(read_info(data))
    return LoadOptions(
        wanted=lambda site: site.number in tracking or site.function == "store_word", accept_gaps=True
    )


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
    few = few_sites(data)
    use = ProperUse()
    denied = 0
    before: tuple[Footprint, Memory, tuple[int, ...]] | None = None
    kinds = ("prog", "map", "link")
    for number in range(WARM_UP + cycles):
        if number == WARM_UP:
            before = settled(), memory(), tuple(listed(kind) for kind in kinds)
        loaded = loader.load(data, options=few)
        assert loaded.enforced
        with Enforcer() as enforcer:
            enforcer.open(NAME)
            denied += enforcer.info().denied
        assert loader.unload(NAME) == loaded.attached
        if number % PROGRESS == PROGRESS - 1:
            print(f"{number + 1} cycles: {memory()}", flush=True)
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


NOTHING = Hold(0, False)


def hold() -> Hold:
    with Enforcer() as enforcer:
        try:
            enforcer.open(NAME)
        except EnforcerError:
            return NOTHING
        info = enforcer.info()
        return Hold(info.sites, info.committed)


def checks_are_run() -> bool:
    """Whether the use meets the sites' checks."""
    with Enforcer() as enforcer:
        enforcer.open(NAME)

        def hits() -> int:
            return sum(site.hits for site in enforcer.stats())

        before = hits()
        return wait_until(lambda: hits() > before)


def probes_in_victim() -> int:
    """Address, kind, place, and the place's module if it has one (kernel/kprobes.c report_probe(), 6.1 and 6.12)."""
    lines = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    return sum(line.split()[3:4] == [NAME] for line in lines)


def reached() -> int:
    """How far a loader is: what it has pinned and probed.  Grows while it loads, and shrinks while it unloads."""
    pinned = 0
    for directory in ("maps", "links"):
        with suppress(FileNotFoundError):
            pinned += len(os.listdir(state.pins(NAME) / directory))
    return pinned + probes_in_victim()


class Moment(Enum):
    """When a loader is killed."""

    VERIFIED = "its programs are loaded, and it stands still"
    LOADING = "it has pinned and probed so much, and goes on"
    LOADED = "the policy is loaded, and it stands still"
    UNLOADING = "so much is still pinned and probed, and it goes on"


# Each in turn.  Of those that stand still it is certain what must be left.
MOMENTS = (Moment.LOADED, Moment.VERIFIED, Moment.LOADING, Moment.UNLOADING, Moment.LOADING)
CERTAIN = {Moment.VERIFIED: False, Moment.LOADED: True}


def start_loader(data: bytes, options: LoadOptions, moment: Moment) -> tuple[int, int]:
    """A process that loads the policy and takes it out; its id, and a pipe on which it says that it stands still, or that
    it begins to unload."""
    told, tell = os.pipe()

    def stand_still() -> None:
        os.write(tell, b".")
        while True:
            signal.pause()

    def progress(stage: str, done: int, total: int) -> None:
        if moment is Moment.VERIFIED and stage == "verify" and done == total:
            stand_still()

    def load_and_unload() -> None:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        loader.load(data, options=options, progress=progress)
        if moment is not Moment.UNLOADING:
            stand_still()
        os.write(tell, b".")
        loader.unload(NAME)

    child = in_child(load_and_unload)
    os.close(tell)
    return child, told


def kill_a_loader(data: bytes, options: LoadOptions, moment: Moment, point: int, pause: float) -> None:
    """``point``: how much is pinned and probed then, and ``pause``: seconds after that, where it does not stand still."""
    child, told = start_loader(data, options, moment)
    if moment is not Moment.LOADING:
        assert os.read(told, 1), f"a loader failed that was to be killed when {moment.value}"
    os.close(told)
    if moment is Moment.LOADING:
        assert wait_until(lambda: reached() >= point, PATIENCE)
    elif moment is Moment.UNLOADING:
        assert wait_until(lambda: reached() <= point, PATIENCE)
    if moment not in CERTAIN:
        time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    status = status_of(child)
    assert status == -signal.SIGKILL or (status == 7 and moment is Moment.UNLOADING)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_loaders_killed_at_random_points_leave_all_or_nothing(module: None, kills: int) -> None:
    """Killed while loading, while unloading, or in between: every site is in force and checks, or none is left.

    The points are told by what the loader has done, not by the clock: a slow machine meets the same ones.
    """
    data = guest_object(POLICY).read_bytes()
    few = few_sites(data)
    begin = time.monotonic()
    loader.load(data, options=few)
    span = time.monotonic() - begin
    full, most = hold(), reached()
    assert full.committed
    assert probes_in_victim()
    loader.unload(NAME)
    before = settled()
    use, chance = ProperUse(), random.Random(2)
    met = {full: 0, NOTHING: 0}
    for number, moment in zip(range(kills), cycle(MOMENTS), strict=False):
        point = chance.randrange(most + 1)
        kill_a_loader(data, few, moment, point, chance.random() * span / 10)
        found = hold()
        print(f"kill {number + 1}, {moment.name} {point} of {most}: {found}", flush=True)
        assert found in met
        assert (found == full) == CERTAIN.get(moment, found == full)
        met[found] += 1
        if found == full:
            assert checks_are_run()
        else:
            assert wait_until(lambda: probes_in_victim() == 0)
        unload_all()
        assert hold() == NOTHING
    runs, failed = use.stop()
    print(f"{span:.1f} s to load, {runs} runs, in force {met[full]}, nothing {met[NOTHING]}")
    assert failed == 0
    assert wait_until(lambda: footprint() == before), (before, footprint())


def test_the_modules_can_go_after_the_cycles(module: None) -> None:
    """No reference to o2c.ko or to the module that it pinned is left."""
    assert unload_module("o2c") == 0
    assert unload_module("victim") == 0
    load_module("o2c")
    load_module("victim")


def test_a_second_load_is_refused_and_others_live_beside_it(
    module: None, forms: Forms, verdicts: Verdicts
) -> None:
    """The same name is taken; another compartment, on another module, has probes of its own, which outlive this one's."""
    form = forms.all["mov_64"]
    verdicts.set(form.number, 1)
    machine, pointers = start_state(form)
    before = settled()
    with Enforcer() as other:
        other.create("other", strict=True)
        other.attach([form.site(other.program(verdicts.program))])
        other.commit()
        loader.load(guest_object(POLICY).read_bytes(), options=GAPS)
        with Enforcer() as again, pytest.raises(EnforcerError):
            again.create(NAME)
        with pytest.raises(DiagnosticError, match="O2C0804"):
            loader.load(guest_object(POLICY).read_bytes(), options=GAPS)
        assert forms.run(form, machine, pointers).memory == machine.memory
        assert state.names() == (NAME,)
        loader.unload(NAME)
        assert forms.run(form, machine, pointers).memory == machine.memory
        assert other.stats()[0].denied == 2
    assert wait_until(lambda: footprint() == before)
    assert kernel_calls.count_programs() == before.programs
