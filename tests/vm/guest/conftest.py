# SPDX-License-Identifier: Apache-2.0
"""Guest side of the VM tests: refuses to run anywhere else, reports to the host, watches the kernel log.

Each test fails if the kernel complains (BUG, WARNING, Oops, stall, ...) while it runs, its fixtures'
teardown included. ``@pytest.mark.splats_expected(r"pattern")`` excuses lines that match.
``@pytest.mark.full`` marks a test that runs only with ``--full``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from o2cc.runtime.enforcer_types import Site
from tests.vm.guest.enforcer_support import Forms, Shadow, Verdicts, load_module
from tests.vm.guest.heap_support import heap_sites
from tests.vm.guest.victim_support import Victim
from tests.vm.machine import VM_MARK
from tests.vm.report import REPORT_NAME
from tests.vm.splats import parse_kmsg, splats


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    """o2c.ko and the device that runs every form of instruction (tests/kernel/forms)."""
    load_module("o2c")
    device = Forms()
    yield device
    device.close()


@pytest.fixture(scope="module")
def sites(forms: Forms) -> list[Site]:
    """The calls to allocators in the forms' module, as sites of a private heap."""
    return heap_sites(forms)


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """The device of tests/kernel/victim."""
    device = Victim()
    yield device
    device.close()


@pytest.fixture
def shadow() -> Iterator[Shadow]:
    """An owner shadow of its own."""
    owner = Shadow()
    yield owner
    owner.close()


@pytest.fixture
def verdicts() -> Iterator[Verdicts]:
    """A program whose verdict the test sets."""
    program = Verdicts()
    yield program
    program.close()


def pytest_configure(config: pytest.Config) -> None:
    if VM_MARK not in Path("/proc/cmdline").read_text().split():
        raise pytest.UsageError(
            "tests/vm/guest attaches probes and loads modules: it runs only inside the test VM "
            "(`pytest tests/vm --kernel 6.1`, or `python -m tests.vm.machine -- pytest tests/vm/guest`)"
        )
    config.addinivalue_line("markers", "full: runs only with --full")
    config.addinivalue_line("markers", "splats_expected(pattern): kernel log lines that this test may cause")
    config.pluginmanager.register(_Watch(config))


def _tell(event: str, **data: Any) -> None:
    """Append one event, and leave only when the host has it."""
    if (directory := os.environ.get("O2C_RESULTS")) is None:
        return
    with (Path(directory) / REPORT_NAME).open("a", encoding="utf-8") as report:
        report.write(json.dumps({"event": event, **data}) + "\n")
        report.flush()
        os.fsync(report.fileno())


class _Watch:
    """A pytest plugin: tells the host of every step, and holds the kernel log against each test."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._deselected = 0
        self._kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._kmsg, 0, os.SEEK_END)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if item.get_closest_marker("full")]
        if left_out and not self._config.getoption("--full"):
            self._deselected = len(left_out)
            self._config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            _tell("collect-error", where=report.nodeid, text=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        _tell("collected", tests=[item.nodeid for item in session.items], deselected=self._deselected)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _tell("start", test=nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, None, None]:
        self._check("before", None)
        yield

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        yield
        self._check("while", item.get_closest_marker("splats_expected"))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        _tell("report", test=report.nodeid, when=report.when, outcome=report.outcome, data=data)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        _tell("end", status=int(exitstatus))

    def _check(self, when: str, expected: pytest.Mark | None) -> None:
        log = self._new_lines()
        if seen := splats(log):
            _tell("splats", lines=seen)
        if splats(log, tolerate=expected.args[0] if expected else None):
            pytest.fail(f"the kernel complained {when} this test ran:\n" + "\n".join(log), pytrace=False)

    def _new_lines(self) -> list[str]:
        """Kernel log lines since the last call."""
        records = []
        while True:
            try:
                records.append(os.read(self._kmsg, 8192).decode(errors="replace"))
            except BlockingIOError:
                return parse_kmsg("".join(records))
            except BrokenPipeError:  # records were overwritten before they were read
                records.append("[ring buffer overrun, lines lost]\n")


@pytest.fixture(scope="session")
def kernel_series() -> str:
    """``6.1`` or ``6.12``: the series that was booted."""
    return os.environ["O2C_KERNEL"]
