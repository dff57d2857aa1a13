# SPDX-License-Identifier: Apache-2.0
"""What the passes share that prove sites safe: finding what the description says of a site, and discharging it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description, Function, Site


@dataclass(frozen=True)
class Proof:
    """Why a site needs no check, and what that leans on."""

    text: str
    premises: tuple[str, ...] = ()


Prover = Callable[[ir.Site, Function, Site], Proof | None]

KEPT_FLOW = "indirect calls and jumps are checked, so that code is entered only where the description says"
KEPT_STACK = (
    "return addresses and saved registers are kept, so that the stack pointer is what the description says"
)


def discharge(module: ir.Module, target: Description, reason: str, prove: Prover) -> ir.Module:
    """The module without the store sites that `prove` has a proof for; these are kept as `Discharged`."""
    lookup = SiteLookup(target)
    kept: list[ir.Site] = []
    discharged: list[ir.Discharged] = []
    for site in module.sites:
        proof = None
        found = lookup(site)
        if site.kind is ir.SiteKind.STORE and found is not None:
            proof = prove(site, *found)
        if proof is None:
            kept.append(site)
            continue
        discharged.append(
            ir.Discharged(
                site.function, site.offset, site.kind, reason, proof.text, proof.premises, site.span
            )
        )
    if not discharged:
        return module
    return replace(module, sites=tuple(kept), discharged=(*module.discharged, *discharged))


class SiteLookup:
    """What the description says of the instructions of sites, by the names of their functions."""

    def __init__(self, target: Description) -> None:
        counts = Counter(function.name for function in target.functions)
        self._functions = {f.name: f for f in target.functions if counts[f.name] == 1}

    def __call__(self, site: ir.Site) -> tuple[Function, Site] | None:
        """Function and instruction of a site; None if it writes nothing or its function's name is not unique."""
        function = self._functions.get(site.function)
        place = function.site_by_offset.get(site.offset) if function is not None else None
        return (function, place) if function is not None and place is not None and place.writes else None


def is_plain(place: Site) -> bool:
    """Whether an instruction writes a known number of bytes at base + displacement, once."""
    operand = place.operand
    return (
        operand is not None
        and operand.is_memory
        and operand.index is None
        and place.size > 0
        and not place.rep
        and place.bit_index is None
    )
