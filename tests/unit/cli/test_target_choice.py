# SPDX-License-Identifier: Apache-2.0
"""Which kernel a command works for, and that it says so; outputs that are refused before the long work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.cli.o2cc import o2cc
from o2cc.diagnostics import SourceFile
from o2cc.driver import fallback_note, find_description
from o2cc.kernel import store

_POLICY = Path(__file__).parents[3] / "examples" / "cls_route.o2c"
_SOURCE = SourceFile("p.o2c", "")


class _Machine:
    def __init__(self, release: str) -> None:
        self.release = release


@pytest.fixture
def newest() -> str:
    return store.bundled("cls_route")[0].parent.name


def test_a_kernel_that_nobody_asked_for_is_said(monkeypatch: pytest.MonkeyPatch, newest: str) -> None:
    monkeypatch.setattr("os.uname", lambda: _Machine("9.9.9-custom"))
    taken = find_description("cls_route", None, _SOURCE)
    assert taken.release == newest
    (said,) = fallback_note(taken, None, _SOURCE)
    assert said.code == "O2C0913"
    assert newest in said.message
    assert "9.9.9-custom" in said.message


def test_the_running_and_the_named_kernel_need_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = store.bundled("cls_route")[-1].parent.name
    monkeypatch.setattr("os.uname", lambda: _Machine(oldest))
    running = find_description("cls_route", None, _SOURCE)
    assert running.release == oldest
    assert fallback_note(running, None, _SOURCE) == ()
    monkeypatch.setattr("os.uname", lambda: _Machine("9.9.9-custom"))
    assert fallback_note(find_description("cls_route", oldest, _SOURCE), oldest, _SOURCE) == ()


def test_tests_say_for_which_kernel_and_which_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.uname", lambda: _Machine("9.9.9-custom"))
    assert run(o2c, "o2c", ["test", str(_POLICY), "--only", "no such name"]) == 1
    shown = capsys.readouterr().err
    assert "note[O2C0913]" in shown
    assert "error[O2C0272]: no test's name contains `no such name`" in shown
    assert "there is: " in shown


@pytest.mark.parametrize("place", ["init_route4", "init_route4+0x10"])
def test_code_of_the_initialization_is_no_unknown_function(
    place: str, newest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(o2c, "o2c", ["explain", place, str(_POLICY), "-k", newest]) == 1
    shown = capsys.readouterr().err
    assert "error[O2C0541]: `init_route4` is code of the initialization" in shown
    assert "did you mean" not in shown


def test_a_call_that_only_the_initialization_makes_cannot_be_tested(
    newest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches `allow` of a call that nothing checks, whatever its arguments are."""
    policy = tmp_path / "p.o2c"
    added = 'test "its own" { call register_tcf_proto_ops(0) expect allow }\n'
    policy.write_text(_POLICY.read_text() + added)
    assert run(o2c, "o2c", ["test", str(policy), "-k", newest, "--only", "its own"]) == 1
    shown = capsys.readouterr()
    assert "error[O2C0271]: this step cannot be run: only code of the initialization calls" in shown.err
    assert "FAILED  its own" in shown.out


def test_a_policy_without_a_compartment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "common.o2c"
    policy.write_text("use std.linux\n")
    assert run(o2cc, "o2cc", [str(policy)]) == 1
    assert "error[O2C0914]: the policy has no compartment" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["missing/out", "directory", "file/out"])
@pytest.mark.parametrize("command", [["profile"], ["train", "no.parquet"]], ids=["profile", "train"])
def test_an_output_is_refused_before_the_work(
    command: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    assert run(o2c, "o2c", [*command, "-o", f"{tmp_path}/{place}"]) == 1
    shown = capsys.readouterr().err
    assert "error[O2C0905]" in shown
    assert shown.count("error[") == 1
