# SPDX-License-Identifier: Apache-2.0
"""What becomes of objects from before loading: the tree's judgement, and when it does not count."""

from __future__ import annotations

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.simulation.world import USER
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree, Leaf, Test
from tests.unit.lower.confined import FINAL, OWN, TRANSITION, Confined, confined, offset_of

# The first word of an object says what it is.
OWN_WORD, SOCK_WORD, FOREIGN_WORD, DOUBTFUL_WORD, UNBOUND_WORD = 1, 2, 3, 4, 5

_LEAVES = {
    OWN_WORD: Leaf(0, 1.0, 0.999, 100),
    SOCK_WORD: Leaf(1, 1.0, 0.999, 100),
    FOREIGN_WORD: Leaf(2, 1.0, 0.999, 100),
    DOUBTFUL_WORD: Leaf(0, 0.95, 0.9, 100),
    UNBOUND_WORD: Leaf(2, 1.0, None, 100),
}


def _tree() -> IntegerTree:
    """A chain: word <= 1, word <= 2, ... else the last leaf."""
    nodes: list[Test | Leaf] = []
    words = sorted(_LEAVES)
    for index, word in enumerate(words[:-1]):
        nodes.append(Test(0, word, 2 * index + 1, 2 * index + 2, float(word)))
        nodes.append(_LEAVES[word])
    nodes.append(_LEAVES[words[-1]])
    return IntegerTree(tuple(nodes), ("sctp_chunk", "sock", "made_up"), (Feature(FeatureKind.WORD, 0),))


RULES = """
    write struct sock { sk_err }
    audition "made.tree.json" at access { require confidence >= 0.99  accept own { sctp_* }  ACCEPT }
    transition { until quiescent, at most 60 s }
"""


def _kernel(accept: str = "") -> Confined:
    kernel = confined(RULES.replace("ACCEPT", accept), _tree())
    kernel.store(USER)  # reads where the direct map begins
    kernel.phase(TRANSITION)
    return kernel


def _older(kernel: Confined, word: int, cache: str = "sctp_chunk", size: int = 2048) -> int:
    address = kernel.object(size, cache=cache)
    kernel.world.machine.memory.write_word(address, word)
    return address


def test_what_only_the_compartment_allocates_becomes_its_own() -> None:
    """Catches an accepted object that is judged again at every store, or that is writable in part only."""
    kernel = _kernel()
    p = _older(kernel, OWN_WORD)
    assert kernel.store(p + 8) == "allow"
    assert kernel.counter("auditioned") == 1
    assert kernel.store(p + 2040) == "allow"
    assert kernel.counter("auditioned") == 1
    kernel.phase(FINAL)
    assert kernel.store(p + 8) == "allow"


def test_an_accepted_type_opens_granted_fields_only() -> None:
    """Catches a shared object that becomes the compartment's own by its type."""
    kernel = _kernel()
    sk = _older(kernel, SOCK_WORD)
    assert kernel.store(sk + offset_of("sock", "sk_err"), 4) == "allow"
    assert kernel.store(sk + offset_of("sock", "sk_prot_creator")) == "deny"


def test_a_foreign_object_is_denied_where_the_leaf_is_certain() -> None:
    """Catches refusals that never happen: an attacker's target is then written in the transition."""
    kernel = _kernel()
    assert kernel.store(_older(kernel, FOREIGN_WORD)) == "deny"


def test_without_a_bound_nothing_is_refused() -> None:
    """Catches refusals by training confidence alone, which break a healthy system."""
    kernel = _kernel()
    assert kernel.store(_older(kernel, UNBOUND_WORD)) == "audition"


def test_a_doubtful_leaf_accepts_nothing() -> None:
    """Catches a required confidence that is not asked for."""
    kernel = _kernel()
    p = _older(kernel, DOUBTFUL_WORD)
    assert kernel.store(p) == "audition"
    kernel.phase(FINAL)
    assert kernel.store(p) == "deny"


