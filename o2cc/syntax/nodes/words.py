# SPDX-License-Identifier: Apache-2.0
"""Closed sets of words: actions, rights, states, units, operators."""

from __future__ import annotations

from enum import StrEnum


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
