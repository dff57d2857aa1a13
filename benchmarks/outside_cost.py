# SPDX-License-Identifier: Apache-2.0
"""What a loaded SCTP policy costs the rest of the system: loops that never enter sctp, with the policy and without.

    python -m benchmarks.outside_cost [--kernel 6.1|6.12] [--time]

Boots a VM (see benchmarks/vm.py) and runs these loops in one thread, in turns without and with the policy, in one boot:

    getppid     the cheapest system call
    file        open a file in memory, read a page and close: allocates and frees in the kernel
    pipe        make a pipe, 1 byte through it, close it: allocates and frees pages as well
    tcp small   256 bytes there and back over a loopback connection: packets are allocated and freed
    tcp bulk    64 KiB over the same connection, each time from and to another place in the process
    tcp open    connect, accept and close
    map         map 20 areas of memory, and take them away: what the kernel's tree of areas needs goes by kmem_cache_free_bulk,
                where a hook is (40 times on 6.1, once on 6.12)
    process     start a program that ends at once, and wait (the same 13 times on 6.1, hardly on 6.12)

The policy denies, through o2c.ko, with a tracked heap: its hooks run at every kfree, kmem_cache_free and freed page of
the whole system, and while its transition lasts at every new page, which is what it can cost outside.  Of its sites only 20
are attached, to keep turns short: probes in code that does not run cost nothing.

`report` and `perf` are the policy that only reports, in the final phase: through o2c.ko, and as `o2c load --perf` attaches it, which
leaves its hooks to the kernel, as for any BPF program.

Beside them a peer: programs that do nothing (`empty`), at the same places as those of the policy that denies, attached as by `--perf`.
What these cost the kernel takes for calling them, whatever they are; the rest is ours.

The VM's clocks count executed instructions (QEMU's -icount), so that what else the host does changes nothing: the figures
are instructions, in millions, of one run of a loop, and no times.  With `--time` they are times in milliseconds.  The loops
take turns run by run, on one processor, and what counts is the median.  `transition/` and so on are ratios to the turns without
any; `noise` is the lowest and the highest ratio of one turn without to all of them.  A ratio is within noise when it lies
between these.  `all` is the geometric mean of the loops' ratios.

Times are the emulator's: where a page that is copied from and one that is copied to share an entry of its address cache, each byte
of the copy is several times as slow, as long as both pages stay what they are.  Hence the changing places of `tcp bulk`.
"""

from __future__ import annotations

import itertools
import mmap
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks import vm
from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import HookInfo, read
from o2cc.bpf.layout import Layout
from o2cc.diagnostics import SourceFile
from o2cc.ir.parser import parse_library
from o2cc.runtime import kernel_calls, loader, phases, running_kernel
from o2cc.runtime.libbpf import BpfObject
from o2cc.runtime.loader import LoadOptions
from scripts.fetch_kernels import Kernel

KINDS = ("transition", "final", "report", "perf", "empty")
TURNS = tuple(turn for kind in KINDS for turn in ("without", kind)) * 2 + ("without",)
SAMPLES = 40  # of each loop in a turn
SITES = 20
Times = dict[str, list[float]]
_SMALL = bytes(256)
_BULK = 65536
_PROGRAM = "/run/o2c/busybox"  # without libraries
_PLACES = 32  # of 64 KiB in the process


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


def _bulk(ends: tuple[socket.socket, socket.socket], places: Iterator[memoryview]) -> None:
    for _ in range(8):
        ends[0].sendall(next(places))
        ends[1].recv_into(next(places), _BULK, socket.MSG_WAITALL)


def _places() -> Iterator[memoryview]:
    """Room for a bulk, again and again; all of it is there from the beginning.  Odd, so that each place both sends and receives."""
    room = memoryview(bytearray(_BULK * (_PLACES + 1)))
    return itertools.cycle([room[start : start + _BULK] for start in range(0, len(room), _BULK)])


def _open(listener: socket.socket) -> None:
    for _ in range(2):
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()


def _map() -> None:
    for area in [mmap.mmap(-1, mmap.PAGESIZE * (1 + number % 3)) for number in range(20)]:
        area.close()


def _process() -> None:
    os.waitpid(os.posix_spawn(_PROGRAM, [_PROGRAM, "true"], {}), 0)


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
            places = _places()
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            yield {
                "getppid": _getppid,
                "file": lambda: _file(file.name),
                "pipe": _pipe,
                "tcp small": lambda: _there_and_back(ends),
                "tcp bulk": lambda: _bulk(ends, places),
                "tcp open": lambda: _open(listener),
                "map": _map,
                "process": _process,
            }


def objects(kernel: Kernel) -> Mapping[str, bytes]:
    """The policies, and programs at the places of the denying one's hooks that do nothing."""
    policy = vm.denying(kernel)
    return {
        "deny": policy,
        "report": vm.reporting(kernel, Layout.SHAPE),
        "empty": empty(read(policy).hooks),
    }


