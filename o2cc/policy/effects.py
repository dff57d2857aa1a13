# SPDX-License-Identifier: Apache-2.0
"""Capabilities, and what gates and entries do with memory and capabilities.

A condition of an effect that reads the result is evaluated after the return, any other before the call; what the
effect requires must hold whatever the condition.  Pointers of `Allocates`, `Gives` and `Shares` are evaluated after the
return of a gate and may read its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.diagnostics import Span
from o2cc.policy.expr import Expr
from o2cc.syntax.nodes.words import Right as Right

# --- capabilities and effects -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CapabilityRange:
    """``[start, end)`` as addresses; both may read the object, which is ``ArgumentValue(0)``.  A range that starts at
    null (a buffer that is not there) is empty.  ``per_cpu``: the addresses are what alloc_percpu gave."""

    start: Expr
    end: Expr
    span: Span
    per_cpu: bool = False


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
