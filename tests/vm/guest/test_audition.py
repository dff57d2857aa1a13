# SPDX-License-Identifier: Apache-2.0
"""Objects from before loading, judged by a tree in the kernel (tests/kernel/victim/victim.tree.json).

The victim's old object is 88 zeroed bytes of kmalloc-96, the bystander's 64 bytes of kmalloc-64; the object that the
victim keeps is 48 bytes of a cache of its own, of which the tree is not sure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from o2cc.runtime import loader, state
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.phases import set_phase
from o2cc.runtime.status import gather
from tests.vm.guest.enforcer_support import load_module
from tests.vm.guest.victim_support import NAME, Victim, events, loaded, names_of, o2c, unload_all
from tests.vm.policies import guest_object

OLD_OBJECT, OLD_FOREIGN, KEEP, USE_KEPT, RELEASE, RENEW_OLD = 18, 19, 23, 24, 25, 29
EARLY = 5.5
"""Seconds after loading in which nothing is refused for its content, and some."""
DISAGREES = ("audition disagrees at free", "store_word")
UNCERTAIN = ("uncertain object", "store_word")
ONE_FUNCTION = LoadOptions(wanted=lambda site: site.function == "store_word")


@pytest.fixture
def victim() -> Iterator[Victim]:
    unload_all()
    device = Victim()
    assert device.run(RENEW_OLD) == 0, "zeroed, whatever earlier tests wrote to it"
    yield device
    device.close()
    if NAME in state.names():
        loader.unload(NAME)


def test_an_own_object_is_accepted_and_stays_writable(victim: Victim) -> None:
    with loaded(guest_object("audition"), ONE_FUNCTION):
        assert gather(NAME).phase == "transition"
        victim.run(OLD_OBJECT)
        victim.run(OLD_OBJECT)
        assert events()[0] == []
        set_phase(NAME, "final")
        victim.run(OLD_OBJECT)
        assert events()[0] == [], "the verdict lasts until the object is freed"


def test_a_foreign_object_is_caught_at_its_first_access(victim: Victim) -> None:
    with loaded(guest_object("audition"), ONE_FUNCTION):
        time.sleep(EARLY)
        victim.run(OLD_FOREIGN)
        assert names_of(events()[0]) == (("store", "store_word"),), "certain, not provisional"


def test_an_object_that_is_another_when_it_is_freed_is_reported(victim: Victim) -> None:
    """The victim's own store makes the old object look foreign; the event names the place of its first access."""
    with loaded(guest_object("audition"), ONE_FUNCTION):
        victim.run(OLD_OBJECT)
        assert events()[0] == []
        victim.run(RENEW_OLD)
        assert DISAGREES in names_of(events()[0])
        victim.run(RENEW_OLD)
        assert DISAGREES not in names_of(events()[0]), "the new object was never auditioned"


def test_an_object_of_which_the_tree_is_not_sure_has_an_event_of_its_own(victim: Victim) -> None:
    assert victim.run(KEEP) == 0
    with loaded(guest_object("audition"), ONE_FUNCTION):
        assert victim.run(USE_KEPT) == 1, "let through"
        assert names_of(events()[0]) == (UNCERTAIN,)
    victim.run(RELEASE)


def test_without_the_tree_both_are_only_untracked(victim: Victim) -> None:
    with loaded(guest_object("transition"), ONE_FUNCTION):
        victim.run(OLD_OBJECT)
        victim.run(OLD_FOREIGN)
        assert names_of(events()[0]) == (("untracked object", "store_word"),) * 2


def test_under_deny_only_what_is_certainly_foreign_is_refused(victim: Victim) -> None:
    """Catches a false denial of an own object or a doubtful one, and a foreign one that is let through for the first time."""
    load_module("o2c")
    assert victim.run(KEEP) == 0
    with loaded(guest_object("audition-deny"), ONE_FUNCTION):
        victim.run(OLD_OBJECT)
        assert victim.run(USE_KEPT) == 1, "let through"
        assert names_of(events()[0]) == (UNCERTAIN,)
        now = gather(NAME)
        assert now.enforced
        assert now.accepted == 1
        assert "2 objects from before loading in use" in now.phase_reason
        time.sleep(EARLY)
        victim.run(OLD_FOREIGN)
        assert victim.state()["other"] == 0, "it was not written"
        assert names_of(events()[0]) == (("store", "store_word"),)
        refused = o2c("phase", NAME, "final")
        assert "O2C0844" in refused.stderr
        set_phase(NAME, "final")
        victim.run(OLD_OBJECT)
        assert events()[0] == []
    victim.run(RELEASE)
