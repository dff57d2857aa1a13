# SPDX-License-Identifier: Apache-2.0
"""Checks of calls: direct ones, gates with guards, targets of pointers; and what a violation leads to."""

from __future__ import annotations

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.ir import nodes as ir
from o2cc.lower.constants import EVENT_BURST
from o2cc.simulation.world import STACK_POINTER, USER
from tests.unit.lower.confined import (
    FORBIDDEN,
    INDIRECT_DENIED,
    OWN,
    REQUIREMENT,
    TYPED,
    Confined,
    confined,
    failures,
    sctp,
)


def _indirect(kernel: Confined, function: str | None = None) -> ir.Site:
    kinds = (ir.SiteKind.INDIRECT_CALL, ir.SiteKind.INDIRECT_JUMP)
    return next(
        s for s in kernel.module.sites if s.kind in kinds and (function is None or s.function == function)
    )


def _goes(kernel: Confined, target: int, site: ir.Site | None = None) -> str:
    number = (site or _indirect(kernel)).number
    kernel.world.machine.now += 1 << 31
    outcome = kernel.world.interpreter.run_function("check_target", target, number, STACK_POINTER)
    assert kernel.kinds(outcome) in ([], [INDIRECT_DENIED])
    return "deny" if kernel.kinds(outcome) else "allow"


# --- through pointers -------------------------------------------------------------------------------------


def _function(*, taken: bool) -> str:
    return next(
        f.name
        for f in sctp().functions
        if f.address_taken is taken and not f.exported and not f.initial and not f.parent and f.size > 32
    )


def test_own_functions_whose_address_is_taken_may_be_called() -> None:
    """Catches targets that are any own code: functions nobody points to, and the middle of functions."""
    kernel = confined()
    taken = kernel.world.function(_function(taken=True))
    assert _goes(kernel, taken) == "allow"
    assert _goes(kernel, taken + 4) == "deny"
    assert _goes(kernel, taken - 1) == "deny"
    assert _goes(kernel, kernel.world.function(_function(taken=False))) == "deny"
    assert _goes(kernel, USER) == "deny"
    assert _goes(kernel, 0) == "deny"


def test_each_function_of_one_name_may_be_called() -> None:
    """Catches functions of a header that every source file has a copy of: packets without a hardware checksum."""
    kernel = confined("icall self")
    copies = [f for f in sctp().functions if f.name == "sctp_csum_update"]
    text = kernel.world.sections[copies[0].section]
    answers = [kernel.call("is_entry", text + copy.offset) for copy in copies]
    assert len(answers) > 1
    assert set(answers) == {1}
    assert kernel.call("is_entry", text + copies[1].offset + 1) == 0


def test_named_kernel_functions_may_be_called_and_no_others() -> None:
    """Catches a kernel function that may be called because another one is named."""
    kernel = confined("    icall { jiffies_to_msecs }")
    assert _goes(kernel, kernel.world.function("jiffies_to_msecs")) == "allow"
    assert _goes(kernel, kernel.world.function("jiffies_to_msecs") + 1) == "deny"
    assert _goes(kernel, kernel.world.function("commit_creds")) == "deny"


def test_scoped_targets_are_for_their_functions_only() -> None:
    """Catches `in functions { f } { icall g }` that lets everyone call g."""
    first = _indirect(confined()).function
    kernel = confined(f"    in functions {{ {first} }} {{ icall {{ jiffies_to_msecs }} }}")
    inside = _indirect(kernel, first)
    outside = next(s for s in kernel.module.sites if s.kind is inside.kind and s.function != first)
    target = kernel.world.function("jiffies_to_msecs")
    assert _goes(kernel, target, inside) == "allow"
    assert _goes(kernel, target, outside) == "deny"


