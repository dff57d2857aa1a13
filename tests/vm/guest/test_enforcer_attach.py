# SPDX-License-Identifier: Apache-2.0
"""Attaching a batch remembers which function the kernel looks up (bpf_runtime/module/lookup.c): nothing else changes by it.

And what becomes of probes at entries that ftrace knows.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from iced_x86 import Decoder

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, Kind, Site, State
from o2cc.runtime.entry_points import behind_entry
from o2cc.runtime.kernel_text import KernelText
from tests.vm.guest.enforcer_support import Forms, Verdicts, constant_program, load_module, start_state
from tests.vm.guest.waiting import meanwhile, wait_until

SITES = 96
APART = 32  # bytes: no site under another's jump
HAMMERING = 6000  # ms
SLOWLY = 4  # sites in a batch for which nothing is remembered (REMEMBER_FROM in site.c)
LOOKUP = "kallsyms_lookup_size_offset"
ENTERED = "ip6_send_skb"
PROBES = Path("/sys/kernel/debug/kprobes/list")
TRACING = Path("/sys/kernel/tracing")


def functions(module: str) -> list[tuple[int, int]]:
    """Addresses and sizes of a loaded module's functions."""
    starts = sorted(
        {
            int(fields[0], 16)
            for fields in map(str.split, Path("/proc/kallsyms").read_text(encoding="utf-8").splitlines())
            if fields[-1] == f"[{module}]" and fields[1] in "tT"
        }
    )
    return [(start, end - start) for start, end in itertools.pairwise(starts)]


def places(text: KernelText) -> list[int]:
    """Instructions all over sctp.ko, in functions large and small, no entries."""
    found = []
    for start, size in functions("sctp"):
        last = start
        for instruction in Decoder(64, text.read(start, min(size, 4096)), ip=start):
            if instruction.ip >= last + APART:
                found.append(last := instruction.ip)
    return [found[number * len(found) // SITES] for number in range(SITES)]


def listed() -> str:
    return PROBES.read_text(encoding="utf-8")


def attach(enforcer: Enforcer, addresses: Sequence[int], batch: int) -> set[int]:
    """Attach probes that only observe, so many at a time; those that are refused."""
    enforcer.create("attaching", module="sctp")
    program = enforcer.program(constant_program(0))
    refused = set()
    for first in range(0, len(addresses), batch):
        some = addresses[first : first + batch]
        results = enforcer.try_attach(
            [Site(at, number, program, Kind.OBSERVE, Action.REPORT) for number, at in enumerate(some, first)]
        )
        refused |= {at for at, result in zip(some, results, strict=True) if result.index is None}
    return refused


def states(addresses: Sequence[int], batch: int) -> dict[int, State | None]:
    """What becomes of probes that are attached so many at a time; None where one is refused."""
    with Enforcer() as enforcer:
        refused = attach(enforcer, addresses, batch)
        assert LOOKUP not in listed()
        enforcer.commit()

        def seen() -> dict[int, State | None]:
            found: dict[int, State | None] = {stats.address: stats.state for stats in enforcer.stats()}
            return found | dict.fromkeys(refused)

        settled: list[dict[int, State | None]] = []

        def stands_still() -> bool:
            settled.append(seen())
            return len(settled) > 40 and settled[-1] == settled[-40] and State.JUMP in settled[-1].values()

        assert wait_until(stands_still)
        return settled[-1]


@pytest.fixture(scope="module")
def addresses() -> list[int]:
    subprocess.run(["modprobe", "sctp"], check=True)
    load_module("o2c")
    with KernelText() as text:
        return places(text)


@pytest.mark.timeout(240)
def test_a_batch_becomes_what_single_probes_become(addresses: list[int]) -> None:
    expected = states(addresses, SLOWLY)
    assert {State.JUMP, State.INT3} <= set(expected.values())
    assert states(addresses, SITES) == expected


@pytest.mark.timeout(120)
def test_others_miss_nothing_while_a_batch_is_attached(
    addresses: list[int], forms: Forms, verdicts: Verdicts
) -> None:
    """A probe at the look-up that ran with interrupts on would have kprobes skip the checks of what they run.  And the probe
    is there: a test of nothing would pass."""
    form = forms.all["mov_64"]
    verdicts.set(form.number, 1)
    machine, pointers = start_state(form)
    hammers = []
    with Enforcer() as confined:
        confined.create("confined", strict=True)
        confined.attach([form.site(confined.program(verdicts.program))])
        confined.commit()
        thread = threading.Thread(
            target=lambda: hammers.append(forms.hammer(form, machine.registers, pointers, HAMMERING))
        )
        seen: list[str] = []
        thread.start()
        with meanwhile([lambda: seen.append(listed())]):
            while thread.is_alive():
                with Enforcer() as enforcer:
                    attach(enforcer, addresses, SITES)
        thread.join()
        (stats,) = confined.stats()
    (hammer,) = hammers
    assert any(LOOKUP in text for text in seen)
    assert min(hammer.runs) > 100
    assert stats.missed == 0
    assert stats.denied == sum(hammer.runs)
    assert (hammer.written, hammer.wrong) == (0, 0)


@pytest.mark.timeout(120)
def test_a_probe_of_somebody_elses_at_the_look_up_lives_on(addresses: list[int]) -> None:
    """One there before us works after us, and can be taken away while and after we are there."""
    before = listed()
    for during in (False, True):
        (TRACING / "kprobe_events").write_text(f"p:o2ctest/lookup {LOOKUP}\n")
        event = TRACING / "events/o2ctest/lookup"
        (event / "enable").write_text("1")
        assert LOOKUP in listed()
        with Enforcer() as enforcer:
            thread = threading.Thread(target=attach, args=(enforcer, addresses, SITES))
            thread.start()
            if not during:
                thread.join()
            (event / "enable").write_text("0")
            thread.join()
        (TRACING / "kprobe_events").write_text("")
        assert wait_until(lambda: listed() == before)
        with Enforcer() as enforcer:
            attach(enforcer, addresses, SITES)
        assert listed() == before


@pytest.mark.timeout(60)
def test_a_return_and_an_entry_where_ftrace_has_its_place_come_and_go(forms: Forms) -> None:
    """Both at one function whose address nobody takes: a kernel with IBT has overwritten its endbr64.  A strict entry that is
    taken for a breakpoint joins the return's probe, and leaves it armed when both are gone: the next call is the end."""
    load_module("o2c")
    before = listed()
    address = next(
        int(fields[0], 16)
        for fields in map(str.split, Path("/proc/kallsyms").read_text(encoding="utf-8").splitlines())
        if fields[2] == ENTERED
    )
    with KernelText() as text:
        behind = behind_entry(text.read(address, 256))
    assert behind
    for entry, back in ((address, 0), (address + behind, behind)):
        with Enforcer() as enforcer:
            enforcer.create("entered", strict=True)
            program = enforcer.program(constant_program(0))
            enforcer.attach(
                [
                    Site(address, 1, program, Kind.RETURN, Action.REPORT, displacement=back),
                    Site(entry, 2, program, Kind.ENTRY, Action.REPORT),
                ]
            )
            enforcer.commit()
            through_ftrace = any(
                "[FTRACE]" in line and "[DISABLED]" not in line for line in listed().splitlines()
            )
            assert through_ftrace == (back == 0)
            send()
            back_hits, entry_hits = (stats.hits for stats in enforcer.stats())
            assert back_hits == entry_hits > 0
        assert wait_until(lambda: listed() == before)
        send()


def send() -> None:
    """Has ENTERED called."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("::1", 9))
