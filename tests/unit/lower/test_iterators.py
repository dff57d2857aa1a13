# SPDX-License-Identifier: Apache-2.0
"""Iterators, which tell kernel functions where to write: own ones, and those in messages that are held."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.lower.confined import (
    HELD,
    OWN,
    REQUIREMENT,
    Confined,
    call_through_pointer,
    confined,
    offset_of,
    sctp,
)

TO_ITERATORS = ("_copy_to_iter", "copy_page_to_iter", "iov_iter_zero", "iov_iter_advance", "sock_recvmsg")
MESSAGES = ("sock_recv_errqueue", "inet_recvmsg", "skb_copy_and_csum_datagram_msg")
TARGETS = f"icall self, {{ {', '.join((*TO_ITERATORS, *MESSAGES))} }}"
ITERATOR = next(struct.size for struct in sctp().types.structs if struct.name == "iov_iter")
USER = {"ITER_UBUF", "ITER_IOVEC"}


def _kinds() -> Mapping[str, int]:
    return dict(next(enum.values for enum in sctp().types.enums if enum.name == "iter_type"))


@pytest.fixture
def kernel() -> Confined:
    made = confined(targets=TARGETS)
    made.call("resolve", 0)
    return made


def _set(kernel: Confined, iterator: int, **fields: int) -> None:
    for path, value in fields.items():
        place = sctp().types.find_field("iov_iter", path)
        assert place is not None
        kernel.world.machine.memory.write_word(iterator + place.offset, value, place.size)


def _refused(kernel: Confined, iterator: int, function: str, *arguments: int) -> set[str]:
    """The kinds of iterators for which the call is a violation."""
    refused = set()
    for name, value in _kinds().items():
        _set(kernel, iterator, iter_type=value)
        kinds = call_through_pointer(kernel, function, *arguments)
        assert kinds in ([], [REQUIREMENT])
        if kinds:
            refused.add(name)
    return refused


def test_data_go_to_user_space_only(kernel: Confined) -> None:
    """Catches an iterator of the kernel's memory (KVEC, BVEC, ...) in own memory, which was all that was asked."""
    iterator, data = kernel.object(ITERATOR, OWN), kernel.object(64, OWN)
    others = set(_kinds()) - USER
    assert {"ITER_KVEC", "ITER_BVEC", "ITER_PIPE", "ITER_XARRAY"} <= others
    for function, arguments in (
        ("_copy_to_iter", (data, 64, iterator)),
        ("copy_page_to_iter", (data, 0, 64, iterator)),
        ("iov_iter_zero", (64, iterator)),
    ):
        assert _refused(kernel, iterator, function, *arguments) == others, function
    assert _refused(kernel, iterator, "iov_iter_advance", iterator, 8) == {"ITER_PIPE"}
    _set(kernel, iterator, iter_type=_kinds()["ITER_UBUF"])
    foreign = kernel.object(ITERATOR)
    _set(kernel, foreign, iter_type=_kinds()["ITER_UBUF"])
    assert call_through_pointer(kernel, "_copy_to_iter", data, 64, iterator) == []
    assert call_through_pointer(kernel, "_copy_to_iter", data, 64, foreign) == [REQUIREMENT]


def test_packets_are_copied_to_user_space_only(kernel: Confined) -> None:
    packet = kernel.object(256, HELD, "sk_buff")
    head, size = kernel.object(1024, HELD), offset_of("sk_buff", "end")
    kernel.world.machine.memory.write_word(packet + offset_of("sk_buff", "head"), head)
    kernel.world.machine.memory.write_word(packet + size, 704, 4)
    iterator = kernel.object(ITERATOR, OWN)
    site = kernel.noted("call of skb_copy_datagram_iter")
    for name, value in _kinds().items():
        _set(kernel, iterator, iter_type=value)
        expected = [] if name in USER else [REQUIREMENT]
        assert kernel.kinds(kernel.run(site, packet, 0, iterator, 64)) == expected, name


def test_the_iterator_of_a_held_message_counts_as_well(kernel: Confined) -> None:
    """Catches a message that the kernel lent and whose iterator the compartment changed."""
    message = kernel.object(256, HELD, "msghdr")
    iterator = message + offset_of("msghdr", "msg_iter")
    socket = kernel.object(64)
    assert _refused(kernel, iterator, "inet_recvmsg", socket, message, 64, 0) == set(_kinds()) - USER
    assert _refused(kernel, iterator, "sock_recvmsg", socket, message, 0) == set(_kinds()) - USER


def test_a_message_may_be_received_into_one_own_buffer(kernel: Confined) -> None:
    """Catches a length, a second segment or an offset that leads beyond the buffer which was looked at."""
    message, socket = kernel.object(256, HELD, "msghdr"), kernel.object(64)
    iterator = message + offset_of("msghdr", "msg_iter")
    vector, own, foreign = kernel.object(16, OWN), kernel.object(64, OWN), kernel.object(64)
    proper = {"iter_type": _kinds()["ITER_KVEC"], "kvec": vector, "nr_segs": 1, "iov_offset": 0, "count": 64}
    for base, length, changed, denied in (
        (own, 64, {}, False),
        (own, 65, {}, True),
        (foreign, 64, {}, True),
        (own, 32, {}, True),
        (own, 64, {"nr_segs": 2}, True),
        (own, 64, {"iov_offset": 1 << 40}, True),
        (own, 64, {"count": 65}, True),
    ):
        kernel.world.machine.memory.write_word(vector, base)
        kernel.world.machine.memory.write_word(vector + 8, length)
        _set(kernel, iterator, **{**proper, **changed})
        kinds = call_through_pointer(kernel, "sock_recvmsg", socket, message, 0)
        assert kinds == ([REQUIREMENT] if denied else []), (length, changed)


def test_a_policy_lets_the_kernel_be_filled_by_name() -> None:
    """What a policy says of a function stands in the place of what the library says."""
    granted = "extern fn _copy_to_iter(addr: pointer, n: size_t, i: struct iov_iter) { reads addr[n]  writes i whole }\n"
    kernel = confined(before=granted, targets=TARGETS)
    kernel.call("resolve", 0)
    iterator, data = kernel.object(ITERATOR, OWN), kernel.object(64, OWN)
    assert _refused(kernel, iterator, "_copy_to_iter", data, 64, iterator) == set()
    assert _refused(kernel, iterator, "iov_iter_zero", 64, iterator) == set(_kinds()) - USER
