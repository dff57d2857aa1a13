# SPDX-License-Identifier: Apache-2.0
"""Entries, grants, calls and settings of policies that are right."""

from __future__ import annotations

import pytest

from o2cc.policy import model
from o2cc.policy.model import Action, HeapKind, ViolationKind

from .cases import EVERYTHING
from .run import PRELUDE, checked, compartment, run
from .show import effects, requires, show
from .target import describe


def struct_grants(*rules: str) -> list[model.StructGrant]:
    return [item for item in checked(compartment(*rules)).grants if isinstance(item, model.StructGrant)]


# --- grants


def test_fields_become_bytes() -> None:
    (grant,) = struct_grants("write struct demo_object { size, inner, hash }  // reason")
    assert grant.ranges == ((16, 24), (56, 72))
    assert grant.fields == ("size", "inner", "hash")
    assert not grant.whole


def test_a_path_goes_into_embedded_structs() -> None:
    (grant,) = struct_grants("write struct demo_object { inner.second }")
    assert grant.ranges == ((64, 72),)


def test_patterns_name_fields_at_their_level() -> None:
    (grant,) = struct_grants("write struct demo_object { inner.*, s* }")
    assert grant.ranges == ((16, 20), (52, 53), (56, 72))


def test_whole_with_its_pointers_taken_out() -> None:
    (grant,) = struct_grants("write struct demo_object { whole } except { data, ops, notify }")
    assert grant.whole
    assert grant.ranges == ((0, 24), (48, 96))


def test_whole_with_its_pointers_named() -> None:
    (grant,) = struct_grants("write struct demo_object { whole, data, ops, notify }")
    assert grant.ranges == ((0, 96),)


def test_bit_fields_that_share_a_byte_are_granted_together() -> None:
    (grant,) = struct_grants("write struct demo_object { flag, kind }")
    assert grant.ranges == ((48, 49),)


@pytest.mark.parametrize(
    "written",
    [
        "// it counts errors\n    write struct sock { sk_err }",
        "write struct sock { sk_err }  // it counts errors",
        "write struct sock { sk_err }  /* it counts errors */",
        "// it counts\n    // errors\n    write struct sock { sk_err }",
        "/* it counts\n     * errors */\n    write struct sock {\n        sk_err\n    }",
    ],
)
def test_the_reason_is_the_comment(written: str) -> None:
    (grant,) = struct_grants(written)
    assert grant.reason == "it counts errors"


def test_the_reason_of_a_block_is_that_of_its_rules() -> None:
    first, second = struct_grants(
        "// opening counts\n    in functions { demo_open } {\n        write struct sock { sk_err }\n"
        "        write struct sock { sk_queued }  // queued\n    }"
    )
    assert (first.reason, second.reason) == ("opening counts", "queued")


def test_a_comment_further_up_is_no_reason() -> None:
    (grant,) = struct_grants("// about something else\n\n    write struct sock { sk_err }")
    assert grant.reason == ""


def test_behind_a_pointer() -> None:
    policy = checked(
        compartment(
            "write behind struct sock { sk_net }",
            "write behind struct demo_object { data[size], data[4 .. size] }",
        )
    )
    behind = [item for item in policy.grants if isinstance(item, model.BehindGrant)]
    assert [(item.offset, show(item.start), show(item.length), item.pointee) for item in behind] == [
        (16, "0", "64", "net"),
        (24, "0", "[$0+16:s4]", None),
        (24, "4", "([$0+16:s4] - 4)", None),
    ]


def test_pernet_areas() -> None:
    policy = checked(
        compartment("write pernet demo_net_id", "write pernet demo_net_id as struct demo_inner { second }")
    )
    assert [
        (item.variable, item.struct, item.ranges)
        for item in policy.grants
        if isinstance(item, model.PernetGrant)
    ] == [("demo_net_id", None, ()), ("demo_net_id", "demo_inner", ((8, 16),))]


def test_symbols_with_fields() -> None:
    policy = checked(compartment("write symbols { demo_table.inner.*, demo_count }"))
    assert [
        (item.symbol, item.offset, item.size) for item in policy.grants if isinstance(item, model.SymbolGrant)
    ] == [("demo_table", 56, 16), ("demo_count", 0, 4)]


def test_fields_of_other_kernels_grant_nothing_in_this_one() -> None:
    policy, diagnostics, _ = run(
        compartment("write struct sock { sk_err, sk_old if present, sk_new* if present }  // reason")
    )
    assert policy is not None
    (grant,) = policy.grants
    assert isinstance(grant, model.StructGrant)
    assert grant.ranges == ((0, 4),)
    assert not {item.code for item in diagnostics} & {"O2C0211", "O2C0217"}


