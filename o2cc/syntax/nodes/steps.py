# SPDX-License-Identifier: Apache-2.0
"""Tests of a policy: what is given, what happens, what is expected."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.syntax.nodes.base import Node
from o2cc.syntax.nodes.expressions import BufferType, Expression, Name, Path, QualifiedName, Type
from o2cc.syntax.nodes.words import ObjectState, Outcome, PhaseName


@dataclass(frozen=True, slots=True)
class SiteRef(Node):
    """`function` or `function+offset` (offset in bytes, None when not given)."""

    function: Name
    offset: int | None


@dataclass(frozen=True, slots=True)
class FieldValue(Node):
    """`head = q` in a given object."""

    path: Path
    value: Expression


@dataclass(frozen=True, slots=True)
class GivenObject(Node):
    """An object and its state."""

    name: Name
    type: Type | BufferType
    state: ObjectState
    capability: QualifiedName | None
    fields: tuple[FieldValue, ...]


@dataclass(frozen=True, slots=True)
class GivenValue(Node):
    """A number by name."""

    name: Name
    value: Expression


@dataclass(frozen=True, slots=True)
class StoreStep(Node):
    """A store by the compartment; a path as the address means the address of that field."""

    site: SiteRef
    address: Expression
    size: Expression | None


@dataclass(frozen=True, slots=True)
class CallStep(Node):
    """A direct call by the compartment."""

    function: Name
    arguments: tuple[Expression, ...]
    result: Name | None


@dataclass(frozen=True, slots=True)
class GateStep(Node):
    """A call of a function that is a gate of the policy."""

    function: Name
    arguments: tuple[Expression, ...]
    result: Name | None


@dataclass(frozen=True, slots=True)
class IndirectCallStep(Node):
    """An indirect call or jump by the compartment."""

    site: SiteRef
    target: Expression


@dataclass(frozen=True, slots=True)
class EnterStep(Node):
    """The kernel calls an entry."""

    function: Name
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class LeaveStep(Node):
    """The entry entered last returns."""


@dataclass(frozen=True, slots=True)
class PhaseStep(Node):
    """The policy goes to this phase."""

    phase: PhaseName


@dataclass(frozen=True, slots=True)
class ExpectStep(Node):
    """The verdict of the step before."""

    outcome: Outcome


Step = (
    GivenObject
    | GivenValue
    | StoreStep
    | CallStep
    | GateStep
    | IndirectCallStep
    | EnterStep
    | LeaveStep
    | PhaseStep
    | ExpectStep
)
