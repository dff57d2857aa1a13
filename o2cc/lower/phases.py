# SPDX-License-Identifier: Apache-2.0
"""The phases of a policy as numbers that its checks read."""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.policy.model import CheckedPolicy

PHASE_TRANSITION = 1
PHASE_FINAL = 2
QUIET = 60 * 10**9
"""Nanoseconds without a touch of an untracked object that are meant by `until quiescent` alone: twice SCTP's heartbeat
interval (net/sctp/protocol.c, 30 s), so that idle associations still show."""
NEVER = 2**64 - 1


def transition_constants(policy: CheckedPolicy) -> Mapping[str, int]:
    """The phase that the policy begins with, and what ends its transition, as constants of the library."""
    transition = policy.transition
    quiet, at_most = NEVER, NEVER
    if transition is not None and transition.until_quiescent:
        quiet = QUIET if transition.quiescent_for is None else transition.quiescent_for
    if transition is not None and transition.at_most is not None:
        at_most = transition.at_most
    return {
        "const(INITIAL_PHASE)": PHASE_FINAL if transition is None else PHASE_TRANSITION,
        "const(QUIET)": quiet,
        "const(AT_MOST)": at_most,
    }
