# SPDX-License-Identifier: Apache-2.0
"""Stores to the own frame and to own static data: what is discharged, and what must not be."""

from dataclasses import replace

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel.description import Block, Section, Site, StaticAddress, Symbol
from o2cc.kernel.type_table import Parameter, Prototype, TypeReference
from o2cc.passes.manager import PassContext, run_pipeline
from o2cc.passes.own_frame import DischargeOwnFrame
from o2cc.passes.static_data import DischargeStaticData

from .targets import description, discharged, function, module, store

SAVED = (("rbx", -8), ("rbp", -16))
WHOLE = [Block(0, 0x100, ())]


def aligned(start: int, end: int, *, displacement: int = 0, base: str = "rsp") -> Site:
    """A store in a function that aligns its stack: the height is not known, the range is."""
    place = store(1, base=base, displacement=displacement, stack_height=None)
    return replace(place, frame_range=(start, end))


FRAME_CASES = {
    "local at the bottom": (store(1, frame_offset=-48, stack_height=48), True),
    "local just below the saved registers": (store(1, frame_offset=-24, stack_height=48), True),
    "last byte into a saved register": (store(1, frame_offset=-23, stack_height=48), False),
    "onto a saved register": (store(1, frame_offset=-16, stack_height=48), False),
    "onto the return address": (store(1, frame_offset=0, stack_height=48), False),
    "to the caller's frame": (store(1, frame_offset=8, stack_height=48), False),
    "below the stack pointer": (store(1, frame_offset=-49, stack_height=48), False),
    "height not known": (store(1, frame_offset=-48, stack_height=None), False),
    "place not known": (store(1, frame_offset=None, stack_height=48), False),
    "size not known": (store(1, frame_offset=-48, stack_height=48, size=0), False),
    "with an index": (store(1, frame_offset=-48, stack_height=48, index="rax"), False),
    "repeated": (store(1, frame_offset=-48, stack_height=48, rep=True), False),
    "bits by a register": (store(1, frame_offset=-48, stack_height=48, bit_index="rax"), False),
    "push to the new top": (store(1, frame_offset=-56, stack_height=48, kind="push"), True),
    "big and fitting": (store(1, frame_offset=-48, stack_height=48, size=32), True),
    "big and too long": (store(1, frame_offset=-48, stack_height=48, size=33), False),
}


FRAME_CASES |= {
    "aligned, at the stack pointer": (aligned(-80, -57), True),
    "aligned, up to the saved registers": (aligned(-39, -16), True),
    "aligned, into the saved registers": (aligned(-38, -15), False),
    "aligned, below the stack pointer": (aligned(-80, -57, displacement=-8), False),
    "aligned, through another register": (aligned(-80, -57, displacement=-8, base="rbp"), True),
    "aligned, through another register, onto saved ones": (aligned(-38, -15, base="rbp"), False),
    "aligned, through another register, beyond any frame": (aligned(-2049, -57, base="rbp"), False),
    "repeated, of a known length": (
        replace(store(1, rep=True, stack_height=64), frame_range=(-64, -16)),
        True,
    ),
    "repeated, too long": (replace(store(1, rep=True, stack_height=64), frame_range=(-64, -8)), False),
}


@pytest.mark.parametrize("name", FRAME_CASES)
def test_own_frame(name: str) -> None:
    site, expected = FRAME_CASES[name]
    target = description(function("f", WHOLE, [site], saved=SAVED))
    result = run_pipeline(module(target), [DischargeOwnFrame()], PassContext(target, control_flow_kept=True))
    assert discharged(result) == (["f+0x1"] if expected else [])
    assert len(result.sites) == (0 if expected else 1)


def test_a_cold_part_has_the_frame_of_its_function() -> None:
    cold = function("f.cold", WHOLE, [store(1, frame_offset=-16, stack_height=48)], parent="f")
    target = description(function("f", WHOLE, [], saved=SAVED), cold)
    result = run_pipeline(module(target), [DischargeOwnFrame()], PassContext(target, control_flow_kept=True))
    assert discharged(result) == []


def test_functions_that_share_a_name_prove_nothing() -> None:
    one = function("f", WHOLE, [store(1, frame_offset=-48, stack_height=48)])
    two = function("f", WHOLE, [store(1, frame_offset=0, stack_height=48)])
    target = description(one, two)
    result = run_pipeline(module(target), [DischargeOwnFrame()], PassContext(target, control_flow_kept=True))
    assert discharged(result) == []


def test_the_proof_says_what_it_leans_on() -> None:
    target = description(function("f", WHOLE, [store(1, frame_offset=-48, stack_height=48)], saved=SAVED))
    result = run_pipeline(module(target), [DischargeOwnFrame()], PassContext(target, control_flow_kept=True))
    (proof,) = result.discharged
    assert proof.reason == "own-frame"
    assert proof.proof == (
        "writes within [-48, -40) of the function's frame, which is [-48, -16) here (0 is the slot of the return address)"
    )
    assert any("indirect" in premise for premise in proof.premises)