def test_a_scope_holds_own_functions() -> None:
    (grant,) = struct_grants(
        "in functions { demo_* } except { demo_walk, demo_w* } { write struct sock { sk_err } }"
    )
    assert grant.scope is not None
    assert grant.scope.functions == ("demo_close", "demo_open", "demo_rcv", "demo_timer")


# --- entries


def test_entries_of_tables_get_what_the_library_says() -> None:
    policy = checked(compartment("entries of struct demo_ops"))
    assert [entry.function for entry in policy.entries] == ["demo_close", "demo_open"]
    close, open_ = policy.entries
    assert effects(open_) == ["Gives $0 socket"]
    assert effects(close) == ["Lends $0 socket"]
    assert open_.slots == (model.Slot("demo_ops", "open", "demo_prot"),)
    assert requires(open_) == []


def test_some_slots_of_tables() -> None:
    policy = checked(compartment("entries of struct demo_ops { o* }"))
    assert [entry.function for entry in policy.entries] == ["demo_open"]


def test_callbacks_that_calls_hand_over_are_entries() -> None:
    policy = checked(compartment("entries of struct timer_list"))
    assert [entry.function for entry in policy.entries] == ["demo_timer"]


def test_an_entry_rule_adds_to_the_table() -> None:
    policy = checked(
        compartment(
            "entries of struct demo_ops", "entry demo_open(s) { require s.sk_err == 0  on violation kill }"
        )
    )
    entry = policy.entry("demo_open")
    assert entry is not None
    assert effects(entry) == ["Gives $0 socket"]
    assert requires(entry) == ["([$0+0:s4] ==s 0)"]
    assert entry.action is Action.KILL


# --- calls


def test_every_callee_is_decided() -> None:
    policy = checked(compartment())
    allowed = {rule.function for rule in policy.allowed_calls}
    assert {rule.function for rule in policy.denied_calls} == {"kernel_write"}
    assert "__x86_return_thunk" not in allowed
    assert "demo_walk" not in allowed
    assert len(policy.calls) == len(allowed) + 1


def test_the_deciding_rule_is_the_most_exact() -> None:
    text = compartment("call { k* }", "call { kfree }")
    policy = checked(text)
    rule = policy.call("kfree")
    assert rule is not None
    assert text[rule.span.start : rule.span.end] == "kfree"
    rule = policy.call("kfree_skb")
    assert rule is not None
    assert text[rule.span.start : rule.span.end] == "k*"
    rule = policy.call("kernel_write")
    assert rule is not None
    assert rule.allowed
    rule = policy.call("memcpy")
    assert rule is not None
    assert text[rule.span.start : rule.span.end] == "imports"


def test_what_one_rule_leaves_out_another_allows() -> None:
    policy, diagnostics, _ = run(compartment("call { kernel_write }"))
    assert policy is not None
    rule = policy.call("kernel_write")
    assert rule is not None
    assert rule.allowed
    assert "O2C0306" in {item.code for item in diagnostics}
    gate = policy.gate("kernel_write")
    assert gate is not None
    assert any(isinstance(effect, model.Dangerous) for effect in gate.effects)


def test_a_gate_allows_its_function() -> None:
    policy = checked(PRELUDE + 'compartment demo { code modules "demo" gate kfree(p) {} }')
    assert [rule.function for rule in policy.allowed_calls] == ["kfree"]


def test_scoped_calls_only_widen() -> None:
    policy = checked(
        PRELUDE + 'compartment demo { code modules "demo" in functions { demo_open } { call { kfree } } }'
    )
    inside, outside = policy.call("kfree", "demo_open"), policy.call("kfree", "demo_rcv")
    assert inside is not None
    assert outside is not None
    assert inside.allowed
    assert not outside.allowed


def test_indirect_targets() -> None:
    policy = checked(
        compartment(
            'icall self, { demo_*, kfree }, ops struct demo_ops of modules "a_*", "b" except { demo_walk }',
            "in functions { demo_rcv } { icall { mystery } }",
        )
    )
    indirect = policy.indirect
    assert indirect.own
    assert "kfree" in indirect.functions
    assert "demo_walk" not in indirect.functions
    assert indirect.excluded == ("demo_walk",)
    assert [(ops.struct, ops.modules) for ops in indirect.ops] == [("demo_ops", ("a_*", "b"))]
    (scoped,) = policy.scoped_indirect
    assert scoped.functions == ("mystery",)


def test_functions_in_sets_are_targets_even_when_the_description_does_not_know_them() -> None:
    policy, diagnostics, _ = run(compartment("icall { std.demo.callbacks }"))
    assert policy is not None
    assert policy.indirect.functions == ("demo_kernel_callback",)
    assert "O2C0219" not in {item.code for item in diagnostics}


