# SPDX-License-Identifier: Apache-2.0
"""The root of all nodes, and what can be done with any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from o2cc.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Node:
    """Anything with a place in a source."""

    span: Span


NO_SPAN = Span("", 0, 0)

NodeT = TypeVar("NodeT", bound=Node)


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below, in the order of the fields."""
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            yield from (item for item in value if isinstance(item, Node))


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it, parents first."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(list(children(current))))


def without_spans(node: NodeT) -> NodeT:
    """The same tree with every span empty, to compare by content. The parser bounds the depth."""
    changes: dict[str, Any] = {"span": NO_SPAN}
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            changes[field.name] = without_spans(value)
        elif isinstance(value, tuple):
            changes[field.name] = tuple(
                without_spans(item) if isinstance(item, Node) else item for item in value
            )
    return replace(node, **changes)
