# SPDX-License-Identifier: Apache-2.0
"""Sets of symbols, fields of structs, and places in memory."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.syntax.nodes.base import Node
from o2cc.syntax.nodes.expressions import Expression, Name, Path, QualifiedName


@dataclass(frozen=True, slots=True)
class SymbolPattern(Node):
    """A symbol or a glob over symbols (`*` any text, `?` one character).

    `optional` (`f if present`): kernels that lack the symbol are meant too."""

    text: str
    optional: bool = False

    @property
    def is_glob(self) -> bool:
        """Whether it can name several symbols."""
        return "*" in self.text or "?" in self.text


@dataclass(frozen=True, slots=True)
class SetRef(Node):
    """A named set, as an element of another."""

    name: QualifiedName


@dataclass(frozen=True, slots=True)
class Imports(Node):
    """`imports`: the direct callees outside the compartment."""


SetElement = SymbolPattern | SetRef | Imports


@dataclass(frozen=True, slots=True)
class SetExpression(Node):
    """Everything in `include` that is not in `exclude`."""

    include: tuple[SetElement, ...]
    exclude: tuple[SetElement, ...]


@dataclass(frozen=True, slots=True)
class FieldPath(Node):
    """`a.b.c` below a struct, or a symbol and its fields; any part may be a glob.

    `optional` (`a if present`): kernels that lack the field are meant too."""

    parts: tuple[Name, ...]
    optional: bool = False

    @property
    def text(self) -> str:
        """With its dots."""
        return ".".join(part.text for part in self.parts)

    @property
    def is_glob(self) -> bool:
        """Whether it can name several fields."""
        return any("*" in part.text or "?" in part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class FieldSet(Node):
    """`{ whole, a, b.* } except { b.c }`; `whole` is every field that need not be named."""

    whole: bool
    fields: tuple[FieldPath, ...]
    excluded: tuple[FieldPath, ...]


@dataclass(frozen=True, slots=True)
class Whole(Node):
    """`whole`: all bytes of the object pointed to."""


@dataclass(frozen=True, slots=True)
class Length(Node):
    """`[n]`: the first n bytes behind a pointer."""

    size: Expression


@dataclass(frozen=True, slots=True)
class Range(Node):
    """`[start .. end]`: bytes start (in) to end (out) behind a pointer."""

    start: Expression
    end: Expression


Extent = Whole | Length | Range


@dataclass(frozen=True, slots=True)
class Place(Node):
    """Memory that a clause is about. Without an extent: the pointee of a bare parameter, or that field."""

    path: Path
    extent: Extent | None
