# SPDX-License-Identifier: Apache-2.0
"""What passes discharge or merge, against the reference interpreter: on random code, in random states.

A generated function of the SCTP module is lowered under a real policy with the real library, and the default pipeline
runs.  Then random walks through the function run two made-up kernels side by side: in one the check of every store is
asked, in the other only what the passes have left.  No store may be let go that the interpreter denies and nobody has
reported, and no store may be reported that it allows.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.compiler import library_sources, pass_context
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Outcome
from o2cc.kernel.description import Block, Description, Section, Site, StaticAddress, ValueSource
from o2cc.lower.lower import lower
from o2cc.lower.rules import number_types
from o2cc.passes.checked_before import HARMLESS, DischargeCheckedBefore
from o2cc.passes.manager import Pass, PassContext, run_pipeline
from o2cc.passes.merge_checks import MergeChecks
from o2cc.passes.own_frame import DischargeOwnFrame
from o2cc.passes.registry import default_pipeline
from o2cc.passes.static_data import DischargeStaticData
from o2cc.passes.unused_functions import UnusedFunctions
from o2cc.policy.model import CheckedPolicy
from o2cc.simulation.world import STACK_POINTER, USER, VMALLOC, World
from tests.unit.lower.confined import HELD, OWN, SECOND, TYPED, confined, sctp

from .targets import function, other, store

HEIGHT = 64
SAVED = (("rbx", -8), ("rbp", -16))
STRUCT = "sk_buff"
OBJECT = 256
FIRST_STORE, LAST_STORE = 4, 12  # offsets within a block
LENGTH = 0x20
ARGUMENT, LOADED, MERGED, CALLED = range(4)

AIMING = "timer_max"
RULES = f"""    write struct {STRUCT} {{ next, prev, len, data_len }}  // what it may touch
    write pernet {AIMING}  // as if it were the number of an area"""
STATIC_SECTIONS = (".data", ".bss", ".data..read_mostly", ".data..ro_after_init", ".rodata", "__bug_table")


@cache
def policy(violation: str) -> CheckedPolicy:
    return confined(RULES, violation=violation).policy


@cache
def sections() -> tuple[Section, ...]:
    return tuple(s for s in sctp().sections if s.name in STATIC_SECTIONS and s.anchor_symbol is not None)


def static_store(choose: random.Random, offset: int) -> Site:
    """A store to a fixed address: at a variable, across its end, or at the end of a section."""
    section = choose.choice(sections())
    edges = [section.size]
    symbols = [s for s in sctp().symbols if s.section == section.name and s.is_object and s.size]
    if choose.random() < 0.4:
        aiming = sctp().symbol_by_name[AIMING]
        section, symbols = sctp().section_by_name[aiming.section], [aiming]
        edges = []
    if symbols:
        symbol = choose.choice(symbols)
        edges += [symbol.offset, symbol.offset + symbol.size]
    edge = choose.choice(edges)
    size = choose.choice([1, 2, 4, 8])
    start = max(0, edge + choose.choice([-8, -size, 1 - size, 0]))
    return store(
        offset, base=None, static=StaticAddress(section.name, None, start), size=size, stack_height=HEIGHT
    )


def frame_store(choose: random.Random, offset: int) -> Site:
    """A store through the stack pointer: to locals, saved registers, the return address, below the stack."""
    size = choose.choice([1, 4, 8])
    place = choose.choice([-HEIGHT - 8, -HEIGHT - 1, -HEIGHT, -24, -16 - size, -17, -16, -8, 0, 8])
    return store(
        offset, base="rsp", displacement=place + HEIGHT, frame_offset=place, size=size, stack_height=HEIGHT
    )


def value_store(choose: random.Random, offset: int, value: int) -> Site:
    base, ahead = choose.choice([("rbx", 0), ("rcx", 16)])
    displacement = choose.choice([0, 0, 8, 12, 16, OBJECT - 8, -16]) - ahead
    size = choose.choice([1, 4, 8, 8])
    return store(
        offset,
        value=value,
        value_offset=ahead,
        base=base,
        displacement=displacement,
        size=size,
        stack_height=HEIGHT,
    )


@dataclass
class Code:
    """A generated function, and where its values are defined."""

    target: Description
    blocks: list[Block]
    sites: list[Site]
    home: dict[int, int]


