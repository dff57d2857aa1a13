# SPDX-License-Identifier: Apache-2.0
"""Says of one instruction how it is checked, or why it needs no check.

Codes: O2C0540 what is asked for is not of the form ``function+offset``, O2C0541 nothing is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile, Span, did_you_mean, error
from o2cc.ir import nodes as ir
from o2cc.ir.printer import print_number

_PLACE = re.compile(r"(?P<function>[^\s+]+)\+(?P<offset>0[xX][0-9a-fA-F]+|[0-9]+)\Z")
_KINDS = {
    ir.SiteKind.STORE: "store",
    ir.SiteKind.CALL: "call",
    ir.SiteKind.TAIL_CALL: "tail call",
    ir.SiteKind.INDIRECT_CALL: "indirect call",
    ir.SiteKind.INDIRECT_JUMP: "indirect jump",
    ir.SiteKind.ENTRY: "entry",
    ir.SiteKind.RETURN: "return",
}


def parse_place(text: str) -> tuple[str, int]:
    """Function and offset of ``sctp_rcv+0x8b``; raises `DiagnosticError` (O2C0540)."""
    match = _PLACE.match(text)
    if match is None:
        raise DiagnosticError(
            error(
                "O2C0540",
                f"`{text}` is not a place in code",
                help="the place comes before the policy: `function+offset`, such as `sctp_rcv+0x8b`, or `function`",
            )
        )
    digits = match["offset"]
    return match["function"], int(digits, 16 if digits[:2].lower() == "0x" else 10)


def explain_place(
    module: ir.Module,
    function: str,
    offset: int,
    sources: Mapping[str, SourceFile] | None = None,
    unchecked: Mapping[tuple[str, int], str] | None = None,
) -> str:
    """What a module does at a place, as text that ends in a line end.

    With `sources` the policy's line is named; `unchecked` gives the reasons of places that need a decision and get
    none.  Raises `DiagnosticError` (O2C0541) if nothing is known of the place.
    """
    known = sources or {}
    missing = (unchecked or {}).get((function, offset))
    parts = [f"{function}+{offset:#x}: not checked\n  {missing}\n"] if missing is not None else []
    parts += [
        _checked(site, known) for site in module.sites if (site.function, site.offset) == (function, offset)
    ]
    parts += [
        _proved(site, known)
        for site in module.discharged
        if (site.function, site.offset) == (function, offset)
    ]
    if not parts:
        raise DiagnosticError(_nothing(module, function, offset))
    return "".join(parts)


def explain_function(
    module: ir.Module, function: str, unchecked: Mapping[tuple[str, int], str] | None = None
) -> str:
    """One line for each place of a function that needs a decision, in the order of the code.

    Raises `DiagnosticError` (O2C0541) if there is none.
    """
    lines: list[tuple[int, str]] = []
    for site in module.sites:
        if site.function == function:
            covered = f", by the check of site {site.covered_by}" if site.covered_by is not None else ""
            lines.append((site.offset, f"{_KINDS[site.kind]:14} checked{covered}: {site.check}"))
    for proof in module.discharged:
        if proof.function == function:
            lines.append((proof.offset, f"{_KINDS[proof.kind]:14} needs no check: {proof.reason}"))
    for (name, offset), reason in (unchecked or {}).items():
        if name == function:
            lines.append((offset, f"{'':14} not checked: {reason}"))
    if not lines:
        raise DiagnosticError(_nothing(module, function, None))
    return "".join(f"{function}+{offset:<#7x} {text}\n" for offset, text in sorted(lines))


def facts(
    module: ir.Module,
    function: str,
    offset: int | None,
    sources: Mapping[str, SourceFile],
    unchecked: Mapping[tuple[str, int], str],
) -> list[dict[str, object]]:
    """What the two above say, for a program: of each place of a function, or of one, in JSON types.

    ``state`` is `checked`, `proved` or `unchecked`.  Raises `DiagnosticError` (O2C0541) if nothing is known.
    """

    def wanted(name: str, place: int) -> bool:
        return name == function and offset in (None, place)

    found: list[dict[str, object]] = [
        {"function": name, "offset": place, "state": "unchecked", "reason": reason}
        for (name, place), reason in unchecked.items()
        if wanted(name, place)
    ]
    found += [
        {
            "function": site.function,
            "offset": site.offset,
            "kind": _KINDS[site.kind],
            "state": "checked",
            "site": site.number,
            "check": site.check,
            "parameters": {name: value for name, value in site.parameters if name != "site"},
            "probe": site.offset if site.probe_offset is None else site.probe_offset,
            "covered_by": site.covered_by,
            "policy": _line(site.span, sources),
            "note": site.note or None,
        }
        for site in module.sites
        if wanted(site.function, site.offset)
    ]
    found += [
        {
            "function": proof.function,
            "offset": proof.offset,
            "kind": _KINDS[proof.kind],
            "state": "proved",
            "reason": proof.reason,
            "proof": proof.proof,
            "premises": list(proof.premises),
            "policy": _line(proof.span, sources),
        }
        for proof in module.discharged
        if wanted(proof.function, proof.offset)
    ]
    if not found:
        raise DiagnosticError(_nothing(module, function, offset))
    return sorted(found, key=_offset)


def _offset(item: Mapping[str, object]) -> int:
    offset = item["offset"]
    assert isinstance(offset, int)
    return offset


def _line(span: Span | None, sources: Mapping[str, SourceFile]) -> str | None:
    if span is None or span.source not in sources:
        return span.source if span is not None else None
    line, column = sources[span.source].position(span.start)
    return f"{span.source}:{line}:{column}"


def _asked(span: Span | None, sources: Mapping[str, SourceFile]) -> str:
    if span is None:
        return ""
    if span.source not in sources:
        return f"  policy: {span.source}\n"
    text = sources[span.source].line(sources[span.source].position(span.start)[0]).strip()
    return f"  policy: {_line(span, sources)}: {text}\n"


def _checked(site: ir.Site, sources: Mapping[str, SourceFile]) -> str:
    parameters = ", ".join(
        f"{name} = {print_number(value)}" for name, value in site.parameters if name != "site"
    )
    probe = ""
    if site.covered_by is not None:
        probe = f"  decided by the check of site {site.covered_by}, which runs first and knows these bytes\n"
    elif site.probe_offset is not None:
        probe = f"  the probe is at {site.function}+{site.probe_offset:#x}, where the operands are the same\n"
    return (
        f"{site.function}+{site.offset:#x}: {_KINDS[site.kind]}, checked at run time (site {site.number})\n"
        f"  check: {site.check}({parameters})\n"
        f"{probe}{_asked(site.span, sources)}" + (f"  {site.note}\n" if site.note else "")
    )


def _proved(site: ir.Discharged, sources: Mapping[str, SourceFile]) -> str:
    premises = "".join(f"    - {premise}\n" for premise in site.premises)
    return (
        f"{site.function}+{site.offset:#x}: {_KINDS[site.kind]}, needs no check ({site.reason})\n"
        f"  proof: {site.proof}\n"
        + (f"  it leans on:\n{premises}" if premises else "")
        + _asked(site.span, sources)
    )


def _nothing(module: ir.Module, function: str, offset: int | None) -> Diagnostic:
    places = [(s.function, s.offset) for s in module.sites] + [
        (d.function, d.offset) for d in module.discharged
    ]
    if offset is None or all(name != function for name, _ in places):
        advice = did_you_mean(function, {name for name, _ in places})
        return error("O2C0541", f"no site is in a function `{function}`", help=advice)
    own = sorted({place for name, place in places if name == function}, key=lambda place: abs(place - offset))
    nearest = ", ".join(f"`{function}+{place:#x}`" for place in sorted(own[:4]))
    return error(
        "O2C0541", f"no site is at `{function}+{offset:#x}`", help=f"the nearest sites there: {nearest}"
    )
