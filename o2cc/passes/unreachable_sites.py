# SPDX-License-Identifier: Apache-2.0
"""Sites in code that no entry leads to."""

from __future__ import annotations

from dataclasses import dataclass

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Function, Site
from o2cc.passes.graph import Node
from o2cc.passes.manager import CONTROL_FLOW, DESCRIPTION, Pass, PassContext
from o2cc.passes.sites import KEPT_FLOW, Proof, discharge


@dataclass(frozen=True)
class DischargeUnreachable(Pass):
    """Discharges stores in blocks that nothing leads to.

    That is padding behind calls that do not return, for the most part.  Only in units whose control flow the description shows in full.
    """

    requires = frozenset({DESCRIPTION, CONTROL_FLOW})
    provides = frozenset({"unreachable"})

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        index = context.units
        dead: dict[str, frozenset[Node]] = {}

        def prove(_site: ir.Site, function: Function, place: Site) -> Proof | None:
            owner = index.owner(function)
            if owner not in dead:
                dead[owner] = index.unreachable(owner)
            if not dead[owner]:
                return None
            for block in function.blocks:
                if block.start <= place.offset < block.end and (function.name, block.start) in dead[owner]:
                    return Proof("no entry of the function leads to this block", (KEPT_FLOW,))
            return None

        return discharge(module, context.target, "unreachable", prove)