def random_code(choose: random.Random) -> Code:
    starts = [number * LENGTH for number in range(choose.randint(1, 4))]
    blocks = [
        Block(s, s + LENGTH, tuple(sorted({choose.choice(starts) for _ in range(choose.randint(0, 2))})))
        for s in starts
    ]
    home = {value: choose.choice(starts) for value in (LOADED, MERGED, CALLED)}
    values = (
        ValueSource("argument"),
        ValueSource("load", value=ARGUMENT, site=home[LOADED] + 1, function="f"),
        ValueSource("merge", site=home[MERGED]),
        ValueSource("call", site=home[CALLED] + 2),
    )
    sites = [other(home[CALLED] + 2, "call", "memset", HEIGHT)]
    for start in starts:
        for offset in range(start + FIRST_STORE, start + choose.randint(FIRST_STORE + 1, LAST_STORE)):
            kind = choose.random()
            if kind < 0.15:
                sites.append(other(offset, "call", choose.choice(["kfree", "kfree", "memset"]), HEIGHT))
            elif kind < 0.27:
                sites.append(static_store(choose, offset))
            elif kind < 0.38:
                sites.append(frame_store(choose, offset))
            else:
                sites.append(
                    value_store(
                        choose, offset, choose.choice([ARGUMENT, ARGUMENT, ARGUMENT, LOADED, MERGED, CALLED])
                    )
                )
    made = replace(
        function("f", blocks, sites, values=values, saved=SAVED), size=len(starts) * LENGTH, frame=16
    )
    target = replace(sctp(), functions=(made,), ops_tables=())
    return Code(target, blocks, sorted(sites, key=lambda site: site.offset), home)


@dataclass
class Kernels:
    """Two kernels in the same state: `all` has a check at every store, `left` those that the passes left."""

    code: Code
    rules: CheckedPolicy
    everything: ir.Module
    result: ir.Module
    choose: random.Random
    worlds: tuple[World, World] = field(init=False)
    addresses: dict[int, int] = field(default_factory=dict)
    objects: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worlds = (World(self.everything, self.code.target), World(self.result, self.code.target))
        mask = number_types(self.rules, self.code.target).mask(STRUCT)
        self.both("resolve", 0)
        for world in self.worlds:
            world.machine.tables["globals"].store(0, "phase", 2)
        for flags, types in ((OWN, 0), (HELD, 0), (TYPED, mask), (OWN | TYPED, mask), (0, 0)):
            (address, same) = (world.slab_object(OBJECT, "kmalloc-256") for world in self.worlds)
            assert address == same
            if flags:
                self.both("gain", address, OBJECT, flags, types)
                self.both("mark", address, types)
            self.objects.append(address)
        self.objects.append(VMALLOC + 0x10_0000)
        self.both("gain", self.objects[-1], OBJECT, OWN, 0)

    def both(self, name: str, *arguments: int) -> None:
        for world in self.worlds:
            world.interpreter.run_function(name, *arguments)

    def define(self, value: int) -> None:
        """A value is made anew: somewhere in an object, in own data, on the stack, in user memory."""
        data = self.worlds[0].sections[".data"] + self.choose.choice([0, 64])
        places = [*self.objects, *self.objects, data, STACK_POINTER + self.choose.choice([0, 32]), USER]
        self.addresses[value] = self.choose.choice(places) + self.choose.choice([0, 0, 0, 8])

    def free(self) -> None:
        """What a call of kfree() may do: an object goes, or comes back as the compartment's."""
        used = [o for o in self.objects if any(o <= a < o + OBJECT for a in self.addresses.values())]
        address = self.choose.choice(used or self.objects)
        if self.choose.random() < 0.7:
            for world in self.worlds:
                world.interpreter.run_hook("o2c_kfree", arguments=(0, address))
            self.both("forget", address)
        else:
            self.both("gain", address, OBJECT, OWN, 0)

    def ask(self, which: int, site: ir.Site, place: Site) -> list[int]:
        """The sites that a check reports."""
        registers = {"rsp": STACK_POINTER, "rbp": 0}
        if place.value is not None and place.operand is not None and place.operand.base is not None:
            registers[place.operand.base] = self.addresses[place.value] + place.value_offset
        world = self.worlds[which]
        world.machine.now += 2 * SECOND
        return reported(world, world.interpreter.run_site(site.number, registers))


def reported(world: World, outcome: Outcome) -> list[int]:
    names = world.machine.rings["events"].definition.fields
    return [event.fields[names.index("site")] for event in outcome.events]


def walk(kernels: Kernels, seen: Counter[str]) -> list[str]:
    """One run through the code; what went wrong."""
    code, choose = kernels.code, kernels.choose
    checked = {s.offset: s for s in kernels.everything.sites if s.kind is ir.SiteKind.STORE}
    left = {s.offset: s for s in kernels.result.sites if s.kind is ir.SiteKind.STORE}
    reasons = {d.offset: d.reason for d in kernels.result.discharged if d.kind is ir.SiteKind.STORE}
    told: set[int] = set()  # numbers of the sites of this block that a check spoke of
    excused: set[tuple[int, int]] = set()  # bytes of values of which a violation was reported
    for value in range(4):
        kernels.define(value)
    wrong: list[str] = []
    block = code.blocks[0]
    for _ in range(12):
        told.clear()
        for value in (LOADED, MERGED):
            if block.start == code.home[value]:
                kernels.define(value)
                excused = {(v, byte) for v, byte in excused if v != value}
        for place in code.sites:
            if not block.start <= place.offset < block.end:
                continue
            if place.kind == "call":
                if place.target == "kfree":
                    kernels.free()
                    excused.clear()
                if place.offset == code.home[CALLED] + 2:
                    kernels.define(CALLED)
                    excused = {(v, byte) for v, byte in excused if v != CALLED}
                continue
            site = checked[place.offset]
            denied = bool(kernels.ask(0, site, place))
            what = f"+{place.offset:#x}"
            mine = written(place)
            kept = left.get(place.offset)
            if kept is None:
                reason = reasons[place.offset]
                seen[reason] += 1
                seen["denied"] += denied
                if denied and not (reason == "checked-before" and mine and mine <= excused):
                    wrong.append(f"{what}: {reason} lets go what the check denies")
                continue
            if kept.covered_by is None:
                told |= set(kernels.ask(1, kept, place))
            else:
                seen["merged"] += 1
            seen["kept"] += 1
            if denied != (site.number in told):
                wrong.append(f"{what}: {'nobody reports it' if denied else 'reported, though allowed'}")
            if denied:
                excused |= mine
        if not block.successors:
            break
        following = choose.choice(block.successors)
        block = next(b for b in code.blocks if b.start == following)
    return wrong