def test_own_targets_of_a_scope_are_for_its_functions_only() -> None:
    """Catches a scoped `icall self` that opens the table of own targets to all code."""
    first = _indirect(confined()).function
    kernel = confined(
        f"    in functions {{ {first} }} {{ icall self }}", targets="icall { jiffies_to_msecs }"
    )
    inside = _indirect(kernel, first)
    outside = next(s for s in kernel.module.sites if s.kind is inside.kind and s.function != first)
    target = kernel.world.function(_function(taken=True))
    assert _goes(kernel, target, inside) == "allow"
    assert _goes(kernel, target, outside) == "deny"


def test_functions_in_tables_of_modules_are_called_by_their_scopes() -> None:
    """Catches entries of the loader's map that count for all code."""
    kernel = confined()
    site = _indirect(kernel)
    targets = kernel.world.machine.maps["call_targets"]
    bit = kernel.world.machine.tables["sites"].load(site.number, "scopes")
    targets.update((0xFFFF_FFFF_C100_0000,), (bit, 0))
    targets.update((0xFFFF_FFFF_C100_0010,), (bit << 1, 0))
    assert _goes(kernel, 0xFFFF_FFFF_C100_0000, site) == "allow"
    assert _goes(kernel, 0xFFFF_FFFF_C100_0010, site) == "deny"


def test_tables_of_modules_are_listed_for_the_loader_with_their_scopes() -> None:
    """Catches `ops struct` rules that nobody reads."""
    first = _indirect(confined()).function
    kernel = confined(
        '    icall ops struct proto_ops of modules "xt_*", "nft-*"\n'
        f'    in functions {{ {first} }} {{ icall ops struct proto of modules "a" }}'
    )
    listed = kernel.lowered.ops_targets
    assert [(t.struct, t.modules) for t in listed] == [("proto_ops", ("xt_*", "nft-*")), ("proto", ("a",))]
    own = kernel.lowered.ops_targets[1].scopes
    site = _indirect(kernel, first)
    assert own == kernel.world.machine.tables["sites"].load(site.number, "scopes")
    assert listed[0].scopes & own == own
    assert listed[0].scopes != own


def test_tables_of_built_in_code_are_an_error() -> None:
    """Catches a rule that cannot be carried out and is dropped."""
    with pytest.raises(DiagnosticError) as caught:
        confined("    icall ops struct proto_ops")
    assert [d.code for d in caught.value.diagnostics if d.severity == "error"] == ["O2C0512"]


def test_callbacks_of_the_kernel_are_entries_and_no_call_targets() -> None:
    """Catches a kernel function for callbacks that the compartment may then call itself."""
    kernel = confined()
    kernel.store(USER)
    names = kernel.policy.kernel_callbacks
    assert names
    address = kernel.world.function(names[0])
    assert kernel.call("is_entry", address) == 1
    assert kernel.call("is_entry", address + 8) == 0
    assert _goes(kernel, address) == "deny"


# --- direct calls -----------------------------------------------------------------------------------------


def test_forbidden_calls_are_violations() -> None:
    """Catches a denied callee without a check."""
    kernel = confined(calls="call imports except { get_random_bytes, std.linux.dangerous }")
    assert kernel.kinds(kernel.run(kernel.noted("call of get_random_bytes"), 0, 0)) == [FORBIDDEN]


def test_a_call_that_some_functions_may_make_is_checked_in_the_others() -> None:
    """Catches `in functions { f } { call g }` that allows everyone to call g, or nobody."""
    callers = sorted(
        {f.name for f in sctp().functions for s in f.sites if s.target == "get_random_bytes" and not f.parent}
    )
    assert len(callers) > 1
    kernel = confined(
        f"    in functions {{ {callers[0]} }} {{ call {{ get_random_bytes }} }}",
        calls="call imports except { get_random_bytes, std.linux.dangerous }",
    )
    own = kernel.object(64, OWN)
    for caller in callers:
        site = next(
            s for s in kernel.module.sites if s.function == caller and s.note == "call of get_random_bytes"
        )
        assert kernel.kinds(kernel.run(site, own, 4)) == ([] if caller == callers[0] else [FORBIDDEN])


