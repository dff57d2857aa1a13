# SPDX-License-Identifier: Apache-2.0
"""Clauses of functions, gates and entries: what a call does with memory and capabilities."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.syntax.nodes.base import Node
from o2cc.syntax.nodes.expressions import Expression, Name, Path, QualifiedName, Type
from o2cc.syntax.nodes.places import Place
from o2cc.syntax.nodes.words import Action, Party, Right, ViolationKind


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    """Parameter name, with a type where BTF does not tell enough."""

    name: Name
    type: Type | None


@dataclass(frozen=True, slots=True)
class Parameters(Node):
    """Parameter list; `variadic` when it ends with `...`."""

    parameters: tuple[Parameter, ...]
    variadic: bool


@dataclass(frozen=True, slots=True)
class Writes(Node):
    """The function writes these places for its caller."""

    places: tuple[Place, ...]
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Reads(Node):
    """The function reads these places."""

    places: tuple[Place, ...]
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Shares(Node):
    """These objects are shared with others from the return on."""

    places: tuple[Place, ...]
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Frees(Node):
    """The function frees the object; the caller must own it or hold it as the capability."""

    place: Place
    capability: QualifiedName | None
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Allocates(Node):
    """At return the caller owns the place."""

    place: Place
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Gives(Node):
    """The compartment gets the capability: a function at its return, an entry when it begins."""

    place: Place
    capability: QualifiedName | None
    until_return: bool
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Takes(Node):
    """The kernel takes the capability from the compartment, when the call begins."""

    place: Place
    capability: QualifiedName | None
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Lends(Node):
    """The other side has the capability while the call lasts."""

    place: Place
    capability: QualifiedName | None
    until_return: bool
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Transfer(Node):
    """`transfer X as CAP to kernel` (as `takes`) or `to self` (as `gives`)."""

    place: Place
    capability: QualifiedName | None
    to: Party
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Returns(Node):
    """The result is (inside) what the caller has by this right; `path` names it where it is an argument."""

    right: Right
    path: Path | None


@dataclass(frozen=True, slots=True)
class StoresCallback(Node):
    """The kernel keeps the function pointer and calls it later."""

    path: Path
    entry: QualifiedName | None


@dataclass(frozen=True, slots=True)
class CallsCallback(Node):
    """The kernel calls the function pointer before it returns."""

    path: Path
    entry: QualifiedName | None


@dataclass(frozen=True, slots=True)
class Pure(Node):
    """The function touches no memory of its caller."""


@dataclass(frozen=True, slots=True)
class Require(Node):
    """The call is a violation unless the condition holds."""

    condition: Expression


@dataclass(frozen=True, slots=True)
class OnViolation(Node):
    """What a violation leads to in this scope; no kinds means all."""

    kinds: tuple[ViolationKind, ...]
    action: Action


@dataclass(frozen=True, slots=True)
class OnDeny(Node):
    """The result that a denied call seems to return."""

    result: Expression


Clause = (
    Writes
    | Reads
    | Shares
    | Frees
    | Allocates
    | Gives
    | Takes
    | Lends
    | Transfer
    | Returns
    | StoresCallback
    | CallsCallback
    | Pure
    | Require
    | OnViolation
    | OnDeny
)
