# SPDX-License-Identifier: Apache-2.0
"""A guest session counts as a proof only if it is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vm.machine import Ending, Outcome
from tests.vm.report import Event, Progress, host_name, parse_events, problems, summary_line


def outcome(ending: Ending = "exit", status: int | None = 0, log: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        ending=ending,
        status=status,
        output="",
        kernel_log=log,
        results=Path("results"),
        boot_seconds=4.0,
        seconds=30.0,
    )


def phases(test: str, *, call: str = "passed", teardown: str = "passed") -> list[Event]:
    events: list[Event] = [{"event": "start", "test": test}]
    for when, result in (("setup", "passed"), ("call", call), ("teardown", teardown)):
        events.append({"event": "report", "test": test, "when": when, "outcome": result, "data": {}})
    return events


def collected(*tests: str, deselected: int = 0) -> Event:
    return {"event": "collected", "tests": list(tests), "deselected": deselected}


def end(status: int = 0) -> Event:
    return {"event": "end", "status": status}


def progress(*events: Event) -> Progress:
    state = Progress()
    state.feed(events)
    return state


def test_a_complete_session_has_no_problems() -> None:
    state = progress(collected("a", "b"), *phases("a"), *phases("b"), end())
    assert problems(state, outcome()) == []
    assert state.outcomes == {"a": "passed", "b": "passed"}


def test_a_failed_test_is_not_a_problem_of_the_session() -> None:
    state = progress(collected("a"), *phases("a", call="failed"), end(1))
    assert problems(state, outcome(status=1)) == []
    assert state.count("failed") == 1


def test_a_failed_teardown_makes_a_passed_test_failed() -> None:
    state = progress(collected("a"), *phases("a", teardown="failed"), end(1))
    assert state.outcomes == {"a": "failed"}


@pytest.mark.parametrize(
    ("ending", "words"),
    [("panic", "the kernel panicked"), ("timeout", "the time budget ran out"), ("died", "QEMU ended early")],
)
def test_an_early_end_names_the_running_test_and_those_that_did_not_run(ending: Ending, words: str) -> None:
    state = progress(collected("a", "b", "c"), *phases("a"), {"event": "start", "test": "b"})
    found = problems(state, outcome(ending, status=None))
    assert found == [f"{words} in b after 30 s", "did not run: c"]


def test_a_test_between_its_phases_is_still_running() -> None:
    state = progress(collected("a"), *phases("a")[:-1])
    assert state.running == "a"
    assert progress(collected("a"), *phases("a")).running is None


def test_no_report_at_all_is_a_problem() -> None:
    found = problems(progress(), outcome(status=2))
    assert found == ["the test session ended without a result (exit status 2)", "not one test ran"]


@pytest.mark.parametrize("status", [0, 5])
def test_zero_tests_is_a_problem(status: int) -> None:
    assert "not one test ran" in problems(progress(collected(), end(status)), outcome(status=status))


def test_skipped_tests_alone_prove_nothing() -> None:
    state = progress(collected("a"), *phases("a", call="skipped"), end())
    assert problems(state, outcome()) == ["not one test ran"]


def test_a_collection_error_is_a_problem_though_other_tests_ran() -> None:
    error = {"event": "collect-error", "where": "test_x.py", "text": "ImportError: y"}
    state = progress(error, collected("a"), *phases("a"), end(1))
    assert problems(state, outcome(status=1)) == ["cannot collect test_x.py:\nImportError: y"]


@pytest.mark.parametrize("status", [2, 3, 4])
def test_an_abnormal_pytest_status_is_a_problem(status: int) -> None:
    state = progress(collected("a"), *phases("a"), end(status))
    assert problems(state, outcome(status=status)) == [f"the test session ended with pytest status {status}"]


def test_a_failure_that_no_test_explains_is_a_problem() -> None:
    state = progress(collected("a"), *phases("a"), end(1))
    assert problems(state, outcome(status=1)) == ["the test session failed, but no test says why"]


def test_splats_outside_of_tests_are_a_problem_and_answered_ones_are_not() -> None:
    early, late = "[ 1.0] WARNING: CPU: 0 PID: 1 at a.c:1", "[ 9.0] WARNING: CPU: 0 PID: 1 at a.c:1"
    state = progress(
        collected("a"), {"event": "splats", "lines": [late]}, *phases("a", teardown="failed"), end(1)
    )
    found = problems(state, outcome(status=1, log=(early, "[ 2.0] fine", late, late)))
    assert found == [f"the kernel log has, outside of any finished test:\n{early}"]


def test_events_are_parsed_as_they_grow() -> None:
    whole = "".join(json.dumps(event) + "\n" for event in (collected("a"), *phases("a"), end()))
    state, rest = Progress(), ""
    for start in range(0, len(whole), 7):
        events, rest = parse_events(rest + whole[start : start + 7])
        state.feed(events)
    assert rest == ""
    assert problems(state, outcome()) == []


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "{}", "null"])
def test_a_garbled_line_is_a_problem(line: str) -> None:
    events, rest = parse_events(line + "\n")
    assert (rest, events) == ("", [{"event": "garbled", "line": line}])
    state = progress(collected("a"), *phases("a"), *events, end())
    assert len(problems(state, outcome())) == 1


def test_an_unknown_event_is_a_problem() -> None:
    unknown: dict[str, Any] = {"event": "new"}
    assert progress(unknown).errors == ["not an event: {'event': 'new'}"]


def test_summary_counts_what_ran_and_what_did_not() -> None:
    state = progress(
        collected("a", "b", "c", "d", deselected=3),
        *phases("a"),
        *phases("b", call="failed"),
        {"event": "start", "test": "c"},
    )
    assert summary_line("6.1", state, outcome("panic", None)) == (
        "kernel 6.1: 1 passed, 1 failed, 2 did not finish, 3 deselected (need --full); boot 4.0 s, 30.0 s in all"
    )


def test_the_kernel_is_the_last_parameter_of_a_guest_test() -> None:
    assert host_name("test_a.py::test_b", "6.1") == "test_a.py::test_b[6.1]"
    assert host_name("test_a.py::test_b[x-2]", "6.12") == "test_a.py::test_b[x-2-6.12]"