def _guarded(guard: str, value: int) -> list[int]:
    kernel = confined(f"    gate get_random_bytes(buffer, n) {{ require {guard} }}")
    return kernel.kinds(
        kernel.run(kernel.noted("call of get_random_bytes"), kernel.object(128 << 10, OWN), value)
    )


@pytest.mark.parametrize(
    ("guard", "value", "holds"),
    [
        ("n > 10", 10, False),
        ("n > 10", 11, True),
        ("n <= 64 KiB", 65536, True),
        ("n <= 64 KiB", 65537, False),
        ("n == 1 || n == 3", 3, True),
        ("n == 1 || n == 3", 2, False),
        ("!(n == 1) && n < 5", 1, False),
        ("!(n == 1) && n < 5", 4, True),
        ("n % 4 == 0", 8, True),
        ("n % 4 == 0", 9, False),
    ],
)
def test_guards_compute_what_they_say(guard: str, value: int, holds: bool) -> None:
    """Catches operators that are lowered to others, and conditions the wrong way round."""
    assert _guarded(guard, value) == ([] if holds else [REQUIREMENT])


def test_a_buffer_that_a_function_fills_must_be_writable() -> None:
    """Catches a write through a helper: the confused deputy."""
    kernel = confined()
    gate = kernel.noted("call of get_random_bytes")
    own = kernel.object(64, OWN)
    assert kernel.kinds(kernel.run(gate, own, 64)) == []
    assert kernel.kinds(kernel.run(gate, own, 65)) == [REQUIREMENT]
    assert kernel.kinds(kernel.run(gate, kernel.object(64), 8)) == [REQUIREMENT]
    assert kernel.kinds(kernel.run(gate, USER, 0)) == []


@pytest.mark.parametrize("value", [3, 4])
def test_the_seventh_argument_is_on_the_stack(value: int) -> None:
    """Catches arguments from the seventh on that are read from a register, or one word off."""
    kernel = confined("    gate ip6_xmit(sk, skb, fl6, mark, opt, class, priority) { require priority > 3 }")
    site = kernel.noted("call of ip6_xmit")
    memory = kernel.world.machine.memory
    memory.write_word(STACK_POINTER, value)
    memory.write_word(STACK_POINTER + 8, 7 - value)
    implied = next(s for s in confined().module.sites if s.note == "call of ip6_xmit")
    before = confined().kinds(confined().run(implied))
    found = kernel.kinds(kernel.run(site))
    assert (found == before) is (value > 3) or before == [REQUIREMENT]


def test_tests_of_a_policy_call_gates() -> None:
    """Catches a test runner that asks another check than the call's."""
    tests = """
test "gate" {
    given p: buffer 64 B owned
    given q: buffer 64 B foreign
    call get_random_bytes(p, 16)
    expect allow
    call get_random_bytes(p, 65)
    expect deny
    call get_random_bytes(q, 16)
    expect deny
    call kfree(p)
    expect allow
    call kfree(p)
    expect deny
}
"""
    assert failures(tests) == []


# --- what a violation leads to ----------------------------------------------------------------------------


def _verdicts(rules: str, violation: str) -> tuple[int, int]:
    """What a failing guard and a denied store answer: 1 where the enforcement module is to act."""
    kernel = confined(
        f"    gate get_random_bytes(buffer, n) {{ require n > 3 {rules} }}", violation=violation
    )
    own = kernel.object(64, OWN)
    gate = kernel.run(kernel.noted("call of get_random_bytes"), own, 1)
    assert kernel.kinds(gate) == [REQUIREMENT]
    number = kernel.site("sctp_outq_tail").number
    store = kernel.world.interpreter.run_function("check_store", USER, 8, number, STACK_POINTER, 0)
    return gate.value, store.value


def test_the_action_of_a_rule_goes_before_that_of_the_policy() -> None:
    """Catches one action for everything: `deny` that only reports, and `report` that denies."""
    assert _verdicts("", "report") == (0, 0)
    assert _verdicts("", "deny") == (1, 1)
    assert _verdicts("on violation deny", "report") == (1, 0)
    assert _verdicts("on violation report", "deny") == (0, 1)


