# SPDX-License-Identifier: Apache-2.0
"""Real SCTP traffic with `heap private 64 MiB` under `on violation deny`: nothing is denied, everything arrives."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from o2cc.bpf.info import read as read_info
from o2cc.runtime import loader, state
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.phases import set_phase
from o2cc.runtime.status import PrivateHeap, gather, lines
from tests.vm.guest import sctp_workload
from tests.vm.guest.enforcer_support import load_module
from tests.vm.guest.reports import reports
from tests.vm.guest.test_sctp_confined import NAME
from tests.vm.policies import SCTP_PRIVATE_OBJECT, guest_sctp_object

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def confined() -> Iterator[state.State]:
    subprocess.run(["modprobe", "sctp"], check=True)
    load_module("o2c")
    path = guest_sctp_object(SCTP_PRIVATE_OBJECT)
    options = LoadOptions(accept_gaps=True)
    started = time.monotonic()
    loaded = loader.load(path.read_bytes(), path=str(path), options=options)
    print(f"\n{loaded.attached} probes in {time.monotonic() - started:.0f} s, {len(loaded.failures)} refused")
    yield loaded
    if NAME in state.names():
        loader.unload(NAME, force=True)


def heap() -> PrivateHeap:
    told = gather(NAME).heap
    assert told is not None
    return told


@pytest.mark.timeout(900)
def test_every_allocation_of_the_module_is_redirected(confined: state.State) -> None:
    info = read_info(guest_sctp_object(SCTP_PRIVATE_OBJECT).read_bytes())
    assert info.heap is not None
    assert len(info.heap.calls) > 40
    assert not [failure for failure in confined.failures if "private heap" in failure.reason]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("phase", ["transition", "final"])
def test_traffic_is_not_denied_and_arrives(confined: state.State, phase: str) -> None:
    set_phase(NAME, phase)
    before = heap()
    summary = sctp_workload.run(limit=200.0)
    found = reports(NAME).kinds()
    after = heap()
    print(f"\n{phase}: {summary}\n{found}\n{after}")
    print("\n".join(lines(gather(NAME))))
    assert summary.errors == []
    assert summary.associations == 12
    assert all(kind.startswith("untracked object") for kind in found) if phase == "transition" else not found
    assert after.allocations > before.allocations + 1000
    assert after.failures == 0
    assert 0 < after.used <= after.limit == 64 << 20


@pytest.mark.timeout(300)
def test_unloading_leaves_working_sctp(confined: state.State) -> None:
    loader.unload(NAME)
    assert NAME not in state.names()
    assert sctp_workload.run().errors == []
