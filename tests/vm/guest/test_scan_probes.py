# SPDX-License-Identifier: Apache-2.0
"""What descriptions say of probes, held against the kernel: which places it takes, which it turns into jumps.

A spread sample of sctp's sites, far enough apart that no probe lies in another one's five bytes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from o2cc.kernel import store
from o2cc.kernel.description import Description, Function, Site
from o2cc.kernel.kernels import open_kernel
from o2cc.kernel.probes import RETURN_BEHIND
from o2cc.kernel.scan import scan_module

TRACING = Path("/sys/kernel/tracing")
OPTIMIZATION = Path("/proc/sys/debug/kprobes-optimization")
GROUP = "o2c_scan"
SAMPLE = 45  # of each sort
APART = 16


@pytest.fixture(scope="module")
def sctp() -> Description:
    subprocess.run(["modprobe", "sctp"], check=True)
    release = os.uname().release
    known = store.bundled("sctp", release)
    if known:
        return store.load(known[0])
    kernel = open_kernel(release)
    return scan_module(kernel.find_module("sctp"), kernel)


def command(line: str) -> None:
    """One line to tracefs, which cannot seek as Python's append mode does."""
    file = os.open(TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


@pytest.fixture
def _few_jumps_meanwhile() -> Iterator[None]:
    """Attach with optimization off, which is much faster, and leave no probe behind."""
    OPTIMIZATION.write_text("0")
    yield
    enable = TRACING / "events" / GROUP / "enable"
    if enable.exists():
        enable.write_text("0")
    command(f"-:{GROUP}/")
    OPTIMIZATION.write_text("1")


def sites(description: Description) -> Iterator[tuple[Function, Site]]:
    """Sites in functions that tracefs takes by name: it refuses ambiguous names and what ftrace does not know."""
    for function in description.functions:
        traced = function.traced or (function.parent is not None)
        if traced and not function.ambiguous and not function.initial:
            yield from ((function, site) for site in function.sites)


def spread(found: list[tuple[Function, Site]], taken: set[tuple[str, int]]) -> list[tuple[Function, Site]]:
    """At most `SAMPLE` of them, evenly over the list, `APART` bytes from each other and from those taken."""
    chosen: list[tuple[Function, Site]] = []
    step = max(1, len(found) // (2 * SAMPLE))
    for function, site in found[::step]:
        near = {(function.name, other) for other in range(site.offset - APART, site.offset + APART)}
        if not near & taken and len(chosen) < SAMPLE:
            taken.add((function.name, site.offset))
            chosen.append((function, site))
    return chosen


def place(function: Function, site: Site) -> str:
    return f"{function.name}+{site.offset:#x}"


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("_few_jumps_meanwhile")
def test_the_kernel_takes_and_optimizes_what_the_description_says(sctp: Description) -> None:
    taken: set[tuple[str, int]] = set()
    here = [(f, s) for f, s in sites(sctp) if s.probe.offset == s.offset and f.parent is None]
    sorts = {
        "jump": [pair for pair in here if pair[1].probe.jump_optimizable],
        "int3 store": [
            (f, s)
            for f, s in here
            if s.writes and not s.probe.jump_optimizable and s.probe.reason != RETURN_BEHIND
        ],
        "call": [pair for pair in here if pair[1].kind in ("call", "tail_call")],
        "indirect": [pair for pair in here if pair[1].kind in ("indirect_call", "indirect_jump", "return")],
        "refused": [
            (f, s)
            for f, s in sites(sctp)
            # What replaces an alternative depends on the machine: the kernel may take a probe there.
            if s.probe.offset != s.offset
            and s.patched != "alternative"
            and f.section not in (".exit.text", ".static_call.text")
            # The kernel takes a call of a thunk behind a prefix, but returns wrongly from its emulation.
            and not (s.kind == "indirect_call" and s.length == 6)
        ],
    }
    sample = {sort: spread(found, taken) for sort, found in sorts.items()}
    assert len(sample["jump"]) > SAMPLE // 2
    assert len(sample["int3 store"]) > SAMPLE // 2
    wrong = []
    accepted: dict[str, str] = {}
    for sort, pairs in sample.items():
        for function, site in pairs:
            name = place(function, site)
            try:
                command(f"p:{GROUP}/p{len(accepted)} sctp:{name}")
            except OSError as problem:
                if sort != "refused":
                    wrong.append(f"{name} ({sort}): refused, {problem.strerror}")
                continue
            accepted[name] = sort
    (TRACING / "events" / GROUP / "enable").write_text("1")
    OPTIMIZATION.write_text("1")
    listed = wait_for_optimization({name for name, sort in accepted.items() if sort == "jump"})
    for name, sort in accepted.items():
        if sort == "refused":
            # tracefs only names the place; the kernel refuses when the probe is armed.
            if name in listed:
                wrong.append(f"{name}: the kernel takes a probe that the description refuses")
        elif name not in listed:
            wrong.append(f"{name} ({sort}): not armed")
        elif listed[name] != (sort == "jump"):
            wrong.append(
                f"{name} ({sort}): the kernel {'made' if listed[name] else 'did not make'} it a jump"
            )
    print({sort: len(pairs) for sort, pairs in sample.items()}, len(listed))
    assert not wrong, "\n".join(wrong)


def wait_for_optimization(expected: set[str]) -> dict[str, bool]:
    """The armed probes of sctp, and whether each is a jump, once those expected are or time is up."""
    deadline = time.monotonic() + 60
    while True:
        listed = {}
        for line in Path("/sys/kernel/debug/kprobes/list").read_text().splitlines():
            # address, kind, place, module, flags without spaces between (`report_probe`, kernel/kprobes.c)
            fields = line.split()
            if fields[3:4] == ["sctp"] and "[DISABLED]" not in line:
                listed[fields[2]] = "[OPTIMIZED]" in line
        if all(listed.get(name) for name in expected) or time.monotonic() > deadline:
            return listed
        time.sleep(1)
