# SPDX-License-Identifier: Apache-2.0
"""What a user gets who names the wrong thing, or two in the wrong order: what was meant, and no output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.cli.o2cc import o2cc
from o2cc.kernel import store

_POLICY = str(Path(__file__).parents[3] / "examples" / "cls_route.o2c")
_FUNCTION = "route4_init"


@pytest.fixture
def release() -> str:
    return store.bundled("cls_route")[0].parent.name


def test_a_place_is_explained_as_json(release: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2c, "o2c", ["explain", _FUNCTION, _POLICY, "-k", release, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["function"] for item in found} == {_FUNCTION}
    assert [item["offset"] for item in found] == sorted(item["offset"] for item in found)
    checked = next(item for item in found if item["state"] == "checked")
    assert checked["policy"].startswith(_POLICY)
    place = f"{_FUNCTION}+{checked['offset']:#x}"
    assert run(o2c, "o2c", ["explain", place, _POLICY, "-k", release, "--json"]) == 0
    assert checked in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["explain", _POLICY, _FUNCTION], 1, "the place comes before the policy"),
        (["show", _FUNCTION, "x.o2k"], 2, "o2c show x.o2k route4_init"),
        (["show", "module.ko"], 1, "`o2c scan` makes one of a module"),
        (["scan", ""], 2, "name of the module is empty"),
        (["scan", "xt_recent", "-k", "9.9.9"], 1, "give `--kernel` a boot image"),
        (["fmt", "empty"], 0, "empty: no policies (*.o2c) in this directory"),
        (["test", _POLICY, "-k", "./empty"], 1, "`./empty` is a directory; this takes a release"),
    ],
)
def test_the_remedy_is_told(
    arguments: list[str],
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "module.ko").write_bytes(b"\x7fELF" + bytes(60))
    assert run(o2c, "o2c", arguments) == status
    assert told in capsys.readouterr().err


def test_a_kernel_that_runs_and_cannot_be_read_is_said_to_be_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Machine:
        release = "9.9.9-custom"

    monkeypatch.setattr("os.uname", Machine)
    assert run(o2c, "o2c", ["scan", "xt_recent"]) == 1
    assert "no kernel `9.9.9-custom` found, which is the one that runs" in capsys.readouterr().err


def test_an_include_directory_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(o2cc, "o2cc", [_POLICY, "-I", "nowhere", "-o", "x.o"]) == 1
    assert "there is no directory `nowhere`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_figures_that_cannot_be_written_leave_no_object(
    tmp_path: Path, release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.o"
    assert run(o2cc, "o2cc", [_POLICY, "-k", release, "-o", str(target), "--stats", "/dev/full"]) == 1
    assert "O2C0905" in capsys.readouterr().err
    assert not target.exists()


def test_places_without_a_probe_are_named(release: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a warning that sends its reader to look for functions."""
    assert run(o2cc, "o2cc", [_POLICY, "-k", release, "--emit", "check", "--error-format", "json"]) == 0
    said = json.loads(capsys.readouterr().err)["diagnostics"]
    (places,) = [item for item in said if item["code"] == "O2C0521"]
    named = [note for note in places["notes"] if "+0x" in note]
    assert named == places["notes"] != []