def written(place: Site) -> set[tuple[int, int]]:
    if place.value is None or place.operand is None:
        return set()
    start = place.value_offset + place.operand.displacement
    return {(place.value, start + n) for n in range(place.size)}


Changes = dict[type[Pass], Pass]


def problems(
    seed: int, violation: str, seen: Counter[str], changes: Changes | None = None, walks: int = 3
) -> list[str]:
    """What walks through the code of a seed find, with some passes changed."""
    choose = random.Random(seed)
    code = random_code(choose)
    rules = policy(violation)
    everything = lower(rules, code.target, library_sources()).module
    context = pass_context(rules, code.target)
    changes = {
        UnusedFunctions: UnusedFunctions(keep=("forget", "gain", "mark", "resolve")),
        **(changes or {}),
    }
    passes = [changes.get(type(step), step) for step in default_pipeline(context)]
    result = run_pipeline(everything, passes, context)
    wrong: list[str] = []
    for _ in range(walks):
        wrong += walk(Kernels(code, rules, everything, result, choose), seen)
    return wrong


@pytest.mark.parametrize("violation", ["report", "deny"])
def test_nothing_is_let_go_that_the_interpreter_denies(violation: str) -> None:
    seen: Counter[str] = Counter()

    # Between them these have stores of every kind that a pass lets go; what else comes up is chance.
    for number in (3, 14, 17):
        assert problems(number, violation, seen) == []
    wanted = {"own-frame", "static-data", "kept"} | (
        {"checked-before", "merged"} if violation == "report" else set()
    )
    for seed in range(40):  # what chance left out
        if all(seen[kind] > 10 for kind in wanted):
            break
        assert problems(seed, violation, seen) == []
    assert all(seen[kind] > 10 for kind in wanted), seen

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(st.integers(0, 2**32 - 1))
    def on_random_code(seed: int) -> None:
        assert problems(seed, violation, seen) == []

    on_random_code()


# --- the property can fail: passes that are wrong on purpose ---------------------------------------------


class WrongFrame(DischargeOwnFrame):
    """Lets go of stores to saved registers and to the return address."""

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        changed = tuple(replace(f, saved=(), frame=-8) for f in context.target.functions)
        return super().run(module, replace(context, description=replace(context.target, functions=changed)))


class WrongData(DischargeStaticData):
    """Takes every section for writable, or longer than it is."""

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        changed = tuple(
            replace(s, name=".data" + s.name, size=s.size + 8, writable=True, after_init_readonly=False)
            for s in context.target.sections
        )
        functions = tuple(replace(f, sites=tuple(map(_renamed, f.sites))) for f in context.target.functions)
        target = replace(context.target, sections=changed, functions=functions, symbols=())
        return super().run(module, replace(context, description=target))


def _renamed(site: Site) -> Site:
    if site.operand is None or site.operand.static is None:
        return site
    place = site.operand.static
    static = StaticAddress(".data" + (place.section or ""), place.symbol, place.offset)
    return replace(site, operand=replace(site.operand, static=static))


class AimedData(DischargeStaticData):
    """Forgets the variables that grants hang on."""

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        return super().run(module, replace(context, aiming_symbols=frozenset()))


FREEING = (*HARMLESS, "kfree")
MUTANTS: dict[str, tuple[str, Changes]] = {
    "frames without saved registers": ("deny", {DischargeOwnFrame: WrongFrame()}),
    "data of every section": ("deny", {DischargeStaticData: WrongData()}),
    "variables that say where a grant leads": ("deny", {DischargeStaticData: AimedData()}),
    "kfree counts as harmless": (
        "report",
        {DischargeCheckedBefore: DischargeCheckedBefore(harmless=FREEING)},
    ),
    "checks merged across kfree": ("report", {MergeChecks: MergeChecks(harmless=FREEING)}),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_property_notices_a_wrong_pass(name: str) -> None:
    violation, changes = MUTANTS[name]
    assert any(problems(seed, violation, Counter(), changes) for seed in range(40))
