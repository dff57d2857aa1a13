# SPDX-License-Identifier: Apache-2.0
"""What is known of a loaded compartment: gathered from pins, data maps, o2c.ko (`gather`), and told (`lines`, pure)."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from o2cc.bpf.info import MapInfo, ObjectInfo
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import kernel_calls, libbpf, phases, state, tables
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import DrainState, EnforcerError, Feature, Kind, SiteStats
from o2cc.runtime.plan import cookie_of

_SHOWN = 20
_ACCEPTED = 8  # among the flags of the map `objects` (o2cc/lower/library/state.ir)


@dataclass(frozen=True)
class SiteCounter:
    """A site with something to tell.  ``missed``: hits at which no check ran; None when it is not counted."""

    site: int
    place: str
    note: str
    policy: str
    denied: int
    sent: int
    missed: int | None = None
    mode: str = ""

    @property
    def suppressed(self) -> int:
        """Violations for which no event was sent: over the rate limit, or the buffer was full."""
        return max(0, self.denied - self.sent)


@dataclass(frozen=True)
class UntrackedObject:
    """An object from before loading that the compartment touched; ages in seconds.  ``cache``: the address of its
    slab cache; ``place``: the site that touched it first."""

    address: int
    cache: int
    first_seen: float
    last_seen: float
    count: int
    place: str


@dataclass(frozen=True)
class Missed:
    """Skipped checks as a whole.  ``recursion``: another BPF program was active; ``nested``: kprobes skipped a probe
    inside another's handler.  None: this kernel does not count it."""

    recursion: int | None
    nested: int | None


@dataclass(frozen=True)
class PrivateHeap:
    """The private heap.  ``used``: bytes in its slabs and pages, at most ``limit``; ``failures``: allocations that got
    nothing, at the limit or because memory ran out; ``passed``: those that the kernel's own allocator served; ``draining``:
    there are no new ones."""

    limit: int
    used: int
    allocations: int
    failures: int
    passed: int
    draining: bool = False


@dataclass(frozen=True)
class Status:
    """A compartment at one moment."""

    name: str
    target: str
    release: str
    phase: str
    phase_reason: str
    enforced: bool
    degraded: str | None
    loaded_for: float  # seconds
    attached: int
    sites: int
    hooks: int
    denying: int | None
    failures: tuple[state.Failure, ...]
    observed: tuple[state.Failure, ...]
    counters: tuple[SiteCounter, ...]
    missed: Missed
    lost_events: int
    lost_tracking: int
    untracked: tuple[UntrackedObject, ...]
    tracked_objects: int
    accepted: int = 0  # objects from before loading that the audition accepted, and that are alive
    accepted_own: int = 0  # those of them that are the compartment's own; others are of a type that it shares
    problems: tuple[str, ...] = ()
    unenforced: bool = False  # loaded to prevent violations, and o2c.ko does not have it
    unchecked: bool = False  # loaded through o2c.ko to report, and o2c.ko does not have it
    by_module: bool = False  # its probes are o2c.ko's
    covered: int = 0  # sites that the check of another decides
    heap: PrivateHeap | None = None
    unseen: int = 0  # frees and new pages, anywhere in the system, that no hook saw: an interrupt inside the same hook made them

    @property
    def denied_when_final(self) -> tuple[UntrackedObject, ...]:
        """What is in use and what the final phase, were it now, would deny access to."""
        return self.untracked if self.enforced and self.phase == "transition" else ()

    @property
    def still_accepted(self) -> int:
        """Old objects in use that stay writable in the final phase, while access to others like them would be denied."""
        return self.accepted_own if self.enforced and self.phase == "transition" else 0

    def document(self) -> dict[str, object]:
        """For `--json`."""
        document = asdict(self)
        document["counters"] = [{**asdict(c), "suppressed": c.suppressed} for c in self.counters]
        for item, given in zip(document["untracked"], self.untracked, strict=True):
            item["address"], item["cache"] = f"{given.address:#x}", f"{given.cache:#x}"
        return document


