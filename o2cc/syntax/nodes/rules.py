# SPDX-License-Identifier: Apache-2.0
"""Rules of a compartment."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.syntax.nodes.base import Node
from o2cc.syntax.nodes.clauses import Clause, OnViolation, Parameters, Require
from o2cc.syntax.nodes.expressions import Expression, Name, StringLiteral, StructType
from o2cc.syntax.nodes.places import FieldPath, FieldSet, Length, Range, SetElement, SetExpression
from o2cc.syntax.nodes.words import Action, Moment, ProbeMode


@dataclass(frozen=True, slots=True)
class CodeModules(Node):
    """The code is that of whole modules."""

    modules: tuple[StringLiteral, ...]


@dataclass(frozen=True, slots=True)
class CodeFunctions(Node):
    """The code is functions of modules, or of vmlinux (`modules` is None)."""

    functions: SetExpression
    modules: tuple[StringLiteral, ...] | None


@dataclass(frozen=True, slots=True)
class HeapPrivate(Node):
    """Own slab caches, at most `size` bytes."""

    size: Expression


@dataclass(frozen=True, slots=True)
class HeapTracked(Node):
    """The kernel's allocator, with every allocation tracked."""


@dataclass(frozen=True, slots=True)
class StackPrivate(Node):
    """An own stack of `size` bytes a call."""

    size: Expression


@dataclass(frozen=True, slots=True)
class WriteStruct(Node):
    """Fields of objects of the type; no field set means whole."""

    type: StructType
    fields: FieldSet | None


@dataclass(frozen=True, slots=True)
class Behind(Node):
    """Memory behind a pointer field: its pointee, or bytes of it. Names in the extent are fields."""

    field: FieldPath
    extent: Length | Range | None


@dataclass(frozen=True, slots=True)
class WriteBehind(Node):
    """What pointer fields of objects of the type point to."""

    type: StructType
    ranges: tuple[Behind, ...]


@dataclass(frozen=True, slots=True)
class WritePernet(Node):
    """The per-namespace area whose id is in this variable."""

    id: Name
    type: StructType | None
    fields: FieldSet | None


@dataclass(frozen=True, slots=True)
class WriteSymbols(Node):
    """Variables of the kernel, or fields of them."""

    symbols: tuple[FieldPath, ...]
    excluded: tuple[FieldPath, ...]


@dataclass(frozen=True, slots=True)
class Entry(Node):
    """The kernel may enter the compartment here, in kernels that have the function if it is `optional`."""

    function: Name
    parameters: Parameters
    clauses: tuple[Clause, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class OpsFields(Node):
    """Function pointers of an operations table; no field set means all."""

    type: StructType
    fields: FieldSet | None


@dataclass(frozen=True, slots=True)
class Entries(Node):
    """The functions in the compartment's tables of these types are entries."""

    tables: tuple[OpsFields, ...]


@dataclass(frozen=True, slots=True)
class Gate(Node):
    """The compartment may call this function under these conditions; where it does not, an `optional` gate has no
    effect and nothing is said of it."""

    function: Name
    parameters: Parameters
    clauses: tuple[Clause, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Call(Node):
    """The compartment may call these functions directly."""

    functions: SetExpression


@dataclass(frozen=True, slots=True)
class SelfTarget(Node):
    """`self`: the compartment's own functions whose address is taken."""


@dataclass(frozen=True, slots=True)
class OpsTarget(Node):
    """`ops struct T of modules "x"`: functions in such tables (of all code when `modules` is empty)."""

    type: StructType
    modules: tuple[StringLiteral, ...]


IndirectTarget = SelfTarget | OpsTarget | SetElement


@dataclass(frozen=True, slots=True)
class IndirectCall(Node):
    """Where the compartment may jump through a pointer."""

    targets: tuple[IndirectTarget, ...]
    excluded: tuple[SetElement, ...]


@dataclass(frozen=True, slots=True)
class AcceptPayload(Node):
    """Caches that hold user payload, whose objects content alone may identify."""

    caches: tuple[StringLiteral, ...]


@dataclass(frozen=True, slots=True)
class AcceptOwn(Node):
    """Structs (or globs of them) that only the compartment allocates: an object judged to be one is its own."""

    structs: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class Audition(Node):
    """The tree that judges untracked objects, when, and on what conditions."""

    tree: StringLiteral
    moments: tuple[Moment, ...]
    items: tuple[Require | AcceptPayload | AcceptOwn, ...]


@dataclass(frozen=True, slots=True)
class UntilQuiescent(Node):
    """Ends when no untracked object was seen for a time (None: the default)."""

    quiet_for: Expression | None


@dataclass(frozen=True, slots=True)
class AtMost(Node):
    """Ends after this time."""

    duration: Expression


@dataclass(frozen=True, slots=True)
class Transition(Node):
    """When the transition ends: at the first of its items that comes true."""

    items: tuple[UntilQuiescent | AtMost, ...]


@dataclass(frozen=True, slots=True)
class OnMissed(Node):
    """What a check that could not run leads to."""

    action: Action


@dataclass(frozen=True, slots=True)
class Probes(Node):
    """Kind of probes."""

    mode: ProbeMode


ScopedRule = WriteStruct | WriteBehind | WritePernet | WriteSymbols | Gate | Call | IndirectCall | OnViolation


@dataclass(frozen=True, slots=True)
class InFunctions(Node):
    """Rules for some functions of the compartment only."""

    functions: SetExpression
    rules: tuple[ScopedRule, ...]


Rule = (
    ScopedRule
    | CodeModules
    | CodeFunctions
    | HeapPrivate
    | HeapTracked
    | StackPrivate
    | InFunctions
    | Entry
    | Entries
    | Audition
    | Transition
    | OnMissed
    | Probes
)
