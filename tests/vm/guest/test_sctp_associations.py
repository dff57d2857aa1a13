# SPDX-License-Identifier: Apache-2.0
"""The whole life of a policy that denies, with associations that are open before it is loaded and after it is gone.

The policy is examples/sctp.o2c with `on violation deny` and a transition.  Nothing of the traffic may be denied, lost
or damaged while it is loaded, in the transition, in the final phase, and when it is unloaded.  The
final phase comes when the old associations have ended, by itself, and with the audition by the command that waits for it.
All checks of the policy are attached.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from o2cc.runtime import loader, state
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Info
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.monitor import Losses, follow
from o2cc.runtime.plan import cookie_of
from o2cc.runtime.status import Status, gather
from tests.vm.guest import sctp_workload
from tests.vm.guest.enforcer_support import load_module, unload_module
from tests.vm.guest.sctp_workload import Steady
from tests.vm.guest.victim_support import o2c, settled, unload_all
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import SCTP_AUDITION_OBJECT, SCTP_DENY_OBJECT, SCTP_QUIET, guest_sctp_object

NAME = "sctp"
PROBES = Path("/sys/kernel/debug/kprobes/list")
GONE_SECONDS = 400
UNTRACKED = "untracked object"
OLD_ASSOCIATIONS = 4  # half of them IPv6
NEW_ASSOCIATIONS = 2
HEARTBEATS = 50
"""Seconds in which every path of an association has a heartbeat (net/sctp/protocol.c: every 30, and half the RTO)."""
RCU_SECONDS = 60
"""Until what kfree_rcu() was given is freed, with much to spare."""


def module_counts() -> Info:
    with Enforcer() as enforcer:
        enforcer.open(NAME)
        return enforcer.info()


def denied_places() -> list[str]:
    """Where o2c.ko has denied something since loading, also what no event told of."""
    _, info = state.load(NAME)
    names = {
        cookie_of(site): f"{site.function}+{site.offset:#x} {site.note}"
        for site in info.sites
        if site.program
    }
    with Enforcer() as enforcer:
        enforcer.open(NAME)
        return [f"{names[item.cookie]}: {item.denied}" for item in enforcer.stats() if item.denied]


def denials() -> list[str]:
    """Where something was denied since loading, and what the events tell of it (some of them may be lost)."""
    places = denied_places()
    if not places:
        return []  # reading the events of objects from before loading takes a minute under emulation
    events = [item for item in follow(NAME, seconds=0) if not isinstance(item, Losses)]
    return [*places, *(event.sentence() for event in events if event.kind != UNTRACKED)]


def wait_for_phase(phase: str, seconds: float) -> Status:
    end = time.monotonic() + seconds
    while (now := gather(NAME)).phase != phase and time.monotonic() < end:
        time.sleep(0.5)
    return now


@pytest.fixture
def modules() -> Iterator[None]:
    subprocess.run(["modprobe", "sctp"], check=True)
    load_module("o2c")
    unload_all()
    # perf's probes of other tests' policies go away one after the other, on 6.12 for minutes; where one is, nothing is denied
    assert wait_until(lambda: "  sctp" not in PROBES.read_text(encoding="utf-8"), GONE_SECONDS)
    yield
    unload_all()


def final_by_itself(old: Steady, began: float) -> None:
    """The transition goes on while old objects are in use, and ends by itself when the old associations have ended."""
    assert gather(NAME).untracked
    assert "objects from before loading that were touched" in o2c("status", NAME).stdout
    time.sleep(1.5 * SCTP_QUIET)
    assert gather(NAME).phase == "transition", "old objects are in use all the time"
    assert gather(NAME).untracked
    assert denials() == []
    end_old_associations(old, began)
    last = wait_for_phase("final", 10 * SCTP_QUIET)
    assert last.phase == "final", last.phase_reason
    phase = json.loads(o2c("phase", NAME, "--json").stdout)
    assert (phase["name"], phase["phase"]) == (NAME, "final")


def final_when_all_is_freed(old: Steady, began: float) -> None:
    """The tree knows the old associations' objects; they end in the transition, and the final phase comes when the last
    accepted object is freed."""
    assert "from before loading accepted by the tree" in o2c("status", NAME).stdout
    time.sleep(HEARTBEATS)
    now = gather(NAME)
    print(
        f"{now.accepted} old objects accepted, {now.accepted_own} of them own, {len(now.untracked)} undecided"
    )
    assert now.phase == "transition", "old objects are in use all the time"
    assert now.accepted_own >= OLD_ASSOCIATIONS
    assert denials() == []
    end_old_associations(old, began)
    switched = o2c("phase", NAME, "final", "--wait", str(RCU_SECONDS))
    assert switched.returncode == 0, switched.stderr
    assert gather(NAME).accepted_own == 0, "a verdict dies with its object"


def end_old_associations(old: Steady, began: float) -> None:
    carried = old.stop()
    print(f"old associations ended after {time.monotonic() - began:.0f} s: {carried}")
    assert carried.errors == []
    assert carried.shutdowns == OLD_ASSOCIATIONS
    assert carried.messages > 100
    assert denials() == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(SCTP_DENY_OBJECT, id="without-tree"),
        pytest.param(SCTP_AUDITION_OBJECT, id="audition", marks=pytest.mark.full),
    ],
)
@pytest.mark.usefixtures("modules")
def test_associations_live_through_every_phase(name: str, request: pytest.FixtureRequest) -> None:
    before = settled()
    traffic = ExitStack()
    request.addfinalizer(traffic.close)
    old = traffic.enter_context(Steady(associations=OLD_ASSOCIATIONS // 2, seed=1))
    data = guest_sctp_object(name).read_bytes()
    audition = name == SCTP_AUDITION_OBJECT
    began = time.monotonic()
    loaded = loader.load(data, options=LoadOptions(accept_gaps=True))
    print(f"attached {loaded.attached} in {time.monotonic() - began:.0f} s, denying: {gather(NAME).denying}")
    assert loaded.enforced
    assert loaded.attached > 5000
    assert len(loaded.observed) < 10, "what cannot be denied is an exception"

    # the transition: the old associations' objects are seen and let through, new ones are tracked
    new = traffic.enter_context(Steady(associations=NEW_ASSOCIATIONS // 2, seed=2))
    print(f"associations from after loading after {time.monotonic() - began:.0f} s")
    first = gather(NAME)
    assert denials() == []
    assert first.phase == "transition"
    assert all(item.first_seen >= item.last_seen >= 0 and item.count > 0 for item in first.untracked)
    assert "from before loading in use, the last one touched" in first.phase_reason
    assert "the transition ends when none is touched for another" in first.phase_reason
    refused = o2c("phase", NAME, "final")
    assert refused.returncode == 1
    assert "O2C0844" in refused.stderr
    (final_when_all_is_freed if audition else final_by_itself)(old, began)
    assert denials() == []

    # the final phase: associations from after loading go on, others come and go
    churn = sctp_workload.run(associations=2, messages=8, limit=300)
    assert churn.errors == []
    counts = module_counts()
    print(f"hits {counts.hits}, missed {counts.missed}, skip {counts.skip}, poison {counts.poison}")
    assert counts.hits > 1000
    assert denials() == []
    assert counts.missed == 0
    assert gather(NAME).problems == ()
    assert gather(NAME).lost_tracking == 0

    # without a policy they still go on
    loader.unload(NAME)
    assert NAME not in state.names()
    time.sleep(1)
    carried = new.stop()
    assert carried.errors == []
    assert carried.shutdowns == NEW_ASSOCIATIONS
    assert sctp_workload.run(associations=1, messages=8).errors == []
    assert settled() == before
    assert unload_module("o2c") == 0
