# SPDX-License-Identifier: Apache-2.0
"""The machine itself, on one kernel: how a run can end, and what comes back from each."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.fetch_kernels import SERIES, FetchError, Kernel, ensure
from tests.vm.machine import missing_tools, run


@pytest.fixture
def image(request: pytest.FixtureRequest) -> Kernel:
    """The first kernel asked for; where none can run, test_kernels.py is the one that says so loudly."""
    if missing := missing_tools():
        pytest.skip(f"VM TESTS NOT RUN: missing {', '.join(missing)}")
    try:
        return ensure((request.config.getoption("--kernel") or list(SERIES))[0])
    except FetchError as error:
        pytest.skip(f"VM TESTS NOT RUN: {error}")


def running(results: Path) -> bool:
    """Whether some QEMU still shares this results directory."""
    found = subprocess.run(["pgrep", "-f", f"qemu-system.*{results}"], capture_output=True, check=False)
    return found.returncode == 0


def test_status_output_files_and_kernel_log_come_back(image: Kernel, tmp_path: Path) -> None:
    script = (
        'echo out; echo err >&2; uname -r > "$O2C_RESULTS/made"; echo "<4>WARNING: x" > /dev/kmsg; exit 7'
    )
    seen: list[str] = []
    outcome = run(image, ["sh", "-c", script], results=tmp_path / "r", timeout=120, on_output=seen.append)
    assert (outcome.ending, outcome.status, outcome.ok) == ("exit", 7, False)
    assert outcome.output == "".join(seen) == "out\nerr\n"
    assert (tmp_path / "r/made").read_text().strip() == image.release
    assert len(outcome.splats) == 1
    assert outcome.boot_seconds is not None
    assert not running(tmp_path)


def test_panic_ends_the_run_at_once_and_is_in_the_log(image: Kernel, tmp_path: Path) -> None:
    script = "echo before; echo c > /proc/sysrq-trigger; sleep 1000"
    outcome = run(image, ["sh", "-c", script], results=tmp_path / "r", timeout=120)
    assert (outcome.ending, outcome.status) == ("panic", None)
    assert outcome.output == "before\n"
    assert any("Kernel panic" in line for line in outcome.splats)
    assert outcome.seconds < 100
    assert not running(tmp_path)


def test_time_limit_kills_the_machine(image: Kernel, tmp_path: Path) -> None:
    outcome = run(image, ["sleep", "1000"], results=tmp_path / "r", timeout=3)
    assert (outcome.ending, outcome.status) == ("timeout", None)
    assert 3 <= outcome.seconds < 25
    at = outcome.kernel_log.index("--- processors at the timeout ---")
    assert outcome.kernel_log[at + 1] == "CPU#0"
    assert not running(tmp_path)


def test_both_processors_count_instructions(image: Kernel, tmp_path: Path) -> None:
    """A loop costs what it costs, whatever the host does meanwhile; 6.1 does not get so far by itself."""
    script = "getconf _NPROCESSORS_ONLN; exec taskset -c 0 python3 -c '" + "; ".join(
        (
            "from time import perf_counter_ns as now",
            "costs = [-now() + (sum(range(10**6)) and now()) for _ in range(9)]",
            "print(min(costs), max(costs))",
        )
    )
    outcome = run(
        image, ["sh", "-c", script + "'"], results=tmp_path / "r", timeout=200, count_instructions=True
    )
    assert outcome.ok
    online, least, most = (int(word) for word in outcome.output.split())
    assert online == 2
    assert 5_000_000 < least <= most < 1.2 * least
