# SPDX-License-Identifier: Apache-2.0
"""Fitted scikit-learn trees, and plain JSON of the same arrays, turned into integer trees.

Plain JSON is an object of parallel lists, one item a node: `children_left`, `children_right` (both -1 for a
leaf), `feature`, `threshold`, `value`; optional `n_features`, `classes`, `n_node_samples`.  An item of
`value` is a class (an integer or a name), or scikit-learn's array of weights by class (`[[w0, w1, ...]]` or
`[w0, w1, ...]`), of which the largest wins and the first of equal ones, as `predict` does.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from o2cc.diagnostics import Diagnostic, DiagnosticError, warning
from o2cc.files import read_bytes
from o2cc.trees.file import (
    MAX_FILE_BYTES,
    check_class_names,
    fail,
    is_tree_document,
    parse_finite,
    read_document,
    shown,
    tree_from_document,
)
from o2cc.trees.reference import FloatTree
from o2cc.trees.structure import Problems, check_structure
from o2cc.trees.thresholds import NEVER, integer_thresholds
from o2cc.trees.tree import MAX_FEATURES, MAX_NODES, Feature, FeatureKind, IntegerTree, Leaf, Node, Test

ARRAYS = ("children_left", "children_right", "feature", "threshold", "value")


@dataclass(frozen=True)
class Imported:
    """An integer tree together with the floating-point one that it must agree with; `notes` are warnings about the file."""

    tree: IntegerTree
    reference: FloatTree
    notes: tuple[Diagnostic, ...] = ()


def reference_of(tree: IntegerTree) -> FloatTree:
    """The floating-point tree that an integer tree stands for, from the thresholds kept in it."""
    nodes = tree.nodes
    return FloatTree(
        np.array([n.low if isinstance(n, Test) else -1 for n in nodes], dtype=np.int64),
        np.array([n.high if isinstance(n, Test) else -1 for n in nodes], dtype=np.int64),
        np.array([n.feature if isinstance(n, Test) else -2 for n in nodes], dtype=np.int64),
        np.array([n.source_threshold if isinstance(n, Test) else -2.0 for n in nodes], dtype=np.float64),
        np.array([-1 if isinstance(n, Test) else n.label for n in nodes], dtype=np.int64),
        len(tree.features),
    )


def only_used_features(imported: Imported) -> Imported:
    """The same trees over the features that they test, in order: vectors need no others."""
    used = imported.tree.used_features or (0,)
    if len(used) == len(imported.tree.features):
        return imported
    place = {feature: number for number, feature in enumerate(used)}
    tree = imported.tree
    nodes = tuple(replace(n, feature=place[n.feature]) if isinstance(n, Test) else n for n in tree.nodes)
    reference = imported.reference
    feature = [
        place[number] if left != -1 else -2
        for number, left in zip(reference.feature.tolist(), reference.children_left.tolist(), strict=True)
    ]
    return Imported(
        IntegerTree(nodes, tree.classes, tuple(tree.features[f] for f in used), tree.provenance),
        replace(reference, feature=np.array(feature, dtype=np.int64), n_features=len(used)),
    )


def tree_from_arrays(
    reference: FloatTree,
    classes: Sequence[str],
    *,
    features: Sequence[Feature] | None = None,
    confidences: Sequence[float] | None = None,
    samples: Sequence[int] | None = None,
    bounds: Sequence[float | None] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> IntegerTree:
    """The exact integer form of a valid floating-point tree; `features` are raw words unless given."""
    largest, exists = integer_thresholds(reference.threshold)
    nodes: list[Node] = []
    for number, left in enumerate(reference.children_left.tolist()):
        if left == -1:
            nodes.append(
                Leaf(
                    int(reference.label[number]),
                    1.0 if confidences is None else confidences[number],
                    None if bounds is None else bounds[number],
                    0 if samples is None else samples[number],
                )
            )
        else:
            threshold = int(largest[number]) if exists[number] else NEVER
            right, feature = int(reference.children_right[number]), int(reference.feature[number])
            nodes.append(Test(feature, threshold, left, right, float(reference.threshold[number])))
    named = features or [Feature(FeatureKind.WORD, index) for index in range(reference.n_features)]
    return IntegerTree(tuple(nodes), tuple(classes), tuple(named), dict(provenance or {}))


def import_document(document: Mapping[str, Any], path: str) -> Imported:
    """A tree from parsed JSON of either form: an o2c tree, or plain arrays."""
    if is_tree_document(document):
        tree = tree_from_document(document, path)
        return Imported(tree, reference_of(tree))
    return _import_plain(document, path)


def import_json(path: Path) -> Imported:
    """Read a tree from a JSON file of either form; DiagnosticError when it is broken."""
    return import_document(read_document(path), str(path))


def _import_plain(document: Mapping[str, Any], path: str) -> Imported:
    problems = Problems(path)
    arrays: dict[str, list[Any]] = {}
    for name in ARRAYS:
        value = document.get(name)
        if not isinstance(value, list):
            problems.add("O2C0704", f"`{name}` must be a list with one item for each node")
        else:
            arrays[name] = value
    problems.raise_if_any()
    count = len(arrays["children_left"])
    for name, value in arrays.items():
        if len(value) != count:
            problems.add("O2C0704", f"`{name}` has {len(value)} items, `children_left` has {count}")
    if not count:
        problems.add("O2C0704", "the tree has no nodes")
    if count > MAX_NODES:
        problems.add("O2C0710", f"the tree has {count:,} nodes, the limit is {MAX_NODES:,}")
    problems.raise_if_any()
    left = _integers(arrays["children_left"], "children_left", problems)
    right = _integers(arrays["children_right"], "children_right", problems)
    problems.raise_if_any()
    is_leaf = [pair == (-1, -1) for pair in zip(left, right, strict=True)]
    tests = [number for number in range(count) if not is_leaf[number]]
    leaves = [number for number in range(count) if is_leaf[number]]
    feature = _test_features(document, arrays["feature"], tests, problems)
    threshold = [-2.0] * count
    for number in tests:
        value = parse_finite(arrays["threshold"][number])
        if value is None:
            found = shown(arrays["threshold"][number])
            problems.add("O2C0705", f"node {number} has threshold {found}, not a finite number")
        else:
            threshold[number] = value
    check_structure(left, right, problems)
    answers = _answers(arrays["value"], leaves, problems)
    n_features = document.get("n_features", max((feature[n] for n in tests), default=0) + 1)
    samples = document.get("n_node_samples")
    if samples is not None and (not isinstance(samples, list) or len(samples) != count):
        problems.add("O2C0704", "`n_node_samples` must have one item for each node")
    problems.raise_if_any()
    classes, label, confidences = _classes(document.get("classes"), answers, count, problems)
    check_class_names(classes, problems)
    sample_counts = _integers(samples, "n_node_samples", problems) if samples is not None else None
    problems.raise_if_any()
    reference = FloatTree(
        np.array(left, dtype=np.int64),
        np.array(right, dtype=np.int64),
        np.array(feature, dtype=np.int64),
        np.array(threshold, dtype=np.float64),
        np.array(label, dtype=np.int64),
        n_features,
    )
    tree = tree_from_arrays(
        reference,
        classes,
        confidences=confidences,
        samples=sample_counts,
        provenance={"imported_from": Path(path).name, "form": "plain arrays"},
    )
    return Imported(tree, reference)


def _integers(values: Sequence[object], name: str, problems: Problems) -> list[int]:
    """Items as integers of at most 64 bits; -1 and a problem where one is none."""
    result = []
    for number, value in enumerate(values):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
            result.append(value)
        else:
            problems.add("O2C0704", f"`{name}` of node {number} is {shown(value)}, not an integer of 64 bits")
            result.append(-1)
    return result


def _test_features(
    document: Mapping[str, Any], values: Sequence[object], tests: Sequence[int], problems: Problems
) -> list[int]:
    """Feature numbers by node, 0 for leaves."""
    limit = document.get("n_features", MAX_FEATURES)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_FEATURES:
        problems.add("O2C0709", f"`n_features` is {shown(limit)}, not from 1 to {MAX_FEATURES}")
        limit = MAX_FEATURES
    features = [0] * len(values)
    for number in tests:
        value = values[number]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
            problems.add(
                "O2C0709", f"node {number} tests feature {shown(value)}, features are 0 to {limit - 1}"
            )
        else:
            features[number] = value
    return features


Answer = int | str | tuple[float, ...]


def _answers(values: Sequence[object], leaves: Sequence[int], problems: Problems) -> dict[int, Answer]:
    """What each leaf says: a class, or the weights of all classes."""
    answers: dict[int, Answer] = {}
    for number in leaves:
        answer = _answer(values[number])
        if answer is None:
            problems.add(
                "O2C0711",
                f"leaf {number} has value {shown(values[number])}, neither a class nor weights of classes",
            )
        else:
            answers[number] = answer
    kinds = {"weights" if isinstance(a, tuple) else type(a).__name__ for a in answers.values()}
    if len(kinds) > 1:
        problems.add("O2C0711", "some leaves give a class and others weights or names of classes")
    widths = {len(a) for a in answers.values() if isinstance(a, tuple)}
    if len(widths) > 1:
        problems.add("O2C0711", f"leaves weigh different numbers of classes: {sorted(widths)}")
    return answers


def _answer(value: object) -> Answer | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], list):
            value = value[0]
        weights = [parse_finite(weight) for weight in value]
        if not weights or any(weight is None or weight < 0 for weight in weights):
            return None
        return tuple(weight for weight in weights if weight is not None)
    number = parse_finite(value)
    if number is None or not number.is_integer() or not -(2**63) <= number < 2**63:
        return None
    return int(value) if isinstance(value, int) else int(number)


def _classes(
    names: object, answers: Mapping[int, Answer], count: int, problems: Problems
) -> tuple[list[str], list[int], list[float]]:
    """Names of the classes, and by node the class number and the confidence."""
    label, confidences = [-1] * count, [1.0] * count
    given = names if isinstance(names, list) and all(isinstance(n, str | int) for n in names) else None
    if names is not None and (not given or len({str(n) for n in given}) < len(given)):
        problems.add("O2C0711", "`classes` must be a list of different names")
        return [], label, confidences
    if any(isinstance(a, tuple) for a in answers.values()):
        width = max(len(a) for a in answers.values() if isinstance(a, tuple))
        if given is not None and len(given) != width:
            problems.add("O2C0711", f"`classes` has {len(given)} names, `value` weighs {width} classes")
        for number, weights in answers.items():
            assert isinstance(weights, tuple)
            label[number] = weights.index(max(weights))
            total = sum(weights)
            confidences[number] = min(1.0, max(weights) / total) if total else 0.0
        return [str(n) for n in given or range(width)], label, confidences
    distinct = sorted(set(answers.values()), key=lambda a: (isinstance(a, str), a))
    if given is None:
        known: list[Any] = list(distinct)
    elif all(isinstance(a, int) for a in distinct) and all(isinstance(n, str) for n in given):
        known = list(range(len(given)))  # the classes are numbers that count in the list of names
    else:
        known = list(given)
    position = {name: place for place, name in enumerate(known)}
    for number, answer in answers.items():
        if answer not in position:
            problems.add("O2C0711", f"leaf {number} is of class `{answer}`, which `classes` does not have")
        else:
            label[number] = position[answer]
    return [str(n) for n in given or known], label, confidences


def import_estimator(estimator: Any, path: str, features: Sequence[Feature] | None = None) -> Imported:
    """A fitted `DecisionTreeClassifier`; DiagnosticError for anything else."""
    kind = type(estimator).__name__
    state = getattr(estimator, "tree_", None)
    if state is None or not hasattr(estimator, "classes_"):
        fail(
            "O2C0713",
            f"the file holds a `{kind}`, not a fitted DecisionTreeClassifier",
            path,
            "forests and pipelines have no exact form as one tree",
        )
    if estimator.n_outputs_ != 1:
        fail("O2C0713", f"the tree predicts {estimator.n_outputs_} outputs at once, it must be one", path)
    if state.node_count > MAX_NODES:
        fail("O2C0710", f"the tree has {state.node_count:,} nodes, the limit is {MAX_NODES:,}", path)
    weights = state.value[:, 0, :]
    problems = Problems(path)
    left, right = state.children_left.tolist(), state.children_right.tolist()
    check_structure(left, right, problems)
    for number in np.flatnonzero((state.children_left != -1) & ~np.isfinite(state.threshold)).tolist():
        problems.add(
            "O2C0705", f"node {number} has threshold `{state.threshold[number]}`, not a finite number"
        )
    inner = state.children_left != -1
    if ((state.feature[inner] < 0) | (state.feature[inner] >= estimator.n_features_in_)).any():
        problems.add("O2C0709", f"a node tests a feature outside 0 to {estimator.n_features_in_ - 1}")
    check_class_names([str(name) for name in estimator.classes_], problems)
    problems.raise_if_any()
    reference = FloatTree(
        state.children_left.astype(np.int64),
        state.children_right.astype(np.int64),
        state.feature.astype(np.int64),
        state.threshold.astype(np.float64),
        np.argmax(weights, axis=1).astype(np.int64),
        int(estimator.n_features_in_),
    )
    shares = weights.max(axis=1) / np.maximum(weights.sum(axis=1), np.finfo(np.float64).tiny)
    tree = tree_from_arrays(
        reference,
        [str(name) for name in estimator.classes_],
        features=features,
        confidences=np.clip(shares, 0.0, 1.0).tolist(),
        samples=state.n_node_samples.tolist(),
        provenance={"imported_from": Path(path).name, "form": f"scikit-learn {kind}"},
    )
    return Imported(tree, reference)


def import_pickle(path: Path, *, trusted: bool) -> Imported:
    """A fitted tree from a pickle or joblib file.

    Reading a pickle runs whatever code its author put in, so that `trusted` must say that the author is
    trusted; otherwise DiagnosticError without reading.
    """
    if not trusted:
        fail(
            "O2C0712",
            "reading a pickle runs any code that its author put into it",
            str(path),
            "pass --trust-pickle if you made the file yourself, or import plain JSON instead",
        )
    data = read_bytes(path, limit=MAX_FILE_BYTES)
    try:
        import joblib

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            estimator = joblib.load(io.BytesIO(data))
    except DiagnosticError:
        raise
    except Exception as problem:
        fail(
            "O2C0713", f"the pickle cannot be read: {type(problem).__name__}: {str(problem)[:200]}", str(path)
        )
    versions = [w.message for w in said if type(w.message).__name__ == "InconsistentVersionWarning"]
    notes = tuple(
        warning(
            "O2C0718",
            f"the tree was made by scikit-learn {getattr(message, 'original_sklearn_version', 'of another version')}, "
            f"read by {getattr(message, 'current_sklearn_version', 'this one')}",
            path=str(path),
            help="check its predictions, or import plain JSON of its arrays instead",
        )
        for message in versions[:1]
    )
    return replace(import_estimator(estimator, str(path)), notes=notes)


def looks_like_pickle(path: Path) -> bool:
    """Whether a file is a pickle or a compressed joblib file, by its first bytes; False when unreadable."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return start[:1] == b"\x80" or start in (
        b"\x1f\x8b",
        b"BZ",
        b"\xfd7",
        b"x\x9c",
        b"x\x01",
        b"x\xda",
        b"\x04\x22",
    )
