# SPDX-License-Identifier: Apache-2.0
"""The same attacks with `on violation deny` and o2c.ko: none takes effect, the task and the kernel go on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from o2cc.bpf.layout import Layout
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import loader, state
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError, Mode, SiteStats, State
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.phases import set_phase
from o2cc.runtime.status import gather
from tests.vm.guest.enforcer_support import load_module, unload_module
from tests.vm.guest.victim_support import (
    ATTACKS,
    NAME,
    PROPER,
    Attack,
    Footprint,
    Victim,
    events,
    footprint,
    in_child,
    loaded,
    names_of,
    o2c,
    settled,
    status_of,
    unload_all,
)
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import guest_object

OLD_OBJECT, OLD_FOREIGN = 18, 19
ONE_SITE = LoadOptions(wanted=lambda site: site.function == "store_word")
# o2c.ko cannot deny there, and says why; everything else of the victim is denied
GAPS = LoadOptions(accept_gaps=True)


def site_stats() -> list[SiteStats]:
    with Enforcer() as enforcer:
        enforcer.open(NAME)
        return enforcer.stats()


@pytest.mark.timeout(240)
def test_the_command_line_enforces(victim: Victim) -> None:
    unload_all()
    load_module("o2c")
    done = o2c("load", str(guest_object("deny")), "--only", "store_word,free_object", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["enforced"] is True
    victim.run(3)
    victim.run(15)
    assert victim.state()["foreign"] == 0
    assert victim.state()["freed"] == 0
    shown = o2c("status")
    assert "violations are prevented by o2c.ko" in shown.stdout
    assert "store_word+0x5 (store): 1 violation" in shown.stdout
    gone = o2c("unload")
    assert gone.returncode == 0, gone.stderr
    with pytest.raises(EnforcerError):
        site_stats()


def test_deny_without_the_module_is_refused(victim: Victim) -> None:
    unload_module("o2c")
    before = settled()
    with pytest.raises(DiagnosticError) as refusal:
        loader.load(guest_object("deny").read_bytes())
    (diagnostic,) = refusal.value.diagnostics
    assert diagnostic.code == "O2C0830"
    assert any("make -C bpf_runtime/module" in note for note in diagnostic.notes)
    assert footprint() == before


def test_deny_without_the_module_reports_when_asked_for_by_name(victim: Victim) -> None:
    options = LoadOptions(wanted=ONE_SITE.wanted, degrade="report")
    with loaded(guest_object("deny"), options) as result:
        assert not result.enforced
        victim.run(3)
        assert victim.state()["foreign"] > 0
        assert names_of(events()[0]) == (("store", "store_word"),)
        assert gather(NAME).degraded == "report"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("deny", Layout.SHAPE), id="optimized"),
        pytest.param(("strict", Layout.SHAPE), id="strict"),
        pytest.param(("deny", Layout.SITE), id="site-layout", marks=pytest.mark.full),
    ],
)
def policy(request: pytest.FixtureRequest, victim: Victim) -> Iterator[tuple[str, state.State]]:
    load_module("o2c")
    variant, layout = request.param
    with loaded(guest_object(variant, layout), GAPS) as result:
        if variant == "deny":  # the optimizer works some time after the probes are placed
            assert wait_until(lambda: any(item.state is State.JUMP for item in site_stats()))
        yield variant, result


def test_every_site_that_decides_denies(policy: tuple[str, state.State]) -> None:
    variant, result = policy
    assert result.enforced
    assert result.failures == ()
    assert result.observed == ()
    modes = {item.mode for item in site_stats()}
    assert modes == ({Mode.SKIP, Mode.OBSERVE} if variant == "strict" else set(Mode))
    if variant == "strict":
        assert State.JUMP not in {item.state for item in site_stats()}
        probes = Path("/sys/kernel/debug/kprobes/list").read_text(encoding="utf-8").splitlines()
        assert [line for line in probes if "[FTRACE]" in line and "[DISABLED]" not in line] == []


def test_proper_use_works(policy: tuple[str, state.State], victim: Victim) -> None:
    events()
    for _ in range(3):
        assert victim.run(PROPER) == 0
        victim.read()
    assert victim.state()["granted"] == 1
    assert victim.state()["updates"] == 1
    found, lost = events()
    assert [event.sentence() for event in found] == []
    assert not lost


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_prevented(policy: tuple[str, state.State], victim: Victim, attack: Attack) -> None:
    events()
    victim.run(attack.number)
    harmed = {key for key, value in victim.state().items() if value}
    assert harmed <= ({"updates"} if attack.effect != "updates" else set())
    found, _ = events()
    assert set(names_of(found)) <= set(attack.reports)
    assert names_of(found)[0] == attack.reports[0]
    assert victim.run(PROPER) == 0


def test_no_check_was_missed_and_no_verdict_was_none(policy: tuple[str, state.State], victim: Victim) -> None:
    now = gather(NAME)
    assert now.enforced
    assert now.problems == ()
    assert now.missed.nested == 0
    assert sum(counter.denied for counter in now.counters) > 0
    assert now.denying is not None
    assert now.denying > 30


def test_a_write_that_is_denied_on_every_processor_at_once(
    policy: tuple[str, state.State], victim: Victim
) -> None:
    def strike() -> None:
        for _ in range(50):
            victim.run(3)

    threads = [threading.Thread(target=strike) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert victim.state()["foreign"] == 0
    events()


def test_the_module_stays_while_a_policy_is_loaded(policy: tuple[str, state.State]) -> None:
    assert unload_module("o2c") != 0
    assert unload_module("victim") != 0


def test_unloading_leaves_nothing_and_the_attack_works_again(victim: Victim) -> None:
    unload_all()
    load_module("o2c")
    before = settled()
    with loaded(guest_object("deny"), GAPS):
        assert footprint().probes > before.probes
        victim.run(3)
        assert victim.state()["foreign"] == 0
    assert wait_until(lambda: footprint() == before), (before, footprint())
    victim.run(3)
    assert victim.state()["foreign"] > 0


def test_phases_are_enforced(victim: Victim) -> None:
    unload_all()
    load_module("o2c")
    with loaded(guest_object("transition-deny"), ONE_SITE):
        victim.run(OLD_FOREIGN)
        assert victim.state()["other"] == 1
        assert names_of(events()[0]) == (("untracked object", "store_word"),)
        set_phase(NAME, "final")
        victim.run(OLD_FOREIGN)
        assert victim.state()["other"] == 0
        assert names_of(events()[0]) == (("store", "store_word"),)


def in_force() -> bool:
    """Whether o2c.ko has the compartment, wholly: committed, with every probe in the text."""
    try:
        with Enforcer() as enforcer:
            enforcer.open(NAME)
            assert enforcer.info().committed, "a compartment that its loader has not switched on outlived it"
            assert all(item.state is not State.UNARMED for item in enforcer.stats())
            return True
    except EnforcerError:
        return False


def kill_at(act: Callable[[], object], delay: float) -> None:
    child = in_child(act)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert status_of(child) in (-signal.SIGKILL, 7)


def assert_whole_and_usable(victim: Victim, before: Footprint) -> None:
    """Protected as a whole, or not at all and reported so; a new load works, and leaves nothing when it goes."""
    live = in_force()
    victim.run(3)
    assert (victim.state()["foreign"] == 0) == live
    shown = o2c("status").stdout
    assert live or "violations are prevented" not in shown
    if NAME in state.names():  # an unloader that was killed left what was written down
        loader.unload(NAME)
    loader.load(guest_object("deny").read_bytes(), options=GAPS)  # takes up what a killed loader left
    victim.run(3)
    assert victim.state()["foreign"] == 0
    loader.unload(NAME)
    assert wait_until(lambda: footprint() == before), (before, footprint())
    victim.run(3)
    assert victim.state()["foreign"] > 0


POINTS = [0.3, 0.9, 1.7, *(pytest.param(n / 10, marks=pytest.mark.full) for n in range(1, 36))]
LATE_POINTS = [0.1, 0.6, *(pytest.param(n / 10, marks=pytest.mark.full) for n in range(1, 16))]


@pytest.mark.parametrize("delay", POINTS)
def test_a_killed_loader_leaves_everything_or_nothing(victim: Victim, delay: float) -> None:
    unload_all()
    load_module("o2c")
    before = settled()
    data = guest_object("deny").read_bytes()
    kill_at(lambda: loader.load(data, options=GAPS), delay)
    assert_whole_and_usable(victim, before)


@pytest.mark.parametrize("delay", LATE_POINTS)
def test_a_killed_unloader_leaves_everything_or_nothing(victim: Victim, delay: float) -> None:
    unload_all()
    load_module("o2c")
    before = settled()
    loader.load(guest_object("deny").read_bytes(), options=GAPS)
    kill_at(lambda: loader.unload(NAME), delay)
    assert_whole_and_usable(victim, before)


def test_kill_ends_the_task_that_attacks(victim: Victim) -> None:
    """Without o2c.ko: after the write, but only the task of a violation, at a breakpoint as well as at a jump."""
    unload_all()
    with loaded(guest_object("kill")):
        assert status_of(in_child(lambda: victim.run(3))) == -signal.SIGKILL
        assert status_of(in_child(lambda: victim.run(15))) == -signal.SIGKILL
        assert status_of(in_child(lambda: victim.run(PROPER))) == 7
