# SPDX-License-Identifier: Apache-2.0
"""A policy with an audition stays within what the kernel allows, whatever the tree reads."""

from __future__ import annotations

from o2cc.compiler import pass_context
from o2cc.ir import nodes as ir
from o2cc.ir.verifier import verify
from o2cc.passes.manager import run_pipeline
from o2cc.passes.registry import default_pipeline
from o2cc.trees.features import WordClass
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree, Leaf, Test
from tests.unit.lower.confined import confined, sctp

RULES = """
    audition "made.tree.json" at access { require confidence >= 0.9  accept own { sctp_* } }
    transition { until quiescent, at most 60 s }
    on violation report
"""


def _tree() -> IntegerTree:
    nodes = (Test(0, int(WordClass.ZERO), 1, 2, 1.5), Leaf(0, 1.0, 0.99, 100), Leaf(1, 1.0, 0.99, 100))
    return IntegerTree(nodes, ("sctp_chunk", "other"), (Feature(FeatureKind.WORD_CLASS, 3),))


def test_groups_of_stores_and_classes_of_words_fit_into_the_frames_of_calls() -> None:
    """Catches a policy that no kernel loads: merged checks, the verdict, the audition, its tree, the areas."""
    kernel = confined(RULES, _tree())
    context = pass_context(kernel.policy, sctp())
    module = run_pipeline(kernel.module, default_pipeline(context), context)
    assert verify(module) == ()
    assert any(isinstance(check, ir.Check) and check.name.endswith("_group") for check in module.checks)
