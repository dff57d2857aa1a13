# SPDX-License-Identifier: Apache-2.0
"""`test` blocks of a checked policy: what is given, what is done, which verdict is expected."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.diagnostics import Span
from o2cc.syntax.nodes.words import ObjectState as ObjectState


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
