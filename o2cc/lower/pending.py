# SPDX-License-Identifier: Apache-2.0
"""What a check at the beginning of a call keeps for the one at its return: entries of the map `pending`.

The key is made of a stack pointer that both know, and of the first check's site: functions that jump to each other run
with the same stack pointer.  library/state.ir declares the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.lower.expressions import ARGUMENT_REGISTERS

ARGUMENTS = tuple(f"arg{index}" for index in range(len(ARGUMENT_REGISTERS)))
LENT = "lent"


_SITE_SHIFT = 48  # the bits above are the same in all stack pointers


def _key(code: Builder, sp: ir.Operand, site: ir.Operand) -> ir.Operand:
    return code.binary(ir.BinaryOperator.XOR, sp, code.binary(ir.BinaryOperator.SHL, site, _SITE_SHIFT))


def keep(
    code: Builder,
    sp: ir.Operand,
    site: ir.Operand,
    arguments: Iterable[ir.Operand],
    lent: ir.Operand | int = 0,
) -> None:
    """Keep the site, the arguments in registers and the mask of what was lent."""
    code.update("pending", [_key(code, sp, site)], [site, *arguments, lent])


def recall(
    code: Builder,
    sp: ir.Operand,
    site: ir.Operand,
    lost: Callable[[], None],
    fields: tuple[str, ...] = ARGUMENTS,
) -> tuple[ir.Operand, ...]:
    """Fields of what the check of ``site`` kept, which is forgotten.  ``lost`` emits how the check ends where nothing was."""
    key = _key(code, sp, site)
    entry = code.lookup("pending", key)
    known, missing = code.label("known"), code.label("lost")
    code.branch(entry, known, missing)
    code.start(missing)
    lost()
    code.start(known)
    values = tuple(code.entry_load(entry, "pending", field) for field in fields)
    code.delete("pending", key)
    return values
