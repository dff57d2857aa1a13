# SPDX-License-Identifier: Apache-2.0
"""The instructions where probes go, for the loader to compare with memory, and the probes that must stay breakpoints."""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.kernel.description import Description, Probe, Site
from o2cc.kernel.probed_code import Code


def codes_of(description: Description) -> Mapping[tuple[str, int], str]:
    """The code at every place of a probe, by function and offset; not where the kernel rewrites it."""
    found: dict[tuple[str, int], str] = {}
    for function in description.functions:
        known = {site.offset: site for site in function.sites}
        for site in function.sites:
            for probe in (site.probe, site.earlier):
                if probe is not None and probe.offset is not None and not probe.bytes_change:
                    found[function.name, probe.offset] = _code(probe, known.get(probe.offset)).text()
    return found


def breakpoints_of(description: Description) -> frozenset[tuple[str, int]]:
    """The places, by function and offset, where a jump in place of the breakpoint would be jumped into (`Probe.keep_int3`)."""
    return frozenset(
        (function.name, probe.offset)
        for function in description.functions
        for site in function.sites
        for probe in (site.probe, site.earlier)
        if probe is not None and probe.offset is not None and probe.keep_int3
    )


def _code(probe: Probe, site: Site | None) -> Code:
    return Code(probe.length, probe.code_hash, site.relocated if site is not None else None)
