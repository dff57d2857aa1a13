# SPDX-License-Identifier: Apache-2.0
"""Options of the VM tests, and the summary that says loudly when they did not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.fetch_kernels import SERIES
from tests.vm.machine import VM_MARK
from tests.vm.reporter import NOT_RUN, SUMMARY, properties

IN_GUEST = VM_MARK in Path("/proc/cmdline").read_text().split()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vm")
    group.addoption(
        "--kernel", action="append", choices=list(SERIES), help="kernel series to boot (default: all)"
    )
    group.addoption("--full", action="store_true", help="also run the tests marked `full`")
    group.addoption("--vm-budget", type=float, default=800.0, help="seconds for one kernel's boot and tests")
    group.addoption("--vm-results", type=Path, help="keep the guests' logs and files here, by kernel")
    group.addoption(
        "--guest", default="", metavar="ARGS", help="arguments for the guest's pytest: --guest='-k sctp'"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """On the host ``tests/vm/guest`` is not collected, unless named: then its conftest refuses."""
    guest = Path(__file__).parent / "guest"
    named = any(Path(argument.split("::")[0]).resolve().is_relative_to(guest) for argument in config.args)
    return True if collection_path == guest and not IN_GUEST and not named else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", metafunc.config.getoption("--kernel") or list(SERIES))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    for line in properties(reports, SUMMARY):
        terminalreporter.write_line(f"vm: {line}")
    if reasons := properties(reports, NOT_RUN):
        terminalreporter.write_sep("!", "VM TESTS NOT RUN", red=True, bold=True)
        for reason in reasons:
            terminalreporter.write_line(reason)
        terminalreporter.write_line("Nothing was proved about a real kernel: no probe, no denial, no unload.")
        terminalreporter.write_line(
            "Install the tools with scripts/install-test-tools, then: pytest tests/vm"
        )
        terminalreporter.write_sep("!", "VM TESTS NOT RUN", red=True, bold=True)
