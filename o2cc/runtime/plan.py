# SPDX-License-Identifier: Apache-2.0
"""Which probe goes where: the sites of an object and the symbols of the running kernel, to addresses.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from o2cc.bpf.info import ObjectInfo, SiteInfo
from o2cc.ir.nodes import SiteKind
from o2cc.runtime.running_kernel import Symbols
from o2cc.runtime.state import Failure

# Functions that TRACE_EVENT() makes (include/trace/perf.h, include/trace/trace_events.h, 6.1); all are notrace.
_GENERATED = ("perf_trace_", "trace_event_raw_event_", "trace_raw_output_", "__bpf_trace_")
CALL_NOTE, RESULT_NOTE = "call of ", "result of "
NO_FUNCTION = "the running kernel has no function of that name"
SEVERAL_FUNCTIONS = "several functions have that name"
_LISTED = 10


@dataclass(frozen=True)
class Attachment:
    """One probe to be placed."""

    site: SiteInfo
    address: int


@dataclass(frozen=True)
class Plan:
    """Where probes go, and the sites that have no place."""

    attachments: tuple[Attachment, ...]
    failures: tuple[Failure, ...]


def failure(site: SiteInfo, reason: str) -> Failure:
    """A site that is not checked."""
    return Failure(site.number, f"{site.function}+{site.offset:#x}", reason)


def cookie_of(site: SiteInfo) -> int:
    """What o2c.ko knows a site by: its attach cookie, or its number where its program needs none."""
    return site.number if site.cookie is None else site.cookie


def tracking_sites(info: ObjectInfo) -> frozenset[int]:
    """Numbers of the sites without which proper use looks like a violation: entries and returns, results of calls, and
    the calls themselves, which remember the arguments that the result needs."""
    results = {(site.function, site.note) for site in info.sites if site.note.startswith(RESULT_NOTE)}
    return frozenset(
        site.number
        for site in info.sites
        if site.kind in (SiteKind.ENTRY, SiteKind.RETURN)
        or site.note.startswith(RESULT_NOTE)
        or (site.function, RESULT_NOTE + site.note.removeprefix(CALL_NOTE)) in results
    )


def make_plan(
    info: ObjectInfo, symbols: Symbols, wanted: Callable[[SiteInfo], bool] = lambda site: True
) -> Plan:
    """Addresses of the wanted sites; those whose function the running kernel does not have are failures."""
    attachments: list[Attachment] = []
    failures: list[Failure] = []
    for site in info.sites:
        if not site.program or not wanted(site):
            continue  # Without a program: another site's check decides it (see SiteInfo).
        address = symbols.addresses.get(site.function)
        if address is None:
            failures.append(failure(site, NO_FUNCTION))
        elif site.function in symbols.ambiguous:
            failures.append(failure(site, SEVERAL_FUNCTIONS))
        else:
            attachments.append(Attachment(site, address + site.probe_offset))
    return Plan(tuple(attachments), tuple(failures))


def refusal_reason(site: SiteInfo, message: str) -> str:
    """Why the kernel took no probe, with the cause where it is a known one.

    Probes through perf are refused in functions that ftrace does not know (``within_notrace_func`` in
    kernel/trace/trace_kprobe.c, 6.1), which those that the tracing macros generate are.
    """
    if site.function.startswith(_GENERATED):
        return f"refused: {message} (a generated tracing function, where perf places no probe)"
    return f"refused: {message}"


def listed(failures: Sequence[Failure]) -> tuple[str, ...]:
    """The first of them, for the notes of a diagnostic."""
    shown = tuple(f"{item.place}: {item.reason}" for item in failures[:_LISTED])
    more = len(failures) - len(shown)
    return (*shown, f"and {more} more") if more > 0 else shown
