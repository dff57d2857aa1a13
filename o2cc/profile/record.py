# SPDX-License-Identifier: Apache-2.0
"""Records samples in the running kernel: loads the object, attaches it, reads the ring buffer, takes it out again."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from o2cc.bpf.info import ObjectInfo
from o2cc.bpf.info import read as read_info
from o2cc.diagnostics import DiagnosticError, error
from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.types import kernel_facts
from o2cc.profile.labels import Labeller, TextSymbols, Types
from o2cc.profile.program import COMPARTMENT, NAME, SamplingProgram, make_program
from o2cc.profile.samples import Sample, decode
from o2cc.profile.site_types import bundled_sites
from o2cc.runtime import kernel_calls, running_kernel, tables
from o2cc.runtime.libbpf import BpfObject, LoadError, RingBuffer, lookup
from o2cc.trees.features import LAYOUT_FIELDS, Layout

_BTF = Path("/sys/kernel/btf")
_NOTES = Path("/sys/kernel/notes")
_LOG_LINES = 12
_POLL = 100  # milliseconds
PROBED_FUNCTIONS = 60
"""Functions of a module whose arguments are looked at."""

_NO_FUNCTIONS = ("__pfx_", "__cfi_", "init_module", "cleanup_module")


@dataclass(frozen=True)
class Counters:
    """What the program in the kernel counted.  ``remembered``: objects that were chosen at their allocation;
    ``lost_records``: the buffer was full; ``lost_sites``, ``lost_objects``: no room in a map."""

    remembered: int
    lost_records: int
    lost_sites: int
    lost_objects: int


@dataclass(frozen=True)
class Recording:
    """The samples of one run, in the order of their arrival; ``layout``: of this boot."""

    samples: tuple[Sample, ...]
    layout: Layout
    counters: Counters


def running_btf() -> Btf:
    """The running kernel's own BTF.  Raises DiagnosticError (O2C0850)."""
    try:
        return read_btf((_BTF / "vmlinux").read_bytes(), str(_BTF / "vmlinux"))
    except OSError as problem:
        raise _cannot("the kernel shows no type information", problem) from None


def running_labeller(kernel: Btf) -> Labeller:
    """A labeller for the running kernel, made after recording, when the modules of every sample are loaded."""

    def module(name: str) -> Btf | None:
        try:
            return read_btf((_BTF / name).read_bytes(), str(_BTF / name), kernel)
        except (OSError, DiagnosticError):
            return None

    sites = bundled_sites(os.uname().release, _running_build_id())
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as lines:
        return Labeller(TextSymbols(lines), Types(kernel, module), sites)


def _running_build_id() -> str:
    """The build id of the running kernel (its GNU note, type 3), empty if it shows none."""
    try:
        notes = _NOTES.read_bytes()
    except OSError:
        return ""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        content = at + 12 + (name_size + 3 & ~3)
        if kind == 3 and notes[at + 12 : at + 12 + name_size] == b"GNU\0":
            return notes[content : content + size].hex()
        at = content + (size + 3 & ~3)
    return ""


def running_program(kernel: Btf, *, per_site: int) -> SamplingProgram:
    """The sampling programs for the running kernel; see `make_program`.  Raises DiagnosticError (O2C0510)."""
    return make_program(kernel_facts(kernel, None, ""), os.uname().release, per_site=per_site)


