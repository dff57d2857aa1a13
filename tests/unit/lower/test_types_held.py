# SPDX-License-Identifier: Apache-2.0
"""What a capability is held of: an object of its type, not any object that something is known of."""

from __future__ import annotations

import pytest

from o2cc.simulation.world import STACK_POINTER
from tests.unit.lower.confined import (
    FOREIGN_FREE,
    HELD,
    OWN,
    REQUIREMENT,
    TRANSITION,
    TYPED,
    Confined,
    confined,
    offset_of,
    sctp,
)

RULES = """
    gate release_sock(sk) { require held(sk) }
    gate dst_release(dst: struct dst_entry) { require held(dst) }
    gate consume_skb(skb) { transfer skb as packet to kernel }
    gate skb_put(skb, len) { require held(skb) }
"""
BEFORE = "caps route(d: struct dst_entry) {}"


@pytest.fixture
def kernel() -> Confined:
    return confined(RULES, before=BEFORE)


def _asks(kernel: Confined, function: str, *arguments: int) -> list[int]:
    return kernel.kinds(kernel.run(kernel.noted(f"call of {function}"), *arguments))


def test_a_socket_is_no_route(kernel: Confined) -> None:
    """Catches `held` that looks at the flags of an object and not at its type."""
    socket, route = kernel.object(1024, TYPED, "sock"), kernel.object(256, TYPED, "dst_entry")
    assert _asks(kernel, "release_sock", socket) == []
    assert _asks(kernel, "dst_release", route) == []
    assert _asks(kernel, "release_sock", route) == [REQUIREMENT]
    assert _asks(kernel, "dst_release", socket) == [REQUIREMENT]


def test_what_begins_with_a_socket_is_one(kernel: Confined) -> None:
    assert _asks(kernel, "release_sock", kernel.object(2048, TYPED, "sctp_sock")) == []
    assert _asks(kernel, "release_sock", kernel.object(2048, 0, cache="SCTP")) == []


def test_an_object_of_its_own_making_is_no_socket(kernel: Confined) -> None:
    """Catches own memory, filled with pointers of choice, that the kernel takes for a socket."""
    own = kernel.object(1024, OWN)
    assert kernel.store(own) == "allow"
    assert _asks(kernel, "release_sock", own) == [REQUIREMENT]
    assert _asks(kernel, "release_sock", kernel.object(1024, OWN | TYPED, "sk_buff")) == [REQUIREMENT]
    assert _asks(kernel, "release_sock", kernel.world.data("sctp_memory_pressure")) == [REQUIREMENT]
    assert _asks(kernel, "release_sock", STACK_POINTER) == [REQUIREMENT]


def test_the_middle_of_a_socket_is_no_socket(kernel: Confined) -> None:
    socket = kernel.object(1024, TYPED, "sock")
    assert _asks(kernel, "release_sock", socket + 8) == [REQUIREMENT]


def test_an_older_socket_is_let_through_in_the_transition_only(kernel: Confined) -> None:
    old = kernel.object(1024)
    assert _asks(kernel, "release_sock", old) == [REQUIREMENT]
    kernel.phase(TRANSITION)
    assert _asks(kernel, "release_sock", old) == []


def _packet(kernel: Confined, size: int, flags: int, struct: str | None, at: int = 0) -> int:
    """What looks like a packet, with a buffer that is held, ``at`` bytes into an object."""
    packet = kernel.object(size, flags, struct) + at
    memory = kernel.world.machine.memory
    memory.write_word(packet + offset_of("sk_buff", "head"), kernel.object(1024, HELD), 8)
    memory.write_word(packet + offset_of("sk_buff", "end"), 704, 4)
    memory.write_word(packet + offset_of("sk_buff", "users"), 1, 4)
    return packet


def test_only_a_packet_is_handed_over_as_one(kernel: Confined) -> None:
    """Catches an own object that the kernel would free into the cache of packets."""
    size = sctp().types.struct_by_name["sk_buff"].size
    assert _asks(kernel, "consume_skb", _packet(kernel, size, HELD | TYPED, "sk_buff")) == []
    assert _asks(kernel, "consume_skb", _packet(kernel, size, OWN, None)) == [FOREIGN_FREE]
    assert _asks(kernel, "consume_skb", _packet(kernel, 1024, OWN | TYPED, "dst_entry")) == [REQUIREMENT]


def test_a_packet_is_handed_over_from_its_first_byte(kernel: Confined) -> None:
    """Catches a packet inside a larger object: freed, it would overlap the next one of the slab.  Two packets that lie
    in one object (struct sk_buff_fclones) are both."""
    size = sctp().types.struct_by_name["sk_buff"].size
    pair = 2 * size + 8
    assert _asks(kernel, "consume_skb", _packet(kernel, pair, HELD | TYPED, "sk_buff", size)) == []
    assert _asks(kernel, "consume_skb", _packet(kernel, pair, HELD | TYPED, "sk_buff", 8)) == [FOREIGN_FREE]


def test_a_packet_on_the_own_stack_is_not_handed_over(kernel: Confined) -> None:
    """Own frames are own memory; nothing there can be freed."""
    kernel.world.interpreter.run_function("resolve", 0)
    on_stack = kernel.call("is_movable", STACK_POINTER, kernel.types.mask("sk_buff"), 232, 0)
    in_data = kernel.call(
        "is_movable", kernel.world.data("sctp_memory_pressure"), kernel.types.mask("sk_buff"), 232, 0
    )
    assert (on_stack, in_data) == (0, 0)


def test_memory_that_is_held_counts_without_a_type(kernel: Confined) -> None:
    """A packet that lies in lent memory (its type is not recorded) is still one for gates that do not take it."""
    size = sctp().types.struct_by_name["sk_buff"].size
    assert _asks(kernel, "skb_put", _packet(kernel, size, OWN, None), 4) == []
    assert _asks(kernel, "skb_put", _packet(kernel, size, TYPED, "sk_buff"), 4) == [REQUIREMENT]
