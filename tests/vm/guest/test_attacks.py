# SPDX-License-Identifier: Apache-2.0
"""A policy in reporting mode on a real kernel: every attack is reported at the right place with the right policy line,
proper use is not, and after unloading nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from o2cc.bpf.layout import Layout
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import kernel_calls, loader, state
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.phases import set_phase
from o2cc.runtime.status import gather
from tests.vm.guest.enforcer_support import load_module, unload_module
from tests.vm.guest.victim_support import (
    ATTACKS,
    NAME,
    PROPER,
    Attack,
    Victim,
    events,
    footprint,
    in_child,
    loaded,
    names_of,
    o2c,
    policy_line,
    settled,
    status_of,
    unload_all,
)
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import POLICY, guest_description, guest_object

PENDING_TIMER, OLD_OBJECT, OLD_FOREIGN = 17, 18, 19


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((Layout.SHAPE, False), id="shape"),
        pytest.param((Layout.SITE, False), id="site"),
        pytest.param((Layout.SHAPE, True), id="o2c.ko"),
    ],
)
def policy(request: pytest.FixtureRequest, victim: Victim) -> Iterator[state.State]:
    """The victim's policy, loaded by our loader, in either layout, with perf's probes and with o2c.ko's."""
    layout, by_module = request.param
    if by_module:
        load_module("o2c")
    with loaded(guest_object("report", layout), LoadOptions(perf=not by_module)) as result:
        yield result
    if by_module:
        unload_module("o2c")


# Before any policy is loaded (tests run in the order of this file).


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_succeeds_without_a_policy(victim: Victim, attack: Attack) -> None:
    assert state.names() == ()
    victim.run(attack.number)
    if attack.effect is not None:
        assert victim.state()[attack.effect] > 0


def test_every_site_is_attached(policy: state.State, request: pytest.FixtureRequest) -> None:
    assert policy.by_module is ("o2c.ko" in request.node.name)
    assert not policy.enforced
    assert policy.attached > 25
    assert policy.failures == ()


def test_proper_use_is_not_reported(policy: state.State, victim: Victim) -> None:
    events()
    for _ in range(3):
        assert victim.run(PROPER) == 0
        victim.read()
    found, lost = events()
    assert [event.sentence() for event in found] == []
    assert not lost


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_reported(policy: state.State, victim: Victim, attack: Attack) -> None:
    events()
    victim.run(attack.number)
    found, _ = events()
    assert names_of(found) == attack.reports
    assert policy_line(found[-1]).startswith(attack.rule)
    assert {event.compartment for event in found} == {NAME}
    assert {event.pid for event in found} == {os.getpid()}
    assert {event.context for event in found} == {"task"}


def test_status_counts_what_was_reported(policy: state.State, victim: Victim) -> None:
    def of_store_shared() -> int:
        return sum(c.denied for c in gather(NAME).counters if c.place.startswith("store_shared"))

    before = of_store_shared()
    victim.run(7)
    assert of_store_shared() == before + 1
    now = gather(NAME)
    assert now.attached == policy.attached
    assert now.lost_events == 0
    assert now.lost_tracking == 0
    assert now.problems == ()


def test_a_flood_is_limited_and_counted(policy: state.State, victim: Victim) -> None:
    events()
    before = gather(NAME)
    for _ in range(300):
        victim.run(7)
    found, lost = events()
    after = gather(NAME)
    denied = sum(c.denied for c in after.counters) - sum(c.denied for c in before.counters)
    sent = sum(c.sent for c in after.counters) - sum(c.sent for c in before.counters)
    assert denied == 300
    assert len(found) == sent
    assert 0 < sent < 300
    assert lost.rate_limited >= denied - sent


# What this policy leaves open, by name; docs/security-model.md lists the same.


def test_open_a_write_inside_an_own_object(policy: state.State, victim: Victim) -> None:
    """A function pointer in an own object may be overwritten; the use of it is what is checked."""
    events()
    victim.run(9)
    found, _ = events()
    assert ("store", "victim_ioctl") not in names_of(found)
    assert names_of(found) == (("indirect call", "call_action"),)


def test_open_a_callback_that_the_kernel_holds_already(policy: state.State, victim: Victim) -> None:
    """A timer's function is checked when the timer is handed over; it lies in an own object and can be changed later,
    and then the kernel calls it."""
    events()
    victim.run(PENDING_TIMER)
    assert names_of(events()[0]) == ()
    assert victim.state()["secret"] == 1


def test_open_a_report_does_not_prevent(policy: state.State, victim: Victim) -> None:
    """The report comes and the write happens, also with the probes of o2c.ko."""
    victim.run(3)
    assert victim.state()["foreign"] > 0
    events()


# Life and death of what is loaded.


def test_unloading_leaves_nothing(victim: Victim) -> None:
    unload_all()
    before = settled()
    with loaded(guest_object("report"), LoadOptions(perf=True)):
        inside = footprint()
        assert inside.programs > before.programs
        assert inside.probes > before.probes
        assert inside.records == (NAME,)
    # a kernel that frees links later has freed these: the next load looks at the instructions
    assert "victim" not in Path("/sys/kernel/debug/kprobes/list").read_text()
    assert wait_until(lambda: footprint() == before), (before, footprint())


