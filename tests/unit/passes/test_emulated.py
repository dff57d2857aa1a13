# SPDX-License-Identifier: Apache-2.0
"""Discharged and merged stores against runs of the machine code in an emulator.

The generated functions and the emulator are those of the scanner's tests; nothing here believes the description:
addresses are those that the registers give when the instruction is about to run.
"""

import contextlib
from dataclasses import dataclass, field, replace

import unicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description, Function
from o2cc.passes.checked_before import DischargeCheckedBefore
from o2cc.passes.manager import Pass, PassContext, run_pipeline
from o2cc.passes.merge_checks import TABLE, MergeChecks
from o2cc.passes.own_frame import FRAME_LIMIT, DischargeOwnFrame
from tests.unit.kernel import test_emulated as emulated

from .targets import description
from .test_merge_checks import LIBRARY_MODULE, with_sites

COUNTS: dict[str, int] = {}


@dataclass
class Watch:
    """What a run may rely on at each store of `f`, and what went wrong."""

    module: ir.Module
    calls_end_checks: bool
    kept: dict[int, ir.Site] = field(init=False)
    reasons: dict[int, str] = field(init=False)
    allowed: set[int] = field(default_factory=set)
    announced: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        sites = [site for site in self.module.sites if site.function == "f"]
        self.kept = {site.offset: site for site in sites}
        self.reasons = {d.offset: d.reason for d in self.module.discharged if d.function == "f"}
        self.numbers = {site.number: site.offset for site in sites}
        rows = next((table.rows for table in self.module.tables if table.name == TABLE), ())
        self.groups: dict[int, list[tuple[int, int]]] = {}
        for site in sites:
            first = dict(site.parameters).get("first")
            if first is not None:
                count = rows[first][3]
                self.groups[site.offset] = [(row[2], row[0]) for row in rows[first + 1 : first + 1 + count]]


class Run(emulated.Run):
    """A run that watches the stores."""

    watch: Watch

    def before(self, machine: unicorn.Uc, address: int, size: int, data: object) -> None:
        offset = address - self.start
        site = self.described.site_by_offset.get(offset) if 0 <= offset < self.described.size else None
        if site is None:
            return
        watch = self.watch
        if site.kind == "call" and watch.calls_end_checks:
            watch.allowed.clear()
        operand = site.operand
        if not site.writes or operand is None or operand.base is None or operand.index is not None:
            return
        base = self.register(operand.base)
        start = (base + operand.displacement) % 2**64
        touched = set(range(start, start + site.size))
        reason = watch.reasons.get(offset)
        COUNTS[reason or "kept"] = COUNTS.get(reason or "kept", 0) + 1
        if reason is None:
            watch.allowed |= touched
        elif reason == "checked-before" and not touched <= watch.allowed:
            watch.failures.append(f"+{offset:#x}: nothing allowed {start:#x}")
        elif reason == "own-frame":
            top = self.register("rsp") - (8 if site.kind == "push" else 0)
            if site.stack_height is None and operand.base != "rsp":
                top = self.entry_rsp - FRAME_LIMIT  # all that the pass promises where the height is not known
            if not top <= start or not start + site.size <= self.entry_rsp:
                watch.failures.append(f"+{offset:#x}: {start:#x} is not in the frame")
        for number, displacement in watch.groups.get(offset, ()):
            watch.announced[watch.numbers[number]] = (base + displacement) % 2**64
        if offset in watch.announced:
            COUNTS["announced"] = COUNTS.get("announced", 0) + 1
            if watch.announced.pop(offset) != start:
                watch.failures.append(f"+{offset:#x}: the merged check asks for another address")
        elif offset in watch.kept and watch.kept[offset].covered_by is not None:
            watch.failures.append(f"+{offset:#x}: no check ran for it")

    def on_write(self, *arguments: object) -> None:
        return


def prepared(functions: list[Function], calls_end_checks: bool) -> Description:
    changed = [
        replace(f, problems=("not known",)) if f.name == "helper" and calls_end_checks else f
        for f in functions
    ]
    return description(*changed)


def run_with(text: str, passes: list[Pass], calls_end_checks: bool) -> list[str]:
    run = Run(text)
    target = prepared(list(run.functions.values()), calls_end_checks)
    context = PassContext(target, control_flow_kept=True, skips_violations=False)
    module = run_pipeline(with_sites(target, LIBRARY_MODULE), passes, context)
    run.watch = Watch(module, calls_end_checks)
    with contextlib.suppress(unicorn.UcError):
        run.execute()
    return run.watch.failures


PASSES: list[Pass] = [DischargeOwnFrame(), DischargeCheckedBefore(), MergeChecks()]


def test_what_is_proved_happens() -> None:
    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(emulated.programs, emulated.prologues, st.booleans())
    def on_generated_code(program: object, prologue: str, calls_end_checks: bool) -> None:
        assert run_with(emulated.program_text(program, prologue), PASSES, calls_end_checks) == []

    COUNTS.clear()
    on_generated_code()
    # the programs are another lot each time: usually dozens of each kind, 15 were seen
    assert min(COUNTS[kind] for kind in ("kept", "own-frame", "checked-before", "announced")) > 5


def test_the_comparison_notices_what_is_wrong() -> None:
    text = emulated.program_text(["mov [rdi], rsi", "mov rbx, rdi", "call helper", "mov [rbx], rsi"], "saves")
    assert run_with(text, PASSES, True) == []

    @dataclass(frozen=True)
    class Wrong(Pass):
        def run(self, module: ir.Module, context: PassContext) -> ir.Module:
            last = max((s for s in module.sites if s.function == "f"), key=lambda site: site.offset)
            proof = ir.Discharged(last.function, last.offset, last.kind, "checked-before", "wrong")
            return replace(module, sites=tuple(s for s in module.sites if s is not last), discharged=(proof,))

    assert run_with(text, [Wrong()], True)
    assert run_with(text, [Wrong()], False) == []
