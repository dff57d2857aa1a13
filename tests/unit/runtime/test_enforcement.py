# SPDX-License-Identifier: Apache-2.0
"""How sites are put into the hands of o2c.ko, with a stand-in for it that refuses what a test says."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from o2cc.bpf.info import HookInfo, TableInfo
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import enforcement
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import (
    Action,
    Attached,
    Drain,
    DrainState,
    EnforcerError,
    Feature,
    Kind,
    Mode,
    Reason,
    Site,
)
from o2cc.runtime.instructions import Placed
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.libbpf import Program
from o2cc.runtime.plan import Attachment
from o2cc.runtime.running_kernel import Symbols
from tests.unit.runtime.made import info, site

STORE = bytes.fromhex("48895618") + bytes([0x90] * 8)
PROGRAMS = {"program": Program("program", 7), "other": Program("other", 8)}


class StandIn:
    """Takes everything but the addresses that a test names, and remembers what it was asked for."""

    def __init__(self, never: Sequence[int] = (), not_denied: Sequence[int] = ()) -> None:
        self.never, self.not_denied = never, not_denied
        self.programs: list[int] = []
        self.sites: list[Site] = []
        self.features = Feature.TRACEPOINT
        self.hooks: list[tuple[str, int, dict[str, int], int]] = []

    def tracepoint(self, name: str, program: int, **words: int) -> None:
        self.hooks.append((name, program, words, len(self.sites)))

    def program(self, descriptor: int) -> int:
        self.programs.append(descriptor)
        return len(self.programs) - 1

    def try_attach(self, sites: Sequence[Site]) -> list[Attached]:
        return [self._attach(one) for one in sites]

    def attach(self, sites: Sequence[Site]) -> list[Attached]:
        return self.try_attach(sites)

    def _attach(self, one: Site) -> Attached:
        if one.address in self.never:
            return Attached(None, Mode.OBSERVE, errno.EINVAL, Reason.PROBE)
        if one.address in self.not_denied and one.action is not Action.REPORT:
            return Attached(None, Mode.OBSERVE, errno.EOPNOTSUPP, Reason.FORM)
        self.sites.append(one)
        return Attached(len(self.sites) - 1, Mode.SKIP, 0, Reason.NONE)


def placed(number: int, **changes: Any) -> Placed:
    return Placed(site(number, **changes), 0x1000 + number, STORE, Action.DENY, 8)


def attach(given: StandIn, *sites: Placed) -> enforcement.Enforced:
    return enforcement.attach(cast("Enforcer", given), sites, PROGRAMS, lambda stage, done, total: None)


def test_each_program_is_registered_once() -> None:
    given = StandIn()
    outcome = attach(given, placed(0), placed(1), placed(2, program="other"))
    assert sorted(given.programs) == [7, 8]
    assert [given.programs[one.program] for one in given.sites] == [7, 7, 8]
    assert (outcome.denying, outcome.observed, outcome.failures) == (3, (), ())


def test_what_cannot_be_denied_is_observed_and_named() -> None:
    given = StandIn(not_denied=[0x1001])
    outcome = attach(given, placed(0), placed(1))
    assert [(one.address, one.kind, one.action) for one in given.sites] == [
        (0x1000, Kind.STORE, Action.DENY),
        (0x1001, Kind.OBSERVE, Action.REPORT),
    ]
    assert outcome.denying == 1
    assert [(item.site, item.reason) for item in outcome.observed] == [
        (1, "the kernel module cannot deny this instruction")
    ]


def test_what_takes_no_probe_at_all_is_a_failure() -> None:
    outcome = attach(StandIn(never=[0x1001]), placed(0), placed(1))
    assert outcome.denying == 1
    assert [item.place for item in outcome.failures] == ["f+0x10"]
    assert "kprobes refused the address" in outcome.failures[0].reason


def test_a_place_that_only_records_a_result_is_no_gap() -> None:
    given = StandIn()
    outcome = attach(given, placed(0, kind="call", note="result of kmalloc"), placed(1, kind="return"))
    assert [one.kind for one in given.sites] == [Kind.OBSERVE, Kind.RETURN]
    assert outcome == enforcement.Enforced(0, (), ())


def test_entries_come_after_returns_and_both_after_all_else() -> None:
    """The newest probe at an address runs first: an entry must see the return address that a return replaces."""
    given = StandIn()
    attach(given, placed(0, kind="entry"), placed(1, kind="return"), placed(2), placed(3, kind="entry"))
    assert [one.kind for one in given.sites] == [Kind.STORE, Kind.RETURN, Kind.ENTRY, Kind.ENTRY]


def _behind(number: int, kind: str) -> Placed:
    return replace(placed(number, kind=kind), behind=9)


def test_breakpoints_behind_the_place_of_ftrace_serve_entries_and_returns() -> None:
    given = StandIn()
    outcome = attach(given, _behind(0, "entry"), _behind(1, "return"))
    assert [(one.kind, one.address, one.displacement) for one in given.sites] == [
        (Kind.RETURN, 0x1001, 9),
        (Kind.ENTRY, 0x1009, 0),
    ]
    assert outcome == enforcement.Enforced(0, (), ())


def test_an_entry_that_takes_no_breakpoint_is_probed_at_its_start() -> None:
    given = StandIn(never=[0x1009])
    outcome = attach(given, _behind(0, "entry"))
    assert [(one.kind, one.address) for one in given.sites] == [(Kind.ENTRY, 0x1000)]
    assert outcome == enforcement.Enforced(0, (), ())


def test_an_entry_that_cannot_deny_is_named_also_where_it_is_probed_at_its_start() -> None:
    given = StandIn(never=[0x1009])
    asks = replace(placed(0, kind="entry", note="call of f"), behind=9)
    outcome = attach(given, asks)
    assert [(one.kind, one.address) for one in given.sites] == [(Kind.ENTRY, 0x1000)]
    assert outcome.denying == 0
    assert [item.site for item in outcome.observed] == [0]


class Text:
    """Memory with one function that ftrace knows and one that it does not."""

    def read(self, address: int, size: int) -> bytes:
        code = {0x2000: "f30f1efa0f1f44000055c3", 0x3000: "55c3"}[address]
        return bytes.fromhex(code)[:size]


def test_a_hook_of_the_kernel_is_served_by_a_breakpoint_where_ftrace_has_a_place() -> None:
    hooks = [
        HookInfo(name, kind, name, "other")
        for name, kind in (
            ("known", "kprobe"),
            ("unknown", "kprobe"),
            ("kfree", "raw_tracepoint"),
            ("absent", "kprobe"),
        )
    ]
    symbols = Symbols({"known": 0x2000, "unknown": 0x3000}, frozenset())
    found = enforcement.place_hooks(hooks, symbols, cast("KernelText", Text()))
    assert found == [enforcement.PlacedHook(hooks[0], 0x2009)]
    given = StandIn()
    enforcement.attach(
        cast("Enforcer", given),
        [placed(0)],
        PROGRAMS,
        lambda stage, done, total: None,
        hooks=found,
    )
    assert [(one.kind, one.address, given.programs[one.program]) for one in given.sites] == [
        (Kind.ENTRY, 0x2009, 8),
        (Kind.STORE, 0x1000, 7),
    ]
    assert given.sites[0].cookie >= enforcement.HOOK_COOKIE


def test_hooks_at_tracepoints_are_told_by_name_so_that_nobody_else_attaches_them() -> None:
    described = replace(
        info(tables=(TableInfo("known_objects", ".data", 64, 4, 65536, (("count", 0, 4),)),)),
        hooks=(
            HookInfo("o2c_kfree", "raw_tracepoint", "kfree", "other"),
            HookInfo("o2c_percpu_free", "raw_tracepoint", "percpu_free_percpu", "other"),
            HookInfo("o2c_bulk_free", "kprobe", "kmem_cache_free_bulk", "other"),
        ),
    )
    given = StandIn()
    whole = Feature.TRACEPOINT | Feature.FREE_BULK
    all_names = {"o2c_kfree", "o2c_percpu_free", "o2c_bulk_free"}
    for features, names in ((whole, all_names), (Feature(0), set()), (Feature.TRACEPOINT, set())):
        given.features = features
        served = enforcement.attach_tracepoints(cast("Enforcer", given), described, PROGRAMS, {".data": 17})
        assert served == names
    assert given.programs == [8]
    assert given.hooks == [
        ("kfree", 0, {"map": 17, "offset": 64, "value": 0}, 0),
        ("percpu_free_percpu", 0, {"map": 0, "offset": 0, "value": 0}, 0),
        ("kmem_cache_free_bulk", 0, {"map": 17, "offset": 64, "value": 0}, 0),
    ]


def test_an_instruction_that_is_not_the_expected_one_is_a_gap() -> None:
    outcome = attach(StandIn(), placed(0, kind="call"))
    assert "not the call that the compiler saw" in outcome.observed[0].reason


def test_an_entry_is_a_gap_only_where_it_requires_something() -> None:
    outcome = attach(StandIn(), placed(0, kind="entry"), placed(1, kind="entry", note="call of f"))
    assert [(item.site, item.reason) for item in outcome.observed] == [
        (1, "the entry or return of a function can only be observed")
    ]


def test_a_store_whose_rule_is_report_is_observed_and_no_gap() -> None:
    given = StandIn()
    report = Placed(site(0), 0x1000, STORE, enforcement.action_of(site(0), Action.REPORT), 8)
    assert attach(given, report) == enforcement.Enforced(0, (), ())
    assert given.sites[0].kind is Kind.OBSERVE


def test_nothing_is_denied_where_o2c_ko_only_attaches() -> None:
    class Text:
        @staticmethod
        def read(address: int, size: int) -> bytes:
            return STORE[:size]

    sites = (site(0), site(1, kind="call"), site(2, kind="entry", note="call of f"))
    attachments = [Attachment(one, 0x1000 + one.number) for one in sites]
    for prevents, kinds in (
        (True, {Kind.STORE, Kind.OBSERVE, Kind.ENTRY}),
        (False, {Kind.OBSERVE, Kind.ENTRY}),
    ):
        found = enforcement.place(
            b"", info(*sites), attachments, cast("KernelText", Text()), prevents=prevents
        )
        given = StandIn()
        outcome = attach(given, *found)
        assert {one.kind for one in given.sites} == kinds
        assert bool(outcome.denying) is bool(outcome.observed) is prevents
        assert all(one.action is Action.REPORT for one in given.sites) is not prevents


def test_a_call_denies_whatever_its_default_is() -> None:
    call = site(0, kind="call")
    assert enforcement.action_of(call, Action.REPORT) is Action.DENY
    assert enforcement.action_of(call, Action.KILL) is Action.KILL
    assert enforcement.action_of(site(0), Action.PANIC) is Action.PANIC


class Draining:
    """Stands for an open o2c.ko whose private heap has so many bytes left, one answer after another."""

    features = Feature.DRAIN
    left: ClassVar[list[int]] = []
    asked: ClassVar[list[bool]] = []

    def __init__(self, device: Path) -> None:
        self.device = device

    def __enter__(self) -> Draining:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def open(self, name: str) -> None:
        if name != "made":
            raise EnforcerError("open", errno.ENOENT)

    def drain(self, *, start: bool = False) -> Drain:
        Draining.asked.append(start)
        left = Draining.left.pop(0) if len(Draining.left) > 1 else Draining.left[0]
        return Drain(DrainState.GOING_ON if left else DrainState.DONE, left)


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> type[Draining]:
    monkeypatch.setattr(enforcement, "Enforcer", Draining)
    monkeypatch.setattr(enforcement, "_DRAIN_STEP", 0.0)
    Draining.asked.clear()
    return Draining


def drain(name: str, patience: float) -> None:
    enforcement.drain(name, patience, lambda stage, done, total: None, Path("/"))


def test_unloading_waits_for_the_last_private_object(draining: type[Draining]) -> None:
    """Catches an unload that does not close the heap first, or that asks once only."""
    draining.left = [8192, 4096, 0]
    drain("made", 60)
    assert draining.asked == [True, False, False]


def test_private_objects_that_stay_are_an_error_that_names_the_ways_out(draining: type[Draining]) -> None:
    draining.left = [8192]
    with pytest.raises(DiagnosticError) as refusal:
        drain("made", 0)
    (diagnostic,) = refusal.value.diagnostics
    assert diagnostic.code == "O2C0839"
    assert "8 KiB" in diagnostic.message
    assert "--force" in (diagnostic.help or "")


def test_there_is_nothing_to_drain_without_a_compartment_or_the_feature(
    draining: type[Draining], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draining.left = [8192]
    drain("other", 0)
    enforcement.drain("made", 0, lambda stage, done, total: None, tmp_path / "nothing")
    monkeypatch.setattr(Draining, "features", Feature(0))
    drain("made", 0)
    assert draining.asked == []