@pytest.mark.parametrize(
    "cache",
    ["kmalloc-1k", "kmalloc-cg-2k", "dma-kmalloc-64", "skbuff_small_head", "msg_msg-1k", "memdup_user-8"],
)
def test_content_alone_is_no_proof_where_users_can_write_it(cache: str) -> None:
    """Catches forged objects: a message of the attacker's that looks like one of the compartment's."""
    kernel = _kernel()
    assert kernel.store(_older(kernel, OWN_WORD, cache)) == "audition"


def test_payload_caches_count_where_the_policy_names_them() -> None:
    """Catches an exception for one cache that holds for all of them."""
    kernel = _kernel('accept payload "kmalloc-2k", "msg_msg*"')
    assert kernel.store(_older(kernel, OWN_WORD, "kmalloc-2k") + 8) == "allow"
    assert kernel.store(_older(kernel, OWN_WORD, "kmalloc-cg-2k") + 8) == "audition"
    assert kernel.store(_older(kernel, OWN_WORD, "kmalloc-2k-more") + 8) == "audition"
    assert kernel.store(_older(kernel, OWN_WORD, "msg_msg-1k") + 8) == "allow"


def test_a_payload_pattern_that_cannot_be_compared_is_an_error() -> None:
    """Catches a pattern that is taken for a name, which no cache has."""
    with pytest.raises(DiagnosticError) as caught:
        _kernel('accept payload "kmalloc-*k"')
    assert [d.code for d in caught.value.diagnostics] == ["O2C0513"]


def test_objects_on_pages_from_after_loading_are_not_auditioned() -> None:
    """Catches forged objects that were allocated after loading: they would be tracked if they were own."""
    kernel = _kernel()
    p = _older(kernel, OWN_WORD)
    head = kernel.call("page_head", p)
    kernel.hook("o2c_page_alloc", head, 0)
    assert kernel.store(p + 8) == "deny"
    kernel.hook("o2c_page_free", head, 0)
    assert kernel.store(p + 8) == "allow"


@pytest.mark.parametrize("started", [0, 1 << 63])
def test_new_pages_are_not_remembered_while_checks_are_attached(started: int) -> None:
    """Catches objects that are allocated in that time, which nothing tracks yet, and are then denied as forged."""
    kernel = _kernel()
    p = _older(kernel, OWN_WORD)
    kernel.world.machine.tables["globals"].store(0, "started", started)
    kernel.hook("o2c_page_alloc", kernel.call("page_head", p), 0)
    assert kernel.store(p + 8) == "allow"


def test_new_pages_are_not_remembered_after_the_transition() -> None:
    """Catches a hook that goes on filling its map for good."""
    kernel = _kernel()
    kernel.phase(FINAL)
    kernel.hook("o2c_page_alloc", kernel.call("page_head", _older(kernel, OWN_WORD)), 0)
    assert kernel.world.machine.maps["young_pages"].entries == {}


def test_a_verdict_dies_with_its_object() -> None:
    """Catches an accepted address that stays accepted for whoever gets it next."""
    kernel = _kernel()
    p = _older(kernel, OWN_WORD)
    assert kernel.store(p + 8) == "allow"
    kernel.hook("o2c_kfree", 0, p)
    kernel.world.machine.memory.write_word(p, FOREIGN_WORD)
    assert kernel.store(p + 8) == "deny"


def test_tracked_objects_are_not_auditioned() -> None:
    """Catches an own object whose content makes the tree take it for a foreign one."""
    kernel = _kernel()
    p = kernel.object(2048, OWN)
    kernel.world.machine.memory.write_word(p, FOREIGN_WORD)
    assert kernel.store(p + 8) == "allow"


def test_without_a_tree_every_audition_is_undecided() -> None:
    """Catches a policy without a tree that accepts or refuses by chance."""
    kernel = confined("    transition { until quiescent, at most 60 s }")
    kernel.store(USER)
    kernel.phase(TRANSITION)
    assert [kernel.store(_older(kernel, word)) for word in _LEAVES] == ["audition"] * len(_LEAVES)
