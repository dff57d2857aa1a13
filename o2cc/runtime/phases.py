# SPDX-License-Identifier: Apache-2.0
"""The phase of a loaded compartment: one word in its data, which every check reads."""

from __future__ import annotations

import os
from collections.abc import Mapping

from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import state, tables

NUMBERS: Mapping[str, int] = {"transition": 1, "final": 2}


def set_phase(name: str, phase: str) -> None:
    """Switch a loaded compartment to a phase.

    Raises DiagnosticError: O2C0802 not loaded, O2C0805 no right to.
    """
    _, info = state.load(name)
    maps = state.pins(name) / "maps"
    try:
        with tables.live(info, maps) as live:
            live.set("globals", 0, "phase", NUMBERS[phase])
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0805",
                f"`{maps}` cannot be changed: {os.strerror(problem.errno or 0).lower()}",
                help="run as root",
            )
        ) from None