def empty(hooks: Sequence[HookInfo]) -> bytes:
    """An object with a program that does nothing for each of these hooks."""
    texts = (
        f"hook {hook.name} {hook.kind} {hook.target} {{\nentry:\n  return 0\n}}\n" for hook in _placed(hooks)
    )
    module = parse_library(SourceFile("empty.ir", "".join(texts)))
    return emit_object(module, layout=Layout.SITE, sources={}).data


def _placed(hooks: Sequence[HookInfo]) -> Iterator[HookInfo]:
    return (hook for hook in hooks if hook.kind in ("raw_tracepoint", "kprobe"))


@contextmanager
def attached(data: bytes) -> Iterator[None]:
    """The hooks of an object are in place, as the loader attaches them."""
    with BpfObject(data) as loaded, ExitStack() as links:
        loaded.load()
        programs = loaded.programs()
        kernel = running_kernel.symbols_in(running_kernel.read_kallsyms(), None)
        for hook in _placed(read(data).hooks):
            program = programs[hook.program].descriptor
            if hook.kind == "raw_tracepoint":
                link = kernel_calls.open_raw_tracepoint(program, hook.target)
            else:
                event = kernel_calls.kprobe_event(kernel.addresses[hook.target])
                links.callback(os.close, event)
                link = kernel_calls.link_perf_event(program, event, 0)
            links.callback(os.close, link)
        yield


@contextmanager
def loaded(data: bytes, phase: str, *, perf: bool = False) -> Iterator[None]:
    """A policy is in force, with some of its stores."""
    stores = sorted(site.number for site in read(data).sites if site.program and site.kind == "store")
    wanted = {stores[index * len(stores) // SITES] for index in range(SITES)}
    options = LoadOptions(wanted=lambda site: site.number in wanted, accept_gaps=True, perf=perf)
    name = loader.load(data, options=options).name
    phases.set_phase(name, phase)
    yield
    loader.unload(name)


@contextmanager
def without_probes() -> Iterator[None]:
    """Nothing is: what the kernel takes away by and by is gone."""
    while Path("/sys/kernel/debug/kprobes/list").read_text():
        time.sleep(0.1)
    yield


def in_force(kind: str) -> AbstractContextManager[None]:
    """What a turn of that kind has."""
    if kind == "without":
        return without_probes()
    if kind == "empty":
        return attached(vm.guest_object("empty"))
    if kind in ("report", "perf"):
        return loaded(vm.guest_object("report"), "final", perf=kind == "perf")
    return loaded(vm.guest_object("deny"), kind)


def seconds(loop: Callable[[], None]) -> float:
    """A sample."""
    begin = time.perf_counter()
    loop()
    return time.perf_counter() - begin


def guest() -> None:
    """Run the loops in turns, and print."""
    os.sched_setaffinity(0, {0})
    turns: list[tuple[str, Times]] = []
    with loops() as found:
        for kind in TURNS:
            with in_force(kind):
                times: Times = {loop: [] for loop in found}
                for _ in range(SAMPLES):
                    for loop, run in found.items():
                        times[loop].append(seconds(run))
            turns.append((kind, times))
            print(f"# {kind}", {other: round(middle([times], other), 3) for other in times}, flush=True)
    report(turns)


def report(turns: list[tuple[str, Times]]) -> None:
    """Print the ratios of each loop, and of all."""
    by_kind = {kind: [times for k, times in turns if k == kind] for kind in ("without", *KINDS)}
    without = by_kind["without"]
    print(f"{'':12}{'without':>9}" + "".join(f"{kind + '/':>13}" for kind in KINDS) + f"{'noise':>15}")
    ratios: list[list[float]] = []
    for loop in without[0]:
        base = middle(without, loop)
        row = [middle(by_kind[kind], loop) / base for kind in KINDS]
        row += [middle([turn], loop) / base for turn in without]
        ratios.append(row)
        print(f"{loop:12}{base:9.3f}" + _shown(row))
    print(f"{'all':21}" + _shown([statistics.geometric_mean(column) for column in zip(*ratios, strict=True)]))


def _shown(row: Sequence[float]) -> str:
    """The ratios of the kinds, then the lowest and the highest of the turns without."""
    kinds, turns = row[: len(KINDS)], row[len(KINDS) :]
    return "".join(f"{ratio:13.3f}" for ratio in kinds) + f"{min(turns):9.3f}-{max(turns):.3f}"


def middle(turns: list[Times], loop: str) -> float:
    """The median of a loop's runs, in milliseconds, or millions of instructions: one is a nanosecond."""
    return statistics.median(value for turn in turns for value in turn[loop]) * 1e3


if __name__ == "__main__":
    vm.main(__doc__, "outside_cost", objects, guest, limit=1500, count_instructions=True)
