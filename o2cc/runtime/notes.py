# SPDX-License-Identifier: Apache-2.0
"""Programs of an object that note what is there when it is loaded, such as network namespaces; the loader runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from o2cc.bpf.info import ObjectInfo
from o2cc.diagnostics import Diagnostic, warning
from o2cc.runtime import kernel_calls
from o2cc.runtime.libbpf import Program

TRIES = 16
INCOMPLETE = (
    "not all network namespaces are known: grants `behind struct net` and `pernet` fail in the others"
)
_PAUSE = 0.001  # seconds; a node is between its neighbours' writes for some nanoseconds


def take(
    info: ObjectInfo,
    programs: Mapping[str, Program],
    run: Callable[[int], int] = kernel_calls.run_program,
) -> bool:
    """Run them; whether each came to its end.

    They walk lists of the kernel's without a lock, and say (by a result other than 0) when they met a node that was being taken
    out.  Then they are run again, TRIES times at most.  Raises OSError.
    """
    wanted = [programs[hook.program].descriptor for hook in info.hooks if hook.kind == "syscall"]
    ended = [
        _came_to_its_end(program, run) for program in wanted
    ]  # one that does not keeps no other from running
    return all(ended)


def _came_to_its_end(program: int, run: Callable[[int], int]) -> bool:
    for attempt in range(TRIES):
        if attempt:
            time.sleep(_PAUSE)
        if not run(program):
            return True
    return False


def incomplete(name: str) -> Diagnostic:
    """Says that some did not come to their end."""
    return warning(
        "O2C0845",
        INCOMPLETE,
        notes=(f"the kernel's list of them was in motion at each of {TRIES} walks, or has more than 4,096",),
        help=f"`o2c unload {name}`, then load again while fewer containers start and end",
    )
