# SPDX-License-Identifier: Apache-2.0
"""Runs the `test` blocks of a policy: with no kernel and no root, on the same IR that is compiled for the kernel.

A step runs the check of a real site of the target: a store that of a store in the named function, a call the
checks before and behind a call of the gate.  What the passes discharge is not asked here; they prove that the check
would allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from o2cc.diagnostics import Diagnostic, Label, error
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.interpreter import Outcome
from o2cc.kernel.description import Description
from o2cc.lower.context import UNCERTAIN_TOUCHED, UNTRACKED_TOUCHED
from o2cc.lower.expressions import ARGUMENT_REGISTERS, Expressions, Place
from o2cc.lower.gates import FLAG_OWN, FLAG_TYPED, emit_gain
from o2cc.lower.heap import allocates
from o2cc.lower.rules import number_types
from o2cc.policy import model, steps
from o2cc.policy.model import CheckedPolicy
from o2cc.simulation.world import STACK_POINTER, World

_PHASES = {"transition": 1, "final": 2}
_SECOND = 1 << 30  # nanoseconds; a new one for each step, so that the limit on events never hides one


@dataclass(frozen=True)
class TestResult:
    """How a test ended; ``problems`` is empty when every expectation was met."""

    __test__ = False

    name: str
    problems: tuple[Diagnostic, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


class _NotPossible(Exception):
    """A step that the target has no place for."""


def run_tests(policy: CheckedPolicy, description: Description, module: ir.Module) -> Iterator[TestResult]:
    """Run every test of the policy on a fresh world.  ``module`` is the lowered one, before any pass."""
    extended = replace(module, functions=(*module.functions, *_capability_functions(policy, description)))
    for test in policy.tests:
        yield _Run(policy, description, extended, test).result()


def _capability_functions(policy: CheckedPolicy, description: Description) -> Iterator[ir.Function]:
    """``gain_NAME(object)`` for each capability, for objects that a test is given as held."""
    types = number_types(policy, description)
    for capability in policy.capabilities:
        code = Builder(capability.span)
        nothing = ir.Constant(0)
        place = Place(lambda index: ir.Value("object"), None, nothing, nothing, nothing)
        expressions = Expressions(code, place, policy, description, types)
        kind = model.ValueType(model.TypeKind.POINTER, capability.struct)
        argument = model.ArgumentValue(0, capability.parameter, kind, capability.span)
        emit_gain(expressions, model.Gives(argument, capability.name, None, capability.span))
        code.give_back(1)
        yield ir.Function(f"gain_{capability.name}", ("object",), code.finish())


class _Run:
    """One test: its world, its objects, and the verdict of the last step."""

    def __init__(
        self, policy: CheckedPolicy, description: Description, module: ir.Module, test: model.PolicyTest
    ) -> None:
        self.policy = policy
        self.description = description
        self.module = module
        self.test = test
        self.types = number_types(policy, description)
        self.world = World(module, description)
        self.objects: dict[str, int] = {}
        self.entered: list[tuple[str, dict[str, int]]] = []
        self.verdict = "allow"
        self.step_span = test.span

    def result(self) -> TestResult:
        problems: list[Diagnostic] = []
        self._set_phase(_PHASES["final"])
        for step in self.test.steps:
            if isinstance(step, steps.Expect):
                if step.verdict != self.verdict:
                    problems.append(self._mismatch(step))
                continue
            try:
                self._step(step)
            except _NotPossible as reason:
                problems.append(
                    error(
                        "O2C0271",
                        f"this step cannot be run: {reason}",
                        step.span,
                        f"in test `{self.test.name}`",
                    )
                )
                break
        return TestResult(self.test.name, tuple(problems))

    def _mismatch(self, step: steps.Expect) -> Diagnostic:
        return error(
            "O2C0270",
            f"test `{self.test.name}`: expected `{step.verdict}`, the verdict is `{self.verdict}`",
            step.span,
            f"this step was answered with `{self.verdict}`",
            secondary=(Label(self.step_span, "the step"),),
        )

    # --- steps --------------------------------------------------------------------------------------------

    def _step(self, step: steps.TestStep) -> None:
        self.world.machine.now += 2 * _SECOND
        if not isinstance(step, steps.GivenObject | steps.TestPhase):
            self.step_span = step.span
        match step:
            case steps.GivenObject():
                self._given(step)
            case steps.TestPhase():
                self._set_phase(_PHASES[step.phase])
            case steps.TestStore():
                site = self._site_in(step.function, (ir.SiteKind.STORE,), step.offset)
                address = self._value(step.address)
                self._answer(self._function("check_store", address, step.size, site.number, STACK_POINTER, 0))
            case steps.TestIndirectCall():
                kinds = (ir.SiteKind.INDIRECT_CALL, ir.SiteKind.INDIRECT_JUMP)
                site = self._site_in(step.function, kinds, step.offset)
                self._answer(
                    self._function("check_target", self._value(step.target), site.number, STACK_POINTER)
                )
            case steps.TestCall():
                self._call(step)
            case steps.TestEnter():
                self._enter(step)
            case steps.TestLeave():
                self._leave()

    def _given(self, step: steps.GivenObject) -> None:
        state = steps.ObjectState
        if step.state is state.USER:
            address = self.world.user_memory(step.size)
        elif step.state in (state.OWNED, state.FREED):
            address = self.world.own_object(step.size)
        else:
            address = self.world.slab_object(step.size)
        self.objects[step.name] = address
        self.world.machine.memory.write(address, bytes(step.size))
        for offset, size, value in step.fields:
            self.world.machine.memory.write_word(address + offset, self._value(value), size)
        mask = self.types.mask(step.struct)
        if step.state is state.OWNED:
            self._function("gain", address, step.size, FLAG_OWN | (FLAG_TYPED if mask else 0), mask)
        elif step.state is state.HELD:
            if step.capability is not None:
                self._function(f"gain_{step.capability}", address)
            else:
                self._function("gain", address, step.size, 2, mask)
        elif step.state is state.SHARED and mask:
            self._function("mark", address, mask)
        elif step.state is state.FREED:
            self._function("gain", address, step.size, FLAG_OWN, 0)
            self.world.interpreter.run_hook("o2c_kfree", arguments=(0, address))

    def _call(self, step: steps.TestCall) -> None:
        calls = [s for s in self.module.sites if s.note == f"call of {step.callee}"]
        before = next((s for s in calls if s.kind is ir.SiteKind.CALL), calls[0] if calls else None)
        registers = self._registers(step.arguments)
        if before is not None:
            self._answer(self.world.interpreter.run_site(before.number, registers))
        else:
            rule = self.policy.call(step.callee)
            if rule is None:
                raise _NotPossible(f"`{step.callee}` is no function that this code calls")
            if rule.allowed and self._only_initial(step.callee):
                raise _NotPossible(
                    f"only code of the initialization calls `{step.callee}`, which is not checked, "
                    "and gone after loading"
                )
            self.verdict = "allow" if rule.allowed else "deny"
        if self.verdict == "deny":
            return
        gate = self.policy.gate(step.callee)
        for effect in gate.effects if gate is not None else ():
            if isinstance(effect, model.Frees) and isinstance(effect.pointer, model.ArgumentValue):
                pointer = registers[ARGUMENT_REGISTERS[effect.pointer.index]]
                self.world.interpreter.run_hook("o2c_kfree", arguments=(0, pointer))
        result = 0
        if step.result is not None:
            size = self._result_size(gate)
            private = allocates(step.callee)
            result = self.world.own_object(size) if private else self.world.slab_object(size)
            self.objects[step.result] = result
        behind = self._find(
            lambda s: (
                s.note == f"result of {step.callee}" and (before is None or s.number == before.number + 1)
            )
        )
        if behind is not None:
            self.world.interpreter.run_site(behind.number, {**registers, "rax": result})

    def _only_initial(self, callee: str) -> bool:
        callers = [f.initial for f in self.description.functions if callee in f.callees]
        return bool(callers) and all(callers)

    def _result_size(self, gate: model.Gate | None) -> int:
        struct = gate.result.struct if gate is not None and gate.result is not None else None
        layout = self.description.types.struct_by_name.get(struct) if struct else None
        return layout.size if layout is not None else 512

    def _enter(self, step: steps.TestEnter) -> None:
        site = self._find(lambda s: s.function == step.function and s.kind is ir.SiteKind.ENTRY)
        registers = self._registers(step.arguments)
        self.entered.append((step.function, registers))
        self.verdict = "allow"
        if site is not None:
            self._answer(self.world.interpreter.run_site(site.number, registers))

    def _leave(self) -> None:
        function, registers = self.entered.pop()
        site = self._find(lambda s: s.function == function and s.kind is ir.SiteKind.RETURN)
        self.verdict = "allow"
        if site is not None:
            self._answer(
                self.world.interpreter.run_site(site.number, {**registers, "rsp": registers["rsp"] + 8})
            )

    # --- parts --------------------------------------------------------------------------------------------

    def _set_phase(self, phase: int) -> None:
        words = self.world.machine.tables["globals"]
        words.store(0, "started", 0)  # it begins with the first access to an untracked object
        words.store(0, "phase", phase)

    def _function(self, name: str, *arguments: int) -> Outcome:
        return self.world.interpreter.run_function(name, *arguments)

    def _answer(self, outcome: Outcome) -> None:
        """The verdict is what was reported: a policy that only reports lets everything through."""
        names = self.world.machine.rings["events"].definition.fields
        kinds = [event.fields[names.index("kind")] for event in outcome.events]
        if not kinds:
            self.verdict = "allow"
        else:
            self.verdict = "audition" if kinds[-1] in (UNTRACKED_TOUCHED, UNCERTAIN_TOUCHED) else "deny"

    def _registers(self, arguments: Iterable[model.TestValue]) -> dict[str, int]:
        values = [self._value(argument) for argument in arguments]
        return {**dict(zip(ARGUMENT_REGISTERS, values, strict=False)), "rsp": STACK_POINTER}

    def _value(self, value: model.TestValue) -> int:
        if value.object is not None:
            return self.objects[value.object] + value.offset
        if value.symbol is not None:
            name = value.symbol
            is_data = (
                name in self.description.symbol_by_name and name not in self.description.function_by_name
            )
            base = self.world.data(name) if is_data else self.world.function(name)
            return base + value.offset
        return value.offset & (2**64 - 1)

    def _find(self, wanted: object) -> ir.Site | None:
        assert callable(wanted)
        return next((site for site in self.module.sites if wanted(site)), None)

    def _site_in(self, function: str, kinds: tuple[ir.SiteKind, ...], offset: int | None) -> ir.Site:
        site = self._find(
            lambda s: s.function == function and s.kind in kinds and (offset is None or s.offset == offset)
        )
        if site is None:
            place = function if offset is None else f"{function}+{offset:#x}"
            raise _NotPossible(f"there is no {kinds[0].value.replace('_', ' ')} at `{place}`")
        return site
