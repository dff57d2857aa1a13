# SPDX-License-Identifier: Apache-2.0
"""Which probe goes where, and which sites have none."""

from __future__ import annotations

from o2cc.cli.load import matcher
from o2cc.runtime.plan import (
    NO_FUNCTION,
    SEVERAL_FUNCTIONS,
    cookie_of,
    make_plan,
    refusal_reason,
    tracking_sites,
)
from o2cc.runtime.running_kernel import Symbols
from tests.unit.runtime.made import info, site

SYMBOLS = Symbols({"f": 0x1000, "g": 0x2000}, frozenset({"g"}))


def test_addresses_are_those_of_the_probe() -> None:
    plan = make_plan(info(site(0, "f", 0x20, probe_offset=0x18)), SYMBOLS)
    assert [item.address for item in plan.attachments] == [0x1018]
    assert plan.failures == ()


def test_missing_and_ambiguous_functions_are_failures_with_reasons() -> None:
    plan = make_plan(info(site(0, "f"), site(1, "g"), site(2, "h")), SYMBOLS)
    assert [item.site.number for item in plan.attachments] == [0]
    assert [(f.site, f.place, f.reason) for f in plan.failures] == [
        (1, "g+0x10", SEVERAL_FUNCTIONS),
        (2, "h+0x10", NO_FUNCTION),
    ]


def test_a_site_that_another_decides_has_no_probe() -> None:
    plan = make_plan(info(site(0, "f"), site(1, "f", program="")), SYMBOLS)
    assert [item.site.number for item in plan.attachments] == [0]
    assert plan.failures == ()


def test_unwanted_sites_are_neither() -> None:
    plan = make_plan(info(site(0, "f"), site(1, "h")), SYMBOLS, lambda s: s.function == "f")
    assert len(plan.attachments) == 1
    assert plan.failures == ()


def test_refusals_in_generated_tracing_functions_say_why() -> None:
    reason = refusal_reason(site(0, "perf_trace_sctp_probe"), "invalid argument")
    assert "generated tracing function" in reason
    assert refusal_reason(site(0, "sctp_rcv"), "invalid argument") == "refused: invalid argument"


def test_a_site_without_cookie_is_known_by_its_number() -> None:
    assert cookie_of(site(5, cookie=None)) == 5
    assert cookie_of(site(5, cookie=0)) == 0


def test_only_takes_globs_and_looks_through_compiler_suffixes() -> None:
    wanted = matcher("sctp_*, exact")
    assert wanted(site(0, "sctp_rcv"))
    assert wanted(site(0, "exact.constprop.0"))
    assert not wanted(site(0, "exactly"))
    assert matcher(None)(site(0, "anything"))


def test_a_part_of_a_policy_still_keeps_track_of_everything() -> None:
    """Catches `--only` with `deny` that denies what functions outside of the part have allocated."""
    described = info(
        site(0, "other", kind="entry"),
        site(1, "other", kind="return"),
        site(2, "other", kind="call", note="call of kmalloc"),
        site(3, "other", 0x15, kind="call", note="result of kmalloc"),
        site(4, "other", 0x20, kind="call", note="call of kfree"),
        site(5, "other", 0x30),
        site(6, "wanted", 0x30),
    )
    wanted = matcher("wanted", tracking_sites(described))
    assert [s.number for s in described.sites if wanted(s)] == [0, 1, 2, 3, 6]
