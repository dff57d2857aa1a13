# SPDX-License-Identifier: Apache-2.0
"""Real SCTP traffic under the SCTP policy: nothing is reported, and everything arrives.

Placing a probe takes 30 ms under emulation.  So the default run attaches every site that keeps track of memory and
capabilities, and the stores of the functions that carry data; `--full` attaches all. What was attached, reported and
skipped is printed (`-s`).
"""

from __future__ import annotations

import fnmatch
import subprocess
import time
from collections.abc import Iterator

import pytest

from o2cc.bpf.info import SiteInfo
from o2cc.bpf.info import read as read_info
from o2cc.runtime import loader, state, status
from o2cc.runtime.loader import LoadOptions
from tests.vm.guest import sctp_events_workload, sctp_workload
from tests.vm.guest.namespaces import Namespace
from tests.vm.guest.reports import reports
from tests.vm.policies import guest_sctp_object

NAME = "sctp"
HOT = (
    "sctp_rcv",
    "sctp_inq_*",
    "sctp_assoc_bh_rcv",
    "sctp_outq_*",
    "sctp_packet_*",
    "sctp_ulpq_*",
    "sctp_ulpevent_*",
    "sctp_sendmsg*",
    "sctp_recvmsg",
    "sctp_chunk_*",
    "sctp_sf_eat_*",
    "sctp_wfree",
    "sctp_poll",
)
# Calls, entries and returns of code that this traffic never runs: tracing, dumps, extensions.
COLD = (
    "*sctp_probe*",
    "sctp_diag*",
    "*_auth_*",
    "sctp_offload*",
    "sctp_reconf*",
    "sctp_process_strreset*",
    "sctp_setsockopt*",
    "sctp_getsockopt*",
    "sctp_asconf*",
    "sctp_sf_do_asconf*",
    "sctp_exit*",
)


def matches(site: SiteInfo, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(site.function, pattern) for pattern in patterns)


def part_of_default_run(site: SiteInfo) -> bool:
    if site.kind == "store":
        return matches(site, HOT)
    return not matches(site, COLD)


@pytest.fixture(scope="module")
def old() -> Iterator[Namespace]:
    """A network namespace that is older than the policy, and outlives it."""
    subprocess.run(["modprobe", "sctp"], check=True)
    namespace = Namespace(sctp_events_workload.traffic)
    yield namespace
    namespace.end()


@pytest.fixture(scope="module")
def confined(request: pytest.FixtureRequest, old: Namespace) -> Iterator[state.State]:
    path = guest_sctp_object()
    everything = request.config.getoption("--full", default=False)
    wanted = (lambda site: True) if everything else part_of_default_run
    options = LoadOptions(degrade="report", wanted=wanted, perf=True)
    started = time.monotonic()
    loaded = loader.load(path.read_bytes(), path=str(path), options=options)
    info = read_info(path.read_bytes())
    print(
        f"\n{NAME}: {loaded.attached} probes in {time.monotonic() - started:.0f} s, {len(loaded.failures)} refused; "
        f"{len(info.sites)} sites, discharged {sum(info.discharged.values())}"
    )
    yield loaded
    if NAME in state.names():
        loader.unload(NAME)


@pytest.mark.timeout(1200)
def test_policy_loads_and_attaches(confined: state.State) -> None:
    info = read_info(guest_sctp_object().read_bytes())
    assert confined.attached > 1000
    assert len(info.sites) > confined.attached
    # perf refuses all of the functions that trace events generate, and a few places that a module's own probes take
    # (`sctp_v4_xmit` on some builds); each is told.
    others = [failure for failure in confined.failures if "generated tracing" not in failure.reason]
    assert len(others) <= confined.attached // 100, others
    assert all(failure.place and failure.reason for failure in confined.failures)


@pytest.mark.timeout(200)
def test_traffic_is_not_reported_and_arrives(confined: state.State) -> None:
    summary = sctp_workload.run(limit=150.0)
    found = reports(NAME).kinds()
    print(f"\n{summary}\n{found}\nskipped checks: {status.gather(NAME).missed}")
    assert summary.errors == []
    assert summary.associations == 12
    assert found == {}


@pytest.mark.timeout(300)
def test_what_the_system_does_to_it_is_not_reported(confined: state.State, old: Namespace) -> None:
    """Catches what is known of the first network namespace only: a container's traffic, or its end, that is a violation."""
    sctp_events_workload.run(old)
    found = reports(NAME).kinds()
    print(f"\n{found}\nskipped checks: {status.gather(NAME).missed}")
    assert found == {}


@pytest.mark.timeout(600)
def test_unloading_leaves_working_sctp(confined: state.State) -> None:
    assert loader.unload(NAME) > 1000
    assert NAME not in state.names()
    assert sctp_workload.run().errors == []
