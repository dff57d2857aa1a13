# SPDX-License-Identifier: Apache-2.0
"""Checks that kprobes skips: counted by site, shown, and acted on as the policy says.

An interrupt that arrives in the detour of an optimized probe runs probed code unchecked.  The hammer of the module of
single instructions runs one store from a task and from interrupts until that has happened.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from o2cc.runtime import state
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, OnMissed, State
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.status import gather
from tests.vm.guest.enforcer_support import Forms, Verdicts, load_module, start_state
from tests.vm.guest.victim_support import (
    NAME,
    PROPER,
    Victim,
    events,
    in_child,
    loaded,
    o2c,
    status_of,
    unload_all,
)
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import guest_object

FORM = "mov_64"
TRIES = 20
ONE_FUNCTION = LoadOptions(wanted=lambda site: site.function == "store_word", accept_gaps=True)


@pytest.fixture
def forms() -> Iterator[Forms]:
    unload_all()
    load_module("o2c")
    device = Forms()
    yield device
    device.close()


def hammer_until_missed(forms: Forms, enforcer: Enforcer) -> tuple[int, int]:
    """Let tasks hammer the site until a check was skipped; how many were, and the status of the last task."""
    form = forms.all[FORM]
    status = 0
    for _ in range(TRIES):
        machine, pointers = start_state(form)
        status = status_of(in_child(partial(forms.hammer, form, machine.registers, pointers, 500)))
        if enforcer.info().missed:
            break
    return enforcer.info().missed, status


@pytest.mark.parametrize("on_missed", [OnMissed.REPORT, OnMissed.KILL])
def test_a_skipped_check_is_counted_at_its_site(forms: Forms, on_missed: OnMissed) -> None:
    verdicts = Verdicts()
    with Enforcer() as enforcer:
        enforcer.create("missed", on_missed=on_missed)
        program = enforcer.program(verdicts.program)
        sites = [forms.all[name].site(program, action=Action.DENY) for name in (FORM, "mov_r12")]
        enforcer.attach(sites)
        enforcer.commit()
        assert wait_until(lambda: enforcer.stats()[0].state is State.JUMP)
        missed, status = hammer_until_missed(forms, enforcer)
        counts = {item.address: item.missed for item in enforcer.stats()}
        killed = enforcer.info().killed
    verdicts.close()
    assert missed > 0, f"{TRIES} times half a second, and no interrupt came in the window"
    assert counts == {sites[0].address: missed, sites[1].address: 0}
    if on_missed is OnMissed.KILL:
        assert killed > 0
        assert status == -signal.SIGKILL
    else:
        assert (killed, status) == (0, 7)


def test_the_policy_says_what_a_skipped_check_leads_to(forms: Forms) -> None:
    victim = Victim()
    for variant, expected in (("deny", OnMissed.REPORT), ("missed-kill", OnMissed.KILL)):
        with loaded(guest_object(variant), ONE_FUNCTION), Enforcer() as enforcer:
            enforcer.open(NAME)
            assert enforcer.info().on_missed is expected
    victim.close()


def test_killing_needs_a_task_and_denies_before(forms: Forms) -> None:
    """`on violation kill` with o2c.ko (`probes strict`): the write does not happen, and its task ends."""
    victim = Victim()
    with loaded(guest_object("strict-kill"), LoadOptions(accept_gaps=True)) as policy:
        assert policy.enforced
        assert status_of(in_child(lambda: victim.run(3))) == -signal.SIGKILL
        assert victim.state()["foreign"] == 0
        assert status_of(in_child(lambda: victim.run(PROPER))) == 7
        (report,) = events()[0]
        assert (report.kind, report.context) == ("store", "task")
        status = json.loads(o2c("status", NAME, "--json").stdout)["compartments"][0]
        assert status["missed"]["nested"] == 0
        assert [(c["place"], c["denied"], c["missed"]) for c in status["counters"]] == [
            ("store_word+0x5", 1, 0)
        ]
        assert gather(NAME).problems == ()
    victim.close()
    assert NAME not in state.names()
