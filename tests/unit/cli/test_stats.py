# SPDX-License-Identifier: Apache-2.0
"""`o2c stats`: the figures of a compilation, as a person reads them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.cli.o2cc import o2cc
from o2cc.resources import resource_directory


@cache
def _compiled() -> str:
    """What `o2cc --stats` writes for the smallest example."""
    import contextlib
    import io

    release = sorted(path.name for path in resource_directory("descriptions").iterdir())[0]
    policy = resource_directory("examples") / "cls_route.o2c"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(o2cc, "o2cc", [str(policy), "-k", release, "--emit", "check", "--stats", "-"]) == 0
    return out.getvalue()


def _written(directory: Path, **changes: Any) -> str:
    document = {**json.loads(_compiled()), **changes}
    path = directory / "figures.json"
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))
    return str(path)


def test_figures_of_a_compilation_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(_compiled())
    assert run(o2c, "o2c", ["stats", _written(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"cls_route of {document['release']}\n")
    for name in ("sites", "stores_discharged", "stores_probed", "programs", "object_bytes"):
        assert f"{document[name]:,}  " in shown
    kinds = ("stores", "indirect_calls", "gate_calls", "entries")
    assert sum(document[name] for name in kinds) == document["sites"]
    ways = ("stores_discharged", "stores_covered", "stores_probed", "stores_unchecked")
    assert sum(document[name] for name in ways) == document["stores"]
    for name, count in document["discharged_by"].items():
        assert f"{count:,}  {name}" in shown
    assert f"{document['instructions'] / document['programs']:.1f} a program" in shown
    for stage in document["seconds"]:
        assert stage == "total" or f"{stage} " in shown
    for grant in document["grants"]:
        assert f"line {grant['place'].rpartition(':')[2]}: {grant['reason']}" in shown
        assert " ".join(grant["rule"].split()) in " ".join(shown.split())


def test_lines_fit_the_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ", ".join(f"a_field_{number}" for number in range(100))
    grant = {"place": "a.o2c:7", "rule": f"write struct s {{ {fields} }}", "reason": ""}
    assert run(o2c, "o2c", ["stats", _written(tmp_path, grants=[grant])]) == 0
    shown = capsys.readouterr().out
    assert "line 7: (no reason given)" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_nothing_granted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2c, "o2c", ["stats", _written(tmp_path, grants=[], programs=0, instructions=0)]) == 0
    shown = capsys.readouterr().out
    assert "grants no memory" in shown
    assert "0  programs" in shown


def test_json_is_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2c, "o2c", ["stats", _written(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(_compiled())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sites": ...}, "`sites` is not a number"),
        ({"sites": "12"}, "`sites` is not a number"),
        ({"sites": True}, "`sites` is not a number"),
        ({"sites": -1}, "`sites` is not a number"),
        ({"sites": float("nan")}, "`sites` is not a number"),
        ({"seconds": 3}, "`seconds` is not an object"),
        ({"seconds": {"total": None}}, "`total` is not a number"),
        ({"grants": {}}, "`grants` is not a list"),
        ({"grants": [7]}, "a grant is not an object"),
        ({"grants": [{"place": "a:1", "rule": "r"}]}, "`reason` is not a string"),
        ({"target": 5}, "`target` is not a string"),
    ],
)
def test_damaged_document_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(o2c, "o2c", ["stats", _written(tmp_path, **changes)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "O2C0907" in shown.err
    assert told in shown.err


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", "[" * 100_000, '{"a": 1}', "1" * 5000])
def test_other_files_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    assert run(o2c, "o2c", ["stats", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "O2C0907" in shown.err
    assert str(path) in shown.err


def test_every_grant_is_told_as_a_rule(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    policy = resource_directory("examples") / "ip6_output.o2c"
    release = sorted(path.name for path in resource_directory("descriptions").iterdir())[0]
    arguments = [str(policy), "-k", release, "--emit", "check", "--stats", str(figures)]
    assert run(o2cc, "o2cc", arguments) == 0
    rules = [grant["rule"] for grant in json.loads(figures.read_text())["grants"]]
    assert [rule for rule in rules if not rule.startswith("write")] == []
    assert any(rule.startswith("write behind struct net {") and rule.endswith("}") for rule in rules)
