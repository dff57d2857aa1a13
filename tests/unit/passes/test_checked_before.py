# SPDX-License-Identifier: Apache-2.0
"""Stores covered by an earlier check: examples for each rule, and an oracle that runs random control flow."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError
from o2cc.ir import nodes as ir
from o2cc.kernel.description import Block, Description, Function, Site, ValueSource
from o2cc.passes.checked_before import DischargeCheckedBefore
from o2cc.passes.manager import PassContext, run_pipeline

from .targets import description, discharged, function, module, other, store

ARGUMENT = ValueSource("argument")
VALUES = (
    ARGUMENT,
    ValueSource("load", value=0),
    ValueSource("call", site=0x11),
    ValueSource("merge", site=0x10),
    ValueSource("load", value=0, site=0x11),
    ValueSource("load", value=0, site=0x01),
)
HEAP, LOADED, CALLED, MERGED, LOADED_INSIDE, LOADED_OUTSIDE = range(6)


def context(target: Description) -> PassContext:
    return PassContext(target, control_flow_kept=True, skips_violations=False)


def run(target: Description, *, without: Sequence[tuple[str, int]] = (), **options: Any) -> ir.Module:
    step = DischargeCheckedBefore(**options)
    return run_pipeline(module(target, without=without), [step], context(target))


def unit(blocks: Sequence[Block], *sites: Site) -> Description:
    return description(function("f", blocks, sites, values=VALUES))


STRAIGHT = [Block(0, 0x10, ())]
DIAMOND = [
    Block(0, 0x10, (0x10, 0x20)),
    Block(0x10, 0x20, (0x30,)),
    Block(0x20, 0x30, (0x30,)),
    Block(0x30, 0x40, ()),
]
LOOP = [Block(0, 0x10, (0x10,)), Block(0x10, 0x20, (0x10, 0x20)), Block(0x20, 0x30, ())]

EXAMPLES: dict[str, tuple[Sequence[Block], Sequence[Site], list[str]]] = {
    "the same bytes again": (STRAIGHT, [store(1, value=HEAP), store(2, value=HEAP)], ["f+0x2"]),
    "a part of the bytes": (
        STRAIGHT,
        [store(1, value=HEAP), store(2, value=HEAP, displacement=4, size=4)],
        ["f+0x2"],
    ),
    "offset and displacement add up": (
        STRAIGHT,
        [store(1, value=HEAP, value_offset=8, displacement=8), store(2, value=HEAP, displacement=16)],
        ["f+0x2"],
    ),
    "one byte more": (STRAIGHT, [store(1, value=HEAP), store(2, value=HEAP, displacement=1)], []),
    "two halves do not make a whole": (
        STRAIGHT,
        [
            store(1, value=HEAP, size=4),
            store(2, value=HEAP, displacement=4, size=4),
            store(3, value=HEAP, size=8),
        ],
        [],
    ),
    "another value": (STRAIGHT, [store(1, value=HEAP), store(2, value=LOADED)], []),
    "a call between": (STRAIGHT, [store(1, value=HEAP), other(2, "call", "kfree"), store(3, value=HEAP)], []),
    "an indirect call between": (
        STRAIGHT,
        [store(1, value=HEAP), other(2, "indirect_call"), store(3, value=HEAP)],
        [],
    ),
    "a harmless call between": (
        STRAIGHT,
        [store(1, value=HEAP), other(2, "call", "memset"), store(3, value=HEAP)],
        ["f+0x3"],
    ),
    "an index": (STRAIGHT, [store(1, value=HEAP), store(2, value=HEAP, index="rax")], []),
    "checked with an index": (STRAIGHT, [store(1, value=HEAP, index="rax"), store(2, value=HEAP)], []),
    "a repeated store covers nothing": (STRAIGHT, [store(1, value=HEAP, rep=True), store(2, value=HEAP)], []),
    "through gs": (STRAIGHT, [store(1, value=HEAP), store(2, value=HEAP, segment="gs")], []),
    "a chain": (
        STRAIGHT,
        [store(1, value=HEAP), store(2, value=HEAP, size=4), store(3, value=HEAP, size=2)],
        ["f+0x2", "f+0x3"],
    ),
    "on both ways": (
        DIAMOND,
        [store(0x11, value=HEAP), store(0x21, value=HEAP), store(0x31, value=HEAP)],
        ["f+0x31"],
    ),
    "on one way only": (DIAMOND, [store(0x11, value=HEAP), store(0x31, value=HEAP)], []),
    "before the ways part": (DIAMOND, [store(1, value=HEAP), store(0x31, value=HEAP)], ["f+0x31"]),
    "a call on one of the ways": (
        DIAMOND,
        [store(1, value=HEAP), other(0x21, "call", "kfree"), store(0x31, value=HEAP)],
        [],
    ),
    "an argument through a loop": (LOOP, [store(1, value=HEAP), store(0x11, value=HEAP)], ["f+0x11"]),
    "a loop that calls": (
        LOOP,
        [store(1, value=HEAP), store(0x11, value=HEAP), other(0x12, "call", "kfree")],
        [],
    ),
    "a loaded value is another one in the next round": (
        LOOP,
        [store(1, value=LOADED), store(0x11, value=LOADED)],
        [],
    ),
    "loaded in the loop, at a known place": (
        LOOP,
        [store(1, value=LOADED_INSIDE), store(0x12, value=LOADED_INSIDE)],
        [],
    ),
    "loaded before the loop, at a known place": (
        LOOP,
        [store(2, value=LOADED_OUTSIDE), store(0x12, value=LOADED_OUTSIDE)],
        ["f+0x12"],
    ),
    "a loaded value within one round": (
        LOOP,
        [store(0x11, value=LOADED), store(0x12, value=LOADED)],
        ["f+0x12"],
    ),
    "a value made where the loop begins": (LOOP, [store(1, value=MERGED), store(0x11, value=MERGED)], []),
    "a value made by a harmless call": (
        LOOP,
        [store(1, value=CALLED), other(0x11, "call", "memset"), store(0x12, value=CALLED)],
        [],
    ),
    "a block entered from elsewhere": (
        [Block(0, 0x10, (0x10,)), Block(0x10, 0x20, (), external=True)],
        [store(1, value=HEAP), store(0x11, value=HEAP)],
        [],
    ),
    "a block that nothing seems to lead to": (
        [Block(0, 0x10, ()), Block(0x10, 0x20, (0x20,)), Block(0x20, 0x30, ())],
        [store(1, value=HEAP), store(0x21, value=HEAP)],
        [],
    ),
    "a fault before the checked store": (
        [Block(0, 0x10, (), faults=((1, 0x10),)), Block(0x10, 0x20, ())],
        [store(2, value=HEAP), store(0x11, value=HEAP)],
        [],
    ),
    "a fault after the checked store": (
        [Block(0, 0x10, (), faults=((3, 0x10),)), Block(0x10, 0x20, ())],
        [store(2, value=HEAP), store(0x11, value=HEAP)],
        ["f+0x11"],
    ),
    "a jump table": (
        [Block(0, 0x10, (0x10,), indirect=True), Block(0x10, 0x20, ())],
        [store(1, value=HEAP), other(0xF, "indirect_jump", stack_height=16), store(0x11, value=HEAP)],
        [],
    ),
    "an indirect tail call": (
        [Block(0, 0x10, (0x10, 0x20)), Block(0x10, 0x20, (), indirect=True), Block(0x20, 0x30, ())],
        [store(1, value=HEAP), other(0x1F, "indirect_jump"), store(0x21, value=HEAP)],
        ["f+0x21"],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str) -> None:
    blocks, sites, expected = EXAMPLES[name]
    assert discharged(run(unit(blocks, *sites))) == expected


def test_the_proof_names_the_checks_that_stay() -> None:
    target = unit(STRAIGHT, store(1, value=HEAP), store(2, value=HEAP, size=4), store(3, value=HEAP, size=2))
    last = run(target).discharged[-1]
    assert last.reason == "checked-before"
    assert "the check at f+0x1 has allowed" in last.proof


def test_a_store_without_a_check_covers_nothing() -> None:
    target = unit(STRAIGHT, store(1, value=HEAP), store(2, value=HEAP))
    assert discharged(run(target, without=[("f", 1)])) == []


def test_violations_that_are_skipped_make_it_unsound() -> None:
    target = unit(STRAIGHT, store(1, value=HEAP), store(2, value=HEAP))
    with pytest.raises(DiagnosticError, match="requires `violations-not-skipped`"):
        run_pipeline(module(target), [DischargeCheckedBefore()], PassContext(target, control_flow_kept=True))


def test_a_cold_part_belongs_to_its_function() -> None:
    hot = function("f", [Block(0, 0x10, (), jumps=(("f.cold", 0),))], [store(1, value=HEAP)], values=VALUES)
    cold = function("f.cold", [Block(0, 0x10, ())], [store(1, value=HEAP)], parent="f")
    assert discharged(run(description(hot, cold))) == ["f.cold+0x1"]
    stranger = function("g", [Block(0, 0x10, (), jumps=(("f.cold", 0),))], [])
    assert discharged(run(description(hot, cold, stranger))) == []


def test_own_functions_that_call_nothing_are_harmless() -> None:
    caller = unit(STRAIGHT, store(1, value=HEAP), other(2, "call", "leaf"), store(3, value=HEAP)).functions[0]
    leaf = function("leaf", STRAIGHT, [other(1, "call", "memset")])
    assert discharged(run(description(caller, leaf))) == ["f+0x3"]
    frees = function("leaf", STRAIGHT, [other(1, "tail_call", "kfree")])
    assert discharged(run(description(caller, frees))) == []
    hidden = function("leaf", STRAIGHT, [other(1, "indirect_call")])
    assert discharged(run(description(caller, hidden))) == []
    unclear = function("leaf", STRAIGHT, [], problems=("cut",))
    assert discharged(run(description(caller, unclear))) == []


def test_functions_that_share_a_name_prove_nothing() -> None:
    one = unit(STRAIGHT, store(1, value=HEAP), store(2, value=HEAP)).functions[0]
    other_one = function("f", STRAIGHT, [store(1, value=HEAP), other(2, "call", "kfree")], values=VALUES)
    assert discharged(run(description(one, other_one))) == []


def test_an_own_function_named_like_a_harmless_one_is_judged_by_what_it_does() -> None:
    caller = unit(STRAIGHT, store(1, value=HEAP), other(2, "call", "memset"), store(3, value=HEAP)).functions[
        0
    ]
    own = function("memset", STRAIGHT, [other(1, "call", "kfree")])
    assert discharged(run(description(caller, own))) == []


# --- the oracle -------------------------------------------------------------------------------------------


@dataclass
class Facts:
    """What a run knows: bytes allowed of a value's present instance since the last call."""

    allowed: set[tuple[int, int, int]]
    instance: dict[int, int]


