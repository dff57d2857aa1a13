# SPDX-License-Identifier: Apache-2.0
"""What the builder passes between grammar rules and is no node of its own: optional parts, lists, marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from o2cc.syntax import nodes as n

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class When:
    condition: n.Expression


@dataclass(frozen=True, slots=True)
class AsCapability:
    name: n.QualifiedName


@dataclass(frozen=True, slots=True)
class IfPresent:
    """`if present` behind the parameters of an entry or a gate."""


@dataclass(frozen=True, slots=True)
class AsEntry:
    name: n.QualifiedName


@dataclass(frozen=True, slots=True)
class Kinds:
    kinds: tuple[n.ViolationKind, ...]


@dataclass(frozen=True, slots=True)
class OfTest:
    name: n.Name


class UntilReturn:
    pass


class Variadic:
    pass


class Vmlinux:
    pass


@dataclass(frozen=True, slots=True)
class Modules:
    names: tuple[n.StringLiteral, ...]


@dataclass(frozen=True, slots=True)
class Excluded:
    elements: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Elements:
    elements: tuple[n.SymbolPattern | n.SetRef, ...]


@dataclass(frozen=True, slots=True)
class Clauses:
    clauses: tuple[n.Clause, ...]


@dataclass(frozen=True, slots=True)
class Functions:
    value: n.SetExpression


@dataclass(frozen=True, slots=True)
class PernetType:
    type: n.StructType
    fields: n.FieldSet | None


@dataclass(frozen=True, slots=True)
class Arguments:
    values: tuple[n.Expression, ...]


@dataclass(frozen=True, slots=True)
class BindResult:
    name: n.Name


@dataclass(frozen=True, slots=True)
class StoreSize:
    size: n.Expression


@dataclass(frozen=True, slots=True)
class FieldValues:
    values: tuple[n.FieldValue, ...]


@dataclass(frozen=True, slots=True)
class ModuleString:
    name: n.StringLiteral


def all_of(children: Sequence[object], kind: type[T]) -> tuple[T, ...]:
    """The children of a kind, in order."""
    return tuple(child for child in children if isinstance(child, kind))


def first_of(children: Sequence[object], kind: type[T]) -> T | None:
    """The first child of a kind: an optional part."""
    return next((child for child in children if isinstance(child, kind)), None)


def one_of(children: Sequence[object], kind: type[T]) -> T:
    """The child of a kind that the grammar promises."""
    found = first_of(children, kind)
    if found is None:
        raise AssertionError(f"the grammar promises a {kind.__name__}")
    return found


Children = Sequence[Any]
