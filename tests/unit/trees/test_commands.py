# SPDX-License-Identifier: Apache-2.0
"""`o2c tree` and `o2c train` from the command line."""

from __future__ import annotations

import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import pytest
import sklearn
from click.testing import CliRunner, Result
from sklearn.tree import DecisionTreeClassifier

import o2cc
from o2cc.cli.train import train
from o2cc.cli.tree import tree as tree_command
from o2cc.report.explain import explanation
from o2cc.resources import resource_directory
from o2cc.trees.file import read_tree, tree_to_text, write_tree
from tests.unit.trees.made_trees import build
from tests.unit.trees.synthetic_profiles import rows, write


def run(*arguments: object) -> Result:
    return CliRunner().invoke(tree_command, [str(argument) for argument in arguments])


class Hostile:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.json"
    document = {
        "children_left": [1, -1, -1],
        "children_right": [2, -1, -1],
        "feature": [4, -2, -2],
        "threshold": [1.8446743523953730e19, -2, -2],
        "value": [0, 0, 1],
    }
    path.write_text(json.dumps(document))
    return path


def test_check_takes_both_forms(plain: Path, tmp_path: Path) -> None:
    assert run("import", plain, "-o", tmp_path / "x.tree.json").exit_code == 0
    for source in (plain, tmp_path / "x.tree.json"):
        result = run("check", source, "--vectors", 3000, "--no-kernel")
        assert result.exit_code == 0, result.output
        assert "3,000 of 3,000 predictions, all agree" in result.output
        assert "left out as asked" in result.output


def test_check_as_json(plain: Path) -> None:
    figures = json.loads(run("check", plain, "--vectors", 500, "--no-kernel", "--json").stdout)
    assert figures["all_agreed"] is True
    assert figures["boundaries_tested"] == figures["boundaries"]
    assert figures["kernel"] is None


def test_check_fails_when_the_integers_are_wrong(tmp_path: Path) -> None:
    imported = build(30, 4, 3, 2)
    text = tree_to_text(imported.tree).replace('"float": ', '"float": 1', 1)
    (tmp_path / "wrong.tree.json").write_text(text)
    result = run("check", tmp_path / "wrong.tree.json", "--vectors", 3000, "--no-kernel")
    assert result.exit_code == 1
    assert "DISAGREE" in result.output
    assert "O2C0715" in result.output


def test_check_without_the_kernel_says_so_unless_asked(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = run("check", plain, "--vectors", 100)
    assert result.exit_code == 0
    assert "NOT RUN" in result.output
    assert "warning[O2C0716]" in result.output


def test_check_of_trees_with_hardly_any_features_used(tmp_path: Path) -> None:
    wide: dict[str, Any] = {
        "children_left": [1, -1, -1],
        "children_right": [2, -1, -1],
        "feature": [65_000, 0, 0],
    }
    wide |= {"threshold": [2.0**63, 0, 0], "value": [0, 1, 2], "n_features": 65_536}
    leaf: dict[str, Any] = {
        "children_left": [-1],
        "children_right": [-1],
        "feature": [-2],
        "threshold": [-2],
        "value": [[[1, 5]]],
    }
    for number, document in enumerate((wide, leaf)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(document))
        result = run("check", path, "--no-kernel", "--vectors", 3000)
        assert result.exit_code == 0, result.output


def test_import_of_a_pickle(tmp_path: Path) -> None:
    joblib.dump(DecisionTreeClassifier().fit([[0], [5]], ["x", "y"]), tmp_path / "m.joblib")
    refused = run("import", tmp_path / "m.joblib")
    assert refused.exit_code == 1
    assert "--trust-pickle" in refused.output
    assert run("import", tmp_path / "m.joblib", "--trust-pickle").exit_code == 0
    assert read_tree(tmp_path / "m.tree.json").classes == ("x", "y")


def test_a_pickle_of_another_version_is_told(tmp_path: Path) -> None:
    made = pickle.dumps(DecisionTreeClassifier().fit([[0], [5]], ["x", "y"]))
    other = b"0" + sklearn.__version__.encode()[1:]
    (tmp_path / "m.pkl").write_bytes(made.replace(sklearn.__version__.encode(), other))
    result = run("import", tmp_path / "m.pkl", "--trust-pickle")
    assert result.exit_code == 0
    assert "warning[O2C0718]" in result.output
    assert "UserWarning" not in result.output


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("command", [["import"], ["show"], ["check", "--no-kernel"]])
def test_a_hostile_pickle_is_never_read(command: list[str], protocol: int, tmp_path: Path) -> None:
    """Its code would make a file."""
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), protocol=protocol))
    result = run(*command, tmp_path / "m.pkl")
    assert result.exit_code == 1
    assert not (tmp_path / "ran").exists()


