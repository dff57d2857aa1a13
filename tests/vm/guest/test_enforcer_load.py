# SPDX-License-Identifier: Apache-2.0
"""o2c.ko under load: denials in all contexts at once, kills, cycles of load and unload, a holder that dies."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, EnforcerError, Mode, State
from tests.vm.guest.enforcer_support import (
    FORM_BUFFER,
    R11,
    SOFTIRQ,
    Form,
    Forms,
    Verdicts,
    load_module,
    start_state,
    text_of,
    unload_module,
)
from tests.vm.guest.waiting import wait_until

CYCLES = 3


def deny_all(
    enforcer: Enforcer,
    verdicts: Verdicts,
    listed: list[Form],
    name: str,
    *,
    strict: bool = False,
    keep: bool = False,
) -> None:
    enforcer.create(name, strict=strict, keep=keep)
    program = enforcer.program(verdicts.program)
    enforcer.attach([form.site(program) for form in listed])
    for form in listed:
        verdicts.set(form.number, 1)
    enforcer.commit()


def probes_listed() -> int:
    return len(Path("/sys/kernel/debug/kprobes/list").read_text().splitlines())


def all_restored(forms: Forms) -> bool:
    return all(text_of(form) == form.code for form in forms.all.values())


@pytest.mark.parametrize("name", ["mov_64", "mov_r12", "mov_rbp", "add_lock"])
@pytest.mark.parametrize("strict", [False, True], ids=["jump", "strict"])
def test_all_contexts_at_one_site(forms: Forms, verdicts: Verdicts, name: str, strict: bool) -> None:
    """The same site from a task on each CPU, softirq and hardirq timers: no write, no register, no IF lost."""
    form = forms.all[name]
    with Enforcer() as enforcer:
        deny_all(enforcer, verdicts, [form], "hammer", strict=strict)
        if enforcer.stats()[0].mode is Mode.POISON:
            assert wait_until(lambda: enforcer.stats()[0].state is State.JUMP)
        machine, pointers = start_state(form)
        results = []

        def strike() -> None:
            registers = list(machine.registers)
            registers[R11] = 0
            results.append(forms.hammer(form, tuple(registers), pointers, 1500))

        threads = [threading.Thread(target=strike) for _ in range(os.cpu_count() or 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = enforcer.stats()[0]
        runs = [sum(result.runs[i] for result in results) for i in range(3)]
        assert min(runs) > 100, runs
        assert sum(result.wrong for result in results) == 0
        # what kprobes skipped is counted, nothing else was written
        assert stats.denied + stats.missed == sum(runs)
        assert sum(result.written for result in results) <= stats.missed
        assert not strict or stats.missed == 0
        print(f"{name}: runs {runs}, missed {stats.missed}, written {sum(r.written for r in results)}")


def test_while_probes_change_between_jump_and_int3(forms: Forms, verdicts: Verdicts) -> None:
    """Optimization is switched off and on under fire: the kind of a poison site is fixed, so each hit that is checked is
    denied."""
    form = forms.all["mov_64"]
    switch = Path("/proc/sys/debug/kprobes-optimization")
    with Enforcer() as enforcer:
        deny_all(enforcer, verdicts, [form], "switch")
        machine, pointers = start_state(form)
        results = []
        thread = threading.Thread(
            target=lambda: results.append(forms.hammer(form, machine.registers, pointers, 4000))
        )
        thread.start()
        seen = set()
        try:
            while thread.is_alive():
                for value in ("0", "1"):
                    switch.write_text(value)
                    time.sleep(0.2)
                    seen.add(enforcer.stats()[0].state)
        finally:
            switch.write_text("1")
        thread.join()
        assert seen == {State.JUMP, State.INT3}
        (result,) = results
        stats = enforcer.stats()[0]
        assert result.wrong == 0
        assert stats.denied + stats.missed == sum(result.runs)
        assert result.written <= stats.missed


def test_load_and_unload_under_fire(forms: Forms, verdicts: Verdicts) -> None:
    """Sites come and go while the code runs; afterwards no probe and no changed byte is left."""
    listed = [forms.all[name] for name in ("mov_64", "mov_r12", "mov_rbp", "setcc")]
    before = probes_listed()
    for form in listed[:3]:
        enough = threading.Event()
        runs: list[int] = []
        wrong: list[int] = []

        def strike(
            form: Form = form,
            enough: threading.Event = enough,
            runs: list[int] = runs,
            wrong: list[int] = wrong,
        ) -> None:
            machine, pointers = start_state(form)
            while not enough.is_set():
                result = forms.hammer(form, machine.registers, pointers, 500)
                runs.extend(result.runs)
                wrong.append(result.wrong)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            for _ in range(CYCLES):
                with Enforcer() as enforcer:
                    deny_all(enforcer, verdicts, listed, "cycle")
                    time.sleep(random.random() / 5)
                assert all_restored(forms)
        finally:
            enough.set()
            thread.join()
        assert sum(runs) > 100
        assert not any(wrong)
    assert probes_listed() == before


def _child(forms: Forms, form: Form, context: int = 0) -> int:
    """Run a form in a child; its wait status."""
    machine, pointers = start_state(form)
    child = os.fork()
    if child == 0:
        forms.run(form, machine, pointers, context)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("name", ["mov_64", "mov_rbp", "call_direct"])
def test_kill_denies_and_kills_the_task(forms: Forms, verdicts: Verdicts, name: str) -> None:
    form = forms.all[name]
    verdicts.set(form.number, 1)
    with Enforcer() as enforcer:
        enforcer.create("kill")
        enforcer.attach([form.site(enforcer.program(verdicts.program), action=Action.KILL)])
        enforcer.commit()
        if enforcer.stats()[0].mode is Mode.POISON:
            assert wait_until(lambda: enforcer.stats()[0].state is State.JUMP)
        status = _child(forms, form)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert enforcer.info().killed == 1
        verdicts.set(form.number, 0)
        assert _child(forms, form) == 0


def test_kill_in_softirq_spares_the_bystander(forms: Forms, verdicts: Verdicts) -> None:
    form = forms.all["mov_64"]
    verdicts.set(form.number, 1)
    with Enforcer() as enforcer:
        enforcer.create("kill")
        enforcer.attach([form.site(enforcer.program(verdicts.program), action=Action.KILL)])
        enforcer.commit()
        assert _child(forms, form, SOFTIRQ) == 0
        machine, pointers = start_state(form)
        after = forms.run(form, machine, pointers, SOFTIRQ)
        assert after.memory == machine.memory
        info = enforcer.info()
        assert (info.killed, info.kills_lost, info.denied) == (0, 2, 2)


def test_keep_survives_the_holder_and_can_be_opened(forms: Forms, verdicts: Verdicts) -> None:
    form = forms.all["mov_64"]
    machine, pointers = start_state(form)
    with Enforcer() as enforcer:
        deny_all(enforcer, verdicts, [form], "kept", keep=True)
    assert forms.run(form, machine, pointers).memory == machine.memory
    assert unload_module("o2c") != 0
    assert unload_module("o2c_forms") != 0
    with Enforcer() as enforcer, Enforcer() as other:
        with pytest.raises(EnforcerError) as refused:
            enforcer.create("kept")
        assert refused.value.errno == errno.EEXIST
        enforcer.open("kept")
        other.open("kept")
        assert enforcer.info().denied == 1
        assert enforcer.info().keep
        enforcer.detach()
        with pytest.raises(EnforcerError) as gone:
            other.stats()
        assert gone.value.errno == errno.ENODEV
    assert forms.run(form, machine, pointers).memory != machine.memory
    assert all_restored(forms)


HOLDER = """
import sys
from o2cc.runtime.enforcer import Enforcer
from tests.vm.guest.enforcer_support import Forms, Verdicts
forms, verdicts = Forms(), Verdicts()
for form in forms.runnable():
    verdicts.set(form.number, 1)
print("start", flush=True)
enforcer = Enforcer()
enforcer.create("holder")
program = enforcer.program(verdicts.program)
for form in forms.runnable():
    enforcer.attach([form.site(program)])
print("attached", flush=True)
enforcer.commit()
print("committed", flush=True)
enforcer.detach()
print("detached", flush=True)
"""


def test_a_holder_killed_at_random_points_leaves_nothing(forms: Forms) -> None:
    before = probes_listed()
    chance = random.Random(1)
    for attempt in range(5):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "start\n"
        if attempt % 3 == 2:
            holder.stdout.readline()
        time.sleep(chance.random() * 0.6)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
        assert wait_until(lambda: all_restored(forms))
        assert probes_listed() == before
        with Enforcer() as enforcer:  # the name is free again
            enforcer.create("holder")


def test_modules_can_go_when_all_is_removed(forms: Forms) -> None:
    """Last in this file: no reference is left on the target or on o2c.ko itself."""
    forms.close()
    assert unload_module("o2c_forms") == 0
    assert unload_module("o2c") == 0
    load_module("o2c")
    forms.open()
    assert len(forms.run(forms.all["mov_64"], *start_state(forms.all["mov_64"])).memory) == FORM_BUFFER
