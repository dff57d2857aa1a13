# SPDX-License-Identifier: Apache-2.0
"""What gates require and do: from the library, from the policy, from types alone."""

from __future__ import annotations

import pytest

from o2cc.policy import model
from o2cc.policy.model import Action

from .run import checked, compartment
from .show import effects, requires


def gate(function: str, *rules: str, before: str = "") -> model.Gate:
    found = checked(compartment(*rules, before=before)).gate(function)
    assert found is not None
    return found


def test_memcpy_writes_and_needs_the_destination() -> None:
    memcpy = gate("memcpy")
    assert effects(memcpy) == ["Writes $0[$2]", "Reads $1[$2]"]
    assert requires(memcpy) == ["<(($0 == 0) or (($2 == 0) or writable($0, $2)))>"]
    assert memcpy.known


def test_kfree_needs_an_object_of_its_own() -> None:
    kfree = gate("kfree")
    assert effects(kfree) == ["Frees $0 -"]
    assert requires(kfree) == ["<(($0 <= 16) or freeable($0))>"]


def test_allocation() -> None:
    assert effects(gate("__kmalloc")) == ["Allocates result[$0] None"]
    assert requires(gate("__kmalloc")) == []


def test_a_transfer_needs_the_capability_whatever_the_condition() -> None:
    send = gate("send")
    assert effects(send) == ["Lends $0 socket", "Takes $1 packet when (result ==s 0)"]
    assert requires(send) == [
        "<(($0 == 0) or held($0, socket))>",
        "<(($1 == 0) or held($1, packet))>",
        "<(($1 == 0) or freeable($1, packet))>",
    ]


def test_a_condition_on_arguments_limits_the_requirement_of_writes() -> None:
    found = gate("mystery", "gate mystery(object, net, callback, buffer, n) { writes buffer[n] when n > 8 }")
    assert requires(found)[0] == "<(not(($4 > 8)) or (($3 == 0) or (($4 == 0) or writable($3, $4))))>"


def test_a_condition_reads_through_pointers() -> None:
    assert effects(gate("kfree_skb")) == ["Takes $0 packet when ([$0+16:s4] ==s 1)"]


def test_callbacks_must_be_entries() -> None:
    init = gate("init_timer_key")
    assert effects(init) == ["Writes $0[24]", "StoresCallback $1 timer"]
    assert requires(init) == ["<(($0 == 0) or writable($0, 24))>", "<(($1 == 0) or entry($1))>"]
    assert requires(gate("mod_timer"))[1] == "<(([$0+8:8] == 0) or entry([$0+8:8]))>"


def test_a_function_that_nobody_knows_is_judged_by_its_types() -> None:
    mystery = gate("mystery")
    assert not mystery.known
    assert effects(mystery) == []
    assert requires(mystery) == [
        "<((($0 == 0) or owned($0)) or held($0))>",
        "<((($1 == 0) or shared($1)) or granted($1))>",
        "<(($2 == 0) or entry($2))>",
    ]


def test_a_granted_struct_can_be_an_argument() -> None:
    mystery = gate("mystery", "write struct demo_object { size }  // reason")
    assert requires(mystery)[0] == "<(((($0 == 0) or owned($0)) or held($0)) or granted($0))>"


def test_a_grant_adds_nothing_to_what_a_capability_asks() -> None:
    send = gate("send", "write struct demo_sock { extra }  // reason")
    assert requires(send)[0] == "<(($0 == 0) or held($0, socket))>"
    send = gate("send", "write struct sk_buff { len }  // reason")
    assert requires(send)[1] == "<(($1 == 0) or held($1, packet))>"


def test_owning_is_not_enough_where_a_capability_only_says_what_an_object_is() -> None:
    """Catches a socket of the compartment's own making, with operations of its choice, that a gate takes."""
    found = gate("send", before="extern fn send(sk, skb) {}\n")
    assert requires(found)[0] == "<(($0 == 0) or held($0, socket))>"


def test_owning_is_not_enough_where_a_capability_reaches_further() -> None:
    found = gate("kfree_skb", before="extern fn kfree_skb(skb) {}\n")
    assert requires(found) == ["<(($0 == 0) or held($0, packet))>"]
    assert found.known


def test_pure_functions_take_anything() -> None:
    found = gate("mystery", before="extern fn mystery(...) pure\n")
    assert requires(found) == []