def test_callbacks_of_the_kernel() -> None:
    assert checked(compartment()).kernel_callbacks == ("demo_kernel_callback",)


# --- settings


def test_defaults() -> None:
    policy = checked(
        PRELUDE + 'compartment demo { code modules "demo" call imports except std.demo.dangerous }'
    )
    assert policy.on_violation is Action.DENY
    assert policy.on_missed is Action.REPORT
    assert policy.heap.kind is HeapKind.TRACKED
    assert policy.stack is None
    assert not policy.probes_strict
    assert [item.name for item in policy.required_features] == ["deny"]


def test_code_is_all_functions_without_their_cold_parts() -> None:
    policy = checked(compartment())
    assert policy.code.modules == ("demo",)
    assert len(policy.code.functions) == 6
    assert "demo_walk.cold" not in policy.code.functions


def test_functions_of_built_in_code_are_the_compartment() -> None:
    text = PRELUDE + (
        "compartment demo { code functions { demo_open, demo_c* } of vmlinux on violation report\n"
        "    call imports except std.demo.dangerous }"
    )
    policy = checked(text, describe(kind="builtin"))
    assert policy.code.functions == ("demo_close", "demo_open")
    assert {rule.function for rule in policy.calls} == {"__kmalloc", "init_timer_key", "demo_walk", "kfree"}


def test_everything_that_needs_more_than_ebpf_is_named() -> None:
    text = PRELUDE + (
        'compartment demo { code modules "demo" heap private 64 MiB stack private 16 KiB probes strict\n'
        "    call imports except std.demo.dangerous\n"
        '    audition "t.json" at access, free { require confidence >= 0.975 accept payload "kmalloc-512" }\n'
        "    transition { until quiescent for 500 ms, at most 1 min }\n"
        "    on violation report on violation of write deny on missed panic }"
    )
    policy = checked(text)
    assert [item.name for item in policy.required_features] == [
        "deny",
        "panic",
        "private heap",
        "private stack",
        "strict probes",
    ]
    assert policy.heap.limit == 64 << 20
    assert policy.stack is not None
    assert policy.stack.limit == 16 << 10
    assert policy.audition is not None
    assert policy.audition.confidence == "0.975"
    assert policy.audition.accept_payload == ("kmalloc-512",)
    assert policy.transition is not None
    assert policy.transition.quiescent_for == 500_000_000
    assert policy.transition.at_most == 60_000_000_000
    for item in policy.required_features:
        assert item.reason
        assert item.remedy


def test_kinds_that_no_rule_speaks_of_are_denied() -> None:
    text = PRELUDE + (
        'compartment demo { code modules "demo" on violation of write report call imports except std.demo.dangerous }'
    )
    policy = checked(text)
    assert policy.action_for(ViolationKind.WRITE) is Action.REPORT
    assert policy.action_for(ViolationKind.FREE) is Action.DENY
    assert [item.name for item in policy.required_features] == ["deny"]


def test_the_narrowest_rule_for_violations_wins() -> None:
    policy = checked(
        compartment(
            "on violation of write, call kill",
            "on violation of write deny",
            "in functions { demo_rcv } { on violation panic }",
        )
    )
    assert policy.action_for(ViolationKind.WRITE) is Action.DENY
    assert policy.action_for(ViolationKind.CALL) is Action.KILL
    assert policy.action_for(ViolationKind.GATE) is Action.REPORT
    assert policy.action_for(ViolationKind.WRITE, "demo_rcv") is Action.PANIC
    assert policy.action_for(ViolationKind.WRITE, "demo_open") is Action.DENY


def test_capabilities_have_ranges_over_their_object() -> None:
    policy = checked(compartment(*EVERYTHING))
    packet = policy.capability("packet")
    assert packet is not None
    assert [(show(item.start), show(item.end)) for item in packet.ranges] == [
        ("$0", "($0 + 32)"),
        ("[$0+8:8]", "([$0+8:8] + ([$0+4:4] + 16))"),
    ]
    socket = policy.capability("socket")
    assert socket is not None
    assert socket.ranges == ()


def test_a_capability_can_include_another() -> None:
    policy = checked(
        compartment(
            "entry demo_write(o) { gives o as object }",
            before="caps object(o: struct demo_object) { o.inner  o.owner as std.demo.socket  o.data[o.size] }\n"
            "caps extra(s: struct demo_sock) { s.extra }\n",
        )
    )
    found = policy.capability("object")
    assert found is not None
    assert [(show(item.start), show(item.end)) for item in found.ranges] == [
        ("($0+56)", "(($0+56) + 16)"),
        ("[$0+24:8]", "([$0+24:8] + [$0+16:s4])"),
    ]