def record(
    program: SamplingProgram,
    *,
    seconds: float,
    functions: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda samples, lost: None,
) -> Recording:
    """Record for a time, or until interrupted.  ``progress`` is told of samples and lost records.

    ``functions``: addresses of the compartment's functions whose arguments are looked at; those that take no probe are
    left out.
    Nothing of it stays in the kernel, also when the process is killed: links live as long as their descriptors.
    Raises DiagnosticError: O2C0820 (refused), O2C0821 (a hook).
    """
    info = read_info(program.data, NAME)
    samples: list[Sample] = []

    def receive(data: bytes) -> None:
        sample = decode(data)
        if sample is not None:
            samples.append(sample)

    with ExitStack() as stack:
        loaded = stack.enter_context(BpfObject(program.data))
        try:
            loaded.load()
        except LoadError as problem:
            raise DiagnosticError(
                error(
                    "O2C0820",
                    f"the kernel refuses the sampling programs: {problem}",
                    notes=problem.log[-_LOG_LINES:],
                    help="run as root" if problem.code == 1 else None,
                )
            ) from None
        maps = loaded.maps()
        buffer = stack.enter_context(RingBuffer(maps["samples"], receive))
        with ExitStack() as links:
            _attach(info, loaded, functions, links)
            end = time.monotonic() + seconds
            with suppress(KeyboardInterrupt):
                while (left := end - time.monotonic()) > 0:
                    buffer.poll(min(_POLL, int(left * 1000) + 1))
                    progress(len(samples), _counters(info, maps).lost_records)
        buffer.poll(0)
        areas = _row(info, maps, "areas")
        return Recording(
            tuple(samples), Layout(**{name: areas[name] for name in LAYOUT_FIELDS}), _counters(info, maps)
        )


def _attach(info: ObjectInfo, loaded: BpfObject, functions: Sequence[int], links: ExitStack) -> None:
    programs = loaded.programs()
    for hook in info.hooks:
        program = programs[hook.program].descriptor
        if hook.target == COMPARTMENT:
            for address in functions:
                with suppress(OSError):
                    _attach_kprobe(program, address, links)
            continue
        try:
            if hook.kind == "raw_tracepoint":
                links.callback(os.close, kernel_calls.open_raw_tracepoint(program, hook.target))
            else:
                address = running_kernel.read_symbols(None).addresses.get(hook.target, 0)
                _attach_kprobe(program, address, links)
        except OSError as problem:
            raise DiagnosticError(
                error(
                    "O2C0821",
                    f"`{hook.name}` cannot be attached to `{hook.target}`: "
                    f"{os.strerror(problem.errno or 0).lower()}",
                )
            ) from problem


def _attach_kprobe(program: int, address: int, links: ExitStack) -> None:
    event = kernel_calls.kprobe_event(address)
    links.callback(os.close, event)
    links.callback(os.close, kernel_calls.link_perf_event(program, event, 0))


def some_functions(module: str, count: int, seed: str) -> tuple[int, ...]:
    """Addresses of at most ``count`` functions of a loaded module, drawn by ``seed``, ascending.

    Drawn, since a probe costs tens of milliseconds; another boot draws others.
    """
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as lines:
        found = [
            int(parts[0], 16)
            for parts in map(str.split, lines)
            if len(parts) == 4
            and parts[3] == f"[{module}]"
            and parts[1] in "tT"
            and not parts[2].startswith(_NO_FUNCTIONS)
            and ".cold" not in parts[2]
        ]
    found = sorted(set(found))
    return tuple(sorted(random.Random(seed).sample(found, min(count, len(found)))))


def _row(info: ObjectInfo, maps: dict[str, int], name: str) -> tables.Row:
    layout = tables.table(info, name)
    if layout is None:
        raise KeyError(name)
    descriptor = maps[layout.section]
    image = lookup(descriptor, bytes(4), kernel_calls.map_value_size(descriptor))
    return tables.decode_row(layout, image or b"", 0)


def _counters(info: ObjectInfo, maps: dict[str, int]) -> Counters:
    row = _row(info, maps, "globals")
    return Counters(row["remembered"], row["lost_records"], row["lost_sites"], row["lost_objects"])


def _cannot(message: str, problem: OSError) -> DiagnosticError:
    return DiagnosticError(
        error("O2C0850", f"{message}: {os.strerror(problem.errno or 0).lower()}", path=str(_BTF / "vmlinux"))
    )
