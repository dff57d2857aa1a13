# SPDX-License-Identifier: Apache-2.0
"""What becomes of objects from before loading: the tree's judgement, and when it does not count."""

from __future__ import annotations

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.simulation.world import USER
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree, Leaf, Test
from tests.unit.lower.confined import (
    DISAGREES,
    FINAL,
    OWN,
    SECOND,
    TRANSITION,
    UNCERTAIN,
    Confined,
    confined,
    offset_of,
)

# The first word of an object says what it is.
OWN_WORD, SOCK_WORD, FOREIGN_WORD, DOUBTFUL_WORD, UNBOUND_WORD = 1, 2, 3, 4, 5
LIKELY_SOCK_WORD, LIKELY_OWN_WORD = 6, 7

EARLY = 5 * 10**9
"""ns after the checks are in place, in which nothing is refused for its content."""

_LEAVES = {
    OWN_WORD: Leaf(0, 1.0, 0.999, 100),
    SOCK_WORD: Leaf(1, 1.0, 0.999, 100),
    FOREIGN_WORD: Leaf(2, 1.0, 0.999, 100),
    DOUBTFUL_WORD: Leaf(0, 0.95, 0.9, 100),
    UNBOUND_WORD: Leaf(2, 1.0, None, 100),
    LIKELY_SOCK_WORD: Leaf(1, 1.0, 0.9, 100),
    LIKELY_OWN_WORD: Leaf(0, 1.0, 0.9, 100),
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
    audition "made.tree.json" at MOMENTS { require confidence >= 0.99  accept own { sctp_* }  ACCEPT }
    transition { until quiescent, at most 60 s }
"""


def _kernel(accept: str = "", moments: str = "access") -> Confined:
    kernel = confined(RULES.replace("ACCEPT", accept).replace("MOMENTS", moments), _tree())
    kernel.store(USER)  # reads where the direct map begins
    kernel.phase(TRANSITION)
    kernel.world.machine.now += EARLY
    return kernel


def _older(kernel: Confined, word: int, cache: str = "sctp_chunk", size: int = 2048) -> int:
    address = kernel.object(size, cache=cache)
    kernel.world.machine.memory.write_word(address, word)
    return address


@pytest.mark.parametrize(
    ("own", "accept", "message"),
    [
        ("sctp_chnk", "", "no class of the tree is called `sctp_chnk`"),
        ("sctp_ep_*", "", "no class of the tree is called `sctp_ep_\\*`"),
        ("sctp_chunk, payload", "", "calls `payload` cannot be accepted"),
        ("sctp_chunk", 'accept payload "kmaloc-96"', "no effect for `kmaloc-96`"),
        ("sctp_chunk", 'accept payload "sctp_*"', "no effect for `sctp_\\*`"),
    ],
)
def test_a_name_that_accepts_nothing_is_an_error(own: str, accept: str, message: str) -> None:
    """Catches a misspelt struct, whose objects would be refused as foreign."""
    rules = RULES.replace("sctp_*", own).replace("ACCEPT", accept).replace("MOMENTS", "access")
    made = _tree()
    tree = IntegerTree(made.nodes, (*made.classes, "payload"), made.features)
    with pytest.raises(DiagnosticError, match=message) as problem:
        confined(rules, tree)
    assert [d.code for d in problem.value.diagnostics] == ["O2C0535"]


@pytest.mark.parametrize("cache", ["kmalloc-96", "kmalloc-cg-*", "kmal*", "skbuff_*", "names_cache"])
def test_caches_that_users_fill_can_be_accepted(cache: str) -> None:
    _kernel(f'accept payload "{cache}"')


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


@pytest.mark.parametrize("moments", ["access", "access, free"])
def test_a_type_without_a_bound_opens_its_fields_and_refuses_no_others(moments: str) -> None:
    """Catches a refusal because the tree, which is not sure enough to refuse, took the object for one of another type; and a
    type that outlives its object."""
    kernel = _kernel(moments=moments)
    granted, other = offset_of("sock", "sk_err"), offset_of("sock", "sk_prot_creator")
    sock, chunk = kernel.types.mask("sock"), kernel.types.mask("sk_buff")
    sk = _older(kernel, LIKELY_SOCK_WORD)
    assert kernel.store(sk + granted, 4) == "allow"
    assert kernel.store(sk + other) == "uncertain"
    assert kernel.call("is_granted", sk, sock, 0, 0)
    assert kernel.call("fits_type", sk, chunk), "nothing certain says otherwise"
    kernel.phase(FINAL)
    assert kernel.store(sk + granted, 4) == "allow"
    assert kernel.store(sk + other) == "deny", "as any other object of which nothing is certain"
    kernel.hook("o2c_kfree", 0, sk)
    assert kernel.store(sk + granted, 4) == "deny"


def test_a_certain_type_refuses_what_asks_for_another() -> None:
    kernel = _kernel()
    sk = _older(kernel, SOCK_WORD)
    assert kernel.store(sk + offset_of("sock", "sk_err"), 4) == "allow"
    assert not kernel.call("fits_type", sk, kernel.types.mask("sk_buff"))


def test_what_is_accepted_without_a_bound_is_own() -> None:
    """Accepting asks for the confidence only."""
    kernel = _kernel()
    p = _older(kernel, LIKELY_OWN_WORD)
    assert [kernel.store(p + at) for at in (0, 8, 2040)] == ["allow"] * 3
    kernel.phase(FINAL)
    assert kernel.store(p + 8) == "allow"


@pytest.mark.parametrize(
    ("pauses", "verdict"), [((4, 4, 4), "allow"), ((4, 4, 6), "deny"), ((4, 4, 4, 4, 4, 4), "deny")]
)
def test_the_use_of_an_accepted_object_prolongs_the_transition(pauses: tuple[int, ...], verdict: str) -> None:
    """Catches a transition that ends as soon as the tree knows the objects that are in use all the time: those of the
    same connections that only a timer touches are denied then."""
    rules = RULES.replace("ACCEPT", "").replace("MOMENTS", "access")
    kernel = confined(
        rules.replace("until quiescent, at most 60 s", "until quiescent for 5 s, at most 20 s"), _tree()
    )
    kernel.store(USER)
    kernel.phase(TRANSITION)
    used, rarely_used = (_older(kernel, OWN_WORD) for _ in range(2))
    assert kernel.store(used + 8) == "allow"
    for seconds in pauses:
        kernel.world.machine.now += seconds * 10**9 - 2 * SECOND  # a store takes two seconds
        assert kernel.store(used + 8) == "allow", "known, in every phase"
    kernel.world.machine.now -= 2 * SECOND
    assert kernel.store(rarely_used + 8) == verdict


def test_a_foreign_object_is_denied_where_the_leaf_is_certain() -> None:
    """Catches refusals that never happen: an attacker's target is then written in the transition."""
    kernel = _kernel()
    assert kernel.store(_older(kernel, FOREIGN_WORD)) == "deny"


def test_nothing_is_refused_for_its_content_right_after_loading() -> None:
    """Catches the denial of what the compartment had allocated and not written yet when the checks came: it holds what its
    memory held before."""
    kernel = _kernel()
    kernel.phase(TRANSITION)
    p = _older(kernel, FOREIGN_WORD)
    assert kernel.store(p) == "audition"
    kernel.world.machine.now += EARLY
    assert kernel.store(p) == "deny"


def test_the_use_of_what_is_shared_does_not_prolong_the_transition() -> None:
    """Catches a transition that never ends under traffic: packets of new connections, too, touch the routes of before."""
    rules = RULES.replace("ACCEPT", "").replace("MOMENTS", "access")
    kernel = confined(rules.replace("until quiescent, at most 60 s", "until quiescent for 5 s"), _tree())
    kernel.store(USER)
    kernel.phase(TRANSITION)
    sk, rarely_used = _older(kernel, SOCK_WORD), _older(kernel, OWN_WORD)
    for _ in range(4):
        assert kernel.store(sk + offset_of("sock", "sk_err"), 4) == "allow"
        kernel.world.machine.now += 2 * 10**9
    assert kernel.store(rarely_used + 8) == "deny"


def test_without_a_bound_nothing_is_refused() -> None:
    """Catches refusals by training confidence alone, which break a healthy system."""
    kernel = _kernel()
    assert kernel.store(_older(kernel, UNBOUND_WORD)) == "audition"


def test_a_doubtful_leaf_accepts_nothing() -> None:
    """Catches a required confidence that is not asked for."""
    kernel = _kernel()
    p = _older(kernel, DOUBTFUL_WORD)
    assert [kernel.store(p) for _ in range(3)] == ["uncertain"] * 3, "at every touch"
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
    kernel.hook("o2c_page_free", head, 0)  # whatever lies there next is younger still
    assert kernel.store(p + 8) == "deny"


@pytest.mark.parametrize("started", [0, 1 << 63])
def test_new_pages_are_not_remembered_while_checks_are_attached(started: int) -> None:
    """Catches objects that are allocated in that time, which nothing tracks yet, and are then denied as forged."""
    kernel = _kernel()
    p = _older(kernel, OWN_WORD)
    kernel.world.machine.tables["globals"].store(0, "started", started)
    kernel.hook("o2c_page_alloc", kernel.call("page_head", p), 0)
    assert kernel.store(p + 8) == "allow"


def test_new_pages_are_not_remembered_after_the_transition() -> None:
    """Catches a hook that goes on writing its table for good."""
    kernel = _kernel()
    kernel.phase(FINAL)
    kernel.hook("o2c_page_alloc", kernel.call("page_head", _older(kernel, OWN_WORD)), 0)
    assert kernel.world.machine.tables["young_pages"].rows == {}


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


def _freed(kernel: Confined, address: int, word: int) -> list[tuple[int, int]]:
    """(kind, base) of the events when the kernel frees an object that holds this word at its end."""
    kernel.world.machine.memory.write_word(address, word)
    kernel.world.machine.now += 2 * SECOND
    events = kernel.world.interpreter.run_hook("o2c_kfree", arguments=(0, address)).events
    names = kernel.world.machine.rings["events"].definition.fields
    return [(e.fields[names.index("kind")], e.fields[names.index("address")]) for e in events]


@pytest.mark.parametrize(
    ("access", "free", "kinds"),
    [
        pytest.param(OWN_WORD, OWN_WORD, [], id="as before"),
        pytest.param(OWN_WORD, FOREIGN_WORD, [DISAGREES], id="accepted, then foreign"),
        pytest.param(OWN_WORD, SOCK_WORD, [DISAGREES], id="accepted as another type"),
        pytest.param(OWN_WORD, DOUBTFUL_WORD, [UNCERTAIN], id="accepted, then doubtful"),
        pytest.param(DOUBTFUL_WORD, DOUBTFUL_WORD, [UNCERTAIN], id="doubtful twice"),
        pytest.param(DOUBTFUL_WORD, OWN_WORD, [], id="let through, and rightly"),
        pytest.param(DOUBTFUL_WORD, FOREIGN_WORD, [DISAGREES], id="let through, but foreign"),
        pytest.param(DOUBTFUL_WORD, UNBOUND_WORD, [], id="foreign without a bound"),
    ],
)
def test_an_object_is_judged_again_when_it_is_freed(access: int, free: int, kinds: list[int]) -> None:
    """Catches `at free` that does nothing, and an event for an object that was judged the same twice."""
    kernel = _kernel(moments="access, free")
    p = _older(kernel, access)
    kernel.store(p + 8)
    assert _freed(kernel, p, free) == [(kind, p) for kind in kinds]
    assert _freed(kernel, p, FOREIGN_WORD) == [], "the next object there was not touched"


def test_objects_that_the_compartment_did_not_touch_are_not_judged_at_free() -> None:
    kernel = _kernel(moments="access, free")
    assert _freed(kernel, _older(kernel, FOREIGN_WORD), FOREIGN_WORD) == []


def test_moments_that_the_policy_leaves_out_do_not_count() -> None:
    """Catches an audition at both moments whatever the policy says."""
    kernel = _kernel(moments="access")
    p = _older(kernel, OWN_WORD)
    assert kernel.store(p + 8) == "allow"
    assert _freed(kernel, p, FOREIGN_WORD) == []
    kernel = _kernel(moments="free")
    p = _older(kernel, OWN_WORD)
    assert kernel.store(p + 8) == "audition", "not judged at its access"
    assert _freed(kernel, p, FOREIGN_WORD) == [(DISAGREES, p)]
