# SPDX-License-Identifier: Apache-2.0
"""Boot each kernel once and run everything of tests/vm/guest in it.

Every guest test is reported here as a test of its own, named ``test[<kernel>]``, with the guest's output.
The one test that is written down here passes only if the session as a whole is sound: the guest came
to its end in time, every collected test ran, and the kernel log is clean.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from o2cc.diagnostics import DiagnosticError
from scripts.fetch_kernels import FetchError, ensure
from tests.vm import examples, kbuild, policies
from tests.vm.machine import MachineError, missing_tools, run
from tests.vm.report import REPORT_NAME, problems, summary_line
from tests.vm.reporter import NOT_RUN, SUMMARY, Reporter

GUEST_TESTS = "tests/vm/guest"
TEST_SECONDS = 120
"""Limit for one guest test that sets none itself (``@pytest.mark.timeout``)."""


@pytest.mark.timeout(0)  # the machine has its own time limit, which also ends QEMU
def test_guest_session(kernel: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    config = request.config
    if hasattr(config, "workerinput"):
        pytest.fail(
            "guest tests are reported as they come, which xdist forbids: run without -n", pytrace=False
        )
    if missing := missing_tools():
        _not_run(request.node, f"missing on this machine: {', '.join(missing)}")
    try:
        image = ensure(kernel)
    except FetchError as error:
        _not_run(request.node, str(error))
    not_built = []
    for source in kbuild.module_sources():
        try:
            kbuild.build_module(image, source)
        except kbuild.BuildError as error:  # tests that do without it still run
            not_built.append(str(error))
    try:
        policies.prepare(image)
        policies.prepare_sctp(image)
    except (DiagnosticError, OSError) as error:
        not_built.append(f"the victim's policies do not compile: {error}")
    try:
        examples.prepare(image)
    except (DiagnosticError, OSError) as error:
        not_built.append(f"the example policies do not compile: {error}")

    base: Path | None = config.getoption("--vm-results")
    results = base / kernel if base else tmp_path
    (results / REPORT_NAME).unlink(missing_ok=True)
    reporter = Reporter(request, kernel, results / REPORT_NAME)
    chosen = shlex.split(config.getoption("--guest"))
    command = [sys.executable, "-m", "pytest", *chosen, "-p", "no:cacheprovider"]
    command += [] if any(argument.startswith(GUEST_TESTS) for argument in chosen) else [GUEST_TESTS]
    command += ["--continue-on-collection-errors", f"--timeout={TEST_SECONDS}"]
    command += ["--full"] if config.getoption("--full") else []
    try:
        outcome = run(
            image, command, results=results, timeout=config.getoption("--vm-budget"), poll=reporter.poll
        )
    except MachineError as error:
        _not_run(request.node, str(error))
    reporter.poll()
    request.node.user_properties.append((SUMMARY, summary_line(kernel, reporter.progress, outcome)))

    found = not_built + problems(reporter.progress, outcome)
    logs = [
        "--- end of the guest's output ---",
        *outcome.output.splitlines()[-40:],
        "--- end of the kernel log ---",
        *outcome.kernel_log[-100:],
    ]
    if reporter.interrupted("\n".join(["the guest ended while this test ran", *found, *logs])):
        logs = []  # printed with that test
    elif outcome.ending == "exit" and found == not_built:
        logs = []  # have nothing to do with it
    if found:
        pytest.fail("\n".join([*found, *logs]), pytrace=False)


def _not_run(item: pytest.Item, reason: str) -> NoReturn:
    """No VM here: say so in the summary; where nobody would read it (CI), fail."""
    item.user_properties.append((NOT_RUN, reason))
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(f"VM tests not run: {reason}", pytrace=False)
    pytest.skip(f"VM TESTS NOT RUN: {reason}")
