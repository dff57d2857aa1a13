# SPDX-License-Identifier: Apache-2.0
"""What the tests of a loaded policy share: the victim's attacks, the bystander that notices, loading and unloading."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from o2cc.cli.common import run
from o2cc.cli.o2c import o2c as command_line
from o2cc.runtime import kernel_calls, loader, state
from o2cc.runtime.events import Event
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.monitor import Losses, follow
from tests.vm.guest.enforcer_support import load_module

NAME = "victim"
POLICY = "tests/kernel/victim/victim.o2c"
PROPER = 0
_STATE = Path("/sys/kernel/debug/bystander/state")
_RESET = Path("/sys/kernel/debug/bystander/reset")
_KPROBES = Path("/sys/kernel/debug/kprobes/list")


@dataclass(frozen=True)
class Attack:
    """One attack of tests/kernel/victim/victim.h.

    ``effect``: what of the bystander's state shows that it succeeded (None: nothing that can be seen from outside).
    ``reports``: kind and function of every report that it leads to, in order; the function without compiler suffixes.
    ``rule``: text of the policy's line that the last report names.
    """

    number: int
    name: str
    effect: str | None
    reports: tuple[tuple[str, str], ...]
    rule: str


_WRITE = "compartment victim {"
_CALLS = "call imports except std.linux.dangerous"
# Where KASAN is built in, the compiler leaves the copy to the kernel's function.
_WITH_KASAN = os.uname().release.endswith("-o2c-debug")
_COPY = (("gate argument", "copy_bytes"),) if _WITH_KASAN else (("store", "copy_bytes"),) * 3

ATTACKS = (
    Attack(1, "heap-overflow", "foreign", (("store", "store_indexed"),), _WRITE),
    Attack(2, "use-after-free", None, (("store", "store_word"),), _WRITE),
    Attack(3, "arbitrary-store", "foreign", (("store", "store_word"),), _WRITE),
    Attack(4, "memcpy", "foreign", _COPY, _CALLS if _WITH_KASAN else _WRITE),
    Attack(5, "rep-movs", "foreign", (("store", "copy_string"),), _WRITE),
    Attack(6, "bit-operation", "foreign", (("store", "set_a_bit"),), _WRITE),
    Attack(7, "shared-field", "forbidden", (("store", "store_shared"),), _WRITE),
    Attack(8, "return-address", None, (("store", "store_return_address"),), _WRITE),
    Attack(9, "function-pointer", "secret", (("indirect call", "call_action"),), "icall self"),
    Attack(10, "dangerous-call", None, (("forbidden call", "become_somebody"),) * 2, _CALLS),
    Attack(11, "foreign-argument", "updates", (("gate argument", "call_update"),), "gate bystander_update"),
    Attack(12, "wrong-type", "updates", (("gate argument", "call_update"),), "gate bystander_update"),
    Attack(
        13,
        "forged-skb",
        "freed",
        (("gate argument", "victim_ioctl"), ("gate argument", "free_packet")),
        _CALLS,
    ),
    Attack(14, "forged-list", "list", (("store", "unlink_node"),) * 2, _WRITE),
    Attack(15, "foreign-free", "freed", (("foreign free", "free_object"),), _CALLS),
    Attack(16, "timer-callback", "secret", (("gate argument", "start_timer"),), _CALLS),
    Attack(26, "pointer-to-kfree", "freed", (("foreign free", "call_free"),), "icall self"),
    Attack(27, "pointer-to-memcpy", "foreign", (("gate argument", "call_copy"),), "icall self"),
    Attack(28, "forged-object", "updates", (("gate argument", "call_update"),), "gate bystander_update"),
    Attack(30, "forged-iterator", "foreign", (("gate argument", "copy_out"),), _CALLS),
    Attack(31, "forged-timer", "foreign", (("gate argument", "stop_timer"),), _CALLS),
)


class Victim:
    """The victim's device and the bystander's account of what happened.

    Tests stay on one processor: the bystander finds a freed object by its allocator handing it out again.
    """

    def __init__(self) -> None:
        load_module("bystander")
        load_module("victim")
        os.sched_setaffinity(0, {0})
        self._device = os.open("/dev/victim", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._device)

    def run(self, number: int) -> int:
        """Run a scenario on fresh objects; its result, or the negative errno."""
        _RESET.write_text("1")
        try:
            return fcntl.ioctl(self._device, ord("V") << 8 | number)
        except OSError as problem:
            return -(problem.errno or 0)

    def read(self) -> None:
        """Read from the device, into one buffer and into two: the kernel's iterators of user memory."""
        one, two, three = bytearray(32), bytearray(8), bytearray(8)
        assert os.readv(self._device, [one]) == 32
        assert os.readv(self._device, [two, three]) == 16
        assert os.read(self._device, 16) == two + three == one[:16] == struct.pack("<QQ", 1, 2)

    def state(self) -> dict[str, int]:
        """What the bystander says: counts of changed bytes, calls, frees."""
        return {key: int(value) for key, value in (word.split("=") for word in _STATE.read_text().split())}


