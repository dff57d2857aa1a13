# SPDX-License-Identifier: Apache-2.0
"""`NAME.tree.json`: the file that an integer tree is kept in.

The format is JSON of one object:

    format        "o2c-tree"
    version       2
    word_bits     64
    missing_word  0, the value of a raw word past the object's end
    classes       names of the classes; a leaf's `class` counts in this list
    features      inputs, each {"kind": "word" | "word-class" | "self-offset" | "low" | "high" | "size" | "cache-flags", "index": n}
    nodes         node 0 is the root.  A test is {"feature", "threshold", "float", "low", "high"}: a word
                  at most `threshold` goes to node `low`, any other to `high`; `threshold` is a
                  hexadecimal string, or "never" when no word passes; `float` is the float64 threshold
                  it stands for.  A leaf is {"class", "confidence", "bound", "samples"}.
    provenance    where the tree comes from

Reading and writing are pure; `read_tree` and `write_tree` do the I/O.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from o2cc.diagnostics import DiagnosticError, did_you_mean, error
from o2cc.files import read_bytes, write_atomic
from o2cc.trees.structure import Problems, check_structure
from o2cc.trees.thresholds import NEVER
from o2cc.trees.tree import (
    MAX_FEATURES,
    MAX_NODES,
    MISSING_WORD,
    WORD_BITS,
    Feature,
    FeatureKind,
    IntegerTree,
    Leaf,
    Node,
    Test,
)

HEXADECIMAL = re.compile("0x[0-9a-fA-F]{1,16}")
FORMAT = "o2c-tree"
VERSION = 2
MAX_FILE_BYTES = 256 * 2**20
MOST_CONTAINERS = 10 * MAX_NODES
"""Lists and objects of one file: a node takes one, or three with scikit-learn's weights.  Each costs far more memory than its
two bytes in the file."""


def fail(code: str, message: str, path: str, help: str | None = None) -> NoReturn:
    """Raise one diagnostic about a file."""
    raise DiagnosticError(error(code, message, path=path, help=help))


def parse_json(data: bytes, path: str) -> dict[str, Any]:
    """The object in `data`; DiagnosticError when it is not one."""
    if not data.strip():
        fail("O2C0701", "the file is empty", path, "`o2c train` and `o2c tree import` write tree files")
    containers = data.count(b"[") + data.count(b"{")
    if containers > MOST_CONTAINERS:
        fail(
            "O2C0710",
            f"the file holds {containers:,} lists and objects, the limit is {MOST_CONTAINERS:,}",
            path,
            f"a tree has at most {MAX_NODES:,} nodes",
        )
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError:
        fail(
            "O2C0701",
            "the file is binary, not JSON",
            path,
            "`o2c tree import` takes pickled scikit-learn trees",
        )
    except _RepeatedNameError as problem:
        fail("O2C0701", str(problem), path)
    except RecursionError:
        fail("O2C0701", "the file is JSON that is nested too deep for a tree", path)
    except ValueError as problem:
        if "int_max_str_digits" in str(problem):  # the limit of Python's own conversion, 4,300
            fail("O2C0701", "the file has a number of thousands of digits", path)
        fail("O2C0701", f"the file is not JSON: {_lower_first(str(problem))}", path)
    if not isinstance(document, dict):
        fail("O2C0701", "the file holds JSON, but not an object with the fields of a tree", path)
    return document


class _RepeatedNameError(Exception):
    """Of a name that an object has twice, one JSON reader takes the first value and another the last."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _RepeatedNameError(f"an object of the file has {shown(name)} twice")
        result[name] = value
    return result


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def is_tree_document(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object says that it is an o2c tree, of whatever version."""
    return "format" in document or "nodes" in document


def tree_from_document(document: Mapping[str, Any], path: str) -> IntegerTree:
    """The tree that a parsed file describes; DiagnosticError with everything that is wrong with it."""
    _check_header(document, path)
    problems = Problems(path)
    classes = _strings(document.get("classes"), "classes", problems)
    features = _features(document.get("features"), problems)
    entries = document.get("nodes")
    if not isinstance(entries, list) or not entries:
        problems.add("O2C0704", "`nodes` must be a list with at least one node")
        entries = []
    if len(entries) > MAX_NODES:
        problems.add("O2C0710", f"the tree has {len(entries):,} nodes, the limit is {MAX_NODES:,}")
        entries = []
    provenance = document.get("provenance", {})
    if not isinstance(provenance, dict):
        problems.add("O2C0704", "`provenance` must be an object")
    problems.raise_if_any()
    nodes = [
        _node(number, entry, len(features), len(classes), problems) for number, entry in enumerate(entries)
    ]
    problems.raise_if_any()
    check_structure(
        [node.low if isinstance(node, Test) else -1 for node in nodes],
        [node.high if isinstance(node, Test) else -1 for node in nodes],
        problems,
    )
    problems.raise_if_any()
    return IntegerTree(tuple(nodes), tuple(classes), tuple(features), provenance)


def _check_header(document: Mapping[str, Any], path: str) -> None:
    if document.get("format") != FORMAT:
        help = "`o2c tree import` makes a tree file of plain arrays" if "children_left" in document else None
        fail("O2C0702", f"`format` is {shown(document.get('format'))}, not `{FORMAT}`", path, help)
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        fail(
            "O2C0702",
            f"the tree is of version {shown(version)}, this o2c reads version {VERSION}",
            path,
            "train or import the tree again with this o2c",
        )
    bits = document.get("word_bits")
    if bits != WORD_BITS:
        fail("O2C0703", f"the tree is for words of {shown(bits)} bits, kernels here have {WORD_BITS}", path)
    if document.get("missing_word") != MISSING_WORD:
        missing = shown(document.get("missing_word"))
        fail("O2C0703", f"the tree takes missing words as {missing}, the kernel gives {MISSING_WORD}", path)


def shown(value: object) -> str:
    """A JSON value for a message, short."""
    try:
        text = "missing" if value is None else json.dumps(value, default=str)
    except RecursionError:  # it was read with fewer callers above
        return "nested too deep"
    return text if len(text) <= 40 else text[:37] + "..."


def _strings(value: object, name: str, problems: Problems) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(set(value)) < len(value):
            problems.add("O2C0711", f"`{name}` names a class twice")
        check_class_names(value, problems)
        return value
    problems.add("O2C0704", f"`{name}` must be a list with at least one name")
    return []


def check_class_names(names: Sequence[str], problems: Problems) -> None:
    """Report names that cannot be printed: control characters, which could steer a terminal, and halves of characters."""
    for name in names:
        if not name.isprintable() or not name:
            problems.add("O2C0711", f"the class name {shown(name)} is empty or cannot be printed")


def _features(value: object, problems: Problems) -> list[Feature]:
    if not isinstance(value, list) or not value:
        problems.add("O2C0704", "`features` must be a list with at least one feature")
        return []
    if len(value) > MAX_FEATURES:
        problems.add("O2C0710", f"the tree names {len(value):,} features, the limit is {MAX_FEATURES:,}")
        return []
    features = []
    for number, entry in enumerate(value):
        kind = entry.get("kind") if isinstance(entry, dict) else None
        index = entry.get("index", 0) if isinstance(entry, dict) else None
        if kind not in tuple(FeatureKind):
            help = did_you_mean(kind, tuple(FeatureKind)) if isinstance(kind, str) else None
            problems.add(
                "O2C0709", f"feature {number} is of kind {shown(kind)}, which is not known", help=help
            )
        elif not _is_integer(index) or not 0 <= index < MAX_FEATURES:
            problems.add(
                "O2C0709", f"feature {number} is of word {shown(index)}, not of 0 to {MAX_FEATURES - 1}"
            )
        else:
            features.append(Feature(FeatureKind(kind), index))
    return features


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _node(number: int, entry: object, feature_count: int, class_count: int, problems: Problems) -> Node:
    """A node of the file; a placeholder leaf after a problem."""
    if isinstance(entry, dict) and "feature" in entry:
        node: Node | None = _test(number, entry, feature_count, problems)
    elif isinstance(entry, dict) and "class" in entry:
        node = _leaf(number, entry, class_count, problems)
    else:
        problems.add("O2C0704", f"node {number} is neither a test with a `feature` nor a leaf with a `class`")
        node = None
    return node or Leaf(0)


def _test(number: int, entry: Mapping[str, Any], feature_count: int, problems: Problems) -> Test | None:
    feature, low, high = entry["feature"], entry.get("low"), entry.get("high")
    if not _is_integer(feature) or not 0 <= feature < feature_count:
        problems.add(
            "O2C0709", f"node {number} tests feature {shown(feature)}, the tree has 0 to {feature_count - 1}"
        )
        return None
    if not _is_integer(low) or not _is_integer(high) or low < 0 or high < 0:
        problems.add(
            "O2C0707", f"node {number} has children {shown(low)} and {shown(high)}, which are no nodes"
        )
        return None
    threshold = parse_threshold(entry.get("threshold"))
    if threshold is None:
        found = shown(entry.get("threshold"))
        problems.add(
            "O2C0705", f"node {number} has threshold {found}, not `never` or a hexadecimal 64-bit word"
        )
        return None
    source = parse_finite(entry.get("float"))
    if source is None:
        problems.add(
            "O2C0705", f"node {number} has float threshold {shown(entry.get('float'))}, not a finite number"
        )
        return None
    return Test(feature, threshold, low, high, source)


def parse_threshold(value: object) -> int | None:
    """An integer threshold of a file, or None when it is none."""
    if value == "never":
        return NEVER
    if not isinstance(value, str) or not HEXADECIMAL.fullmatch(value):
        return None
    return int(value, 16)


def parse_finite(value: object) -> float | None:
    """A JSON number as float64, or None when it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _leaf(number: int, entry: Mapping[str, Any], class_count: int, problems: Problems) -> Leaf | None:
    label, samples = entry["class"], entry.get("samples", 0)
    confidence = parse_finite(entry.get("confidence", 1.0))
    bound = entry.get("bound")
    lower = None if bound is None else parse_finite(bound)
    if not _is_integer(label) or not 0 <= label < class_count:
        problems.add(
            "O2C0711", f"node {number} is of class {shown(label)}, the tree has 0 to {class_count - 1}"
        )
    elif confidence is None or not 0 <= confidence <= 1:
        problems.add(
            "O2C0711", f"node {number} has confidence {shown(entry.get('confidence'))}, not from 0 to 1"
        )
    elif bound is not None and (lower is None or not 0 <= lower <= 1):
        problems.add("O2C0711", f"node {number} has bound {shown(bound)}, not from 0 to 1")
    elif not _is_integer(samples) or samples < 0:
        problems.add("O2C0711", f"node {number} has {shown(samples)} samples")
    else:
        return Leaf(label, confidence, lower, samples)
    return None


def format_threshold(threshold: int) -> str:
    """As the file writes it."""
    return "never" if threshold == NEVER else f"{threshold:#x}"


def node_fields(node: Node) -> dict[str, object]:
    """A node as the file writes it."""
    if isinstance(node, Test):
        return {
            "feature": node.feature,
            "threshold": format_threshold(node.threshold),
            "float": node.source_threshold,
            "low": node.low,
            "high": node.high,
        }
    return {"class": node.label, "confidence": node.confidence, "bound": node.bound, "samples": node.samples}


def tree_to_text(tree: IntegerTree) -> str:
    """The file's text: one line a node and a feature, so that two versions can be compared with diff."""

    def lines(items: list[object]) -> str:
        return "[\n" + ",\n".join("    " + json.dumps(item) for item in items) + "\n  ]"

    parts = {
        "format": json.dumps(FORMAT),
        "version": json.dumps(VERSION),
        "word_bits": json.dumps(WORD_BITS),
        "missing_word": json.dumps(MISSING_WORD),
        "classes": lines(list(tree.classes)),
        "features": lines([{"kind": str(f.kind), "index": f.index} for f in tree.features]),
        "nodes": lines([node_fields(node) for node in tree.nodes]),
        "provenance": json.dumps(tree.provenance, indent=2).replace("\n", "\n  "),
    }
    return "{\n" + ",\n".join(f'  "{name}": {text}' for name, text in parts.items()) + "\n}\n"


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file; DiagnosticError when there is none."""
    return parse_json(read_bytes(path, limit=MAX_FILE_BYTES), str(path))


def read_tree(path: Path) -> IntegerTree:
    """Read `NAME.tree.json`; DiagnosticError when it is not one or is broken."""
    return tree_from_document(read_document(path), str(path))


def write_tree(tree: IntegerTree, path: Path) -> None:
    """Write `NAME.tree.json`, whole or not at all."""
    write_atomic(path, tree_to_text(tree))
