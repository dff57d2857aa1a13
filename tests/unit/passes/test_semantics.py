# SPDX-License-Identifier: Apache-2.0
"""Passes over code keep what programs mean: generated programs give the same results, events and state."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.ir.parser import parse_module
from o2cc.ir.printer import print_module
from o2cc.ir.verifier import require_valid
from o2cc.passes.manager import Pass, PassContext, run_pipeline
from o2cc.passes.registry import PASSES, default_pipeline

from .programs import random_module
from .targets import description

CODE_PASSES = [
    kind(**({"keep": ("f0", "f1", "f2")} if kind.command_name() == "unused-functions" else {}))
    for kind in PASSES.values()
    if not kind.requires
]
INTERESTING = [0, 1, 2, 7, 8, 63, 64, 255, 4096, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64 - 8]


def behaviour(module: ir.Module, functions: list[str], seed: int) -> list[object]:
    """Everything that can be seen of some runs of these functions, of the sites and of the hook."""
    choose = random.Random(seed)
    machine = Machine(module, symbols={"known": 0x1000})
    machine.memory.write(0x1000, bytes(choose.randrange(256) for _ in range(256)))
    runs = Interpreter(machine)
    seen: list[object] = []
    for _ in range(3):
        words = [
            choose.choice([choose.choice(INTERESTING), 0x1000 + choose.randrange(256)]) for _ in range(8)
        ]
        machine.now += 10
        outcomes = [runs.run_function(name, *words[:2]) for name in functions]
        outcomes += [runs.run_site(number, {"rbx": words[2], "rsp": words[3]}) for number in (0, 1)]
        outcomes.append(runs.run_hook("h0", arguments=words[6:]))
        seen += [(outcome.value, outcome.events) for outcome in outcomes]
    seen.append({name: state.snapshot() for name, state in machine.maps.items()})
    seen.append({name: {k: v for k, v in t.rows.items() if any(v)} for name, t in machine.tables.items()})
    return seen


def require_same(module: ir.Module, passes: list[Pass], seed: int) -> None:
    require_valid(module)
    result = run_pipeline(module, passes, PassContext())
    functions = [function.name for function in result.functions]  # fewer where equal ones were merged
    assert behaviour(result, functions, seed) == behaviour(module, functions, seed)


@pytest.mark.parametrize("step", CODE_PASSES, ids=str)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_pass_keeps_the_meaning(step: Pass, seed: int) -> None:
    require_same(random_module(random.Random(seed)), [step], seed)


@pytest.mark.parametrize("operator", list(ir.BinaryOperator))
@pytest.mark.parametrize("test", ["eq %c, 0", "ne %c, 0", "add %c, 5", "and %c, 5"])
def test_folding_keeps_every_operator(operator: ir.BinaryOperator, test: str) -> None:
    text = f"%c = {operator} %a, %b\n %d = {test}\n br %d, y, n\ny:\n return %d\nn:\n return 7\n"
    same = f"%c = {operator} %a, %a\n %d = {test}\n return %d\n"
    numbers = f"%c = {operator} %a, 8\n %d = {operator} 8, %c\n %e = {operator} %d, 0\n %f = {operator} %e, 1\n return %f\n"
    for body in (text, same, numbers):
        module = parse_module(SourceFile("t.ir", f"module m {{ }}\nfunction f(a, b) {{\n{body}}}\n"))
        folded = run_pipeline(module, [PASSES["constant-folding"]()], PassContext())
        plain, changed = Interpreter(Machine(module)), Interpreter(Machine(folded))
        for left in INTERESTING:
            for right in INTERESTING:
                assert (
                    plain.run_function("f", left, right).value == changed.run_function("f", left, right).value
                )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_pipeline_keeps_the_meaning_and_ends_at_a_fixed_point(seed: int) -> None:
    module = random_module(random.Random(seed))
    passes = [step for step in CODE_PASSES for _ in range(2)]
    require_same(module, passes, seed)
    context = PassContext()
    once = run_pipeline(module, default_pipeline(context) * 4, context)
    assert run_pipeline(once, default_pipeline(context), context) == once


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_programs_survive_printing_and_parsing(seed: int) -> None:
    module = random_module(random.Random(seed))
    text = print_module(module)
    assert parse_module(SourceFile("t.ir", text)) == module
    assert print_module(parse_module(SourceFile("t.ir", text))) == text


def test_the_default_pipeline_runs_each_discharge_only_where_its_premises_hold() -> None:
    def names(context: PassContext) -> set[str]:
        return {step.command_name() for step in default_pipeline(context) if "discharge" in str(step)}

    target = description()
    assert names(PassContext()) == set()
    assert names(PassContext(target)) == {"discharge-static-data"}
    kept = {"discharge-static-data", "discharge-own-frame", "discharge-unreachable"}
    assert names(PassContext(target, control_flow_kept=True)) == kept
    everything = PassContext(target, control_flow_kept=True, skips_violations=False)
    assert names(everything) == kept | {"discharge-checked-before"}