def test_a_second_load_is_refused(victim: Victim) -> None:
    unload_all()
    data = guest_object("report").read_bytes()
    options = LoadOptions(wanted=lambda site: site.function == "store_word")
    with loaded(guest_object("report"), options):
        with pytest.raises(DiagnosticError) as refusal:
            loader.load(data, options=options)
        assert refusal.value.diagnostics[0].code == "O2C0804"
        victim.run(3)
        assert names_of(events()[0]) == (("store", "store_word"),)


@pytest.mark.parametrize("delay", [1.5, *(pytest.param(n / 3, marks=pytest.mark.full) for n in range(1, 16))])
def test_a_killed_loader_leaves_what_the_next_one_cleans(victim: Victim, delay: float) -> None:
    unload_all()
    before = settled()
    data = guest_object("report").read_bytes()
    child = in_child(lambda: loader.load(data))
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert status_of(child) in (-signal.SIGKILL, 7)
    options = LoadOptions(wanted=lambda site: site.function == "store_word")
    if NAME in state.names():  # it was faster than the signal
        loader.unload(NAME)
    with loaded(guest_object("report"), options):
        victim.run(3)
        assert names_of(events()[0]) == (("store", "store_word"),)
    assert wait_until(lambda: footprint() == before), (before, footprint())


def test_old_objects_are_auditioned_until_the_final_phase(victim: Victim) -> None:
    unload_all()
    options = LoadOptions(wanted=lambda site: site.function == "store_word")
    with loaded(guest_object("transition"), options):
        victim.run(OLD_OBJECT)
        victim.run(OLD_FOREIGN)
        found, _ = events()
        assert names_of(found) == (("untracked object", "store_word"),) * 2
        now = gather(NAME)
        assert now.phase == "transition"
        assert "from before loading" in now.phase_reason
        assert [item.count for item in now.untracked] == [1, 1]
        assert {item.address for item in now.untracked} == {event.address for event in found}
        set_phase(NAME, "final")
        victim.run(OLD_OBJECT)
        assert names_of(events()[0]) == (("store", "store_word"),)
        assert gather(NAME).phase == "final"


def test_an_object_for_another_kernel_is_refused() -> None:
    here = os.uname().release
    others = [path for path in guest_object("report").parents[2].iterdir() if path.name != here]
    objects = [path / "policies" / "report.shape.bpf.o" for path in others]
    data = next(path for path in objects if path.exists()).read_bytes()
    with pytest.raises(DiagnosticError) as refusal:
        loader.load(data)
    (diagnostic,) = refusal.value.diagnostics
    assert diagnostic.code == "O2C0810"
    assert here in diagnostic.message


@pytest.mark.parametrize("variant", ["report", pytest.param("deny", marks=pytest.mark.full)])
def test_bpftool_loads_the_site_layout(variant: str, victim: Victim) -> None:
    unload_all()
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert bpftool is not None, "bpftool is missing: scripts/install-test-tools installs it"
    directory = Path("/sys/fs/bpf/by_bpftool")
    before = settled()
    try:
        result = subprocess.run(
            [bpftool, "prog", "loadall", guest_object(variant, Layout.SITE), directory],
            check=False,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert len(list(directory.iterdir())) > 25
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    assert wait_until(lambda: kernel_calls.count_programs() == before.programs)


@pytest.mark.timeout(240)
def test_the_command_line_from_policy_to_unload(victim: Victim) -> None:
    """Compiled in memory, loaded, watched, taken out: as an engineer would do it."""
    unload_all()
    done = o2c(
        *("load", str(POLICY), "-k", str(guest_description()), "--json"),
        *("--only", "store_word", "--only", "free_object"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == NAME
    again = o2c("load", str(guest_object("report")))
    assert again.returncode == 1
    assert "O2C0804" in again.stderr
    victim.run(3)
    victim.run(15)
    watched = o2c("monitor", "--json", "--for", "0")
    assert [(e["kind"], e["function"]) for e in map(json.loads, watched.stdout.splitlines())] == [
        ("store", "store_word"),
        ("foreign free", "free_object"),
    ]
    victim.run(3)
    watched = o2c("monitor", NAME, "--count", "1")
    assert "store at store_word+0x5" in watched.stdout
    shown = o2c("status")
    assert "store_word+0x5 (store): 2 violations" in shown.stdout
    (compartment,) = json.loads(o2c("status", NAME, "--json").stdout)["compartments"]
    assert compartment["phase"] == "final"
    (problem,) = compartment["problems"]
    assert "sites are not checked: only `store_word,free_object` was asked for" in problem, (
        "a part is not the whole"
    )
    gone = o2c("unload", "--all", "--json")
    assert json.loads(gone.stdout) == {"unloaded": {NAME: compartment["attached"]}}
    assert o2c("status").stdout == "no compartment is loaded\n"
    assert o2c("unload", NAME).returncode == 1


def test_doctor_finds_this_machine_fit() -> None:
    unload_all()
    done = o2c("doctor", "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["can_report"] is True
    assert {f["grade"] for f in document["findings"]} <= {"ok", "note"}
