# SPDX-License-Identifier: Apache-2.0
"""A whole source and its items."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.syntax.nodes.base import Node
from o2cc.syntax.nodes.clauses import Clause, Parameters
from o2cc.syntax.nodes.expressions import Expression, Name, QualifiedName, StringLiteral, StructType
from o2cc.syntax.nodes.places import FieldPath, Place, SetExpression, SetRef, SymbolPattern
from o2cc.syntax.nodes.rules import Rule
from o2cc.syntax.nodes.steps import Step


@dataclass(frozen=True, slots=True)
class Use(Node):
    """Makes a module's names known."""

    module: QualifiedName


@dataclass(frozen=True, slots=True)
class Const(Node):
    """A named value."""

    name: Name
    value: Expression


@dataclass(frozen=True, slots=True)
class SetDef(Node):
    """A named set of symbols."""

    name: Name
    value: SetExpression


@dataclass(frozen=True, slots=True)
class SharedTypes(Node):
    """Objects of these types are shared by nature."""

    types: tuple[StructType, ...]


@dataclass(frozen=True, slots=True)
class CapItem(Node):
    """Memory of a capability; with `capability`, everything that one covers for the object there; with `per_cpu`, memory
    of alloc_percpu."""

    place: Place
    capability: QualifiedName | None
    per_cpu: bool = False


@dataclass(frozen=True, slots=True)
class CapsDef(Node):
    """A capability: the memory that goes with an object of a type."""

    name: Name
    parameters: Parameters
    items: tuple[CapItem, ...]


@dataclass(frozen=True, slots=True)
class ExternFunction(Node):
    """What kernel functions do with memory and capabilities on the caller's behalf."""

    names: tuple[SymbolPattern | SetRef, ...]
    parameters: Parameters
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class ExternEntry(Node):
    """What an entry of a kind gets: by `name`, or for the pointer `field` of the `table` type."""

    name: Name | None
    table: StructType | None
    field: FieldPath | None
    parameters: Parameters
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Compartment(Node):
    """The confined code and its rules."""

    name: Name
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Test(Node):
    """A policy test; `compartment` is None when the file has only one."""

    __test__ = False  # not a test case of pytest

    name: StringLiteral
    compartment: Name | None
    steps: tuple[Step, ...]


Item = Use | Const | SetDef | SharedTypes | CapsDef | ExternFunction | ExternEntry | Compartment | Test


@dataclass(frozen=True, slots=True)
class Comment(Node):
    """A comment with its marks; `own_line` when nothing but space stands before it on its line."""

    text: str
    own_line: bool


@dataclass(frozen=True, slots=True)
class PolicyFile(Node):
    """A whole source."""

    items: tuple[Item, ...]
    comments: tuple[Comment, ...]
