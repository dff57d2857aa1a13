# SPDX-License-Identifier: Apache-2.0
"""Tree files: what is written is read back; what is broken is told, with a code and never a traceback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from o2cc.diagnostics import DiagnosticError
from o2cc.trees.file import parse_json, read_tree, tree_from_document, tree_to_text, write_tree
from o2cc.trees.importer import import_document, import_json, import_pickle
from o2cc.trees.tree import Leaf, Test
from tests.unit.trees.made_trees import build


def codes(problem: pytest.ExceptionInfo[DiagnosticError]) -> set[str]:
    return {diagnostic.code for diagnostic in problem.value.diagnostics}


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=30)
def test_a_written_tree_is_read_back(tests: int, features: int, classes: int, seed: int) -> None:
    tree = build(tests, features, classes, seed).tree
    assert tree_from_document(parse_json(tree_to_text(tree).encode(), "t"), "t") == tree


def test_files_are_written_and_read(tmp_path: Path) -> None:
    tree = build(12, 3, 2, 1).tree
    write_tree(tree, tmp_path / "x.tree.json")
    assert read_tree(tmp_path / "x.tree.json") == tree
    assert [path.name for path in tmp_path.iterdir()] == ["x.tree.json"]


def document() -> dict[str, Any]:
    """Node 0 tests; 1 tests; 2, 3, 4 are leaves."""
    return {
        "format": "o2c-tree",
        "version": 2,
        "word_bits": 64,
        "missing_word": 0,
        "classes": ["a", "b"],
        "features": [{"kind": "word", "index": 0}, {"kind": "size", "index": 0}],
        "nodes": [
            {"feature": 0, "threshold": "0x10", "float": 16.5, "low": 1, "high": 2},
            {"feature": 1, "threshold": "never", "float": -1.0, "low": 3, "high": 4},
            {"class": 0, "confidence": 0.9, "bound": None, "samples": 3},
            {"class": 1, "confidence": 1.0, "bound": 0.5, "samples": 3},
            {"class": 1},
        ],
        "provenance": {},
    }


def test_the_document_itself_is_good() -> None:
    tree = tree_from_document(document(), "t")
    assert tree.nodes[0] == Test(0, 16, 1, 2, 16.5)
    assert tree.nodes[4] == Leaf(1, 1.0, None, 0)


BREAKAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other format": (lambda d: d.update(format="xgboost"), "O2C0702"),
    "newer version": (lambda d: d.update(version=3), "O2C0702"),
    "no version": (lambda d: d.pop("version"), "O2C0702"),
    "word size 32": (lambda d: d.update(word_bits=32), "O2C0703"),
    "missing words otherwise": (lambda d: d.update(missing_word=1), "O2C0703"),
    "no classes": (lambda d: d.update(classes=[]), "O2C0704"),
    "class without name": (lambda d: d.update(classes=["a", ""]), "O2C0711"),
    "class name steers a terminal": (lambda d: d.update(classes=["a", "\x1b[2Jb"]), "O2C0711"),
    "class name half a character": (lambda d: d.update(classes=["a", "\ud800"]), "O2C0711"),
    "class twice": (lambda d: d.update(classes=["a", "a"]), "O2C0711"),
    "no nodes": (lambda d: d.update(nodes=[]), "O2C0704"),
    "nodes no list": (lambda d: d.update(nodes={"a": 1}), "O2C0704"),
    "node no object": (lambda d: d["nodes"].append(7), "O2C0704"),
    "unknown kind": (lambda d: d["features"][0].update(kind="words"), "O2C0709"),
    "negative word": (lambda d: d["features"][0].update(index=-1), "O2C0709"),
    "feature number": (lambda d: d["nodes"][0].update(feature=2), "O2C0709"),
    "feature is text": (lambda d: d["nodes"][0].update(feature="0"), "O2C0709"),
    "feature is true": (lambda d: d["nodes"][0].update(feature=True), "O2C0709"),
    "threshold too large": (lambda d: d["nodes"][0].update(threshold="0x1" + "0" * 16), "O2C0705"),
    "threshold a number": (lambda d: d["nodes"][0].update(threshold=16), "O2C0705"),
    "threshold not hexadecimal": (lambda d: d["nodes"][0].update(threshold="0xzz"), "O2C0705"),
    "threshold with underscores": (lambda d: d["nodes"][0].update(threshold="0x_1"), "O2C0705"),
    "float NaN": (lambda d: d["nodes"][0].update(float=float("nan")), "O2C0705"),
    "float infinite": (lambda d: d["nodes"][0].update(float=float("inf")), "O2C0705"),
    "float huge": (lambda d: d["nodes"][0].update(float=10**400), "O2C0705"),
    "child missing": (lambda d: d["nodes"][0].update(high=9), "O2C0707"),
    "child negative": (lambda d: d["nodes"][0].update(high=-1), "O2C0707"),
    "no child": (lambda d: d["nodes"][0].pop("high"), "O2C0707"),
    "cycle to root": (lambda d: d["nodes"][1].update(high=0), "O2C0706"),
    "cycle to itself": (lambda d: d["nodes"][1].update(high=1), "O2C0706"),
    "two parents": (lambda d: d["nodes"][1].update(high=2), "O2C0706"),
    "unreachable": (lambda d: d["nodes"].append({"class": 0}), "O2C0708"),
    "island": (
        lambda d: d["nodes"].extend(
            [{"feature": 0, "threshold": "0x1", "float": 1.0, "low": 5, "high": 6}, {"class": 0}]
        ),
        "O2C0706",
    ),
    "class number": (lambda d: d["nodes"][2].update({"class": 2}), "O2C0711"),
    "confidence above one": (lambda d: d["nodes"][2].update(confidence=1.5), "O2C0711"),
    "bound NaN": (lambda d: d["nodes"][2].update(bound=float("nan")), "O2C0711"),
    "samples negative": (lambda d: d["nodes"][2].update(samples=-1), "O2C0711"),
    "million nodes": (lambda d: d.update(nodes=[{"class": 0}] * 10**6), "O2C0710"),
    "many features": (lambda d: d.update(features=[{"kind": "word", "index": 0}] * 70_000), "O2C0710"),
    "provenance": (lambda d: d.update(provenance=[]), "O2C0704"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_tree_is_told(name: str) -> None:
    broken, (spoil, code) = document(), BREAKAGES[name]
    spoil(broken)
    with pytest.raises(DiagnosticError) as problem:
        tree_from_document(broken, "t.tree.json")
    assert code in codes(problem)
    assert all(diagnostic.path == "t.tree.json" for diagnostic in problem.value.diagnostics)


def test_all_problems_are_told_at_once_but_not_thousands() -> None:
    broken = document()
    broken["nodes"] = [{"class": 5}] * 1000
    with pytest.raises(DiagnosticError) as problem:
        tree_from_document(broken, "t")
    assert len(problem.value.diagnostics) == 20
    assert any("980 more" in note for d in problem.value.diagnostics for note in d.notes)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"\x80\x04\x95junk",
        b"\xff\xfe{}",
        b"{",
        b"[1]",
        b"3",
        b"[" * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_json_is_told(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "junk.json"
    path.write_bytes(data)
    with pytest.raises(DiagnosticError) as problem:
        import_json(path)
    assert codes(problem) <= {"O2C0701", "O2C0704"}


@pytest.mark.parametrize("nested", [False, True])
def test_a_name_that_comes_twice_is_told(nested: bool) -> None:
    """One reader of JSON would take the first `value`, another the last: two trees in one file."""
    text = json.dumps(document() if nested else plain())
    text = text.replace('"class": 0', '"class": 1, "class": 0') if nested else text[:-1] + ', "value": []}'
    with pytest.raises(DiagnosticError, match="twice") as problem:
        parse_json(text.encode(), "t")
    assert codes(problem) == {"O2C0701"}


@pytest.mark.parametrize("item", ["{}", "[]"])
def test_a_file_of_millions_of_containers_is_refused_before_it_is_read(item: str) -> None:
    """Each takes thirty times its length in memory: 256 MiB of them took six gigabytes."""
    data = ('{"value": [' + ",".join([item] * 1_000_001) + "]}").encode()
    with pytest.raises(DiagnosticError) as problem:
        parse_json(data, "t")
    assert codes(problem) == {"O2C0710"}


def test_json_nested_to_any_depth_gives_a_diagnostic() -> None:
    """Whether it is too deep to be read, or only too deep to be shown in the message."""
    for depth in range(700, 1100):
        data = f'{{"format": {"[" * depth}{"]" * depth}}}'.encode()
        with pytest.raises(DiagnosticError):
            import_document(parse_json(data, "t"), "t")


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_random_bytes_never_give_anything_but_a_diagnostic(data: bytes) -> None:
    with pytest.raises(DiagnosticError):
        import_document(parse_json(data, "t"), "t")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@given(st.sampled_from(sorted(document())), JSON)
@settings(max_examples=200)
def test_a_field_of_any_kind_never_gives_anything_but_a_diagnostic(field: str, value: Any) -> None:
    changed = document()
    changed[field] = value
    with contextlib.suppress(DiagnosticError):
        tree_from_document(changed, "t")


def plain() -> dict[str, Any]:
    return {
        "children_left": [1, -1, 3, -1, -1],
        "children_right": [2, -1, 4, -1, -1],
        "feature": [0, -2, 3, -2, -2],
        "threshold": [7.5, -2.0, 2.0**63, -2.0, -2.0],
        "value": [0, 4, 0, 9, 4],
    }


@given(st.sampled_from([*sorted(plain()), "n_features", "classes", "n_node_samples"]), JSON)
@settings(max_examples=200)
def test_plain_fields_of_any_kind_never_give_anything_but_a_diagnostic(field: str, value: Any) -> None:
    changed = plain()
    changed[field] = value
    with contextlib.suppress(DiagnosticError):
        import_document(changed, "t")


def test_plain_json_with_classes() -> None:
    tree = import_document(plain(), "t").tree
    assert tree.classes == ("4", "9")
    assert len(tree.features) == 4
    vectors = np.array(
        [[7, 0, 0, 0], [8, 0, 0, 2**63 + 2**39], [8, 0, 0, 2**63 + 2**39 + 1]], dtype=np.uint64
    )
    assert [tree.classes[label] for label in tree.predict(vectors)] == ["4", "9", "4"]


@pytest.mark.parametrize("nested", [False, True])
def test_plain_json_with_weights_takes_the_first_of_the_largest(nested: bool) -> None:
    weights = [[9, 9, 9], [2, 5, 5], [0, 0, 1], [0.25, 0.25, 0.5], [0, 0, 0]]
    document = plain() | {"value": [[w] if nested else w for w in weights], "classes": ["x", "y", "z"]}
    tree = import_document(document, "t").tree
    assert [node.label for node in tree.nodes if isinstance(node, Leaf)] == [1, 2, 0]


def test_plain_json_with_names_and_features() -> None:
    tree = import_document(plain() | {"value": ["", "b", "", "a", "b"], "n_features": 10}, "t").tree
    assert tree.classes == ("a", "b")
    assert len(tree.features) == 10


PLAIN_BREAKAGES: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"threshold": [float("nan"), 0, 1, 0, 0]}, "O2C0705"),
    "infinite": ({"threshold": [7.5, 0, float("-inf"), 0, 0]}, "O2C0705"),
    "cycle": ({"children_left": [1, -1, 2, -1, -1]}, "O2C0706"),
    "back to the root": ({"children_left": [1, -1, 0, -1, -1]}, "O2C0706"),
    "child missing": ({"children_left": [1, -1, 5, -1, -1]}, "O2C0707"),
    "one child": ({"children_left": [1, -1, -1, -1, -1]}, "O2C0707"),
    "unreachable": ({"children_left": [1, -1, -1, -1, -1], "children_right": [2, -1, -1, -1, -1]}, "O2C0708"),
    "feature": ({"feature": [0, 0, -1, 0, 0]}, "O2C0709"),
    "feature above": ({"n_features": 3}, "O2C0709"),
    "n_features": ({"n_features": 0}, "O2C0709"),
    "lengths": ({"value": [1, 2]}, "O2C0704"),
    "no list": ({"feature": 3}, "O2C0704"),
    "empty": ({name: [] for name in plain()}, "O2C0704"),
    "large": ({name: [0] * 10**6 for name in plain()}, "O2C0710"),
    "half class": ({"value": [0, 1.5, 0, 1, 1]}, "O2C0711"),
    "mixed": ({"value": [0, 1, 0, [1, 2], 1]}, "O2C0711"),
    "widths": ({"value": [[1], [1, 2], [1], [1, 2, 3], [1, 2]]}, "O2C0711"),
    "weights NaN": ({"value": [[1], [1, float("nan")], [1], [1, 2], [1, 2]]}, "O2C0711"),
    "name steers a terminal": ({"value": ["", "b", "", "\x1b[2J", "b"]}, "O2C0711"),
    "child of 70 bits": ({"children_left": [2**70, -1, 3, -1, -1]}, "O2C0704"),
    "names": ({"value": [[1], [1, 2], [1], [1, 2], [1, 2]], "classes": ["a"]}, "O2C0711"),
}


@pytest.mark.parametrize("name", PLAIN_BREAKAGES)
def test_broken_plain_json_is_told(name: str) -> None:
    change, code = PLAIN_BREAKAGES[name]
    with pytest.raises(DiagnosticError) as problem:
        import_document(plain() | change, "t")
    assert code in codes(problem)


def test_a_pickle_needs_trust(tmp_path: Path) -> None:
    model = DecisionTreeClassifier().fit([[0], [5]], ["x", "y"])
    joblib.dump(model, tmp_path / "m.joblib")
    with pytest.raises(DiagnosticError, match="O2C0712"):
        import_pickle(tmp_path / "m.joblib", trusted=False)
    tree = import_pickle(tmp_path / "m.joblib", trusted=True).tree
    assert tree.classes == ("x", "y")
    assert [tree.classes[k] for k in tree.predict(np.array([[2], [3]], dtype=np.uint64))] == ["x", "y"]


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeRegressor().fit([[0], [5]], [0.5, 1.5]),
        RandomForestClassifier(2).fit([[0], [5]], [0, 1]),
        DecisionTreeClassifier(),
        DecisionTreeClassifier().fit([[0], [5]], [[0, 1], [1, 0]]),
        {"a": 1},
    ],
    ids=["regressor", "forest", "unfitted", "two outputs", "no model"],
)
def test_other_models_are_refused(model: Any, tmp_path: Path) -> None:
    joblib.dump(model, tmp_path / "m.joblib")
    with pytest.raises(DiagnosticError, match="O2C0713"):
        import_pickle(tmp_path / "m.joblib", trusted=True)


def test_a_broken_pickle_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04junk")
    with pytest.raises(DiagnosticError, match="O2C0713"):
        import_pickle(tmp_path / "m.pkl", trusted=True)