def merge_counters(
    info: ObjectInfo, rows: Sequence[Mapping[str, int]], stats: Mapping[int, SiteStats]
) -> tuple[SiteCounter, ...]:
    """The sites with a counter that is not zero, the most violations first."""
    found = []
    for site in info.sites:
        row = rows[site.number] if site.number < len(rows) else {}
        own = stats.get(site.number)
        denied, sent = row.get("denied", 0), row.get("sent", 0)
        missed = own.missed if own is not None else None
        if not denied and not missed:
            continue
        found.append(
            SiteCounter(
                site.number,
                f"{site.function}+{site.offset:#x}",
                site.note or site.kind.replace("_", " "),
                f"{site.file}:{site.line}" if site.file else "",
                denied,
                sent,
                missed,
                own.mode.name.lower() if own is not None else "",
            )
        )
    found.sort(key=lambda c: (-c.denied, -(c.missed or 0), c.site))
    return tuple(found)


# --- gathering --------------------------------------------------------------------------------------------


def gather(name: str) -> Status:
    """Everything about a loaded compartment.  Raises DiagnosticError (O2C0802 not loaded, O2C0805 no right to)."""
    saved, info = state.load(name)
    directory = state.pins(name)
    problems = list(saved.problems)
    try:
        with tables.live(info, directory / "maps") as live:
            rows = live.rows("counters")
            words = dict(live.rows("globals")[0])
            stray = sum(row["count"] for row in live.rows("o2c_stray_cookies"))
        objects = _untracked(info, directory / "maps")
        tracked = _entries(info, directory / "maps", "objects")
        accepted = _entries(info, directory / "maps", "auditions")
        accepted_own = _accepted_own(info, directory / "maps") if accepted else 0
        links = [link for link in (directory / "links").iterdir() if link.name.isdigit()]
        missed = _missed_of_links(links)
        unseen = _unseen(info, directory / "links")
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0805",
                f"`{directory}` cannot be read: {os.strerror(problem.errno or 0).lower()}",
                help="run as root",
            )
        ) from None
    if stray:
        problems.append(f"{stray} runs of a program for a site that is not its own: this is a bug of o2cc")
    stats: dict[int, SiteStats] = {}
    denying: int | None = None
    heap: PrivateHeap | None = None
    if saved.by_module:
        stats, denying, missed, heap = _of_module(info, saved.enforced, problems)
    elif len(links) < saved.attached:
        problems.append(f"{saved.attached - len(links)} probes were removed from outside since loading")
    in_force = denying is not None
    phase = phases.phase_of(words, time.monotonic_ns())
    return Status(
        name=name,
        target=info.identity.get("target", ""),
        release=info.identity.get("release", ""),
        phase=phase.name,
        phase_reason=phases.reason(phase, len(objects) + accepted).replace("NAME", name),
        enforced=saved.enforced and in_force,
        degraded=saved.degraded,
        loaded_for=max(0.0, time.time() - saved.loaded_at),
        attached=saved.attached,
        sites=sum(1 for site in info.sites if site.program),  # the others are decided by these
        hooks=sum(hook.kind != "syscall" for hook in info.hooks),
        denying=denying if saved.enforced else None,
        failures=saved.failures,
        observed=saved.observed,
        counters=merge_counters(info, rows, stats),
        missed=missed,
        lost_events=words.get("lost_events", 0),
        lost_tracking=words.get("lost_tracking", 0),
        untracked=objects,
        tracked_objects=tracked,
        accepted=accepted,
        accepted_own=accepted_own,
        problems=tuple(problems),
        unenforced=saved.enforced and not in_force,
        unchecked=saved.by_module and not saved.enforced and not in_force,
        by_module=saved.by_module,
        covered=sum(not site.program for site in info.sites),
        heap=heap,
        unseen=unseen,
    )


