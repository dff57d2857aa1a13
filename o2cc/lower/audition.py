# SPDX-License-Identifier: Apache-2.0
"""The audition of objects from before loading: a decision tree says what they are.

``audition(base, site, head)`` answers 0 when nothing is decided, 1 when the object was accepted and recorded, 2 when it
is certainly none that the compartment may touch, 3 when the tree is not sure enough.  Accepting asks for the confidence
that the policy requires; refusing asks for it from the leaf's held-out bound (`o2cc.trees.tree.Leaf.bound`), since a
wrong refusal breaks a healthy system.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from o2cc.diagnostics import DiagnosticError, did_you_mean, error
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.lower.caches import NAME_COLUMNS, PAYLOAD_CACHES, name_words
from o2cc.lower.context import Lowering
from o2cc.lower.places import own_bounds
from o2cc.lower.rules import searched_table
from o2cc.policy.model import Audition

if TYPE_CHECKING:  # trees bring numpy, which a policy without an audition need not wait for
    from o2cc.trees.tree import IntegerTree, Leaf

KIND_FOREIGN = 0
KIND_OWN = 1
KIND_TYPED = 2

PAYLOAD = "payload"
"""Name of the class of objects that hold data and no struct (o2cc/profile/labels.py)."""

_CERTAIN = 1 << 20  # bit of an outcome: the leaf's held-out bound suffices to refuse


def audition_parts(
    lowering: Lowering, tree: IntegerTree | None
) -> tuple[tuple[ir.Function, ...], tuple[ir.Table, ...], dict[str, int]]:
    """Functions, tables and named constants; without a tree every audition ends undecided."""
    audition = lowering.policy.audition
    if audition is None or tree is None:
        code = Builder()
        code.give_back(0)
        function = ir.Function("classify", ("base", "size", "cache_flags"), code.finish())
        tables = (_classes_table(()), _payload_table(()))
        return (function,), tables, _constants(PAYLOAD_CACHES, at_access=False, at_free=False)
    from o2cc.trees.lower import lower_tree

    lowered = lower_tree(
        tree,
        name="classify",
        outcome=_outcome(float(audition.confidence), tree.classes, undecided(lowering)),
        own=lambda code: own_bounds(code, lowering.description),
    )
    classes = tuple(_class_row(lowering, audition, name) for name in tree.classes)
    accepted = audition.accept_payload
    _check_patterns(audition)
    _check_effect(audition, tree.classes, undecided(lowering))
    all_tables = (*lowered.tables, _classes_table(classes), _payload_table(accepted))
    constants = _constants(
        (*accepted, *PAYLOAD_CACHES), at_access=audition.at_access, at_free=audition.at_free
    )
    return lowered.functions, all_tables, constants


def _constants(payload: tuple[str, ...], *, at_access: bool, at_free: bool) -> dict[str, int]:
    return {
        "const(PAYLOAD_CACHES)": len(payload),
        "const(AT_ACCESS)": int(at_access),
        "const(AT_FREE)": int(at_free),
    }


def _check_patterns(audition: Audition) -> None:
    for name in audition.accept_payload:
        if set(name.removesuffix("*")) & set("*?["):
            raise DiagnosticError(
                error(
                    "O2C0513",
                    f"the pattern `{name}` of a cache can only end in `*`",
                    audition.span,
                    help="list the caches, or the patterns that they begin with, one by one",
                )
            )


def _check_effect(audition: Audition, classes: Sequence[str], undecided: frozenset[str]) -> None:
    """DiagnosticError for names that accept nothing: they are misspelt, or meant for another tree."""
    problems = []
    for pattern in audition.own:
        named = [name for name in classes if fnmatch.fnmatchcase(name, pattern)]
        if not named:
            message = f"no class of the tree is called `{pattern}`"
            help = did_you_mean(pattern, classes) or f"its classes are {', '.join(f'`{n}`' for n in classes)}"
            problems.append(error("O2C0535", message, audition.span, help=help))
        elif undecided.issuperset(named):
            message = f"an object that the tree calls `{named[0]}` cannot be accepted as own"
            note = (
                "whose it is, its content does not say: it holds data only, or is handed over as a capability"
            )
            problems.append(error("O2C0535", message, audition.span, notes=(note,)))
    for pattern in audition.accept_payload:
        if not any(_have_common(pattern, known) for known in PAYLOAD_CACHES):
            message = f"`accept payload` has no effect for `{pattern}`"
            help = f"only these need it: {', '.join(PAYLOAD_CACHES)}; others are judged by content anyway"
            problems.append(error("O2C0535", message, audition.span, help=help))
    if problems:
        raise DiagnosticError(problems)


def _have_common(one: str, other: str) -> bool:
    """Whether some name fits both patterns, which end in `*` or have none."""
    if one.endswith("*") and other.endswith("*"):
        return one[:-1].startswith(other[:-1]) or other[:-1].startswith(one[:-1])
    return fnmatch.fnmatchcase(one, other) or fnmatch.fnmatchcase(other, one)


def undecided(lowering: Lowering) -> frozenset[str]:
    """Classes of which content does not say whose they are.

    Payload: buffers of the compartment and of all others, with strings, keys and what came over the wire, look alike.
    Objects that are handed over with their memory: a packet from before loading may be the compartment's at this moment.
    """
    handed_over = (item.struct for item in lowering.policy.capabilities if item.ranges)
    return frozenset({PAYLOAD, *handed_over})


def _outcome(required: float, classes: tuple[str, ...], undecided: frozenset[str]) -> Callable[[Leaf], int]:
    def outcome(leaf: Leaf) -> int:
        if leaf.confidence < required or classes[leaf.label] in undecided:
            return 0
        certain = leaf.bound is not None and leaf.bound >= required
        return leaf.label + 1 | (_CERTAIN if certain else 0)

    return outcome


def _class_row(lowering: Lowering, audition: Audition, name: str) -> tuple[int, int]:
    """(kind, types) of a class of the tree, which is named after a struct."""
    mask = lowering.types.mask(name)
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in audition.own):
        return KIND_OWN, mask
    return (KIND_TYPED, mask) if mask else (KIND_FOREIGN, 0)


def _classes_table(rows: tuple[tuple[int, int], ...]) -> ir.Table:
    return ir.Table("audition_classes", (("kind", 8), ("types", 8)), rows, max(1, len(rows)))


def _payload_table(accepted: tuple[str, ...]) -> ir.Table:
    """Caches by name: those whose objects the policy accepts by their content, then those that hold what users send."""
    rows = tuple(
        (*name_words(name), payload)
        for payload, names in ((0, accepted), (1, PAYLOAD_CACHES))
        for name in names
    )
    return searched_table("payload_caches", (*NAME_COLUMNS, ("payload", 8)), rows)
