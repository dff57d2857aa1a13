# SPDX-License-Identifier: Apache-2.0
"""The checked policy: what is left of a policy once every name is resolved.

Nothing in here has to be looked up or interpreted again: struct fields are byte offsets, globs are lists of
functions, units are bytes and nanoseconds, capabilities are address ranges.  Every part keeps the span of the
rule that asked for it.  All classes are frozen; collections are tuples, ordered as in the source or by name.

A condition of an effect that reads the result is evaluated after the return, any other before the call; what
the effect requires must hold whatever the condition.  Expressions are evaluated where a gate is called or an entry is entered: ``ArgumentValue(0)`` is the first argument
there.  In a ``Capability``, a ``BehindGrant`` and a ``StructGrant`` guard, ``ArgumentValue(0)`` is the object itself.
Struct names are those of BTF without the word ``struct``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from o2cc.diagnostics import Span

# --- types of expressions ---------------------------------------------------------------------------------


class TypeKind(StrEnum):
    INTEGER = "integer"  # also enumerations, booleans of C
    BOOLEAN = "boolean"  # what comparisons and predicates give
    POINTER = "pointer"  # to the struct `struct`, or to anything (None)
    FUNCTION_POINTER = "function pointer"
    OTHER = "other"  # a struct or array by value; only its address can be used
    UNKNOWN = "unknown"  # a 64-bit word of which nothing tells the type


@dataclass(frozen=True, slots=True)
class ValueType:
    """Type of an expression, an argument or a member.

    ``struct`` names what a pointer points to (or what OTHER is), None for `void *` and pointers to scalars.
    ``pointee_size`` is the size in bytes of what a pointer points to, None when unknown.
    """

    kind: TypeKind
    struct: str | None = None
    size: int = 8
    signed: bool = False
    pointee_size: int | None = None

    def __str__(self) -> str:
        if self.kind is TypeKind.POINTER:
            return f"struct {self.struct} *" if self.struct else "pointer"
        if self.kind is TypeKind.OTHER and self.struct:
            return f"struct {self.struct}"
        return self.kind.value


# --- expressions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    """A number; negative numbers as Python's."""

    value: int
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class ArgumentValue:
    """The argument at ``index`` (from 0; the first six are in rdi, rsi, rdx, rcx, r8, r9), or the object itself."""

    index: int
    name: str
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class ResultValue:
    """What the gate returned; only in effects and their conditions, which apply after the return."""

    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class GlobalAddress:
    """Address of a symbol of the kernel or of the compartment's module."""

    symbol: str
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class LoadField:
    """Value of ``size`` bytes at ``base + offset``; ``text`` is how the policy wrote it (`skb.len`)."""

    base: Expr
    offset: int
    size: int
    signed: bool
    type: ValueType
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class AddressOfField:
    """``base + offset``: the address of a member that is a struct or an array, or of an object's part."""

    base: Expr
    offset: int
    size: int
    type: ValueType
    text: str
    span: Span


class BinaryOperation(StrEnum):
    """Unsigned 64-bit arithmetic; comparisons are signed when either side is a signed value (``signed``)."""

    ADD = "+"
    SUBTRACT = "-"
    MULTIPLY = "*"
    DIVIDE = "/"
    MODULO = "%"
    BIT_AND = "&"
    BIT_OR = "|"
    BIT_XOR = "^"
    SHIFT_LEFT = "<<"
    SHIFT_RIGHT = ">>"
    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    AND = "and"
    OR = "or"


@dataclass(frozen=True, slots=True)
class BinaryExpr:
    operation: BinaryOperation
    left: Expr
    right: Expr
    type: ValueType
    span: Span
    signed: bool = False


class UnaryOperation(StrEnum):
    NOT = "not"
    NEGATE = "-"
    COMPLEMENT = "~"


@dataclass(frozen=True, slots=True)
class UnaryExpr:
    operation: UnaryOperation
    operand: Expr
    type: ValueType
    span: Span


