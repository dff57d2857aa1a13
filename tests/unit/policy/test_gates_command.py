# SPDX-License-Identifier: Apache-2.0
"""`o2c gates`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from o2cc.cli.o2c import o2c
from o2cc.kernel import store

from .target import describe


def gates(*arguments: str) -> Result:
    return CliRunner().invoke(o2c, ["gates", *arguments])


@pytest.fixture
def description(tmp_path: Path) -> str:
    path = tmp_path / "demo.o2k"
    store.save(describe(), path)
    return str(path)


def test_lists_what_stdlib_does_not_know(description: str) -> None:
    result = gates(description)
    assert result.exit_code == 0
    assert "int mystery(struct demo_object *object" in result.output
    assert "    not checked: buffer\n" in result.output
    assert "kfree(" not in result.output
    summary, modules = result.output.splitlines()[-2:]
    assert summary.endswith("of the 12 kernel functions that demo calls are unknown")
    assert "use std.linux (" in modules


def test_says_who_calls(description: str) -> None:
    assert "    called by: demo_write\n" in gates(description, "--callers").output


def test_json(description: str) -> None:
    document = json.loads(gates(description, "--json").output)
    assert document["target"] == "demo"
    assert document["callees"] == 12
    assert sum(document["known"].values()) + len(document["unknown"]) == 12
    (mystery,) = [item for item in document["unknown"] if item["function"] == "mystery"]
    assert mystery["callers"] == ["demo_write"]
    assert mystery["checked_by_type"] == ["object", "callback"]
    assert mystery["shared"] == ["net"]
    assert mystery["unchecked"] == ["buffer"]


def test_a_broken_description_is_a_diagnostic(tmp_path: Path) -> None:
    path = tmp_path / "bad.o2k"
    path.write_bytes(b"not a description")
    result = gates(str(path))
    assert result.exit_code == 1
    assert "error[O2C04" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_is_a_diagnostic(tmp_path: Path) -> None:
    result = gates(str(tmp_path / "none.o2k"))
    assert result.exit_code == 1
    assert "error[O2C09" in result.stderr