def test_types_are_numbered_from_one() -> None:
    policy = checked(compartment("write struct sock { sk_err }", *EVERYTHING))
    assert [item.number for item in policy.types] == list(range(1, len(policy.types) + 1))
    found = policy.type_named("sock")
    assert found is not None
    assert found.size == 24


def test_the_result_does_not_depend_on_hashing() -> None:
    text = compartment("write struct sock { sk_err }", *EVERYTHING)
    assert checked(text) == checked(text)


# --- tests of policies


def test_policy_tests_are_typed() -> None:
    policy = checked(
        compartment(
            *EVERYTHING,
            after='test "t" of demo {\n'
            "    given n = 4\n"
            "    given b: buffer 64 B foreign\n"
            "    given s: struct sk_buff held as std.demo.packet { head = b, len = n }\n"
            "    enter demo_rcv(s)\n"
            "    store demo_rcv+0x1c to s.len\n"
            "    expect allow\n"
            "    store demo_rcv to s.head + 8 size 2\n"
            "    expect deny\n"
            "    call kfree(s.head)\n"
            "    expect deny\n"
            "    gate alloc_skb(9) as t\n"
            "    icall demo_rcv+3 to demo_open\n"
            "    leave\n"
            "    phase final\n"
            "    store demo_write to t.len + n\n size 4\n"
            "    expect deny\n"
            "}\n",
        )
    )
    (test,) = policy.tests
    buffer, packet, enter, store, _, far, _, free, _, gate, icall, leave, phase, last, _ = test.steps
    assert isinstance(buffer, model.GivenObject)
    assert (buffer.size, buffer.struct, buffer.state) == (64, None, model.ObjectState.FOREIGN)
    assert isinstance(packet, model.GivenObject)
    assert packet.capability == "packet"
    assert [(offset, size, value.object, value.offset) for offset, size, value in packet.fields] == [
        (0, 4, None, 4),
        (8, 8, "b", 0),
    ]
    assert isinstance(enter, model.TestEnter)
    assert [value.object for value in enter.arguments] == ["s"]
    assert isinstance(store, model.TestStore)
    assert (store.function, store.offset, store.size) == ("demo_rcv", 0x1C, 4)
    assert isinstance(far, model.TestStore)
    assert (far.address.object, far.address.offset, far.size) == ("s", 16, 2)
    assert isinstance(free, model.TestCall)
    assert [value.object for value in free.arguments] == ["b"]
    assert isinstance(gate, model.TestCall)
    assert gate.result == "t"
    assert isinstance(icall, model.TestIndirectCall)
    assert icall.target.symbol == "demo_open"
    assert isinstance(leave, model.TestLeave)
    assert isinstance(phase, model.TestPhase)
    assert isinstance(last, model.TestStore)
    assert (last.address.object, last.address.offset, last.size) == ("t", 4, 4)


# --- what only some kernels have


OPTIONAL = (
    "entry demo_gone(skb) if present { gives skb as packet }",
    "entry demo_rcv(skb) if present { gives skb as packet }",
    "gate gone(x) if present { require x.field == 1 }",
    "gate send(sk, skb) if present { require skb.len <= 64 KiB }",
    "in functions { demo_gone if present } { write struct sock { sk_err } }",
    "in functions { demo_gone if present, demo_rcv } { write struct sock { sk_err } }",
    "write symbols { gone if present }",
)


def test_what_is_missing_has_no_effect_when_it_may_be() -> None:
    """Catches `if present` that is an error after all, or that leaves out what is there."""
    policy, diagnostics, _ = run(compartment(*OPTIONAL))
    assert policy is not None, diagnostics
    about = ("O2C0213", "O2C0214", "O2C0217", "O2C0233", "O2C0240", "O2C0303", "O2C0304")
    assert [item for item in diagnostics if item.code in about] == []
    assert [entry.function for entry in policy.entries] == ["demo_rcv"]
    assert policy.gate("gone") is None
    send = policy.gate("send")
    assert send is not None
    assert not send.requires[0].implied
    assert [grant.scope.functions for grant in policy.grants if grant.scope] == [("demo_rcv",)]


@pytest.mark.parametrize("rule", [rule for rule in OPTIONAL if "gone" in rule])
def test_without_it_what_is_missing_is_told(rule: str) -> None:
    _, diagnostics, _ = run(compartment(rule.replace(" if present", "")))
    assert {item.code for item in diagnostics} & {"O2C0213", "O2C0214", "O2C0240", "O2C0303"}
