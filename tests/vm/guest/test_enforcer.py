# SPDX-License-Identifier: Apache-2.0
"""o2c.ko denies every instruction form: memory stays, registers are as documented, execution goes on.

The oracle is the processor: an allowed run of the same instruction on the same state. A denied one must leave the same
registers and flags (calls and tail jumps excepted) and the memory of before.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, Kind, Mode, SiteStats, State
from tests.vm.guest.enforcer_support import (
    ARITHMETIC_FLAGS,
    CALLED,
    HARDIRQ,
    PROCESS,
    R11,
    RSP,
    SOFTIRQ,
    Form,
    Forms,
    Machine,
    Verdicts,
    start_state,
    text_of,
)
from tests.vm.guest.waiting import wait_until

RESULT = -13


def attach_all(enforcer: Enforcer, forms: Forms, verdicts: Verdicts, *, strict: bool = False) -> list[Form]:
    """Every runnable form, denied or not as `verdicts` says."""
    enforcer.create("forms", module="o2c_forms", strict=strict)
    program = enforcer.program(verdicts.program)
    runnable = forms.runnable()
    enforcer.attach([form.site(program, deny_result=RESULT) for form in runnable])
    return runnable


def stats_of(enforcer: Enforcer, form: Form) -> SiteStats:
    (found,) = (stats for stats in enforcer.stats() if stats.address == form.address)
    return found


def states(form: Form) -> list[tuple[Machine, int]]:
    """Several starting states: flags clear and set, different contents."""
    result = []
    for seed, flags in ((0, 0), (1, ARITHMETIC_FLAGS), (2, 0x1), (3, 0)):
        result.append(start_state(form, flags, seed))
    if form.kind() is Kind.STRING:
        machine, pointers = start_state(form, 0x400, 1)
        result.append((machine, pointers))
        registers = list(machine.registers)
        registers[1] = 0
        result.append((replace(machine, registers=tuple(registers)), pointers))
    return result


def check_denied(form: Form, before: Machine, allowed: Machine, denied: Machine) -> None:
    where = f"{form.name} from {before.registers} {before.flags:#x}"
    assert denied.memory == before.memory, where
    assert denied.per_cpu == before.per_cpu, where
    assert denied.registers[RSP] == before.registers[RSP], where
    if form.name.startswith(("call", "jump")):
        assert denied.calls == 0, where
        assert denied.registers[0] == RESULT % 2**64, where
        assert denied.went_on == form.name.startswith("call"), where
        kept = [n for n in range(16) if n not in (0, R11)]
    else:
        assert denied.went_on, where
        assert denied.flags == allowed.flags, f"{where}: {denied.flags:#x} not {allowed.flags:#x}"
        kept = [n for n in range(16) if n != RSP]
    for number in kept:
        assert denied.registers[number] == allowed.registers[number], f"{where}: register {number}"


def check_took_place(form: Form, before: Machine, allowed: Machine) -> bool:
    """True when the instruction showed an effect."""
    if form.name.startswith(("call", "jump")):
        return allowed.calls == 1 and allowed.registers[0] == CALLED
    return (
        allowed.memory != before.memory
        or allowed.per_cpu != before.per_cpu
        or allowed.registers[RSP] != before.registers[RSP]
    )


@pytest.mark.parametrize("strict", [False, True], ids=["jump", "strict"])
@pytest.mark.timeout(240)
def test_every_form_is_denied(forms: Forms, verdicts: Verdicts, strict: bool) -> None:
    with Enforcer() as enforcer:
        runnable = attach_all(enforcer, forms, verdicts, strict=strict)
        # inert: nothing is decided before commit
        for form in runnable:
            verdicts.set(form.number, 1)
        baseline = {
            form.name: [forms.run(form, before, pointers) for before, pointers in states(form)]
            for form in runnable
        }
        for form in runnable:
            pairs = zip(states(form), baseline[form.name], strict=True)
            assert any(check_took_place(form, before, after) for (before, _), after in pairs), form.name
        enforcer.commit()
        if not strict:
            poison = {stats.address for stats in enforcer.stats() if stats.mode is Mode.POISON}
            assert wait_until(
                lambda: all(
                    stats.state is State.JUMP for stats in enforcer.stats() if stats.address in poison
                )
            )
            assert len(poison) >= 15
        else:
            assert all(stats.mode is Mode.SKIP for stats in enforcer.stats())
        for form in runnable:
            for (before, pointers), allowed in zip(states(form), baseline[form.name], strict=True):
                check_denied(form, before, allowed, forms.run(form, before, pointers))
        counted = {stats.address: stats for stats in enforcer.stats()}
        for form in runnable:
            stats = counted[form.address]
            runs = len(states(form)) + (2 if form.name == "retry" else 0)  # it failed twice
            assert (stats.hits, stats.denied, stats.errors) == (runs, runs, 0), (form.name, stats)
        # allowed by the program: as without it
        for form in runnable:
            verdicts.set(form.number, 0)
            for (before, pointers), allowed in zip(states(form), baseline[form.name], strict=True):
                after = forms.run(form, before, pointers)
                if after.calls:
                    after = replace(after, flags=allowed.flags)  # the target counts, which sets flags
                assert after == allowed, form.name
    for form in runnable:
        assert text_of(form) == form.code, form.name


@pytest.mark.parametrize("context", [SOFTIRQ, HARDIRQ], ids=["softirq", "hardirq"])
def test_denied_in_interrupt_context(forms: Forms, verdicts: Verdicts, context: int) -> None:
    with Enforcer() as enforcer:
        runnable = [
            form
            for form in attach_all(enforcer, forms, verdicts)
            if form.name in ("mov_64", "mov_8", "mov_rbp", "add_lock", "rep_stosq", "call_direct", "mov_gs")
        ]
        baseline = {form: forms.run(form, *start_state(form), context) for form in runnable}
        enforcer.commit()
        for form in runnable:
            verdicts.set(form.number, 1)
            before, pointers = start_state(form)
            check_denied(form, before, baseline[form], forms.run(form, before, pointers, context))


def test_report_only_lets_it_happen(forms: Forms, verdicts: Verdicts) -> None:
    form = forms.all["mov_64"]
    verdicts.set(form.number, 1)
    with Enforcer() as enforcer:
        enforcer.create("forms")
        enforcer.attach([form.site(enforcer.program(verdicts.program), action=Action.REPORT)])
        enforcer.commit()
        before, pointers = start_state(form)
        after = forms.run(form, before, pointers)
        assert after.memory != before.memory
        stats = stats_of(enforcer, form)
        assert (stats.hits, stats.denied) == (1, 1)


def test_other_verdicts_are_errors_and_allow(forms: Forms, verdicts: Verdicts) -> None:
    form = forms.all["mov_64"]
    verdicts.set(form.number, 7)
    with Enforcer() as enforcer:
        enforcer.create("forms")
        enforcer.attach([form.site(enforcer.program(verdicts.program))])
        enforcer.commit()
        before, pointers = start_state(form)
        assert forms.run(form, before, pointers).memory != before.memory
        stats = stats_of(enforcer, form)
        assert (stats.hits, stats.denied, stats.errors) == (1, 0, 1)


def test_retry_loop_ends(forms: Forms, verdicts: Verdicts) -> None:
    """A denied cmpxchg in a loop: fails while the expected value is wrong, then claims success."""
    form = forms.all["retry"]
    verdicts.set(form.number, 1)
    with Enforcer() as enforcer:
        enforcer.create("forms")
        enforcer.attach([form.site(enforcer.program(verdicts.program))])
        enforcer.commit()
        before, pointers = start_state(form, seed=1)
        after = forms.run(form, before, pointers)
        assert after.went_on
        assert after.memory == before.memory
        assert after.registers[0] == int.from_bytes(before.memory[0x80:0x88], "little")
        assert stats_of(enforcer, form).denied == 2


def test_observed_sites_do_not_act(forms: Forms, verdicts: Verdicts) -> None:
    form = forms.all["mov_64"]
    plain = {"code": b"", "base": 0xFF, "displacement": 0, "size": 0, "action": Action.REPORT}
    for cookie in (1, 2):
        verdicts.set(cookie, 1)
    with Enforcer() as enforcer:
        enforcer.create("forms")
        program = enforcer.program(verdicts.program)
        enforcer.attach(
            [
                form.site(program, 1, kind=Kind.OBSERVE, **plain),
                form.site(program, 2, kind=Kind.RETURN, address=form.function, **plain),
            ]
        )
        enforcer.commit()
        before, pointers = start_state(form)
        after = forms.run(form, before, pointers, PROCESS)
        assert after.memory != before.memory
        assert after.went_on
        assert [(stats.hits, stats.denied, stats.mode) for stats in enforcer.stats()] == [
            (1, 1, Mode.OBSERVE),
            (1, 1, Mode.OBSERVE),
        ]


def test_two_compartments_at_one_site(forms: Forms) -> None:
    """Both decide; one denial is enough, whichever compartment and kind it comes from."""
    form = forms.all["mov_64"]
    for strict in ((False, False), (False, True), (True, False), (True, True)):
        first, second = Verdicts(), Verdicts()
        with Enforcer() as one, Enforcer() as two:
            for enforcer, verdicts, name, int3 in (
                (one, first, "one", strict[0]),
                (two, second, "two", strict[1]),
            ):
                enforcer.create(name, strict=int3)
                enforcer.attach([form.site(enforcer.program(verdicts.program))])
                enforcer.commit()
            before, pointers = start_state(form)
            for verdict_one in (0, 1):
                for verdict_two in (0, 1):
                    first.set(form.number, verdict_one)
                    second.set(form.number, verdict_two)
                    after = forms.run(form, before, pointers)
                    denied = verdict_one or verdict_two
                    assert (after.memory == before.memory) == bool(denied), (strict, verdict_one, verdict_two)
                    assert after.went_on
                    assert after.registers[7] == before.registers[7]
            first.set(form.number, 1)
            one.detach()
            second.set(form.number, 0)
            assert forms.run(form, before, pointers).memory != before.memory
            second.set(form.number, 1)
            assert forms.run(form, before, pointers).memory == before.memory
        assert text_of(form) == form.code
        first.close()
        second.close()
