# SPDX-License-Identifier: Apache-2.0
"""Draining: nothing new goes into the private heap, and all else stays in force until that is empty."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import DrainState, EnforcerError, Site
from tests.vm.guest.enforcer_support import Forms, Shadow, Verdicts, start_state, text_of, unload_module
from tests.vm.guest.heap_support import Operation, allocate, give_heap
from tests.vm.guest.waiting import wait_until

NAME = "drained"
STORE = "mov_64"


@pytest.fixture
def setup(
    forms: Forms, shadow: Shadow, verdicts: Verdicts, sites: list[Site]
) -> Callable[[Enforcer, bool], None]:
    """Loads a compartment with a private heap and one store that is denied."""

    def load(enforcer: Enforcer, keep: bool) -> None:
        form = forms.all[STORE]
        verdicts.set(form.number, 1)
        enforcer.create(NAME, module="o2c_forms", keep=keep)
        enforcer.program(shadow.program)
        program = enforcer.program(verdicts.program)
        give_heap(enforcer, shadow)
        enforcer.attach([*sites, form.site(program)])
        enforcer.commit()

    return load


Setup = Callable[[Enforcer, bool], None]


def denied(forms: Forms) -> bool:
    form = forms.all[STORE]
    before, pointers = start_state(form)
    return forms.run(form, before, pointers).memory == before.memory


def number_of(call: Callable[[], object]) -> int:
    with pytest.raises(EnforcerError) as caught:
        call()
    return caught.value.errno


def free_all(forms: Forms, objects: list[int]) -> None:
    for address in objects:
        allocate(forms, Operation.KVFREE, pointer=address)


def test_enforcement_stays_until_the_last_object_is_gone(forms: Forms, shadow: Shadow, setup: Setup) -> None:
    with Enforcer() as enforcer:
        setup(enforcer, False)
        assert enforcer.drain().state is DrainState.NOT
        old = [allocate(forms, Operation.KMALLOC, size).result for size in (40, 3000, 50_000)]
        cached = allocate(forms, Operation.CACHE_ALLOC).result
        assert enforcer.drain(start=True).state is DrainState.GOING_ON
        # new ones are the kernel's, in every way of asking
        for operation, size in (
            (Operation.KMALLOC, 40),
            (Operation.TAIL, 40),
            (Operation.KVMALLOC, 50_000),
            (Operation.CACHE_ALLOC, 0),
            (Operation.ZEROED_PAGE, 0),
        ):
            new = allocate(forms, operation, size)
            assert new.result
            assert shadow.owner(new.frame) == 0
            if operation is Operation.ZEROED_PAGE:
                allocate(forms, Operation.FREE_PAGES, 0, new.result)
            elif operation is Operation.CACHE_ALLOC:
                allocate(forms, Operation.CACHE_FREE, pointer=new.result)
            else:
                allocate(forms, Operation.KVFREE, pointer=new.result)
        assert enforcer.heap_stats().passed == 5
        # old ones are as they were: marked, and their cache is found though another is named
        assert shadow.owned() > 0
        allocate(forms, Operation.CACHE_FREE, pointer=cached)
        assert denied(forms)
        assert unload_module("o2c_forms") != 0
        last = old.pop()
        free_all(forms, old)
        assert wait_until(lambda: enforcer.drain().bytes == 64 << 10)
        assert enforcer.drain().state is DrainState.GOING_ON
        assert denied(forms)
        free_all(forms, [last])
        assert wait_until(lambda: enforcer.drain().state is DrainState.DONE)
        assert shadow.owned() == 0
        assert denied(forms)  # without AUTO it stays until it is detached
        enforcer.detach()
        assert not denied(forms)


def test_the_kernel_detaches_by_itself_when_asked_to(forms: Forms, shadow: Shadow, setup: Setup) -> None:
    with Enforcer() as enforcer:
        setup(enforcer, False)
        object_ = allocate(forms, Operation.KMALLOC, 40).result
        enforcer.drain(auto=True)
        assert enforcer.drain(auto=True).state is DrainState.GOING_ON  # asking twice is harmless
        assert denied(forms)
        free_all(forms, [object_])
        assert wait_until(lambda: not denied(forms))
        assert number_of(enforcer.drain) == errno.ENODEV
        assert shadow.owned() == 0
        assert wait_until(lambda: text_of(forms.all[STORE]) == forms.all[STORE].code)
    with Enforcer() as enforcer:  # the name is free again
        setup(enforcer, False)


def _die_while_draining(setup: Setup, keep: bool) -> None:
    """Load and begin to drain in a process that is killed."""
    child = os.fork()
    if child == 0:
        try:
            enforcer = Enforcer()
            setup(enforcer, keep)
            object_ = allocate(Forms(), Operation.KMALLOC, 40).result
            Path("/run/o2c-object").write_text(str(object_))
            enforcer.drain(auto=True)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_kept_compartment_drains_without_its_loader(forms: Forms, shadow: Shadow, setup: Setup) -> None:
    _die_while_draining(setup, keep=True)
    assert denied(forms)
    with Enforcer() as enforcer:
        enforcer.open(NAME)
        assert enforcer.drain().state is DrainState.GOING_ON
    assert denied(forms)
    assert unload_module("o2c_forms") != 0  # pinned until the end
    free_all(forms, [int(Path("/run/o2c-object").read_text())])
    assert wait_until(lambda: not denied(forms))
    assert shadow.owned() == 0
    with Enforcer() as enforcer:
        assert number_of(lambda: enforcer.open(NAME)) == errno.ENOENT


def test_one_that_is_not_kept_ends_with_its_loader(forms: Forms, shadow: Shadow, setup: Setup) -> None:
    _die_while_draining(setup, keep=False)
    assert not denied(forms)
    assert shadow.owned() == 0
    assert unload_module("o2c") != 0  # for the object that is left
    free_all(forms, [int(Path("/run/o2c-object").read_text())])
    assert wait_until(lambda: not list(Path("/sys/kernel/slab").glob("o2c-*-*")))


def test_force(forms: Forms, shadow: Shadow, setup: Setup) -> None:
    """Detaching while it drains loses the marks and nothing else."""
    with Enforcer() as enforcer:
        setup(enforcer, True)
        object_ = allocate(forms, Operation.KMALLOC, 40).result
        enforcer.drain(auto=True)
        enforcer.detach()
        assert not denied(forms)
        assert shadow.owned() == 0
    free_all(forms, [object_])


def test_draining_is_asked_for_in_order(forms: Forms, shadow: Shadow, setup: Setup) -> None:
    with Enforcer() as enforcer:
        assert number_of(enforcer.drain) == errno.ENODEV
        enforcer.create(NAME)
        assert enforcer.drain().state is DrainState.NOT
        assert number_of(lambda: enforcer.drain(start=True)) == errno.ENODATA
        assert number_of(lambda: enforcer.drain(auto=True)) == errno.ENODATA
    with Enforcer() as enforcer:  # nothing to wait for
        setup(enforcer, True)
        enforcer.drain(auto=True)
        assert wait_until(lambda: not denied(forms))
