# SPDX-License-Identifier: Apache-2.0
"""Makes small descriptions and modules for tests of the passes over sites."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from o2cc.ir import nodes as ir
from o2cc.kernel.description import (
    Block,
    Description,
    Function,
    KernelFacts,
    Operand,
    Probe,
    Section,
    Site,
    SiteKind,
    StaticAddress,
    Symbol,
    Target,
    ValueSource,
)
from o2cc.kernel.type_table import TypeTable

PROBE = Probe(0, True)


def store(
    offset: int,
    *,
    value: int | None = None,
    value_offset: int = 0,
    displacement: int = 0,
    size: int = 8,
    base: str | None = "rbx",
    frame_offset: int | None = None,
    stack_height: int | None = 0,
    static: StaticAddress | None = None,
    index: str | None = None,
    segment: str | None = None,
    kind: SiteKind = "store",
    rep: bool = False,
    bit_index: str | None = None,
    source: ValueSource | None = None,
) -> Site:
    operand = Operand(base, index, 1, displacement, segment, static)
    return replace(
        other(offset, kind),
        operand=operand,
        size=size,
        rep=rep,
        stack_height=stack_height,
        frame_offset=frame_offset,
        value=value,
        value_offset=value_offset,
        bit_index=bit_index,
        value_source=source,
    )


def other(offset: int, kind: SiteKind, target: str | None = None, stack_height: int | None = 0) -> Site:
    return Site(
        offset=offset,
        length=1,
        kind=kind,
        mnemonic="mov",
        operand=None,
        size=0,
        rep=False,
        target=target,
        stack_height=stack_height,
        frame_offset=None,
        value=None,
        value_offset=0,
        value_source=None,
        code_hash=0,
        relocated=(),
        probe=replace(PROBE, offset=offset),
    )


def function(
    name: str,
    blocks: Sequence[Block],
    sites: Iterable[Site],
    *,
    values: Sequence[ValueSource] = (),
    saved: Sequence[tuple[str, int]] = (),
    parent: str | None = None,
    problems: tuple[str, ...] = (),
) -> Function:
    return Function(
        name=name,
        section=".text",
        offset=0,
        size=max((block.end for block in blocks), default=0),
        ambiguous=False,
        address_taken=False,
        exported=False,
        prototype=None,
        blocks=tuple(blocks),
        sites=tuple(sorted(sites, key=lambda site: site.offset)),
        frame=8 * len(saved),
        problems=problems,
        parent=parent,
        saved=tuple(saved),
        values=tuple(values),
    )


def description(
    *functions: Function,
    sections: Sequence[Section] = (),
    symbols: Sequence[Symbol] = (),
    kind: Literal["module", "builtin"] = "module",
) -> Description:
    return Description(
        release="6.1.0-test",
        target=Target("t", kind, "", "", ""),
        sections=tuple(sections),
        functions=functions,
        imports=(),
        exports=(),
        symbols=tuple(symbols),
        ops_tables=(),
        types=TypeTable(),
        kernel=KernelFacts(),
    )


def module(target: Description, *, without: Iterable[tuple[str, int]] = ()) -> ir.Module:
    """A module with a site for every store of the description, but for those `without` one."""
    left_out = set(without)
    sites = dict.fromkeys(
        (function.name, site.offset)
        for function in target.functions
        for site in function.sites
        if site.writes and (function.name, site.offset) not in left_out
    )
    check = ir.Check("store", (ir.Block("entry", (), ir.Decide(ir.Verdict.ALLOW)),))
    return ir.Module(
        "m",
        (),
        checks=(check,),
        sites=tuple(
            ir.Site(number, name, offset, ir.SiteKind.STORE, "store", ())
            for number, (name, offset) in enumerate(sites)
        ),
    )


def discharged(result: ir.Module) -> list[str]:
    return [f"{d.function}+{d.offset:#x}" for d in result.discharged]
