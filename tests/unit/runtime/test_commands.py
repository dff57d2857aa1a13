# SPDX-License-Identifier: Apache-2.0
"""The commands as a user calls them, as far as no kernel is needed: every bad input is a diagnostic."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from o2cc.cli.common import EXIT_CLEAN, EXIT_ERRORS, EXIT_USAGE, run
from o2cc.cli.o2c import o2c
from o2cc.runtime import loader, state
from o2cc.runtime.status import Status, UntrackedObject
from tests.unit.runtime.test_status import STATUS

phase_command = import_module("o2cc.cli.phase")


@pytest.fixture(autouse=True)
def nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN", tmp_path / "run")
    monkeypatch.setattr(state, "BPFFS", tmp_path / "bpf")


def call(*arguments: str) -> int:
    return run(o2c, "o2c", arguments)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "O2C0"),
        (b"\x7fELF", "O2C0608"),
        (b"\x7fELF" + os.urandom(400), "O2C0608"),
        (b"compartment {", "O2C01"),
        (b"\xff\xfe\xfd", "O2C0902"),
    ],
)
def test_loading_junk_is_a_diagnostic(
    content: bytes, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "junk"
    file.write_bytes(content)
    assert call("load", str(file)) == EXIT_ERRORS
    assert f"error[{code}" in capsys.readouterr().err


def test_loading_a_directory_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("load", str(tmp_path)) == EXIT_ERRORS
    assert call("load", str(tmp_path / "missing.bpf.o")) == EXIT_ERRORS
    assert call("load", str(tmp_path / "missing.o2c")) == EXIT_ERRORS
    assert capsys.readouterr().err.count("error[O2C0901]") == 3


def test_an_object_s_action_cannot_become_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.bpf.o").write_bytes(b"\x7fELF")
    assert call("load", str(tmp_path / "x.bpf.o"), "--degrade", "kill") == EXIT_ERRORS
    assert "O2C0836" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("unload", "name", "--all"),
        ("monitor", "--count", "0"),
        ("monitor", "--for", "-1"),
        ("load",),
        ("load", "x", "--layout", "round"),
        ("phase", "name", "third"),
        ("status", "a", "b"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == EXIT_USAGE
    assert capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "monitor", "phase", "unload"])
def test_a_name_that_is_not_loaded(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "nothing") == EXIT_ERRORS
    assert "error[O2C0802]: no compartment `nothing` is loaded" in capsys.readouterr().err


def test_status_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("status") == EXIT_CLEAN
    assert capsys.readouterr().out == "no compartment is loaded\n"
    assert call("status", "--json") == EXIT_CLEAN
    assert json.loads(capsys.readouterr().out) == {"compartments": []}


def test_unloading_everything_says_when_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("unload", "--all") == EXIT_CLEAN
    assert capsys.readouterr().out == "no compartment is loaded\n"


def test_leftovers_are_named_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    (state.BPFFS / "dead" / "links").mkdir(parents=True)
    (state.BPFFS / "dead" / "links" / "0").touch()
    assert call("status") == EXIT_CLEAN
    assert "O2C0842" in capsys.readouterr().err
    assert call("unload", "--all", "--json") == EXIT_CLEAN
    assert json.loads(capsys.readouterr().out) == {"unloaded": {"dead": 1}}
    assert state.leftovers() == ()


def test_checks_that_are_not_there_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tuple(state.Failure(n, f"perf_trace_{n}+0x1", "refused") for n in range(12))
    loaded = state.State("made", 0.0, "", 3, missing, False, "report", (state.Failure(1, "f+0x2", "why"),))
    monkeypatch.setattr(loader, "load", lambda *a, **k: loaded)
    (tmp_path / "x.bpf.o").write_bytes(b"\x7fELF")
    assert call("load", str(tmp_path / "x.bpf.o")) == EXIT_CLEAN
    printed = capsys.readouterr()
    assert (
        printed.out
        == "made: 3 sites attached, violations are reported, weaker than the policy by --degrade report\n"
    )
    assert "warning[O2C0840]: 12 checks are not there" in printed.err
    assert "and 2 more" in printed.err
    assert "warning[O2C0841]: 1 place only reports" in printed.err


def test_doctor_prints_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    status = call("doctor", "--json")
    document = json.loads(capsys.readouterr().out)
    assert status == (EXIT_CLEAN if document["can_report"] else EXIT_ERRORS)
    assert call("doctor") == status
    printed = capsys.readouterr().out
    assert all(finding["text"] in printed for finding in document["findings"])


def _in_transition(
    monkeypatch: pytest.MonkeyPatch, touched: list[int], *, enforced: bool = True, accepted: int = 0
) -> list[str]:
    """A compartment in its transition, with so many objects from before loading at one look after the other, and so
    many that an audition accepted; the switches that were made."""
    switched: list[str] = []

    def gather(name: str) -> Status:
        count = touched.pop(0) if len(touched) > 1 else touched[0]
        old = tuple(UntrackedObject(0x1000 + i, 0x2000, 9.0, 1.0, 5, "f+0x2") for i in range(count))
        phase = switched[-1] if switched else "transition"
        return replace(
            STATUS,
            phase=phase,
            enforced=enforced,
            untracked=old,
            accepted=accepted + 3,
            accepted_own=accepted,
        )

    monkeypatch.setattr(phase_command, "only", lambda name: name)
    monkeypatch.setattr(phase_command, "gather", gather)
    monkeypatch.setattr(phase_command, "set_phase", lambda name, phase: switched.append(phase))
    return switched


def test_the_final_phase_is_refused_while_old_objects_are_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    switched = _in_transition(monkeypatch, [7])
    assert call("phase", "made", "final") == EXIT_ERRORS
    told = capsys.readouterr().err
    assert "error[O2C0844]: 7 objects from before loading in use" in told
    assert told.count("touched 1 s ago, 5 times since loading, first by f+0x2") == 5
    assert switched == []


def test_the_final_phase_is_refused_while_accepted_objects_are_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a connection whose end breaks: what it touches only then is denied."""
    switched = _in_transition(monkeypatch, [0], accepted=41)
    assert call("phase", "made", "final") == EXIT_ERRORS
    told = capsys.readouterr().err
    assert "error[O2C0844]: 41 objects from before loading, accepted by the audition, in use" in told
    assert switched == []
    assert call("phase", "made", "final", "--force") == EXIT_CLEAN
    assert switched == ["final"]


@pytest.mark.parametrize(
    ("touched", "enforced", "options"),
    [([7], True, ("--force",)), ([7], False, ()), ([0], True, ()), ([7, 7, 2, 0], True, ("--wait", "60"))],
)
def test_the_final_phase_comes_when_nothing_would_break(
    touched: list[int], enforced: bool, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    switched = _in_transition(monkeypatch, touched, enforced=enforced)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert call("phase", "made", "final", *options) == EXIT_CLEAN
    assert switched == ["final"]