def _of_module(
    info: ObjectInfo, prevents: bool, problems: list[str]
) -> tuple[dict[int, SiteStats], int | None, Missed, PrivateHeap | None]:
    """What o2c.ko counts, by site number, and of the private heap."""
    heap: PrivateHeap | None = None
    try:
        with Enforcer() as enforcer:
            enforcer.open(info.name)
            whole, listed = enforcer.info(), enforcer.stats()
            if prevents and info.heap is not None:
                told = enforcer.heap_stats()
                draining = Feature.DRAIN in enforcer.features and enforcer.drain().state is not DrainState.NOT
                heap = PrivateHeap(
                    info.heap.limit, told.bytes, told.allocations, told.failures, told.passed, draining
                )
    except EnforcerError as problem:
        nothing = "nothing is enforced" if prevents else "nothing is checked"
        problems.append(f"o2c.ko does not have this compartment, {nothing}: {problem}")
        return {}, None, Missed(None, None), None
    if whole.errors:
        problems.append(f"{whole.errors} verdicts that are none: this is a bug of o2cc")
    if whole.kills_lost:
        problems.append(
            f"{whole.kills_lost} times the task could not be killed (interrupt, kernel thread): denied only"
        )
    by_cookie = {cookie_of(site): site.number for site in info.sites}
    denying = whole.skip + whole.poison - sum(item.kind is Kind.HEAP for item in listed)
    found = {by_cookie[item.cookie]: item for item in listed if item.cookie in by_cookie}
    return found, denying, Missed(None, whole.missed), heap


def _missed_of_links(links: Sequence[Path]) -> Missed:
    programs: set[int] = set()
    nested: int | None = None
    for link in links:
        descriptor = kernel_calls.get_pinned(link)
        try:
            told = kernel_calls.link_info(descriptor)
        finally:
            os.close(descriptor)
        programs.add(told.program)
        if told.missed is not None:
            nested = (nested or 0) + told.missed
    counted = nested is not None
    recursion = sum(kernel_calls.missed_runs(program) for program in programs) if counted else None
    return Missed(recursion, nested)


def _unseen(info: ObjectInfo, links: Path) -> int:
    """How often the kernel did not run a hook at a tracepoint, since it runs no program of that kind inside itself
    (kernel/trace/bpf_trace.c __bpf_trace_run, 6.1 and 6.12)."""
    total = 0
    for hook in info.hooks:
        if hook.kind == "raw_tracepoint" and (links / hook.name).exists():
            descriptor = kernel_calls.get_pinned(links / hook.name)
            try:
                total += kernel_calls.missed_runs(kernel_calls.link_info(descriptor).program)
            finally:
                os.close(descriptor)
    return total


def _map(info: ObjectInfo, name: str) -> MapInfo | None:
    return next((item for item in info.maps if item.name == name), None)


def _entries(info: ObjectInfo, maps: Path, name: str) -> int:
    layout = _map(info, name)
    if layout is None:
        return 0
    descriptor = kernel_calls.get_pinned(maps / name)
    try:
        return sum(1 for _ in libbpf.keys(descriptor, 8 * len(layout.key)))
    finally:
        os.close(descriptor)


def _objects(info: ObjectInfo, maps: Path, name: str) -> Iterator[tuple[int, Mapping[str, int]]]:
    """The entries of a map by an object's address: that, and its words by name."""
    layout = _map(info, name)
    if layout is None:
        return
    descriptor = kernel_calls.get_pinned(maps / name)
    try:
        for key in list(libbpf.keys(descriptor, 8)):
            value = libbpf.lookup(descriptor, key, 8 * len(layout.fields))
            if value is not None:  # else freed meanwhile
                words = struct.unpack(f"<{len(layout.fields)}Q", value)
                yield int.from_bytes(key, "little"), dict(zip(layout.fields, words, strict=True))
    finally:
        os.close(descriptor)


def _accepted_own(info: ObjectInfo, maps: Path) -> int:
    """How many tracked objects the audition took for the compartment's own."""
    return sum(bool(words["flags"] & _ACCEPTED) for _, words in _objects(info, maps, "objects"))


def _untracked(info: ObjectInfo, maps: Path) -> tuple[UntrackedObject, ...]:
    places = {site.number: f"{site.function}+{site.offset:#x}" for site in info.sites}
    now = time.monotonic_ns()
    found = [
        UntrackedObject(
            address,
            words.get("cache", 0),
            max(0.0, (now - words["first"]) / 1e9),
            max(0.0, (now - words["last"]) / 1e9),
            words["count"],
            places.get(words["site"], f"site {words['site']}"),
        )
        for address, words in _objects(info, maps, "untracked")
    ]
    return tuple(sorted(found, key=lambda item: (item.last_seen, item.address)))


