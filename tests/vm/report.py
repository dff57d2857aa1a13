# SPDX-License-Identifier: Apache-2.0
"""What a guest's test session says, event by event, and what the host makes of it. Pure.

The guest (tests/vm/guest/conftest.py) appends one JSON object a line to ``report.jsonl``, each written
through before the next step is taken, so that after a crash the file names the test that was running:

``{"event": "collected", "tests": [id, ...], "deselected": n}``
``{"event": "collect-error", "where": id, "text": ...}``
``{"event": "start", "test": id}``
``{"event": "report", "test": id, "when": ..., "outcome": ..., "data": pytest's serialized TestReport}``
``{"event": "splats", "lines": [...]}`` lines of the kernel log that a test has answered for
``{"event": "end", "status": pytest's exit status}``
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.vm.machine import Outcome

REPORT_NAME = "report.jsonl"
Event = Mapping[str, Any]


def parse_events(text: str) -> tuple[list[Event], str]:
    """Complete events in ``text``, and the rest: the beginning of a line still being written.

    A complete line that is no event is returned as a ``garbled`` event: nothing is dropped.
    """
    *lines, rest = text.split("\n")
    events: list[Event] = []
    for line in lines:
        if not line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        events.append(
            event if isinstance(event, dict) and "event" in event else {"event": "garbled", "line": line}
        )
    return events, rest


@dataclass
class Progress:
    """The state of a guest session, as far as its events tell."""

    collected: list[str] = field(default_factory=list)
    deselected: int = 0
    outcomes: dict[str, str] = field(default_factory=dict)
    """Test -> ``passed``, ``failed``, ``skipped``; a failure in any phase stays one."""
    running: str | None = None
    errors: list[str] = field(default_factory=list)
    """Collection errors and garbled events."""
    answered_splats: set[str] = field(default_factory=set)
    status: int | None = None

    def feed(self, events: Iterable[Event]) -> None:
        for event in events:
            match event["event"]:
                case "collected":
                    self.collected, self.deselected = list(event["tests"]), event["deselected"]
                case "collect-error":
                    self.errors.append(f"cannot collect {event['where']}:\n{event['text']}")
                case "start":
                    self.running = event["test"]
                case "report":
                    self._phase(event["test"], event["when"], event["outcome"])
                case "splats":
                    self.answered_splats.update(event["lines"])
                case "end":
                    self.status = event["status"]
                case _:
                    self.errors.append(f"not an event: {event}")

    def _phase(self, test: str, when: str, outcome: str) -> None:
        known = self.outcomes.get(test)
        if known is None or outcome == "failed" or (known == "passed" and outcome == "skipped"):
            self.outcomes[test] = outcome
        if when == "teardown":
            self.running = None

    @property
    def unfinished(self) -> list[str]:
        """Collected tests that never got to an outcome, without the one that was running."""
        return [test for test in self.collected if test not in self.outcomes and test != self.running]

    def count(self, outcome: str) -> int:
        return list(self.outcomes.values()).count(outcome)


def host_name(test: str, kernel: str) -> str:
    """What a guest test is called on the host: as if the kernel were its last parameter."""
    return f"{test[:-1]}-{kernel}]" if test.endswith("]") else f"{test}[{kernel}]"


def problems(progress: Progress, outcome: Outcome) -> list[str]:
    """Why the session as a whole is no proof, beyond tests that failed. Empty if all is well."""
    found = list(progress.errors)
    if outcome.ending != "exit":
        where = f" in {progress.running}" if progress.running else ""
        how = {
            "panic": "the kernel panicked",
            "timeout": "the time budget ran out",
            "died": "QEMU ended early",
        }
        found.append(f"{how[outcome.ending]}{where} after {outcome.seconds:.0f} s")
    elif progress.status is None:
        found.append(f"the test session ended without a result (exit status {outcome.status})")
    elif progress.status not in (0, 1):
        found.append(f"the test session ended with pytest status {progress.status}")
    elif progress.status == 1 and not progress.count("failed") and not progress.errors:
        found.append("the test session failed, but no test says why")
    if not progress.count("passed") + progress.count("failed"):
        found.append("not one test ran")
    if progress.unfinished:
        found.append("did not run: " + ", ".join(progress.unfinished))
    unanswered = [line for line in dict.fromkeys(outcome.splats) if line not in progress.answered_splats]
    if splats := [line for line in unanswered if "Kernel panic" not in line]:
        found.append("the kernel log has, outside of any finished test:\n" + "\n".join(splats))
    return found


def summary_line(kernel: str, progress: Progress, outcome: Outcome) -> str:
    """One line for the terminal summary."""
    counts = [
        f"{progress.count(name)} {name}" for name in ("passed", "failed", "skipped") if progress.count(name)
    ]
    if progress.unfinished or progress.running:
        counts.append(f"{len(progress.unfinished) + bool(progress.running)} did not finish")
    if progress.deselected:
        counts.append(f"{progress.deselected} deselected (need --full)")
    boot = f"boot {outcome.boot_seconds:.1f} s" if outcome.boot_seconds is not None else "no boot"
    return f"kernel {kernel}: {', '.join(counts) or 'no tests'}; {boot}, {outcome.seconds:.1f} s in all"
