# SPDX-License-Identifier: Apache-2.0
"""Host side of the report: a guest's events become test reports of the pytest session that booted it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.vm.report import Event, Progress, host_name, parse_events

SUMMARY = "vm-summary"
"""User property of the session's test: a line for the terminal summary."""
NOT_RUN = "vm-not-run"
"""User property of the session's test: why no VM could be started."""


def properties(reports: Iterable[object], name: str) -> list[str]:
    """Values of a user property in test reports, each once (properties also cross process borders)."""
    values = [
        str(value)
        for report in reports
        if isinstance(report, pytest.TestReport)
        for key, value in report.user_properties
        if key == name
    ]
    return list(dict.fromkeys(values))


class Reporter:
    """Turns the events of one guest into this session's test reports while they come."""

    def __init__(self, request: pytest.FixtureRequest, kernel: str, report: Path) -> None:
        self.progress = Progress()
        self._session = request.session
        self._config = request.config
        self._kernel = kernel
        self._report = report
        self._offset = 0
        self._rest = ""

    def poll(self) -> None:
        if not self._report.exists():
            return
        with self._report.open(encoding="utf-8", errors="replace", newline="") as report:
            report.seek(self._offset)
            text = report.read()
            self._offset = report.tell()
        events, self._rest = parse_events(self._rest + text)
        self.progress.feed(events)
        for event in events:
            self._emit(event)

    def interrupted(self, text: str) -> bool:
        """If the guest ended in the middle of a test, that test failed, whatever it was doing."""
        if self.progress.running is None:
            return False
        name = host_name(self.progress.running, self._kernel)
        self._log(
            pytest.TestReport(
                nodeid=name,
                location=(name.split("::")[0], None, name),
                keywords={},
                outcome="failed",
                longrepr=text,
                when="call",
            )
        )
        return True

    def _emit(self, event: Event) -> None:
        if event["event"] == "collected":
            self._session.testscollected += len(event["tests"])  # for the progress display
        if event["event"] != "report":
            return
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=event["data"])
        if isinstance(report.longrepr, list):  # a skip's (path, line, reason), which JSON made a list
            report.longrepr = tuple(report.longrepr)
        report.nodeid = host_name(report.nodeid, self._kernel)
        path, line, domain = report.location
        report.location = (path, line, host_name(domain, self._kernel))
        self._log(report)

    def _log(self, report: pytest.TestReport) -> None:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            self._config.hook.pytest_runtest_logreport(report=report)