def test_kill_hits_tasks_only() -> None:
    """Catches a kill in a soft interrupt, which would hit whoever was interrupted."""
    kernel = confined(violation="kill")
    machine = kernel.world.machine
    kernel.store(USER)
    assert len(machine.killed) == 1
    _set_preempt_count(kernel, 0x100)
    kernel.store(USER)
    _set_preempt_count(kernel, 0x10000)
    kernel.store(USER)
    assert len(machine.killed) == 1
    # A breakpoint in a task counts as one NMI and one hard interrupt (arch/x86/kernel/traps.c exc_int3, 6.1).
    _set_preempt_count(kernel, 0x110000)
    kernel.store(USER)
    assert len(machine.killed) == 2


def _set_preempt_count(kernel: Confined, value: int) -> None:
    memory = kernel.world.machine.memory
    symbols = kernel.world.machine.symbols
    memory.write_word(symbols["__per_cpu_offset"], 0)
    memory.write_word(symbols["__preempt_count"], value, 4)


def test_events_are_limited_for_each_site_and_counters_are_not() -> None:
    """Catches a flood of events, a limit that never ends, and violations that nobody counts."""
    kernel = confined()
    machine = kernel.world.machine
    number, other = kernel.site("sctp_outq_tail").number, kernel.site("sctp_outq_init").number

    def events(site: int, times: int) -> int:
        before = len(machine.events)
        for _ in range(times):
            kernel.world.interpreter.run_function("check_store", USER, 8, site, STACK_POINTER, 0)
        return len(machine.events) - before

    assert events(number, EVENT_BURST + 30) == EVENT_BURST
    assert events(other, 1) == 1
    machine.now += 2 << 30
    assert events(number, 3) == 3
    counters = machine.tables["counters"]
    assert counters.load(number, "denied") == EVENT_BURST + 33
    assert counters.load(number, "sent") == EVENT_BURST + 3


def test_events_that_find_no_room_are_counted() -> None:
    """Catches events lost in silence."""
    kernel = confined()
    machine = kernel.world.machine
    while machine.rings["events"].emit((0,) * 16):
        pass
    kernel.world.interpreter.run_function(
        "check_store", USER, 8, kernel.site("sctp_outq_tail").number, STACK_POINTER, 0
    )
    assert kernel.counter("lost_events") == 1
    assert machine.events == []


def test_an_event_says_what_was_hit() -> None:
    """Catches reports with the wrong address, class, object or flags."""
    kernel = confined("    write struct sock { sk_err }")
    sk = kernel.object(2048, TYPED, "sock", cache="made-up-cache")
    kernel.store(sk + 256)
    event = kernel.world.machine.named_events()[-1]
    assert (event["address"], event["size"], event["class"], event["base"]) == (sk + 256, 8, 5, sk)
    assert (event["flags"], event["types"]) == (TYPED, kernel.types.mask("sock"))
    assert (
        event["name0"].to_bytes(8, "little") + event["name1"].to_bytes(8, "little") == b"made-up-cache\0\0\0"
    )


@pytest.mark.parametrize(
    ("callee", "returned"),
    [
        ("skb_copy", 0),
        ("kfree_skb_reason", -14),
        ("crypto_alloc_shash", -14),
        ("security_sctp_bind_connect", -22),
    ],
)
def test_a_denied_call_returns_what_its_caller_takes_for_a_failure(callee: str, returned: int) -> None:
    """Catches -EFAULT for a function that returns a pointer: its caller looks for NULL, and follows it."""
    gate = "security_sctp_bind_connect(sk, ...) { require held(sk) on deny return -22 }"
    kernel = confined(f"    gate crypto_alloc_shash(name, ...) {{ require held(name) }}\n    gate {gate}")
    (table,) = (t for t in kernel.module.tables if t.name == "sites")
    columns = [name for name, _ in table.columns]
    row = dict(zip(columns, table.rows[kernel.noted(f"call of {callee}").number], strict=True))
    assert row["result"] == returned & 0xFFFF
