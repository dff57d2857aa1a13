# SPDX-License-Identifier: Apache-2.0
"""Takes a compartment's pins away: the links of its checks first, those of its hooks last, and waits for the kernel.

What is pinned lies in ``<bpffs>/o2c/NAME``: links named by the number of their site, links of hooks by name, and maps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from o2cc.runtime.code_check import KPROBES
from o2cc.runtime.progress import Progress, silent

_REPORTED_EVERY = 50  # links between two reports of progress
# Freeing thousands of programs at once has deadlocked a 6.18 kernel: links go in steps, with a rest between them.
_STEP = 100
_REST = 0.05  # seconds
_LOOK_EVERY = 0.1  # seconds
_STUCK = 5.0  # seconds without a change


def remove(directory: Path, progress: Progress) -> int:
    """Remove the pins of a compartment; how many links of sites there were.

    Returns when the kernel has taken the probes of the sites away.  Since 6.5 a link that loses its last reference is
    freed by a worker (kernel/bpf/syscall.c bpf_link_put), and its event by another (fs/file_table.c delayed_fput): seconds
    later, with many.  A check that outlives the hooks that feed it would take proper use for a violation, and the next load
    would find breakpoints where it looks for instructions.
    """
    links = list((directory / "links").glob("*"))
    sites = sorted((link for link in links if link.name.isdigit()), key=lambda link: int(link.name))
    probes = _probes()
    _unlink(sites, progress)
    _wait(probes, len(sites), progress)
    _unlink([link for link in links if not link.name.isdigit()], silent)
    _unlink(list((directory / "maps").glob("*")), silent)
    for folder in (directory / "maps", directory / "links", directory):
        if folder.is_dir():
            folder.rmdir()
    with suppress(OSError):
        directory.parent.rmdir()  # stays while another compartment is in it
    return len(sites)


def _unlink(pinned: Sequence[Path], progress: Progress) -> None:
    for done, path in enumerate(pinned):
        path.unlink(missing_ok=True)
        if done % _REPORTED_EVERY == 0:
            progress("detach", done, len(pinned))
        if done % _STEP == _STEP - 1:
            time.sleep(_REST)
    progress("detach", len(pinned), len(pinned))


def _wait(before: int, removed: int, progress: Progress) -> None:
    """Until ``removed`` probes are gone, or none went for a while: others may have made some of their own."""
    last, changed = before, time.monotonic()
    left = max(before - removed, 0)  # 0 also where nothing tells how many there are
    while removed and (now := _probes()) > left and time.monotonic() < changed + _STUCK:
        if now != last:
            last, changed = now, time.monotonic()
        progress("settle", min(max(before - now, 0), removed), removed)
        time.sleep(_LOOK_EVERY)


def _probes() -> int:
    """Kprobes in the kernel; 0 without debugfs."""
    try:
        return len(KPROBES.read_text().splitlines())
    except OSError:
        return 0
