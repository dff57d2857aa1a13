# SPDX-License-Identifier: Apache-2.0
"""Takes away functions that nothing calls and checks that no site uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.ir.walk import Body, calls
from o2cc.passes.manager import Pass, PassContext


@dataclass(frozen=True)
class UnusedFunctions(Pass):
    """Removes functions and checks that are not used.

    Hooks stay, the checks of sites, the functions that these reach, and what is named in `keep`.
    """

    keep: tuple[str, ...] = ()

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        used = {site.check for site in module.sites}
        checks = tuple(c for c in module.checks if c.name in used or c.name in self.keep)
        functions = {f.name: f for f in module.functions}
        roots: list[Body] = [*checks, *module.hooks]
        work = [name for body in roots for name in calls(body)]
        work += [name for name in self.keep if name in functions]
        live: set[str] = set()
        while work:
            name = work.pop()
            if name not in live and name in functions:
                live.add(name)
                work.extend(calls(functions[name]))
        return replace(module, checks=checks, functions=tuple(f for f in module.functions if f.name in live))