def test_a_guard_speaks_for_its_argument() -> None:
    found = gate("mystery", "gate mystery(object, ...) { require writable(object, 4) }")
    assert requires(found)[0] == "writable($0, 4)"
    assert not any("owned($0)" in item for item in requires(found))


def test_the_gate_adds_to_the_library() -> None:
    found = gate("send", "gate send(sk, skb) { require skb.len <= 64 KiB }")
    assert requires(found)[0] == "([$1+0:4] <= 65536)"
    assert requires(found)[1:] == requires(gate("send"))
    assert effects(found) == effects(gate("send"))


def test_the_policys_own_extern_takes_the_place_of_the_librarys() -> None:
    found = gate("send", before="extern fn send(sk, skb) { lends skb as packet }\n")
    assert effects(found) == ["Lends $1 packet"]


def test_a_pattern_of_the_policy_goes_before_a_name_of_the_library() -> None:
    found = gate("kfree", before="extern fn { kf* }(...) pure\n")
    assert requires(found) == []


def test_transfer_is_takes_or_gives() -> None:
    found = gate(
        "mystery",
        "gate mystery(object, net, callback, buffer: struct sk_buff, n) {\n"
        "        transfer buffer as packet to self when n == 1\n    }",
    )
    assert effects(found) == ["Gives $3 packet when ($4 == 1)"]
    assert found.parameters[3].type.struct == "sk_buff"


def test_raw_memory_can_be_lent() -> None:
    found = gate("mystery", "gate mystery(object, net, callback, buffer, n) { lends buffer[n] }")
    assert effects(found) == ["Lends $3 [$4]"]
    assert requires(found)[0] == "<(($3 == 0) or (($4 == 0) or writable($3, $4)))>"


def test_returns_shares_and_ranges() -> None:
    found = gate(
        "mystery",
        "gate mystery(object, net, callback, buffer, n) { writes buffer[4 .. n]  shares object  returns owned }",
    )
    assert effects(found) == ["Writes ($3 + 4)[($4 - 4)]", "Shares $0", "Returns owned -"]


def test_fields_are_places_of_their_own() -> None:
    found = gate("mystery", "gate mystery(object, ...) { writes object.size, object.data[8], object.inner }")
    assert effects(found) == [
        "Writes ($0+16)[4]",
        "Writes [$0+24:8][8]",
        "Writes ($0+56)[16]",
    ]


def test_deny_result_and_action() -> None:
    found = gate("mystery", "gate mystery(...) { on deny return -22  on violation kill }")
    assert found.deny_result == -22
    assert found.action is Action.KILL
    assert all(item.action is Action.KILL for item in found.requires)


def test_held_means_the_capability_of_the_type() -> None:
    found = gate(
        "mystery", "gate mystery(object, net, callback, buffer: struct sk_buff, n) { require held(buffer) }"
    )
    assert requires(found)[0] == "held($3, packet)"


def test_held_as_a_named_capability() -> None:
    found = gate("send", "gate send(sk, skb) { require held(skb, std.demo.packet) }")
    assert requires(found)[0] == "held($1, packet)"


def test_constants_and_enumerators() -> None:
    found = gate(
        "mystery",
        "gate mystery(object, ...) { require object.size == DEMO_BUSY || object.hash <= LIMIT * 2 }",
        before="const LIMIT = std.demo.PAGE / 2\n",
    )
    assert requires(found)[0] == "(([$0+16:s4] ==s 1) or ([$0+20:4] <= 4096))"


def test_a_gate_for_some_functions_stands_beside_the_one_for_all() -> None:
    policy = checked(compartment("in functions { demo_rcv } { gate send(sk, skb) { require skb.len == 4 } }"))
    inside, outside = policy.gate("send", "demo_rcv"), policy.gate("send", "demo_open")
    assert inside is not None
    assert outside is not None
    assert inside.scope is not None
    assert inside.scope.functions == ("demo_rcv",)
    assert outside.scope is None
    assert len(inside.requires) == len(outside.requires) + 1


@pytest.mark.parametrize("written", ["object", "object: struct demo_object"])
def test_types_of_the_kernel_go_before_those_of_the_policy(written: str) -> None:
    found = gate("mystery", f"gate mystery({written}, ...) {{}}")
    assert found.parameters[0].type.struct == "demo_object"


def test_a_struct_that_begins_with_the_known_one_says_more() -> None:
    found = gate("send", "gate send(sk: struct demo_sock, skb) { require sk.extra == 1 }")
    assert found.parameters[0].type.struct == "demo_sock"
    assert requires(found)[0] == "([$0+24:8] == 1)"
