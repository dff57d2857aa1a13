# SPDX-License-Identifier: Apache-2.0
"""What the parts of the lowering share while they make one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from o2cc.diagnostics import Span
from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description, Function
from o2cc.kernel.description import Site as Place
from o2cc.lower.places import frame_at
from o2cc.lower.rules import Scopes, Types
from o2cc.policy.model import Action, CheckedPolicy

DENIED = -14
"""-EFAULT: what a denied call returns where nothing else is known."""
RESULT_MASK = 0xFFFF
ACTION_CODES: Mapping[Action, int] = {Action.REPORT: 0, Action.DENY: 1, Action.KILL: 2, Action.PANIC: 3}

# Kinds of events and of verdicts against a site, as in library/report.ir.
STORE_DENIED = 1
UNTRACKED_TOUCHED = 2
INDIRECT_DENIED = 3
CALL_FORBIDDEN = 4
REQUIREMENT_FAILED = 5
FOREIGN_FREED = 6
ENTRY_REFUSED = 7
HEAP_EXHAUSTED = 8
UNCERTAIN_TOUCHED = 9
AUDITION_DISAGREES = 10


@dataclass(frozen=True)
class Unchecked:
    """A place that needs a decision and cannot carry a probe: nothing is checked there."""

    function: str
    offset: int
    kind: ir.SiteKind
    reason: str


@dataclass
class Lowering:
    """Collects the checks, sites and proofs of one module in the order of the code."""

    policy: CheckedPolicy
    description: Description
    types: Types
    scopes: Scopes
    target_gates: Mapping[str, int]  # see o2cc.lower.indirect
    checks: dict[str, ir.Check] = field(default_factory=dict)
    sites: list[ir.Site] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)  # of the table `sites`
    discharged: list[ir.Discharged] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)

    def check(self, name: str, make: Callable[[], tuple[ir.Block, ...]], span: Span | None = None) -> str:
        """The check of that name, made the first time that it is asked for."""
        if name not in self.checks:
            self.checks[name] = ir.Check(name, make(), span)
        return name

    def add_site(
        self,
        function: Function,
        offset: int,
        kind: ir.SiteKind,
        check: str,
        *,
        action: Action,
        span: Span | None,
        place: Place | None = None,
        probe_offset: int | None = None,
        parameters: Mapping[str, int] | None = None,
        note: str = "",
        result: int = DENIED,
    ) -> None:
        """Bind a check to a place of ``function``; ``place`` gives the stack height there, ``result`` is what a denied
        call returns."""
        number = len(self.sites)
        frame = frame_at(function, place, self.description.function_by_name)
        owner = function.parent or function.name
        self.rows.append(
            (
                self.scopes.mask(owner),
                frame.height,
                result & RESULT_MASK,
                frame.saved,
                frame.bp_slot,
                ACTION_CODES[action],
            )
        )
        values = {"site": number, **(parameters or {})}
        self.sites.append(
            ir.Site(
                number,
                function.name,
                offset,
                kind,
                check,
                tuple(sorted(values.items())),
                span,
                probe_offset if probe_offset is not None and probe_offset != offset else None,
                note,
            )
        )

    def discharge(
        self, function: Function, offset: int, kind: ir.SiteKind, reason: str, proof: str, span: Span | None
    ) -> None:
        """A place that needs no check, and why."""
        self.discharged.append(ir.Discharged(function.name, offset, kind, reason, proof, (), span))

    def probed_offset(self, function: Function, place: Place, kind: ir.SiteKind) -> int | None:
        """Where the probe for a place goes; None, and noted, when it cannot have one."""
        if place.probe.offset is None:
            reason = place.probe.reason or "no probe can be placed there"
            self.unchecked.append(Unchecked(function.name, place.offset, kind, reason))
        return place.probe.offset