def test_show_prints_nothing_that_steers_a_terminal(tmp_path: Path) -> None:
    document = json.loads(tree_to_text(build(3, 2, 2, 1).tree))
    document["provenance"] = {"note": "\x1b[2J\ud800"}
    (tmp_path / "x.tree.json").write_text(json.dumps(document))
    result = run("show", tmp_path / "x.tree.json")
    assert result.exit_code == 0
    assert "note:" in result.output
    assert "\x1b" not in result.output


def test_show_tells_where_a_tree_comes_from_in_words(tmp_path: Path) -> None:
    told = {"boots": ["a", "b"], "seed": 4}
    write_tree(replace(build(5, 3, 2, 1).tree, provenance=told), tmp_path / "t.tree.json")
    shown = run("show", tmp_path / "t.tree.json").output.splitlines()
    assert {"boots: a, b", "seed: 4"} < set(shown)


def test_show_has_no_limit_of_depth(tmp_path: Path) -> None:
    write_tree(build(5000, 3, 2, 1, chain=True).tree, tmp_path / "deep.tree.json")
    text = run("show", tmp_path / "deep.tree.json")
    assert text.exit_code == 0
    assert len(text.output.splitlines()) > 10_001
    document = json.loads(run("show", tmp_path / "deep.tree.json", "--json").stdout)
    assert document["summary"]["depth"] == 5000
    assert len(document["nodes"]) == 10_001


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"{}", b'{"format": "o2c-tree", "version": 9}'])
@pytest.mark.parametrize("command", ["show", "check", "import"])
def test_broken_files_give_diagnostics(command: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    result = run(command, path)
    assert result.exit_code == 1
    assert "error[O2C07" in result.output
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.json"]


def test_train_writes_tree_and_report(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", rows(3, 30))
    arguments = [
        tmp_path / "p.parquet",
        "-o",
        tmp_path / "t.tree.json",
        "--quick",
        "--report",
        tmp_path / "report",
    ]
    result = CliRunner().invoke(train, [str(a) for a in arguments] + ["--no-families", "--own", "sctp_chunk"])
    assert result.exit_code == 0, result.output
    assert read_tree(tmp_path / "t.tree.json").provenance["profiles"] == ["p.parquet"]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["entries"]
    assert run("check", tmp_path / "t.tree.json", "--no-kernel", "--vectors", 2000).exit_code == 0


PROFILES = sorted((resource_directory("examples") / "profiles").glob("*.parquet"))


def test_the_sample_profiles_can_be_trained_on(tmp_path: Path) -> None:
    """Catches profiles of an older form: they are what who has no root can try training with."""
    options = ["-o", str(tmp_path / "t.tree.json"), "--quick", "--no-families", "--own", "sctp_chunk"]
    result = CliRunner().invoke(train, [*map(str, PROFILES), *options])
    assert result.exit_code == 0, result.output
    assert (
        result.output.splitlines()[2]
        == "382 samples of 780; left out: 398 near duplicates and 0 of rare classes"
    )
    assert "at least 50 samples in their line (3 of the 3 in all)" in result.output
    assert "no class counts" in result.output
    assert set(read_tree(tmp_path / "t.tree.json").classes) == {"sctp_chunk", "sctp_transport", "sk_buff"}
    result = CliRunner().invoke(train, [*map(str, PROFILES), *options, "--json"])
    document = json.loads(result.stdout)
    assert document["left_out"] == {"near duplicates": 398, "of rare classes": 0}
    assert document["macro_least"] == 50


def test_a_report_that_has_no_place_leaves_no_tree(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    tree, report = tmp_path / "t.tree.json", tmp_path / "taken"
    arguments = [*map(str, PROFILES), "-o", str(tree), "--quick", "--no-families", "--report", str(report)]
    result = CliRunner().invoke(train, arguments)
    assert result.exit_code == 1
    assert "needs a directory" in result.stderr
    assert not tree.exists()


def test_import_as_json(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.tree.json"
    document = json.loads(run("import", plain, "-o", target, "--json").stdout)
    assert document == {"tree": str(target), "nodes": 3, "depth": 1, "classes": ["0", "1"]}


def test_train_refuses_an_unknown_own_label(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", rows(3, 30))
    arguments = [
        str(tmp_path / "p.parquet"),
        "-o",
        str(tmp_path / "t.tree.json"),
        "--quick",
        "--own",
        "nothing",
    ]
    result = CliRunner().invoke(train, arguments)
    assert result.exit_code == 1
    assert "O2C0727" in result.output
    assert not (tmp_path / "t.tree.json").exists()


def test_every_code_of_trees_has_a_page() -> None:
    package = Path(o2cc.__file__).parent
    sources = [*(package / "trees").glob("*.py"), *(package / "cli").glob("t*.py")]
    used = {code for path in sources for code in re.findall(r"O2C07\d\d", path.read_text())}
    assert len(used) > 15
    assert [code for code in sorted(used) if explanation(code) is None] == []