# --- telling ----------------------------------------------------------------------------------------------


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def lines(status: Status, *, every: bool = False) -> Iterator[str]:
    """The status for a person.  ``every``: no list is cut."""
    limit = 1 << 30 if every else _SHOWN
    how = "violations are reported"
    if status.enforced:
        how = "violations are prevented by o2c.ko"
    elif status.unenforced:
        how = "NOTHING IS ENFORCED"
    elif status.unchecked:
        how = "NOTHING IS CHECKED"
    elif status.by_module:
        how += " through o2c.ko"
    if status.degraded:
        how += f" (weakened by --degrade {status.degraded})"
    yield f"{status.name}: confines {status.target} in {status.release}; {how}"
    yield f"  phase       {status.phase}: {status.phase_reason}"
    yield f"  loaded      {_duration(status.loaded_for)} ago"
    denying = f", {status.denying} of them deny" if status.denying is not None else ""
    covered = f", which decide {status.covered} more" if status.covered else ""
    sites = _count(status.sites, "site")
    yield f"  attached    {status.attached} of {sites}{denying}{covered}; {_count(status.hooks, 'hook')}"
    yield f"  tracked     {_count(status.tracked_objects, 'object')}"
    if status.accepted:
        own = (
            f", {status.accepted_own} of them the compartment's own"
            if status.accepted_own < status.accepted
            else ""
        )
        yield f"  auditioned  {_count(status.accepted, 'object')} from before loading accepted by the tree, and alive{own}"
    if status.heap is not None:
        yield f"  heap        {_heap(status.heap)}"
    yield f"  missed      {_missed(status.missed)}"
    if status.unseen:
        yield f"  unseen      {_count(status.unseen, 'free')} or new pages of the whole system: interrupts made them inside a hook"
    if status.lost_events:
        yield f"  lost        {_count(status.lost_events, 'event')}: the event buffer was full (`o2c monitor` empties it)"
    if status.lost_tracking:
        yield (
            f"  lost        {_count(status.lost_tracking, 'object')} that could not be tracked: "
            f"proper accesses to them look like violations"
        )
    for problem in status.problems:
        yield f"  problem     {problem}"
    if status.failures:
        yield f"  checks that are not there ({len(status.failures)}):"
        yield from _failures(status.failures, limit)
    if status.observed:
        yield f"  places that only report ({len(status.observed)}):"
        yield from _failures(status.observed, limit)
    if status.counters:
        yield "  violations by site:"
        for counter in status.counters[:limit]:
            yield f"    {_counter(counter)}"
        yield from _rest(len(status.counters), limit)
    if status.untracked:
        yield f"  objects from before loading that were touched ({len(status.untracked)}):"
        for item in status.untracked[:limit]:
            yield (
                f"    {item.address:#x}: {_count(item.count, 'time')} since {_duration(item.first_seen)} ago, "
                f"last {_duration(item.last_seen)} ago, first at {item.place}"
            )
        yield from _rest(len(status.untracked), limit)


def _failures(failures: Sequence[state.Failure], limit: int) -> Iterator[str]:
    for item in failures[:limit]:
        yield f"    {item.place}: {item.reason}"
    yield from _rest(len(failures), limit)


def _rest(total: int, limit: int) -> Iterator[str]:
    if total > limit:
        yield f"    and {total - limit} more (--all)"


def _counter(counter: SiteCounter) -> str:
    text = f"{counter.place} ({counter.note}): {_count(counter.denied, 'violation')}"
    if counter.suppressed:
        text += f", {counter.suppressed} of them without an event"
    if counter.missed:
        text += f", {_count(counter.missed, 'missed run')}"
    if counter.policy:
        text += f" [{counter.policy}]"
    return text


def _heap(heap: PrivateHeap) -> str:
    text = (
        f"{heap.used >> 10} of {heap.limit >> 10} KiB in use, {_count(heap.allocations, 'allocation')}, "
        f"{heap.failures} failed"
    )
    if heap.passed:
        text += f", {heap.passed} left to the kernel's own allocator"
    return text + ("; draining: no new ones, `o2c unload` waits for the last" if heap.draining else "")


def _missed(missed: Missed) -> str:
    parts = []
    if missed.nested is not None:
        parts.append(f"{_count(missed.nested, 'check')} skipped inside another probe's handler")
    if missed.recursion is not None:
        parts.append(f"{missed.recursion} because another BPF program was active")
    return ", ".join(parts) or "not counted by this kernel for probes through perf (6.7 and newer do)"