class PredicateKind(StrEnum):
    """Questions about memory.  ``p`` is the first operand; a null pointer satisfies none of them.

    OWNED     the object at p is the compartment's own (its heap, data, per-CPU data or stack)
    HELD      a capability for the object that starts at p is held; with ``capability`` that one, and everything
              that its ranges cover *now* is held too (a packet whose `head` was forged is not held)
    SHARED    p is a kernel address in memory that the compartment cannot write (neither own nor held), so that
              nothing there can be of its making: for objects that the kernel shares, such as `struct net`
    WRITABLE  the n bytes (second operand) at p may be written: owned, held or granted
    GRANTED   p points to the start of a granted struct of type ``type_id`` whose type is certain
    FREEABLE  p is the start of a heap object that is owned or held
    SIZE      (an integer) usable size in bytes of the heap object at p, 0 when it is none
    ENTRY     p is the address of an entry of the compartment, or one of the policy's ``kernel_callbacks`` (for
              function pointers handed to the kernel)
    """

    OWNED = "owned"
    HELD = "held"
    SHARED = "shared"
    WRITABLE = "writable"
    GRANTED = "granted"
    FREEABLE = "freeable"
    SIZE = "size"
    ENTRY = "entry"


@dataclass(frozen=True, slots=True)
class Predicate:
    kind: PredicateKind
    operands: tuple[Expr, ...]
    type: ValueType
    span: Span
    type_id: int | None = None
    capability: str | None = None


Expr = (
    Const
    | ArgumentValue
    | ResultValue
    | GlobalAddress
    | LoadField
    | AddressOfField
    | BinaryExpr
    | UnaryExpr
    | Predicate
)


# --- the compartment --------------------------------------------------------------------------------------


class Action(StrEnum):
    """What a violation does."""

    REPORT = "report"
    DENY = "deny"
    KILL = "kill"
    PANIC = "panic"


class ViolationKind(StrEnum):
    """What was done that no rule allows."""

    WRITE = "write"
    CALL = "call"
    ICALL = "icall"
    GATE = "gate"
    FREE = "free"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class Code:
    """What is confined: whole modules, or functions of built-in code (globs resolved, sorted)."""

    modules: tuple[str, ...]
    functions: tuple[str, ...]
    span: Span


class HeapKind(StrEnum):
    TRACKED = "tracked"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class Heap:
    """How the compartment's objects are known; ``limit`` in bytes, None for no limit."""

    kind: HeapKind
    limit: int | None
    span: Span


@dataclass(frozen=True, slots=True)
class Stack:
    """A private stack of ``limit`` bytes a task or CPU."""

    limit: int
    span: Span


@dataclass(frozen=True, slots=True)
class Scope:
    """The functions of the compartment that a rule is for (globs resolved, sorted, never empty)."""

    functions: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class ViolationRule:
    """`on violation of KINDS ACTION`; in code of ``scope`` only, if there is one."""

    kinds: tuple[ViolationKind, ...]
    action: Action
    scope: Scope | None
    span: Span


def narrowest_action(
    rules: tuple[ViolationRule, ...], kind: ViolationKind, function: str | None, default: Action
) -> Action:
    """The action of the narrowest rule for violations of ``kind`` in ``function``: the one for the fewest
    functions, then for the fewest kinds, then the later one."""
    best: tuple[tuple[int, int], Action] | None = None
    for rule in rules:
        if kind not in rule.kinds:
            continue
        if rule.scope is not None and function not in rule.scope.functions:
            continue
        key = (len(rule.scope.functions) if rule.scope is not None else 1 << 62, len(rule.kinds))
        if best is None or key <= best[0]:
            best = key, rule.action
    return best[1] if best is not None else default


@dataclass(frozen=True, slots=True)
class GrantedType:
    """A struct that grants, capabilities or arguments mention; ``number`` counts from 1."""

    number: int
    struct: str
    size: int


@dataclass(frozen=True, slots=True)
class StructGrant:
    """Writes to the byte ranges ``[start, end)`` of a ``struct`` (sorted, disjoint), for an object whose type is
    certain.  ``allows`` is False for a rule that takes the ranges away from a wider one."""

    struct: str
    type_id: int
    ranges: tuple[tuple[int, int], ...]
    fields: tuple[str, ...]
    whole: bool
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


