# SPDX-License-Identifier: Apache-2.0
"""Policies with something wrong, one for each message; the name of a case is the name of its snapshot."""

from __future__ import annotations

from .run import PRELUDE, compartment

EVERYTHING = (
    "entries of struct demo_ops, struct timer_list",
    "entry demo_rcv(skb) { gives skb as packet }",
    "gate mystery(object, net, callback, buffer, n) { require writable(buffer, n) }",
    'gate "helper.isra.0"(...) {}',
    "icall self",
)


def write(rule: str) -> str:
    return compartment(rule)


CASES: dict[str, str] = {
    # --- names
    "module_unknown": 'use std.dmeo\ncompartment demo { code modules "demo" }\n',
    "module_uses_itself": 'use std.loop\ncompartment demo { code modules "demo" }\n',
    "name_unknown": compartment(
        "gate send(sk, skb) { require skb.len <= SIZE_LIMT }", before="const SIZE_LIMIT = 1\n"
    ),
    "name_ambiguous": compartment("gate send(sk, skb) { takes skb as packet }", before="use std.other\n"),
    "set_ambiguous": compartment("call { kfree } except dangerous", before="use std.other\n"),
    "constant_twice": compartment(before="const A = 1\nconst A = 2\n"),
    "set_unknown": compartment("call imports except std.demo.dangerus"),
    "set_of_unused_module": compartment("call imports except std.other.dangerous"),
    "capability_unknown": compartment("entry demo_rcv(skb) { gives skb as pakcet }"),
    "capability_needs_itself": compartment(
        "entry demo_rcv(skb) { gives skb as loop }", before="caps loop(s: struct sk_buff) { s as loop }\n"
    ),
    "capability_without_struct": compartment(
        "entry demo_rcv(skb) { gives skb as odd }", before="caps odd(s: u32) { s[4] }\n"
    ),
    "constant_needs_itself": compartment(
        "gate send(sk, skb) { require skb.len <= A }", before="const A = B + 1\nconst B = A\n"
    ),
    "set_needs_itself": compartment("call a", before="set a = b\nset b = a\n"),
    "entry_kind_unknown": compartment(
        "gate mod_timer(timer, expires) { stores callback timer.function as entry tmer }"
    ),
    "struct_unknown": write("write struct demo_objct { size }"),
    "struct_is_a_union": write("write struct demo_object__anonymous { hash }  // reason"),
    "base_type_unknown": compartment("gate send(sk: u33, skb) {}"),
    "sizeof_unknown": compartment("gate send(sk, skb) { require skb.len <= sizeof(u33) }"),
    "field_unknown": write("write struct demo_object { siez }"),
    "field_unknown_below": write("write struct demo_object { inner.frist }"),
    "field_pattern_matches_nothing": write("write struct demo_object { x_* }"),
    "bit_field_alone": write("write struct demo_object { flag }  // is set by the module"),
    "bit_field_read": compartment("gate mystery(object, ...) { require object.kind == 1 }"),
    "function_unknown": compartment("in functions { demo_opne } { write struct sock { sk_err } }"),
    "symbol_unknown": write("write symbols { demo_tabel }"),
    "symbol_imported": write("write symbols { demo_table }\n    write pernet jiffies_id"),
    "symbol_read_only": write("write symbols { demo_names }"),
    "symbol_after_init": write("write symbols { demo_cache }"),
    "symbol_own": write("write symbols { demo_count }  // counts"),
    "symbol_without_fields": write("write symbols { demo_count.value }"),
    "code_of_other_module": 'compartment demo { code modules "sctp" }\n',
    "code_is_not_built_in": "compartment demo { code functions { demo_* } of vmlinux }\n",
    "pattern_matches_nothing": compartment("in functions { dmo_* } { write struct sock { sk_err } }"),
    "not_a_struct_pointer": compartment("gate kfree(object) { require object.size > 1 }"),
    "behind_no_pointer": write("write behind struct demo_object { size }"),
    "place_no_pointer": compartment("gate send(sk, skb) { writes skb.users.value.low }"),
    "icall_target_unknown": compartment("icall { demo_opne }"),
    "icall_target_dangerous": compartment("icall { kernel_write }"),
    "icall_target_without_types": compartment(
        "icall { other_handler, printk }", before="extern fn other_handler(table) writes table whole\n"
    ),
    "icall_member_unknown": compartment('icall ops struct timer_list of modules "other_*"'),
    "constants_too_deep": compartment(
        "gate send(sk, skb) { require skb.len == A0 }",
        before="".join(f"const A{i} = A{i + 1}\n" for i in range(70)) + "const A70 = 1\n",
    ),
    "capability_too_large": compartment(
        "entry demo_rcv(skb) { gives skb as c5 }",
        before="caps c0(s: struct sk_buff) { s whole }\n"
        + "".join(f"caps c{i + 1}(s: struct sk_buff) {{ s as c{i}  s as c{i} }}\n" for i in range(5)),
    ),
    "too_many_errors": compartment(*[f"write struct sock {{ x{i} }}" for i in range(120)]),
    # --- types and units
    "condition_is_number": compartment("gate send(sk, skb) { require skb.len }"),
    "not_of_number": compartment("gate send(sk, skb) { require !skb.len }"),
    "and_of_number": compartment("gate send(sk, skb) { require held(skb) && skb.len }"),
    "minus_of_condition": compartment("gate send(sk, skb) { require -held(skb) == 1 }"),
    "compare_conditions": compartment("gate send(sk, skb) { require held(skb) == held(sk) }"),
    "fraction": compartment("gate send(sk, skb) { require skb.len <= 0.5 }"),
    "granted_untyped": compartment("gate kfree(object) { require granted(object) }"),
    "time_for_size": compartment("gate send(sk, skb) { require skb.len <= 1 KiB + 5 s }"),
    "time_as_length": compartment("gate send(sk, skb) { writes skb[5 ms] }"),
    "shift_by_size": compartment("gate send(sk, skb) { require skb.len << 2 B == 4 }"),
    "product_of_sizes": compartment("gate send(sk, skb) { require skb.len <= 2 KiB * 2 KiB }"),
    "transition_without_unit": compartment("transition { at most 60 B }"),
    "heap_in_seconds": compartment("heap private 64 s"),
    "predicate_unknown": compartment("gate send(sk, skb) { require hold(skb) }"),
    "value_at_struct": compartment("gate send(sk, skb) { require value_at(skb) == 1 }"),
    "value_at_three_bytes": compartment("gate send(sk, skb) { require value_at(skb, 3) == 1 }"),
    "predicate_arity": compartment("gate send(sk, skb) { require writable(skb) }"),
    "not_a_constant": compartment("gate send(sk, skb) { on deny return skb.len }"),
    "number_too_large": compartment("gate send(sk, skb) { require skb.len <= 0xffffffffffffffff * 2 }"),
    "division_by_zero": compartment("gate send(sk, skb) { require skb.len / 0 == 1 }"),
    "heap_too_small": compartment("heap private 16 B"),
    "result_before_call": compartment("gate alloc_skb(size) { require result != 0 }"),
    # --- grants
    "whole_struct_is_powerful": write("write struct demo_object"),
    "whole_in_list_is_powerful": write("write struct demo_object { whole, notify }"),
    "behind_is_powerful": write(
        "write behind struct sk_buff { head[0 .. end] }\n    write behind struct sock { sk_prot }"
    ),
    "pattern_is_powerful": write("write struct demo_object { *s, n* }  // all of these"),
    "granted_twice": write(
        "write struct sock { sk_err }  // errors\n    write struct sock { sk_err }  // errors again"
    ),
    "grant_inside_another": write(
        "write struct sock { sk_err, sk_queued }  // both\n    in functions { demo_open } { write struct sock { sk_err } }"
    ),
    "excluded_field_not_granted": write("write struct sock { sk_err } except { sk_queued }  // errors"),
    "nothing_left": write("write struct sock { sk_err } except { sk_err }  // errors"),
    "scope_of_nothing": compartment(
        "in functions { demo_open } except { demo_* } { write struct sock { sk_err } }"
    ),
    "empty_scope": compartment("in functions { demo_open } {}"),
    "untyped_struct": write("write struct demo_inner { first }  // the first number"),
    "no_reason": write("write struct sock { sk_err }"),
    # --- one of a kind
    "two_heaps": compartment("heap tracked", "heap private 1 MiB"),
    "violations_contradict": compartment("on violation deny"),
    "violations_twice": compartment("on violation of write deny", "on violation of write deny"),
    "two_gates": compartment("gate send(sk, skb) {}", "gate send(sk, skb) { require held(skb) }"),
    "no_compartment": "use std.demo\n",
    "two_compartments": 'compartment a { code modules "demo" }\ncompartment b { code modules "demo" }\n',
    "compartment_twice": 'compartment a { code modules "demo" }\ncompartment a { code modules "demo" }\n',
    "no_code": "compartment demo { heap tracked }\n",
    "audition_condition": compartment('audition "t.json" at access { require size > 4 }'),
    "audition_confidence": compartment('audition "t.json" at access { require confidence >= 1.5 }'),
    "transition_never_ends": compartment("transition { }"),
    "transition_cut_off_under_deny": compartment(
        "transition { until quiescent, at most 60 s }", "on violation of write deny"
    ),
    # --- entries, gates, calls
    "entry_not_own": compartment("entry demo_rvc(skb) {}"),
    "entry_twice": compartment("entry demo_rcv(skb) {}", "entry demo_rcv(skb) { gives skb as packet }"),
    "entries_twice": compartment(
        "entries of struct demo_ops", "entries of struct timer_list, struct demo_ops"
    ),
    "entry_that_nothing_calls": compartment("entry demo_write(o) {}"),
    "addresses_taken": compartment("entries of struct demo_ops"),
    "no_such_tables": compartment("entries of struct demo_inner"),
    "slot_no_function": compartment(
        "entries of struct demo_object { size }", "entries of struct demo_ops { opne }"
    ),
    "slot_not_a_function": compartment("entries of struct demo_ops { open }").replace(
        "struct demo_ops { open }", "struct timer_list { flags }"
    ),
    "gate_unknown": compartment(),
    "length_unknown": compartment("gate kernel_write(file, buffer, count) { writes buffer }"),
    "gate_arity": compartment("gate send(sk) {}"),
    "entry_arity": compartment("entry demo_rcv(skb, info) {}"),
    "parameter_of_other_type": compartment("gate mystery(object: struct sk_buff, ...) {}"),
    "parameter_twice": compartment("gate send(skb, skb) {}"),
    "gate_never_called": compartment("gate kmalloc(size) {}", "gate demo_walk() {}"),
    "call_never_made": compartment("call { kfre, demo_walk }"),
    "calls_not_allowed": PRELUDE
    + 'compartment demo { code modules "demo" on violation report call { kfree } }\n',
    "dangerous_by_name": compartment("call { kernel_write }"),
    "dangerous_by_imports": PRELUDE
    + 'compartment demo { code modules "demo" on violation report call imports }\n',
    "capability_of_other_struct": compartment("entry demo_rcv(skb) { gives skb as socket }"),
    "clause_without_meaning": compartment("entry demo_rcv(skb) { frees skb  on deny return 1 }"),
    # --- tests
    "test_capability_and_state": compartment(
        after='test "t" { given p: struct sk_buff owned as packet  store demo_rcv to p.len  expect allow }\n'
    ),
    "test_expects_too_early": compartment(after='test "t" { given p: struct sk_buff owned  expect deny }\n'),
    "test_expects_nothing": compartment(after='test "t" { given p: struct sk_buff owned }\n'),
    "test_too_many_arguments": compartment(after='test "t" { call kfree(1, 2)  expect deny }\n'),
    "test_store_size": compartment(
        after='test "t" { given b: buffer 64 B foreign  store demo_rcv to b  expect deny }\n'
    ),
    "test_two_addresses": compartment(
        after='test "t" { given a: struct sk_buff owned  given b: struct sk_buff owned  call kfree(a + b)  expect deny }\n'
    ),
    "test_unknown_pointer": compartment(
        after='test "t" { given o: struct demo_object owned  store demo_write to o.owner.extra  expect deny }\n'
    ),
    "test_leaves_too_early": compartment(after='test "t" { leave  expect allow }\n'),
    "test_function_unknown": compartment(after='test "t" { call kfre(1)  expect deny }\n'),
    "test_store_function_unknown": compartment(
        after='test "t" { given p: struct sk_buff owned  store demo_rvc to p.len  expect allow }\n'
    ),
    "test_name_unknown": compartment(
        after='test "t" { given p: struct sk_buff owned  call kfree(q)  expect deny }\n'
    ),
    "test_named_twice": compartment(
        after='test "t" { given p: struct sk_buff owned  given p = 4  call kfree(p)  expect deny }\n'
    ),
    "test_of_unknown_compartment": compartment(after='test "t" of dmo { call kfree(1)  expect deny }\n'),
    "test_enters_what_only_the_compartment_calls": compartment(
        after='test "t" { enter demo_walk()  expect allow }\n'
    ),
    "test_enters_what_is_no_entry": compartment(after='test "t" { enter demo_open(0)  expect allow }\n'),
    "test_of_no_gate": compartment(after='test "t" { gate kernel_write(1)  expect deny }\n'),
    "test_twice": compartment(
        after='test "t" { call kfree(1) expect deny }\ntest "t" { call kfree(1) expect deny }\n'
    ),
}
