# SPDX-License-Identifier: Apache-2.0
"""What a loaded SCTP policy costs the rest of the system: loops that never enter sctp, with the policy and without.

    python -m benchmarks.outside_cost [--kernel 6.1|6.12]

Boots a VM (see benchmarks/vm.py) and runs these loops in one thread, in turns without and with the policy, in one boot:

    getppid     the cheapest system call
    file        open a file in memory, read a page and close: allocates and frees in the kernel
    pipe        make a pipe, 1 byte through it, close it: allocates and frees pages as well
    tcp small   256 bytes there and back over a loopback connection: packets are allocated and freed
    tcp bulk    64 KiB over the same connection
    tcp open    connect, accept and close

The policy denies, through o2c.ko, with a tracked heap: its hooks run at every kfree, kmem_cache_free and freed page of
the whole system, and while its transition lasts at every new page, which is what it can cost outside.  Of its sites only 20
are attached, to keep turns short: probes in code that does not run cost nothing.

The VM's clocks count executed instructions (QEMU's -icount; not on 6.1, which does not boot so), so that what else the host
does changes nothing: the figures are instructions, in millions, of one run of a loop, and no times.  The loops take turns run by run, on one processor, and
what counts is the median.  `transition/` and `final/` are ratios to the turns without the policy; `noise` is the same ratio
between the turns without the policy, every other one to the rest.  A ratio is within noise when it is no farther from 1
than noise is.  `all` is the geometric mean of the loops' ratios.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from benchmarks import vm
from o2cc.bpf.info import read
from o2cc.runtime import loader, phases
from o2cc.runtime.loader import LoadOptions
from scripts.fetch_kernels import Kernel

TURNS = ("without", "transition", "without", "final") * 2 + ("without",)
SAMPLES = 40  # of each loop in a turn
SITES = 20
Times = dict[str, list[float]]
_SMALL = bytes(256)
_BULK = bytes(65536)


def _getppid() -> None:
    for _ in range(1000):
        os.getppid()


def _file(path: str) -> None:
    for _ in range(20):
        with open(path, "rb", buffering=0) as file:
            file.read(4096)


def _pipe() -> None:
    for _ in range(20):
        reader, writer = os.pipe()
        os.write(writer, b"x")
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)


def _there_and_back(ends: tuple[socket.socket, socket.socket]) -> None:
    for _ in range(20):
        ends[0].sendall(_SMALL)
        ends[1].sendall(ends[1].recv(len(_SMALL), socket.MSG_WAITALL))
        ends[0].recv(len(_SMALL), socket.MSG_WAITALL)


def _bulk(ends: tuple[socket.socket, socket.socket]) -> None:
    for _ in range(8):
        ends[0].sendall(_BULK)
        ends[1].recv(len(_BULK), socket.MSG_WAITALL)


def _open(listener: socket.socket) -> None:
    for _ in range(2):
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()


@contextmanager
def loops() -> Iterator[Mapping[str, Callable[[], None]]]:
    """The loops by name; their connection is open meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
        with first, second, tempfile.NamedTemporaryFile() as file:
            file.write(bytes(4096))
            file.flush()
            ends = first, second
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            yield {
                "getppid": _getppid,
                "file": lambda: _file(file.name),
                "pipe": _pipe,
                "tcp small": lambda: _there_and_back(ends),
                "tcp bulk": lambda: _bulk(ends),
                "tcp open": lambda: _open(listener),
            }


def objects(kernel: Kernel) -> Mapping[str, bytes]:
    """The policy."""
    return {"deny": vm.denying(kernel)}


def seconds(loop: Callable[[], None]) -> float:
    """A sample."""
    begin = time.perf_counter()
    loop()
    return time.perf_counter() - begin


def guest() -> None:
    """Run the loops in turns, and print."""
    data = vm.guest_object("deny")
    sites = sorted(site.number for site in read(data).sites if site.program and site.kind == "store")
    wanted = {sites[index * len(sites) // SITES] for index in range(SITES)}
    options = LoadOptions(wanted=lambda site: site.number in wanted, accept_gaps=True)
    os.sched_setaffinity(0, {0})
    turns: list[tuple[str, Times]] = []
    with loops() as found:
        for kind in TURNS:
            name = loader.load(data, options=options).name if kind != "without" else None
            if name is not None:
                phases.set_phase(name, kind)
            times: Times = {loop: [] for loop in found}
            for _ in range(SAMPLES):
                for loop, run in found.items():
                    times[loop].append(seconds(run))
            turns.append((kind, times))
            if name is not None:
                loader.unload(name)
            print(f"# {kind}", {other: round(middle([times], other), 3) for other in times}, flush=True)
    without = [times for kind, times in turns if kind == "without"]
    print(f"{'':12}{'without':>9}{'transition/':>13}{'final/':>8}{'noise':>8}")
    rows = []
    for loop in without[0]:
        base = middle(without, loop)
        row = [middle([t for k, t in turns if k == kind], loop) / base for kind in ("transition", "final")]
        row.append(middle(without[::2], loop) / middle(without[1::2], loop))
        rows.append(row)
        print(f"{loop:12}{base:9.3f}{row[0]:13.3f}{row[1]:8.3f}{row[2]:8.3f}")
    overall = [statistics.geometric_mean(column) for column in zip(*rows, strict=True)]
    print(f"{'all':21}{overall[0]:13.3f}{overall[1]:8.3f}{overall[2]:8.3f}")


def middle(turns: list[Times], loop: str) -> float:
    """The median of a loop's runs, in millions of instructions: one is a nanosecond."""
    return statistics.median(value for turn in turns for value in turn[loop]) * 1e3


if __name__ == "__main__":
    vm.main(__doc__, "outside_cost", objects, guest, limit=900, count_instructions=True)