def random_unit(choose: random.Random) -> tuple[Description, dict[int, int]]:
    """A unit of a few blocks whose values each have one place of definition, and for each value that place.

    Values: 0 an argument, 1 loaded, 2 merged at a block, 3 made by a harmless call, 4 loaded at a place that the
    description does not tell (its uses come after its definition on every path).
    """
    count = choose.randint(2, 6)
    starts = [number * 0x20 for number in range(count)]
    blocks = []
    for start in starts:
        targets = tuple(sorted({choose.choice(starts) for _ in range(choose.randint(0, 2))}))
        blocks.append(Block(start, start + 0x20, targets))
    dominators = dominating(blocks)
    home = {value: choose.choice(starts) for value in range(1, 5)}
    values = (
        ARGUMENT,
        ValueSource("load", value=0, site=home[1] + 1, function="f"),
        ValueSource("merge", site=home[2]),
        ValueSource("call", site=home[3] + 2),
        ValueSource("load", value=0),
    )
    sites: list[Site] = []
    for block in blocks:
        for offset in range(block.start + 3, block.start + choose.randint(3, 9)):
            kind = choose.random()
            if kind < 0.15:
                sites.append(other(offset, "call", choose.choice(["kfree", "memset"])))
            elif kind < 0.9:
                usable = [0, 1, 2, 3] + ([4] if home[4] in dominators[block.start] else [])
                size = choose.choice([1, 2, 4])
                sites.append(
                    store(offset, value=choose.choice(usable), displacement=choose.randint(0, 3), size=size)
                )
        if block.start == home[3]:
            sites.append(other(block.start + 2, "call", "memset"))
    return description(function("f", blocks, sites, values=values)), home


