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
the whole system, which is what it can cost outside.  Of its sites only 20 are attached, to keep turns short: probes in
code that does not run cost nothing.

A sample is a few milliseconds of a loop, shorter than what the host gives the VM at a time; the loops take turns sample
by sample, and what counts of all samples of a kind is their 5th percentile, since whatever disturbs one only makes it
longer.  `with/without` is the ratio of these; `noise` is the same ratio between the turns without the policy, every
other one to the rest.  A ratio is within noise when it is no farther from 1 than noise is.
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
from o2cc.runtime import loader
from o2cc.runtime.loader import LoadOptions
from scripts.fetch_kernels import Kernel

TURNS = 4  # without; one less with the policy
SAMPLES = 150  # of each loop in a turn
SITES = 20
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
    turns: list[dict[str, list[float]]] = []
    with loops() as found:
        for turn in range(2 * TURNS - 1):
            name = loader.load(data, options=options).name if turn % 2 else None
            times: dict[str, list[float]] = {loop: [] for loop in found}
            for _ in range(SAMPLES):
                for loop, run in found.items():
                    times[loop].append(seconds(run))
            turns.append(times)
            if name is not None:
                loader.unload(name)
            print(
                f"# turn {turn + 1}",
                {other: round(low([times], other) * 1e3, 2) for other in times},
                flush=True,
            )
    print(f"{'':12}{'without ms':>12}{'with ms':>10}{'with/without':>14}{'noise':>8}")
    for loop in turns[0]:
        off, on = low(turns[::2], loop), low(turns[1::2], loop)
        noise = low(turns[::4], loop) / low(turns[2::4], loop)
        print(f"{loop:12}{off * 1e3:12.2f}{on * 1e3:10.2f}{on / off:14.3f}{noise:8.3f}")


def low(turns: list[dict[str, list[float]]], loop: str) -> float:
    """The 5th percentile of a loop's samples."""
    return statistics.quantiles([value for turn in turns for value in turn[loop]], n=20)[0]


if __name__ == "__main__":
    vm.main(__doc__, "outside_cost", objects, guest, limit=900)
