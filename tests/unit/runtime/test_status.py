# SPDX-License-Identifier: Apache-2.0
"""What `o2c status` says, and where its numbers come from."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from o2cc.bpf.info import TableInfo
from o2cc.runtime import state, tables
from o2cc.runtime import status as status_module
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, Kind, Mode, SiteStats, State
from o2cc.runtime.monitor import Losses, losses_of
from o2cc.runtime.state import Failure
from o2cc.runtime.status import (
    Missed,
    SiteCounter,
    Status,
    UntrackedObject,
    gather,
    lines,
    merge_counters,
)
from o2cc.runtime.tables import LiveTables, decode_rows
from tests.unit.runtime.made import info, site

STATUS = Status(
    name="sctp",
    target="sctp",
    release="6.1.0",
    phase="final",
    phase_reason="because",
    enforced=False,
    degraded=None,
    loaded_for=7300.0,
    attached=2,
    sites=3,
    hooks=1,
    denying=None,
    failures=(),
    observed=(),
    counters=(),
    missed=Missed(None, None),
    lost_events=0,
    lost_tracking=0,
    untracked=(),
    tracked_objects=1,
)
COUNTERS = TableInfo("counters", ".bss", 16, 32, 2, (("denied", 0, 8), ("sent", 8, 8)))
GLOBALS = TableInfo("globals", ".data", 0, 16, 1, (("phase", 0, 8), ("lost_events", 8, 8)))


def text_of(status: Status, *, every: bool = False) -> str:
    return "\n".join(lines(status, every=every))


def stats(cookie: int, missed: int) -> SiteStats:
    return SiteStats(0, cookie, 9, 0, missed, 0, 0, Kind.STORE, Mode.POISON, State.JUMP, Action.DENY)


def test_a_quiet_compartment_is_six_lines() -> None:
    assert text_of(STATUS).splitlines() == [
        "sctp: confines sctp in 6.1.0; violations are reported",
        "  phase       final: because",
        "  loaded      2 h ago",
        "  attached    2 of 3 sites; 1 hook",
        "  tracked     1 object",
        "  missed      not counted by this kernel for probes through perf (6.7 and newer do)",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unenforced": True}, "sctp in 6.1.0; NOTHING IS ENFORCED"),
        ({"by_module": True}, "sctp in 6.1.0; violations are reported through o2c.ko"),
        ({"by_module": True, "unchecked": True}, "sctp in 6.1.0; NOTHING IS CHECKED"),
        ({"enforced": True, "denying": 2}, "2 of 3 sites, 2 of them deny"),
        ({"accepted": 3}, "auditioned  3 objects from before loading accepted by the tree, and alive"),
        ({"covered": 9}, "2 of 3 sites, which decide 9 more; 1 hook"),
        ({"degraded": "report"}, "weakened by --degrade report"),
        ({"unseen": 2}, "unseen      2 frees or new pages of the whole system"),
        ({"lost_events": 3}, "3 events: the event buffer was full"),
        ({"lost_tracking": 1}, "1 object that could not be tracked"),
        (
            {"missed": Missed(4, 1)},
            "1 check skipped inside another probe's handler, 4 because another BPF program",
        ),
        ({"problems": ("o2c.ko is gone",)}, "problem     o2c.ko is gone"),
        (
            {"failures": (Failure(1, "f+0x1", "refused"),)},
            "checks that are not there (1):\n    f+0x1: refused",
        ),
        ({"observed": (Failure(1, "f+0x1", "why"),)}, "places that only report (1):\n    f+0x1: why"),
    ],
)
def test_everything_weaker_than_hoped_for_is_said(changes: dict[str, Any], expected: str) -> None:
    assert expected in text_of(replace(STATUS, **changes))


def test_counters_say_what_was_not_sent_and_not_run() -> None:
    counter = SiteCounter(4, "f+0x4", "store", "p.o2c:3", 30, 5, 2)
    text = text_of(replace(STATUS, counters=(counter,)))
    assert "f+0x4 (store): 30 violations, 25 of them without an event, 2 missed runs [p.o2c:3]" in text


def test_long_lists_are_cut_only_when_not_asked_for() -> None:
    many = replace(STATUS, failures=tuple(Failure(n, f"f+{n:#x}", "no") for n in range(50)))
    assert "and 30 more (--all)" in text_of(many)
    assert "f+0x31" not in text_of(many)
    assert "f+0x31" in text_of(many, every=True)


def test_json_has_everything() -> None:
    item = UntrackedObject(2**64 - 8, 2**64 - 16, 5.0, 1.0, 3, "f+0x4")
    full = replace(STATUS, untracked=(item,), counters=(SiteCounter(1, "f", "store", "", 3, 1),))
    document = json.loads(json.dumps(full.document()))
    assert document["untracked"][0]["address"] == "0xfffffffffffffff8"
    assert document["counters"][0]["suppressed"] == 2
    assert document["missed"] == {"recursion": None, "nested": None}


def test_counters_are_those_that_are_not_zero_worst_first() -> None:
    described = info(site(0, "a"), site(1, "b"), site(2, "c"), site(9, "beyond"))
    rows = [{"denied": 1, "sent": 1}, {"denied": 0, "sent": 0}, {"denied": 5, "sent": 2}]
    found = merge_counters(described, rows, {})
    assert [(c.place, c.denied, c.suppressed, c.missed) for c in found] == [
        ("c+0x10", 5, 3, None),
        ("a+0x10", 1, 0, None),
    ]
    found = merge_counters(described, rows, {1: stats(101, 7)})
    assert [(c.place, c.missed, c.mode) for c in found if c.missed] == [("b+0x10", 7, "poison")]


def test_rows_are_read_at_their_stride() -> None:
    image = (
        bytes(16)
        + (3).to_bytes(8, "little")
        + (2).to_bytes(8, "little")
        + bytes(16)
        + (1).to_bytes(8, "little")
    )
    assert decode_rows(COUNTERS, image) == ({"denied": 3, "sent": 2}, {"denied": 1, "sent": 0})


def test_losses_are_told_apart() -> None:
    bss, data = mmap.mmap(-1, 4096), mmap.mmap(-1, 4096)
    live = LiveTables(info(site(0), tables=(COUNTERS, GLOBALS)), {".bss": bss, ".data": data})
    assert not losses_of(live)
    bss[16:24] = (10).to_bytes(8, "little")  # denied
    bss[24:32] = (4).to_bytes(8, "little")  # sent
    live.set("globals", 0, "lost_events", 2)
    assert losses_of(live) == Losses(rate_limited=4, lost=2)
    assert live.rows("globals")[0] == {"phase": 0, "lost_events": 2}
    with pytest.raises(KeyError):
        live.set("nothing", 0, "phase", 1)
    assert "4 violations without an event" in losses_of(live).sentence()
    assert losses_of(live) - Losses(4, 0) == Losses(0, 2)


@contextmanager
def _no_rows(*_: object) -> Iterator[LiveTables]:
    yield LiveTables(info(tables=(GLOBALS,)), {".data": mmap.mmap(-1, 64)})


@pytest.mark.parametrize("promised", [True, False])
def test_a_policy_that_o2c_ko_lost_is_not_called_enforced(
    promised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed `o2c unload` leaves: the state says that violations are prevented, and no module is there to do so."""
    described = info(site(0), site(1, program=""))
    saved = state.State("made", 0.0, "boot", 1, (), enforced=promised, degraded=None, by_module=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "0").touch()
    monkeypatch.setattr(state, "load", lambda name: (saved, described))
    monkeypatch.setattr(state, "pins", lambda name: tmp_path)
    monkeypatch.setattr(tables, "live", _no_rows)
    monkeypatch.setattr(status_module, "_missed_of_links", lambda links: Missed(None, None))
    monkeypatch.setattr(status_module, "Enforcer", partial(Enforcer, tmp_path / "no-device"))
    found = gather("made")
    assert (found.enforced, found.unenforced, found.unchecked) == (False, promised, not promised)
    assert (found.sites, found.covered) == (1, 1)
    word = "enforced" if promised else "checked"
    assert any(f"nothing is {word}" in problem for problem in found.problems)
    assert f"NOTHING IS {word.upper()}" in text_of(found)