def dominating(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """By block, the blocks that are on every path to it (all blocks for unreachable ones)."""
    every = {block.start for block in blocks}
    found = {start: set(every) for start in every}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in blocks[1:]:
            before = [found[b.start] for b in blocks if block.start in b.successors]
            new = (set.intersection(*before) if before else set(every)) | {block.start}
            changed |= new != found[block.start]
            found[block.start] = new
    return found


def run_once(target: Function, home: dict[int, int], kept: set[int], choose: random.Random) -> list[int]:
    """Walk through the unit at random; the stores without a check whose bytes nothing allows."""
    by_start = {block.start: block for block in target.blocks}
    facts = Facts(set(), dict.fromkeys(range(5), 0))
    wrong: list[int] = []
    block = by_start[0]
    for _ in range(30):
        for value in (1, 2, 4):
            if block.start == home[value]:
                facts.instance[value] += 1
        for site in target.sites:
            if not block.start <= site.offset < block.end:
                continue
            if site.kind == "call":
                if site.target == "kfree":
                    facts.allowed.clear()
                if site.offset == home[3] + 2:
                    facts.instance[3] += 1
                continue
            assert site.value is not None
            assert site.operand is not None
            start = site.value_offset + site.operand.displacement
            touched = {(site.value, facts.instance[site.value], start + n) for n in range(site.size)}
            if site.offset in kept:
                facts.allowed |= touched
            elif not touched <= facts.allowed:
                wrong.append(site.offset)
        if not block.successors:
            break
        block = by_start[choose.choice(block.successors)]
    return wrong


def test_no_walk_meets_a_store_that_nothing_allows() -> None:
    discharges: list[int] = []

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 2**32 - 1))
    def on_random_control_flow(seed: int) -> None:
        choose = random.Random(seed)
        target, home = random_unit(choose)
        result = run(target)
        discharges.append(len(result.discharged))
        kept = {site.offset for site in result.sites}
        for _ in range(40):
            assert run_once(target.functions[0], home, kept, choose) == []

    on_random_control_flow()
    assert sum(discharges) > 100  # The oracle saw something.


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_oracle_can_fail(seed: int) -> None:
    choose = random.Random(seed)
    wrong: list[int] = []
    while not wrong:
        target, home = random_unit(choose)
        wrong = run_once(target.functions[0], home, set(), choose)
    assert wrong
