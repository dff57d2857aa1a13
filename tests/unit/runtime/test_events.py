# SPDX-License-Identifier: Apache-2.0
"""Records of the ring buffer become events that say what happened."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2cc.runtime.events import Decoder, context_of, text_of
from tests.unit.runtime.made import EVENT_FIELDS, info, record, site

SLAB, STACK = 5, 4


def test_a_store_to_a_slab_object() -> None:
    decoder = Decoder(info(site(3, "victim_write", 0x2C)))
    event = decoder.decode(
        record(
            {
                "time": 12_345_678_901,
                "site": 3,
                "kind": 1,
                "cpu": 1,
                "pid_tgid": 41 << 32 | 42,
                "address": 0xFFFF888000001040,
                "size": 8,
                "class": SLAB,
                "base": 0xFFFF888000001000,
            },
            comm="attacker",
            cache="kmalloc-192",
        )
    )
    assert (event.pid, event.tgid, event.context) == (42, 41, "task")
    assert event.sentence() == (
        "12.345679 cpu 1 attacker[42] task made: store at victim_write+0x2c to 0xffff888000001040 (8 bytes), "
        "kmalloc-192 object 0xffff888000001000+0x40 [made.o2c:7]"
    )


def test_what_is_tracked_of_the_object_is_said() -> None:
    event = Decoder(info(site(0))).decode(
        record({"kind": 1, "class": SLAB, "flags": 6, "address": 16, "size": 8})
    )
    assert event.tracking == ("held", "typed")
    assert "slab object 0x0+0x10 (held, typed) [" in event.sentence()


def test_a_call_names_no_address() -> None:
    event = Decoder(info(site(0, "f", 4, "call", note="call of commit_creds"))).decode(record({"kind": 4}))
    assert event.sentence().endswith("forbidden call at f+0x4, call of commit_creds [made.o2c:7]")


def test_json_keeps_every_bit_of_an_address() -> None:
    address = 0xFFFF_FFFF_FFFF_FFF9
    event = Decoder(info(site(0))).decode(record({"address": address}))
    document = json.loads(json.dumps(event.document()))
    assert int(document["address"], 16) == address
    assert document["function"] == "f"
    assert document["line"] == 7


@pytest.mark.parametrize(
    ("count", "context"),
    [
        (0, "task"),
        (1, "task"),  # preemption held off
        (0x200, "task"),  # soft interrupts held off by a task
        (0x100, "softirq"),
        (0x10000, "irq"),
        (0x10100, "irq"),  # a hard interrupt inside a soft one
        (0x110000, "task"),  # a breakpoint in a task
        (0x110100, "softirq"),
        (0x120000, "irq"),
        (0x220000, "nmi"),
    ],
)
def test_context_looks_through_the_breakpoint(count: int, context: str) -> None:
    assert context_of(count) == context


def test_unknown_numbers_are_shown_not_hidden() -> None:
    event = Decoder(info(site(0))).decode(record({"site": 9, "kind": 77, "class": 88}))
    assert event.function == "site 9"
    assert event.kind == "kind 77"
    assert event.hit == "class 88"


def test_a_name_cannot_bring_control_characters_to_a_terminal() -> None:
    event = Decoder(info(site(0))).decode(record(comm="a\x1b[31m\n\x9b"))
    assert event.task.isprintable()
    assert "\x1b" not in event.sentence()


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_a_clear_error(data: bytes) -> None:
    decoder = Decoder(info(site(0)))
    if len(data) < 8 * len(EVENT_FIELDS):
        with pytest.raises(ValueError, match="bytes"):
            decoder.decode(data)
    else:
        assert decoder.decode(data).sentence().isprintable()


@given(st.lists(st.integers(0, 2**64 - 1), max_size=4))
def test_text_of_words_is_printable(given_words: list[int]) -> None:
    assert text_of(*given_words).isprintable()
