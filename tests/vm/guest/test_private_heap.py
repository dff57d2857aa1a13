# SPDX-License-Identifier: Apache-2.0
"""`heap private` from the policy to o2c.ko: attacks on the heap, proper use, the limit, and what outlives the policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import loader, state
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.phases import set_phase
from o2cc.runtime.status import PrivateHeap, gather, lines
from tests.vm.guest.enforcer_support import load_module, unload_module
from tests.vm.guest.victim_support import (
    ATTACKS,
    NAME,
    PROPER,
    Attack,
    Victim,
    events,
    loaded,
    names_of,
    unload_all,
)
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import guest_object

OLD_OBJECT, OLD_FOREIGN, STALE_NEIGHBOUR, ALLOCATORS, FILL, KEEP, USE_KEPT, RELEASE = range(18, 26)
USE_AFTER_FREE, ARBITRARY_STORE = 2, 3
LIMIT = 1 << 20
# o2c.ko cannot deny at a few places of the victim, and says so
GAPS = LoadOptions(accept_gaps=True)


@pytest.fixture(scope="module")
def policy(victim: Victim) -> Iterator[state.State]:
    load_module("o2c")
    with loaded(guest_object("private"), GAPS) as result:
        yield result


def heap() -> PrivateHeap:
    told = gather(NAME).heap
    assert told is not None
    return told


def test_without_the_module_it_is_refused_or_weakened_by_name(victim: Victim) -> None:
    unload_all()
    unload_module("o2c")
    data = guest_object("private").read_bytes()
    with pytest.raises(DiagnosticError) as refusal:
        loader.load(data)
    (diagnostic,) = refusal.value.diagnostics
    assert diagnostic.code == "O2C0830"
    assert "`private heap`" in diagnostic.message
    assert any("victim.o2c:" in note for note in diagnostic.notes)
    tracked = LoadOptions(wanted=lambda site: site.function == "store_word", degrade="report")
    with loaded(guest_object("private"), tracked) as result:
        assert not result.enforced
        assert gather(NAME).heap is None
        victim.run(3)
        assert names_of(events()[0]) == (("store", "store_word"),)
    # the memory of a freed object goes to others; where each caller has caches of its own, not to these
    victim.run(STALE_NEIGHBOUR)
    assert victim.state()["foreign"] > 0 or "kmalloc-rnd" in Path("/proc/slabinfo").read_text()


def test_every_allocation_is_redirected_and_proper_use_works(policy: state.State, victim: Victim) -> None:
    assert policy.failures == ()
    events()
    for _ in range(3):
        assert victim.run(PROPER) == 0
        assert victim.run(ALLOCATORS) == 0
    found, lost = events()
    assert [event.sentence() for event in found] == []
    assert not lost
    told = heap()
    assert told.allocations >= 3 * 8
    assert told.failures == 0
    assert 0 < told.used <= told.limit == LIMIT


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_prevented(policy: state.State, victim: Victim, attack: Attack) -> None:
    events()
    victim.run(attack.number)
    harmed = {key for key, value in victim.state().items() if value}
    assert harmed <= ({"updates"} if attack.effect != "updates" else set())
    found = names_of(events()[0])
    if attack.number == USE_AFTER_FREE:
        assert found == ()  # still the compartment's own memory
    else:
        assert found[0] == attack.reports[0]
    assert victim.run(PROPER) == 0


def test_a_stale_pointer_never_reaches_what_another_owner_got(policy: state.State, victim: Victim) -> None:
    for _ in range(20):
        victim.run(STALE_NEIGHBOUR)
        assert victim.state()["foreign"] == 0


def test_the_limit_holds_and_is_told(policy: state.State, victim: Victim) -> None:
    events()
    before = heap()
    count = victim.run(FILL)
    assert LIMIT // 1024 // 2 < count < LIMIT // 1024
    after = heap()
    assert after.used <= LIMIT
    assert after.failures == before.failures + 1
    assert [event.kind for event in events()[0]] == ["private heap exhausted"]
    assert victim.run(PROPER) == 0
    # memory that objects of one size had is there for those of others, and for whole pages
    assert wait_until(lambda: victim.run(ALLOCATORS) == 0)
    assert wait_until(lambda: heap().used < LIMIT * 3 // 4)
    text = "\n".join(lines(gather(NAME)))
    assert "of 1024 KiB in use" in text
    assert "1 failed" in text


def test_objects_outlive_the_policy_and_are_freed_by_the_kernel(policy: state.State, victim: Victim) -> None:
    caches = Path("/sys/kernel/slab")
    assert list(caches.glob("o2c-*-*"))
    assert victim.run(KEEP) == 0
    assert victim.run(USE_KEPT) == 1
    with pytest.raises(DiagnosticError) as refusal:
        loader.unload(NAME, patience=1)
    assert [item.code for item in refusal.value.diagnostics] == ["O2C0839"]
    # draining: all is enforced, what is new is tracked
    events()
    assert heap().draining
    assert victim.run(USE_KEPT) == 1
    assert victim.run(ALLOCATORS) == 0
    assert victim.run(PROPER) == 0
    assert [event.sentence() for event in events()[0]] == []
    victim.run(ARBITRARY_STORE)
    assert victim.state()["foreign"] == 0
    assert victim.run(RELEASE) == 0
    loader.unload(NAME)
    assert wait_until(lambda: not list(caches.glob("o2c-*-*")))
    assert wait_until(lambda: unload_module("o2c") == 0)


@pytest.mark.full
def test_objects_outlive_a_policy_that_is_removed_by_force(victim: Victim) -> None:
    caches = Path("/sys/kernel/slab")
    load_module("o2c")
    few = LoadOptions(wanted=lambda site: site.function in ("store_word", "keep"), accept_gaps=True)
    with loaded(guest_object("private"), few):
        assert victim.run(KEEP) == 0
        loader.unload(NAME, force=True)
    assert victim.run(USE_KEPT) == 1
    assert victim.run(RELEASE) == 0
    assert wait_until(lambda: not list(caches.glob("o2c-*-*")))
    assert wait_until(lambda: unload_module("o2c") == 0)


@pytest.mark.full
def test_phases_and_the_private_heap(victim: Victim) -> None:
    """Objects from before loading are let through in the transition; what is private never was there before."""
    unload_all()
    load_module("o2c")
    wanted = ("store_word", "store_indexed", "fill_bytes", "free_object")
    options = LoadOptions(wanted=lambda site: site.function in wanted, accept_gaps=True)
    with loaded(guest_object("private-transition"), options):
        victim.run(OLD_FOREIGN)
        assert victim.state()["other"] == 1
        assert names_of(events()[0]) == (("untracked object", "store_word"),)
        assert victim.run(ALLOCATORS) == 0
        assert events()[0] == []
        set_phase(NAME, "final")
        victim.run(OLD_FOREIGN)
        assert victim.state()["other"] == 0
        assert names_of(events()[0]) == (("store", "store_word"),)
        assert victim.run(ALLOCATORS) == 0
        assert victim.run(OLD_OBJECT) == 0
        assert names_of(events()[0]) == (("store", "store_word"),)