@dataclass(frozen=True, slots=True)
class SymbolGrant:
    """Writes to ``size`` bytes at ``symbol + offset``, data of the kernel (or of the code, when it is built in)."""

    symbol: str
    offset: int
    size: int
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


@dataclass(frozen=True, slots=True)
class PernetGrant:
    """Writes to ``ranges`` of the per-namespace area `net->gen->ptr[*variable]`, which is a ``struct`` (None: not
    known; then the range is open and the heap object's own bounds hold)."""

    variable: str
    struct: str | None
    ranges: tuple[tuple[int, int], ...]
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


@dataclass(frozen=True, slots=True)
class BehindGrant:
    """Writes to ``length`` bytes, from byte ``start`` on, behind the pointer member at ``offset`` of a ``struct`` that
    is owned, held or granted.  ``start`` and ``length`` may use ``ArgumentValue(0)``, the struct."""

    struct: str
    type_id: int
    field: str
    offset: int
    start: Expr
    length: Expr
    pointee: str | None
    scope: Scope | None
    action: Action
    span: Span
    reason: str
    allows: bool = True


Grant = StructGrant | SymbolGrant | PernetGrant | BehindGrant


# --- capabilities and effects -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CapabilityRange:
    """``[start, end)`` as addresses; both may read the object, which is ``ArgumentValue(0)``."""

    start: Expr
    end: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Capability:
    """The right to write an object and what belongs to it, e.g. a packet and its buffer.

    Without ranges it is the identity only: what may be written is then up to grants of the struct's fields."""

    name: str
    number: int  # from 1, stable in this policy
    struct: str
    type_id: int
    parameter: str
    ranges: tuple[CapabilityRange, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Writes:
    """The gate writes ``length`` bytes at ``pointer``, which must therefore be writable."""

    pointer: Expr
    length: Expr
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Reads:
    """The gate reads ``length`` bytes at ``pointer`` (reads are free; kept for policies that restrict them)."""

    pointer: Expr
    length: Expr
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Frees:
    """The object at ``pointer`` ends: it must be owned or held (as ``capability`` if there is one), and is neither
    afterwards."""

    pointer: Expr
    capability: str | None
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Allocates:
    """After the return, ``length`` bytes at ``pointer`` (usually the result) are the compartment's, unless the
    pointer is null or an error.  ``struct``/``type_id`` when the site's type is certain."""

    pointer: Expr
    length: Expr | None  # None: all of the heap object there
    struct: str | None
    type_id: int | None
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Gives:
    """After a gate returned, or when an entry begins, the compartment holds ``capability`` for ``pointer`` (unless
    null or an error), until it is taken or freed.

    In `Gives`, `Takes` and `Lends` a ``capability`` of None means just ``length`` bytes at ``pointer`` (None: all of
    the heap object there)."""

    pointer: Expr
    capability: str | None
    length: Expr | None
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Takes:
    """The compartment must hold ``capability`` for ``pointer``, and does not from the beginning of the call on
    (`transfer ... to kernel`).  At an entry: it holds it no longer when the entry returns."""

    pointer: Expr
    capability: str | None
    length: Expr | None
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Lends:
    """At an entry: the compartment holds ``capability`` for ``pointer`` until the entry returns.  At a gate: the
    compartment must hold it, and keeps it."""

    pointer: Expr
    capability: str | None
    length: Expr | None
    span: Span
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class StoresCallback:
    """The kernel will call ``function`` later, or (``during_call``) before the gate returns: it must be null or an
    entry of the compartment.  ``entry`` names the kind of entry that stdlib declares for it, e.g. "timer"."""

    function: Expr
    span: Span
    entry: str | None = None
    during_call: bool = False
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """From the return on others may write the object at ``pointer`` too; it stays the compartment's."""

    pointer: Expr
    span: Span
    condition: Expr | None = None


class Right(StrEnum):
    """By which right the caller has what a function returns."""

    HELD = "held"
    OWNED = "owned"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Returns:
    """The result is null, an error, or points into what the caller has by ``right``: the object at ``pointer``, if
    that is given.  Nothing changes; a proof may lean on it."""

    right: Right
    pointer: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Pure:
    """Nothing of the caller's memory is written, freed or kept."""

    span: Span


@dataclass(frozen=True, slots=True)
class Dangerous:
    """The call gives power over the whole kernel; only an explicit `call` rule allows it."""

    reason: str
    span: Span


Effect = (
    Writes
    | Reads
    | Frees
    | Allocates
    | Gives
    | Takes
    | Lends
    | StoresCallback
    | Shares
    | Returns
    | Pure
    | Dangerous
)


# --- gates and entries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a gate or an entry."""

    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on the arguments, and what happens when it does not hold.

    ``implied`` requirements come from the default for typed pointers and effects, not from a written guard.
    """

    condition: Expr
    action: Action
    span: Span
    implied: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """A kernel function that the compartment may call.

    ``known``: stdlib or the policy says what it does; else the default for typed pointers holds.
    ``deny_result``: what the caller sees as result when the call is denied (None: -EFAULT).
    ``scope``: only for calls from these functions; such a gate takes the place of the one for all.
    """

    function: str
    parameters: tuple[Parameter, ...]
    variadic: bool
    effects: tuple[Effect, ...]
    requires: tuple[Requirement, ...]
    known: bool
    deny_result: int | None
    action: Action
    span: Span
    result: ValueType | None = None
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A member of an ops table that holds a function of the compartment."""

    struct: str
    field: str
    table: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A function of the compartment that the kernel calls.  ``slots``: where its address stands, if an
    `entries of` rule found it."""

    function: str
    slots: tuple[Slot, ...]
    parameters: tuple[Parameter, ...]
    effects: tuple[Effect, ...]
    requires: tuple[Requirement, ...]
    action: Action
    span: Span


@dataclass(frozen=True, slots=True)
class CallRule:
    """Why a direct callee outside the compartment is allowed or denied; in code of ``scope`` only, if given."""

    function: str
    allowed: bool
    action: Action
    span: Span
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class OpsTargets:
    """Targets that are the functions in tables of ``struct``, in modules that match ``modules`` (globs)."""

    struct: str
    modules: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class IndirectTargets:
    """Where indirect calls and jumps may go.  ``own``: functions of the compartment whose address is taken."""

    own: bool
    functions: tuple[str, ...]
    ops: tuple[OpsTargets, ...]
    action: Action
    span: Span
    excluded: tuple[str, ...] = ()
    scope: Scope | None = None


# --- audition, phases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audition:
    """Untracked objects are typed by the tree in ``path``; ``confidence`` in 0..1 (exact decimal as text)."""

    path: str
    at_access: bool
    at_free: bool
    confidence: str
    accept_payload: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Transition:
    """When the transition ends; times in nanoseconds."""

    until_quiescent: bool
    quiescent_for: int | None
    at_most: int | None
    span: Span


# --- policy tests -----------------------------------------------------------------------------------------


class ObjectState(StrEnum):
    """State of an object that a test is given."""

    OWNED = "owned"
    HELD = "held"
    FOREIGN = "foreign"
    FREED = "freed"
    UNTRACKED = "untracked"
    SHARED = "shared"
    USER = "user"


@dataclass(frozen=True, slots=True)
class TestValue:
    """A 64-bit number: ``offset`` plus the address of the test's ``object`` or of the ``symbol``, if any."""

    __test__ = False

    object: str | None
    symbol: str | None
    offset: int
    span: Span


@dataclass(frozen=True, slots=True)
class GivenObject:
    """An object of ``size`` bytes called ``name``; ``fields`` are (offset, size, value), all else is zero."""

    name: str
    struct: str | None
    type_id: int | None
    size: int
    state: ObjectState
    capability: str | None
    fields: tuple[tuple[int, int, TestValue], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class TestStore:
    """``function`` (at ``offset``, when one was given) stores ``size`` bytes at ``address``."""

    __test__ = False

    function: str
    offset: int | None
    address: TestValue
    size: int
    span: Span


@dataclass(frozen=True, slots=True)
class TestCall:
    """The compartment calls ``callee`` directly; the object that the gate gives is called ``result`` after."""

    __test__ = False

    callee: str
    arguments: tuple[TestValue, ...]
    result: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class TestIndirectCall:
    """``function`` calls or jumps through a pointer to ``target``."""

    __test__ = False

    function: str
    offset: int | None
    target: TestValue
    span: Span


@dataclass(frozen=True, slots=True)
class TestEnter:
    """The kernel calls the entry ``function``."""

    __test__ = False

    function: str
    arguments: tuple[TestValue, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class TestLeave:
    """The entry that was entered last returns."""

    __test__ = False

    span: Span


@dataclass(frozen=True, slots=True)
class TestPhase:
    """From here on the policy is in ``phase``: "transition" or "final"."""

    __test__ = False

    phase: str
    span: Span


@dataclass(frozen=True, slots=True)
class Expect:
    """The verdict of the step before: "allow", "deny" or "audition"."""

    verdict: str
    span: Span


TestStep = GivenObject | TestStore | TestCall | TestIndirectCall | TestEnter | TestLeave | TestPhase | Expect


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """A `test` block: its steps in order.  Named numbers are already put in."""

    name: str
    steps: tuple[TestStep, ...]
    span: Span


# --- the whole --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequiredFeature:
    """Something that the policy needs of the running system, e.g. "deny" or "private heap", and why."""

    name: str
    reason: str
    remedy: str
    span: Span


@dataclass(frozen=True, slots=True)
class CheckedPolicy:
    """A compartment that is ready to be compiled, with its tests.

    ``gates`` holds the direct callees of the target and whatever the policy names, by function name.
    ``calls`` decides every direct callee outside the compartment (sorted by function).  ``kernel_callbacks`` are
    functions of the kernel that satisfy ENTRY like the compartment's own entries; some may not exist in this kernel.
    """

    name: str
    span: Span
    files: tuple[str, ...]
    code: Code
    heap: Heap
    stack: Stack | None
    grants: tuple[Grant, ...]
    capabilities: tuple[Capability, ...]
    entries: tuple[Entry, ...]
    gates: tuple[Gate, ...]
    calls: tuple[CallRule, ...]
    indirect: IndirectTargets
    audition: Audition | None
    transition: Transition | None
    on_violation: Action
    violation_rules: tuple[ViolationRule, ...]
    on_missed: Action
    probes_strict: bool
    types: tuple[GrantedType, ...]
    tests: tuple[PolicyTest, ...] = ()
    required_features: tuple[RequiredFeature, ...] = ()
    scoped_indirect: tuple[IndirectTargets, ...] = ()
    kernel_callbacks: tuple[str, ...] = ()

    def action_for(self, kind: ViolationKind, function: str | None = None) -> Action:
        """What a violation of that kind in code of ``function`` does."""
        return narrowest_action(self.violation_rules, kind, function, self.on_violation)

    def gate(self, function: str, caller: str | None = None) -> Gate | None:
        """The gate of that name for calls from ``caller``: one for few functions before one for all."""
        found = [
            gate
            for gate in self.gates
            if gate.function == function and (gate.scope is None or caller in gate.scope.functions)
        ]
        return min(found, key=lambda gate: len(gate.scope.functions) if gate.scope else 1 << 62, default=None)

    def entry(self, function: str) -> Entry | None:
        """The entry of that name."""
        return next((entry for entry in self.entries if entry.function == function), None)

    def call(self, function: str, caller: str | None = None) -> CallRule | None:
        """The rule that decides direct calls of that function from ``caller``; a rule for few functions only
        ever allows more."""
        found = [
            rule
            for rule in self.calls
            if rule.function == function and (rule.scope is None or caller in rule.scope.functions)
        ]
        return next((rule for rule in found if rule.allowed), found[0] if found else None)

    def capability(self, name: str) -> Capability | None:
        """The capability of that name."""
        return next((capability for capability in self.capabilities if capability.name == name), None)

    def type_named(self, struct: str) -> GrantedType | None:
        """The numbered type of that struct."""
        return next((granted for granted in self.types if granted.struct == struct), None)

    @property
    def allowed_calls(self) -> tuple[CallRule, ...]:
        """The direct callees that may be called."""
        return tuple(rule for rule in self.calls if rule.allowed)

    @property
    def denied_calls(self) -> tuple[CallRule, ...]:
        """The direct callees that may not be called."""
        return tuple(rule for rule in self.calls if not rule.allowed)
