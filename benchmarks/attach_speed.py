# SPDX-License-Identifier: Apache-2.0
"""Time to attach a site of the SCTP policy: our loader, beside libbpf attaching by name.

    python -m benchmarks.attach_speed [--kernel 6.1|6.12]

Boots a VM (see benchmarks/vm.py) and attaches the same 200 sites of sctp.ko, evenly spread over the module, in four
ways, in turns, twice each in one boot, each way detached before the next:

    libbpf     the layout `site` as any libbpf loader attaches it: `bpf_program__attach_kprobe_opts` with the function's
               name and the offset, one program a site; nothing is done about jump optimization
    perf       `o2c load --perf` of the policy that reports: by address, through perf, optimization off meanwhile
    report     `o2c load` of the same: by address, through o2c.ko, in batches, breakpoints
    deny       `o2c load` of the policy that denies: by address, through o2c.ko, in batches, then optimized

The VM's clocks count executed instructions where the kernel boots so (QEMU's -icount): times are those of a machine that
executes one instruction a nanosecond, and what else the host does changes nothing.  `ms a site` is the time in which the
sites are attached, divided by their number; `whole` counts all from the last program's verification to the end of
`o2c load` instead: hooks, pins, the comparison of code, the commit.
Verification itself is in none of them.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from benchmarks import vm
from o2cc.bpf.info import ObjectInfo, SiteInfo, read
from o2cc.bpf.layout import Layout
from o2cc.runtime import loader
from o2cc.runtime.loader import LoadOptions
from scripts.fetch_kernels import Kernel

SITES = 200
TURNS = 2
_PAUSE = 5.0  # seconds between two ways, for probes that are still going
_GENERATED = ("perf_trace_", "trace_event_raw_event_")

Place = tuple[str, int, str, str]


class _KprobeOptions(ctypes.Structure):
    """struct bpf_kprobe_opts of libbpf 1.1."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("cookie", ctypes.c_uint64),
        ("offset", ctypes.c_size_t),
        ("on_return", ctypes.c_bool),
    ]


@dataclass
class Times:
    """Seconds of one way, a turn each."""

    sites: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    detach: list[float] = field(default_factory=list)


def place(site: SiteInfo) -> Place:
    """What tells a site of one object from the same site of another."""
    return site.function, site.probe_offset, site.kind, site.note


def chosen_places(objects: list[ObjectInfo]) -> frozenset[Place]:
    """Sites that all objects have a program for, evenly spread."""
    common = set.intersection(*({place(s) for s in o.sites if s.program} for o in objects))
    names = sorted(p for p in common if not p[0].startswith(_GENERATED))
    return frozenset(names[index * len(names) // SITES] for index in range(SITES))


def by_name(data: bytes, wanted: frozenset[Place]) -> tuple[float, float, int]:
    """Attach with libbpf: seconds to attach and to detach, and how many the kernel took."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    for function in ("bpf_object__open_mem", "bpf_object__next_program", "bpf_program__attach_kprobe_opts"):
        getattr(library, function).restype = ctypes.c_void_p
    library.bpf_program__name.restype = ctypes.c_char_p
    sites = {site.program: site for site in read(data).sites if site.program and place(site) in wanted}
    handle = ctypes.c_void_p(library.bpf_object__open_mem(data, ctypes.c_size_t(len(data)), None))
    programs: list[tuple[ctypes.c_void_p, SiteInfo]] = []
    at = library.bpf_object__next_program(handle, None)
    while at:
        program = ctypes.c_void_p(at)
        site = sites.get(library.bpf_program__name(program).decode())
        library.bpf_program__set_autoload(program, ctypes.c_bool(site is not None))
        if site is not None:
            programs.append((program, site))
        at = library.bpf_object__next_program(handle, program)
    if library.bpf_object__load(handle) != 0:
        raise SystemExit("the kernel refused the object")
    links = []
    begin = time.perf_counter()
    for program, site in programs:
        options = _KprobeOptions(ctypes.sizeof(_KprobeOptions), 0, site.probe_offset, False)
        link = library.bpf_program__attach_kprobe_opts(program, site.function.encode(), ctypes.byref(options))
        if link:
            links.append(ctypes.c_void_p(link))
    attached = time.perf_counter() - begin
    begin = time.perf_counter()
    for link in links:
        library.bpf_link__destroy(link)
    library.bpf_object__close(handle)
    return attached / len(links), time.perf_counter() - begin, len(links)


def by_loader(
    data: bytes, wanted: frozenset[Place], times: Times, *, degrade: str | None = None, perf: bool = False
) -> int:
    """Attach with `o2c load`; how many the kernel took."""
    events: list[tuple[str, float]] = []
    options = LoadOptions(
        wanted=lambda site: place(site) in wanted,
        degrade=degrade,
        perf=perf,
        accept_gaps=True,
    )
    state = loader.load(
        data,
        options=options,
        progress=lambda stage, done, total: events.append((stage, time.perf_counter())),
    )
    end = time.perf_counter()
    attaching = [at for stage, at in events if stage == "attach"]
    verified = max(at for stage, at in events if stage == "verify")
    times.sites.append((attaching[-1] - attaching[0]) / state.attached)
    times.whole.append((end - verified) / state.attached)
    begin = time.perf_counter()
    loader.unload(state.name)
    times.detach.append(time.perf_counter() - begin)
    return state.attached


LOADERS: Mapping[str, Callable[[bytes, frozenset[Place], Times], int]] = {
    "perf": partial(by_loader, degrade="report", perf=True),
    "report": partial(by_loader, degrade="report"),
    "deny": by_loader,
}


def objects(kernel: Kernel) -> Mapping[str, bytes]:
    """The three objects."""
    return {
        "libbpf": vm.reporting(kernel, Layout.SITE),
        "report": vm.reporting(kernel, Layout.SHAPE),
        "deny": vm.denying(kernel),
    }


def guest() -> None:
    """Attach in turns, and print."""
    data = {name: vm.guest_object(name) for name in ("libbpf", "report", "deny")}
    wanted = chosen_places([read(content) for content in data.values()])
    times = {name: Times() for name in ("libbpf", *LOADERS)}
    taken: dict[str, int] = {}
    for _ in range(TURNS):
        seconds, detach, taken["libbpf"] = by_name(data["libbpf"], wanted)
        times["libbpf"].sites.append(seconds)
        times["libbpf"].whole.append(seconds)
        times["libbpf"].detach.append(detach)
        print(f"# libbpf: {seconds * 1e3:.1f} ms a site", flush=True)
        for name, load in LOADERS.items():
            time.sleep(_PAUSE)
            taken[name] = load(data["deny" if name == "deny" else "report"], wanted, times[name])
            print(f"# {name}: {times[name].sites[-1] * 1e3:.1f} ms a site", flush=True)
        time.sleep(_PAUSE)
    print(f"{'':8}{'sites':>8}{'ms a site':>11}{'whole':>8}{'libbpf/it':>11}{'whole':>8}{'detaching s':>13}")
    base = statistics.mean(times["libbpf"].sites)
    for name, found in times.items():
        sites, whole = statistics.mean(found.sites), statistics.mean(found.whole)
        print(
            f"{name:8}{taken[name]:8}{sites * 1e3:11.1f}{whole * 1e3:8.1f}{base / sites:11.1f}{base / whole:8.1f}"
            f"{statistics.mean(found.detach):13.1f}"
        )


if __name__ == "__main__":
    vm.main(__doc__, "attach_speed", objects, guest, limit=900, count_instructions=True)
