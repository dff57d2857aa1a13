# SPDX-License-Identifier: Apache-2.0
"""The abstract syntax tree of a policy file: what was written, with its place, before any meaning.

Every node is a frozen dataclass whose first field is its span. Two nodes are equal only if their spans
are; `without_spans` gives trees that compare by content. Sequences are tuples. Names are not resolved,
quantities are not scaled, globs are not expanded: that is the work of `o2cc.policy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fractions import Fraction
from typing import TypeVar

from o2cc.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Node:
    """Anything with a place in a source."""

    span: Span


# ------------------------------------------------------------------ closed sets of words


class Action(StrEnum):
    """What happens at a violation or a missed check."""

    REPORT = "report"
    DENY = "deny"
    KILL = "kill"
    PANIC = "panic"


class ViolationKind(StrEnum):
    """Kind of site that a violation is of."""

    WRITE = "write"
    CALL = "call"
    ICALL = "icall"
    GATE = "gate"
    FREE = "free"
    RETURN = "return"


class Party(StrEnum):
    """Who gets a transferred object."""

    KERNEL = "kernel"
    SELF = "self"


class Right(StrEnum):
    """How the caller has what a function returns."""

    HELD = "held"
    OWNED = "owned"
    SHARED = "shared"


class Moment(StrEnum):
    """When an object is auditioned."""

    ACCESS = "access"
    FREE = "free"


class ProbeMode(StrEnum):
    """Whether probes may be jump-optimized."""

    STRICT = "strict"
    OPTIMIZED = "optimized"


class ObjectState(StrEnum):
    """State of an object that a test starts with."""

    OWNED = "owned"
    HELD = "held"
    FOREIGN = "foreign"
    FREED = "freed"
    UNTRACKED = "untracked"
    SHARED = "shared"
    USER = "user"


class PhaseName(StrEnum):
    """Phase that a test runs in."""

    TRANSITION = "transition"
    FINAL = "final"


class Outcome(StrEnum):
    """Verdict that a test expects."""

    ALLOW = "allow"
    DENY = "deny"
    AUDITION = "audition"


class Unit(StrEnum):
    """Unit of an integer literal."""

    B = "B"
    KIB = "KiB"
    MIB = "MiB"
    GIB = "GiB"
    NS = "ns"
    US = "us"
    MS = "ms"
    S = "s"
    MIN = "min"

    @property
    def is_time(self) -> bool:
        """Whether it measures time; otherwise it measures memory."""
        return self in _NANOSECONDS

    @property
    def factor(self) -> int:
        """Bytes, or nanoseconds, in one of it."""
        return _NANOSECONDS[self] if self in _NANOSECONDS else _BYTES[self]


_BYTES = {Unit.B: 1, Unit.KIB: 1 << 10, Unit.MIB: 1 << 20, Unit.GIB: 1 << 30}
_NANOSECONDS = {Unit.NS: 1, Unit.US: 10**3, Unit.MS: 10**6, Unit.S: 10**9, Unit.MIN: 60 * 10**9}


class UnaryOperator(StrEnum):
    """Prefix operators."""

    NOT = "!"
    NEGATE = "-"
    INVERT = "~"


class BinaryOperator(StrEnum):
    """Infix operators."""

    OR = "||"
    AND = "&&"
    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    BIT_OR = "|"
    BIT_XOR = "^"
    BIT_AND = "&"
    SHIFT_LEFT = "<<"
    SHIFT_RIGHT = ">>"
    ADD = "+"
    SUBTRACT = "-"
    MULTIPLY = "*"
    DIVIDE = "/"
    REMAINDER = "%"


# ------------------------------------------------------------------ names and literals


@dataclass(frozen=True, slots=True)
class Name(Node):
    """An identifier, or a kernel symbol (which may be quoted in the source, and then hold any text)."""

    text: str


@dataclass(frozen=True, slots=True)
class QualifiedName(Node):
    """`a.b.c`: a module, set, capability or constant."""

    parts: tuple[Name, ...]

    @property
    def text(self) -> str:
        """With its dots."""
        return ".".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class StringLiteral(Node):
    """Text between double quotes, without them."""

    text: str


@dataclass(frozen=True, slots=True)
class StructType(Node):
    """`struct T` or `union T`."""

    kind: str  # "struct" or "union"
    name: Name

    @property
    def text(self) -> str:
        """As written."""
        return f"{self.kind} {self.name.text}"


@dataclass(frozen=True, slots=True)
class NamedType(Node):
    """A base type or typedef, as `u32`."""

    name: Name

    @property
    def text(self) -> str:
        """As written."""
        return self.name.text


@dataclass(frozen=True, slots=True)
class BufferType(Node):
    """`buffer SIZE`: untyped bytes, only in tests."""

    size: Expression


Type = StructType | NamedType


# ------------------------------------------------------------------ expressions


@dataclass(frozen=True, slots=True)
class Integer(Node):
    """An integer as written, 0 to 2^64 - 1 also when scaled; `scaled` is in bytes or nanoseconds."""

    value: int
    unit: Unit | None

    @property
    def scaled(self) -> int:
        """The value times its unit."""
        return self.value * (self.unit.factor if self.unit else 1)


@dataclass(frozen=True, slots=True)
class Ratio(Node):
    """A decimal fraction such as 0.99, exactly."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Path(Node):
    """`skb.sk.sk_err`: a parameter, object or constant, then fields, through pointers where needed."""

    parts: tuple[Name, ...]

    @property
    def text(self) -> str:
        """With its dots."""
        return ".".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class FunctionCall(Node):
    """`held(skb)` and the like."""

    function: Name
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class SizeOf(Node):
    """`sizeof(struct T)`."""

    type: Type


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """Prefix operator and operand."""

    operator: UnaryOperator
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Infix operator and operands."""

    operator: BinaryOperator
    left: Expression
    right: Expression


Expression = Integer | Ratio | Path | FunctionCall | SizeOf | Unary | Binary


# ------------------------------------------------------------------ sets, fields, places


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


# ------------------------------------------------------------------ clauses of functions, gates, entries


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


# ------------------------------------------------------------------ rules of a compartment


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


# ------------------------------------------------------------------ tests


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


# ------------------------------------------------------------------ a file


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
    """Memory of a capability; with `capability`, everything that one covers for the object there."""

    place: Place
    capability: QualifiedName | None


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


NO_SPAN = Span("", 0, 0)


NodeT = TypeVar("NodeT", bound=Node)


def without_spans(node: NodeT) -> NodeT:
    """The same tree with every span empty, to compare by content. The parser bounds the depth."""
    changes: dict[str, object] = {"span": NO_SPAN}
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            changes[field.name] = without_spans(value)
        elif isinstance(value, tuple):
            changes[field.name] = tuple(
                without_spans(item) if isinstance(item, Node) else item for item in value
            )
    return replace(node, **changes)  # type: ignore[arg-type]