def events() -> tuple[list[Event], Losses]:
    """The reports that have come in so far, and what was lost of them since the compartment was loaded."""
    found: list[Event] = []
    lost = Losses(0, 0)
    for item in follow(NAME, seconds=0):
        if isinstance(item, Losses):
            lost = item
        else:
            found.append(item)
    return found, lost


def names_of(reports: list[Event]) -> tuple[tuple[str, str], ...]:
    """Kind and function of reports; suffixes that the compiler gave (`.isra.0`) are left out."""
    return tuple((report.kind, report.function.partition(".")[0]) for report in reports)


def policy_line(report: Event) -> str:
    """The policy's line that a report names."""
    assert report.file == POLICY
    lines = (Path(__file__).parents[3] / POLICY).read_text(encoding="utf-8").splitlines()
    return lines[report.line - 1].strip()


@dataclass(frozen=True)
class Footprint:
    """What a loaded policy leaves in the kernel."""

    programs: int
    maps: int
    probes: int
    pins: tuple[str, ...]
    records: tuple[str, ...]


def footprint() -> Footprint:
    """The footprint now."""
    pins = sorted(str(path) for path in state.BPFFS.rglob("*")) if state.BPFFS.exists() else []
    return Footprint(
        kernel_calls.count_programs(),
        kernel_calls.count_maps(),
        len(_KPROBES.read_text().splitlines()),
        tuple(pins),
        state.recorded(),
    )


def unload_all() -> None:
    """Nothing of ours is loaded afterwards.  Fixtures of a module's scope outlive the tests that use them."""
    for name in (*state.names(), *state.leftovers()):
        loader.unload(name, force=True)


def in_child(act: Callable[[], object]) -> int:
    """Do something in a forked process, which ends with status 7; its id.  Quicker than another Python."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(7)
        finally:
            os._exit(1)
    return child


def status_of(child: int) -> int:
    """Wait for a child; its exit status, or the negative signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def settled() -> Footprint:
    """The footprint once it no longer changes: what was let go is freed some time later."""
    last, same = footprint(), 0
    for _ in range(100):
        time.sleep(0.1)
        now = footprint()
        same = same + 1 if now == last else 0
        if same == 5:
            break
        last = now
    return last


@contextmanager
def loaded(path: Path, options: LoadOptions | None = None) -> Iterator[state.State]:
    """An object, loaded; unloaded at the end, whatever happens."""
    result = loader.load(path.read_bytes(), path=str(path), options=options)
    try:
        yield result
    finally:
        if NAME in state.names():
            loader.unload(NAME)


@dataclass(frozen=True)
class Done:
    """What a command left: exit status and output."""

    returncode: int
    stdout: str
    stderr: str


def o2c(*arguments: str) -> Done:
    """Run the command line in this process: starting Python takes ten seconds and more under emulation."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        status = run(command_line, "o2c", arguments)
    return Done(status, output.getvalue(), errors.getvalue())
