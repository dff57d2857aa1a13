# SPDX-License-Identifier: Apache-2.0
"""Trees for people: a summary, and one line a node.  Nothing recurses, so depth does not matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from o2cc.trees.file import format_threshold, node_fields
from o2cc.trees.tree import IntegerTree, Leaf, Test

DEEPEST_INDENT = 40
"""Deeper nodes are not moved further to the right; their line gives the depth."""


def summary(tree: IntegerTree) -> dict[str, object]:
    """Figures about a tree, in JSON types."""
    leaves = [node for node in tree.nodes if isinstance(node, Leaf)]
    by_class = Counter(leaf.label for leaf in leaves)
    return {
        "nodes": len(tree.nodes),
        "tests": len(tree.nodes) - len(leaves),
        "leaves": len(leaves),
        "depth": tree.depth,
        "features": len(tree.features),
        "used_features": [str(tree.features[number]) for number in tree.used_features],
        "classes": [
            {"class": name, "leaves": by_class[number]}
            for number, name in enumerate(tree.classes)
            if by_class[number]
        ],
        "unused_classes": [name for number, name in enumerate(tree.classes) if not by_class[number]],
        "leaves_with_bound": sum(leaf.bound is not None for leaf in leaves),
        "provenance": dict(tree.provenance),
    }


def tree_as_json(tree: IntegerTree) -> dict[str, object]:
    """The summary and every node, in JSON types."""
    return {
        "summary": summary(tree),
        "classes": list(tree.classes),
        "features": [str(feature) for feature in tree.features],
        "nodes": [{"node": number, **node_fields(node)} for number, node in enumerate(tree.nodes)],
    }


def tree_as_text(tree: IntegerTree) -> Iterator[str]:
    """Lines: the summary, then the nodes in the order of a walk that goes to `low` first."""
    figures = summary(tree)
    yield (
        f"{figures['nodes']} nodes: {figures['tests']} tests, {figures['leaves']} leaves, depth {figures['depth']}, "
        f"{len(tree.used_features)} of {len(tree.features)} features used, {len(tree.classes)} classes"
    )
    for name, value in tree.provenance.items():
        yield f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
    yield ""
    width = len(str(len(tree.nodes) - 1))
    pending = [(0, 0)]
    while pending:
        number, depth = pending.pop()
        node = tree.nodes[number]
        indent = "  " * depth if depth <= DEEPEST_INDENT else "  " * DEEPEST_INDENT + f"({depth}) "
        yield f"{number:>{width}}  {indent}{_describe(tree, node)}"
        if isinstance(node, Test):
            pending += ((node.high, depth + 1), (node.low, depth + 1))


def _describe(tree: IntegerTree, node: Test | Leaf) -> str:
    if isinstance(node, Test):
        threshold = format_threshold(node.threshold)
        return f"{tree.features[node.feature]} <= {threshold} ? {node.low} : {node.high}"
    bound = "no held-out bound" if node.bound is None else f"held-out bound {node.bound:.4f}"
    return f"{tree.classes[node.label]}  confidence {node.confidence:.4f}, {bound}, {node.samples} samples"