def test_without_kept_control_flow_the_frame_proves_nothing() -> None:
    target = description(function("f", WHOLE, [store(1, frame_offset=-48, stack_height=48)]))
    with pytest.raises(
        DiagnosticError, match="O2C0532: pass `discharge-own-frame` requires `control-flow-kept`"
    ):
        run_pipeline(module(target), [DischargeOwnFrame()], PassContext(target))


@pytest.mark.parametrize(
    ("offset", "parameters", "pointed", "expected"),
    [
        (8, 8, False, True),
        (16, 8, False, True),
        (24, 8, False, False),
        (8, 6, False, False),
        (8, 8, True, False),
    ],
)
def test_arguments_on_the_stack_are_the_functions_own(
    offset: int, parameters: int, pointed: bool, expected: bool
) -> None:
    """Catches a compiler's store to the slot of an argument (ip6_append_data) that is taken for one to the caller's frame;
    and one in a function that is called through pointers, perhaps with fewer arguments."""
    number = TypeReference("int", "long", 8)
    prototype = Prototype("f", (Parameter("p", number),) * parameters, number)
    code = function("f", WHOLE, [store(1, frame_offset=offset, stack_height=48)], saved=SAVED)
    made = description(replace(code, address_taken=pointed))
    target = replace(made, types=replace(made.types, prototypes=(prototype,)))
    result = run_pipeline(module(target), [DischargeOwnFrame()], PassContext(target, control_flow_kept=True))
    assert discharged(result) == (["f+0x1"] if expected else [])


def section(name: str, **changed: bool) -> Section:
    facts = {"writable": True, "executable": False, "after_init_readonly": False, "per_cpu": False} | changed
    return Section(name, 0x100, anchor_symbol=None, anchor_offset=0, **facts)


SECTIONS = (
    section(".data"),
    section(".bss"),
    section(".rodata", writable=False),
    section(".data..ro_after_init", after_init_readonly=True),
    section(".data..percpu", per_cpu=True),
    section(".gnu.linkonce.this_module"),
    section(".init.data", initial=True),
)
SYMBOLS = (
    Symbol("counter", ".data", 0x10, 8, True),
    Symbol("next", ".data", 0x18, 8, True),
    Symbol("granted", ".vmlinux", 0x40, 16, True),
)


def static(name: str, offset: int, *, segment: str | None = None, base: str | None = None) -> Site:
    return store(1, base=base, static=StaticAddress(name, None, offset), segment=segment)


STATIC_CASES = {
    "a symbol": (static(".data", 0x10), True),
    "from one symbol into the next": (static(".data", 0x14), False),
    "no symbol": (static(".data", 0x80), True),
    "into a symbol from before it": (static(".data", 0xC), False),
    "end of the section": (static(".bss", 0xF8), True),
    "past the end of the section": (static(".bss", 0xFC), False),
    "before the section": (static(".bss", -8), False),
    "constant data": (static(".rodata", 0), False),
    "read-only after initialization": (static(".data..ro_after_init", 0), False),
    "per-CPU data": (static(".data..percpu", 0, segment="gs"), True),
    "per-CPU data of nobody": (static(".data..percpu", 0), False),
    "plain data through gs": (static(".data", 0x80, segment="gs"), False),
    "struct module": (static(".gnu.linkonce.this_module", 0), False),
    "data that is freed": (static(".init.data", 0), False),
    "with a base": (static(".data", 0x10, base="rbx"), False),
    "unknown section": (static(".other", 0), False),
}


@pytest.mark.parametrize("name", STATIC_CASES)
def test_static_data(name: str) -> None:
    site, expected = STATIC_CASES[name]
    target = description(function("f", WHOLE, [site]), sections=SECTIONS, symbols=SYMBOLS)
    result = run_pipeline(module(target), [DischargeStaticData()], PassContext(target))
    assert discharged(result) == (["f+0x1"] if expected else [])


@pytest.mark.parametrize(
    ("offset", "own", "expected"),
    [(0, True, True), (8, True, True), (9, True, False), (-1, True, False), (0, False, False)],
)
def test_built_in_code_owns_only_what_the_policy_names(offset: int, own: bool, expected: bool) -> None:
    site = store(1, base=None, static=StaticAddress(None, "granted", offset))
    target = description(function("f", WHOLE, [site]), sections=SECTIONS, symbols=SYMBOLS, kind="builtin")
    context = PassContext(target, own_symbols=frozenset({"granted"}) if own else frozenset())
    result = run_pipeline(module(target), [DischargeStaticData()], context)
    assert discharged(result) == (["f+0x1"] if expected else [])
