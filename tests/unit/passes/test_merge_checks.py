# SPDX-License-Identifier: Apache-2.0
"""Merged checks: which stores are grouped, and that a group reports exactly what its stores would report."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.ir.parser import parse_library
from o2cc.kernel.description import Block, Description, Site, ValueSource
from o2cc.passes.manager import PassContext, run_pipeline
from o2cc.passes.merge_checks import MergeChecks

from .targets import description, function, module, other, store

LIBRARY = """
map events ring_buffer () -> (site, address, size) capacity 65536
map allowed hash (byte) -> (yes) capacity 4096
function store_verdict(address, size, site, sp) {
  $i = 0
  jump next
next:
  %more = ult $i, 256
  br %more, bound, yes
bound:
  %left = ult $i, %size
  br %left, inspect, yes
inspect:
  %byte = add %address, $i
  %e = lookup allowed, %byte
  br %e, advance, no
advance:
  %n = add $i, 1
  $i = %n
  jump next
yes:
  return 0
no:
  %odd = and %address, 1
  %verdict = select %odd, 2, 1
  return %verdict
}
function check_store(address, size, site, sp) {
  %verdict = call store_verdict(%address, %size, %site, %sp)
  br %verdict, bad, good
good:
  return 0
bad:
  %told = emit events, [%site, %address, %size]
  return %verdict
}
"""
VALUES = (
    ValueSource("argument"),
    ValueSource("argument", 1),
    ValueSource("load", value=0, site=3, function="f"),
)
BLOCK = [Block(0, 0x40, ())]


LIBRARY_MODULE = parse_library(SourceFile("library.ir", LIBRARY))


def with_sites(target: Description, library: ir.Module) -> ir.Module:
    """A module of the library with a site for every store through a register, and the checks that these need."""
    sites = []
    bases: set[str] = set()
    for site in module(target).sites:
        place = target.function_by_name[site.function].site_by_offset[site.offset]
        if place.operand is None or place.operand.base is None:
            continue
        base = place.operand.base
        bases.add(base)
        words = (
            ("displacement", place.operand.displacement % 2**64),
            ("site", site.number),
            ("size", place.size),
        )
        sites.append(replace(site, check=f"store_{base}", parameters=words))
    return replace(library, checks=tuple(map(plain_check, sorted(bases))), sites=tuple(sites))


def plain_check(base: str) -> ir.Check:
    code = Builder()
    address = code.add(code.register(base), code.parameter("displacement"))
    site, size = code.parameter("site"), code.parameter("size")
    code.give_back(code.call("check_store", address, size, site, code.register("rsp")))
    return ir.Check(f"store_{base}", code.finish())


def prepared(target: Description) -> ir.Module:
    return with_sites(target, LIBRARY_MODULE)


def merged(target: Description, **options: Any) -> ir.Module:
    context = PassContext(target, control_flow_kept=True, skips_violations=False)
    return run_pipeline(prepared(target), [MergeChecks(**options)], context)


def unit(*sites: Site, blocks: Sequence[Block] = BLOCK) -> Description:
    return description(function("f", blocks, sites, values=VALUES))


def covered(result: ir.Module) -> dict[int, int]:
    numbers = {site.number: site.offset for site in result.sites}
    return {site.offset: numbers[site.covered_by] for site in result.sites if site.covered_by is not None}


EXAMPLES: dict[str, tuple[Sequence[Site], dict[int, int]]] = {
    "three fields": ([store(n, value=0, displacement=8 * n) for n in (1, 2, 3)], {2: 1, 3: 1}),
    "two values": (
        [store(1, value=0), store(2, value=1), store(4, value=0), store(5, value=1)],
        {4: 1, 5: 2},
    ),
    "another register with the same value": ([store(1, value=0), store(2, value=0, base="rcx")], {2: 1}),
    "a call": ([store(1, value=0), other(2, "call", "kfree"), store(4, value=0)], {}),
    "a harmless call": ([store(1, value=0), other(2, "call", "memset"), store(4, value=0)], {4: 1}),
    "a new value": ([store(1, value=2), store(4, value=2)], {}),
    "an index": ([store(1, value=0), store(2, value=0, index="rax")], {}),
    "another height of the stack": ([store(1, value=0), store(2, value=0, stack_height=8)], {}),
    "too far apart": ([store(1, value=0), store(2, value=0, displacement=4089)], {}),
    "just near enough": ([store(1, value=0), store(2, value=0, displacement=4088)], {2: 1}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_groups(name: str) -> None:
    sites, expected = EXAMPLES[name]
    assert covered(merged(unit(*sites))) == expected


def test_blocks_are_not_mixed() -> None:
    blocks = [Block(0, 0x10, (0x10,)), Block(0x10, 0x20, ())]
    assert covered(merged(unit(store(1, value=0), store(0x11, value=0), blocks=blocks))) == {}


def test_a_place_that_may_fault_ends_a_group() -> None:
    blocks = [Block(0, 0x10, (), faults=((3, 0x10),)), Block(0x10, 0x20, ())]
    sites = [store(1, value=0), store(2, value=0), store(3, value=0), store(4, value=0), store(5, value=0)]
    assert covered(merged(unit(*sites, blocks=blocks))) == {2: 1, 5: 4}


def test_groups_are_bounded() -> None:
    result = merged(unit(*(store(n, value=0) for n in range(1, 6))), maximum=2)
    assert covered(result) == {2: 1, 4: 3}


def test_checks_of_another_form_stay() -> None:
    target = unit(store(1, value=0), store(2, value=0))
    given = prepared(target)
    checks = [ir.Check("store_rbx", (ir.Block("entry", (), ir.Decide(ir.Verdict.ALLOW)),))]
    context = PassContext(target, control_flow_kept=True, skips_violations=False)
    changed = replace(given, checks=tuple(checks))
    assert run_pipeline(changed, [MergeChecks()], context) == changed


def reports(module_: ir.Module, allowed: set[int], registers: dict[str, int]) -> list[tuple[int, ...]]:
    """What running every site with a probe reports, and the worst verdict as last element."""
    machine = Machine(module_)
    for byte in allowed:
        machine.maps["allowed"].update((byte,), (1,))
    runs = Interpreter(machine)
    answers = {0}
    for site in module_.sites:
        if site.covered_by is None:
            answers.add(runs.run_site(site.number, registers).value)
    worst = 1 if 1 in answers else max(answers)
    return [*sorted(event.fields for event in machine.events), (worst,)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_a_group_reports_what_its_stores_would(seed: int) -> None:
    choose = random.Random(seed)
    sites = []
    for number in range(1, choose.randint(2, 9)):
        value, size = choose.choice([0, 0, 1]), choose.choice([1, 2, 4, 8])
        base, offset = choose.choice([("rbx", 0), ("rcx", 16)]) if value == 0 else ("rbx", 0)
        displacement = choose.randint(-24, 24)
        sites.append(
            store(number, value=value, base=base, value_offset=offset, displacement=displacement, size=size)
        )
    target = unit(*sites)
    before, after = prepared(target), merged(target)
    start = choose.choice([0x1000, 0, 2**64 - 16])
    registers = {"rbx": start, "rcx": (start + 16) % 2**64, "rsp": 0x9000}
    for _ in range(4):
        share = choose.choice([0.0, 0.5, 0.9, 1.0])
        allowed = {(start + n) % 2**64 for n in range(-64, 64) if choose.random() < share}
        assert reports(after, allowed, registers) == reports(before, allowed, registers)


def test_the_merged_check_of_a_good_group_is_one_question() -> None:
    target = unit(*(store(n, value=0, displacement=8 * n) for n in range(4)))
    result = merged(target)
    machine = Machine(result)
    for byte in range(0x1000, 0x1040):
        machine.maps["allowed"].update((byte,), (1,))
    (leader,) = [site for site in result.sites if site.covered_by is None]
    outcome = Interpreter(machine).run_site(leader.number, {"rbx": 0x1000})
    assert outcome.value == 0
    assert outcome.path.count("store_verdict.entry") == 1
