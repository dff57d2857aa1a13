# SPDX-License-Identifier: Apache-2.0
"""All passes by their command-line names, and the pipelines that the compiler runs."""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.passes.checked_before import DischargeCheckedBefore
from o2cc.passes.constant_folding import ConstantFolding
from o2cc.passes.control_flow import SimplifyControlFlow
from o2cc.passes.dead_code import DeadCode
from o2cc.passes.manager import Pass, PassContext
from o2cc.passes.merge_checks import MergeChecks
from o2cc.passes.merge_equal import MergeEqual
from o2cc.passes.own_frame import DischargeOwnFrame
from o2cc.passes.static_data import DischargeStaticData
from o2cc.passes.unreachable_sites import DischargeUnreachable
from o2cc.passes.unused_functions import UnusedFunctions

PASSES: Mapping[str, type[Pass]] = {
    kind.command_name(): kind
    for kind in (
        ConstantFolding,
        DeadCode,
        DischargeCheckedBefore,
        DischargeOwnFrame,
        DischargeStaticData,
        DischargeUnreachable,
        MergeChecks,
        MergeEqual,
        SimplifyControlFlow,
        UnusedFunctions,
    )
}
"""Every pass."""

_SITES: tuple[Pass, ...] = (
    DischargeUnreachable(),
    DischargeOwnFrame(),
    DischargeStaticData(),
    DischargeCheckedBefore(),
    MergeChecks(),
)
CODE: tuple[Pass, ...] = (
    MergeEqual(),  # half of the checks that lowering makes: the passes after it have less to do
    ConstantFolding(),
    SimplifyControlFlow(),
    DeadCode(),
    MergeEqual(),
    UnusedFunctions(),
)
"""The passes over code, which need no facts."""


def default_pipeline(context: PassContext) -> tuple[Pass, ...]:
    """What the compiler runs: each pass over sites whose facts the context gives, then the passes over code."""
    return (*(step for step in _SITES if step.requires <= context.facts), *CODE)
