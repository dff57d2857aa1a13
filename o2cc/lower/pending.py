# SPDX-License-Identifier: Apache-2.0
"""What a check at the beginning of a call keeps for the one at its return: entries of the map `pending`.

The key is a stack pointer that both know; library/state.ir declares the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.lower.expressions import ARGUMENT_REGISTERS

ARGUMENTS = tuple(f"arg{index}" for index in range(len(ARGUMENT_REGISTERS)))
LENT = "lent"


def keep(
    code: Builder,
    key: ir.Operand,
    site: ir.Operand,
    arguments: Iterable[ir.Operand],
    lent: ir.Operand | int = 0,
) -> None:
    """Keep the site, the arguments in registers and the mask of what was lent."""
    code.update("pending", [key], [site, *arguments, lent])


def recall(
    code: Builder, key: ir.Operand, lost: Callable[[], None], fields: tuple[str, ...] = ARGUMENTS
) -> tuple[ir.Operand, ...]:
    """Fields of what was kept, which is forgotten.  ``lost`` emits how the check ends where nothing was."""
    entry = code.lookup("pending", key)
    known, missing = code.label("known"), code.label("lost")
    code.branch(entry, known, missing)
    code.start(missing)
    lost()
    code.start(known)
    values = tuple(code.entry_load(entry, "pending", field) for field in fields)
    code.delete("pending", key)
    return values
