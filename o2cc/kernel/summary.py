# SPDX-License-Identifier: Apache-2.0
"""Figures about a description, for people and for tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from o2cc.kernel.description import Description, Site


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over a description. ``stores`` are all instructions that write memory by themselves, by where:

    ``own_frame`` (at a known place of the frame), ``own_frame_rounded`` (within known bounds of it), ``static``,
    ``per_cpu``, ``pointer`` (through a register that holds no frame address), ``stack`` (through rsp, place not
    known).
    """

    functions: int
    cold_parts: int
    instructions: int
    sites: int
    kinds: dict[str, int]
    stores: int
    stores_by_place: dict[str, int]
    probe_places: int
    moved_probes: int
    jump_optimizable: int
    pointer_stores_optimizable: int
    must_stay_int3: int
    ops_tables: int
    structs: int
    problems: int


def summarize(description: Description) -> Summary:
    """Count everything once."""
    kinds: Counter[str] = Counter()
    places: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for function in description.functions:
        for site in function.sites:
            kinds[site.kind] += 1
            probe = site.probe
            if probe.offset is not None:
                counts["places"] += 1
                counts["moved"] += probe.offset != site.offset
                counts["optimizable"] += probe.jump_optimizable
                counts["int3"] += probe.keep_int3
            if site.writes:
                place = write_place(site)
                places[place] += 1
                if place == "pointer":
                    counts["pointer_optimizable"] += probe.jump_optimizable
    return Summary(
        functions=sum(function.parent is None for function in description.functions),
        cold_parts=sum(function.parent is not None for function in description.functions),
        instructions=sum(function.instructions for function in description.functions),
        sites=sum(kinds.values()),
        kinds=dict(sorted(kinds.items())),
        stores=sum(places.values()),
        stores_by_place=dict(sorted(places.items())),
        probe_places=counts["places"],
        moved_probes=counts["moved"],
        jump_optimizable=counts["optimizable"],
        pointer_stores_optimizable=counts["pointer_optimizable"],
        must_stay_int3=counts["int3"],
        ops_tables=len(description.ops_tables),
        structs=len(description.types.structs),
        problems=len(all_problems(description)),
    )


def write_place(site: Site) -> str:
    """Where a write goes, as far as the operand tells."""
    operand = site.operand
    if site.frame_offset is not None:
        return "own_frame"
    if site.frame_range is not None:
        return "own_frame_rounded"
    if operand is None:
        return "pointer"
    if operand.segment is not None:
        return "per_cpu"
    if operand.static is not None:
        return "static" if operand.base is None and operand.index is None else "pointer"
    return "stack" if operand.base == "rsp" else "pointer"


def all_problems(description: Description) -> list[str]:
    """What the scan could not understand, each with its function."""
    found = list(description.problems)
    for function in description.functions:
        found += [f"{function.name}{problem}" for problem in function.problems]
    return found


def summary_as_json(description: Description) -> dict[str, object]:
    """The summary with the identity of what it is about."""
    return {
        "release": description.release,
        "target": asdict(description.target),
        **asdict(summarize(description)),
    }
