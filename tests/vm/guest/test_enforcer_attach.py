# SPDX-License-Identifier: Apache-2.0
"""Attaching a batch remembers which function the kernel looks up (bpf_runtime/module/lookup.c): nothing else changes by it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from iced_x86 import Decoder

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import Action, Kind, Site, State
from o2cc.runtime.kernel_text import KernelText
from tests.vm.guest.enforcer_support import constant_program, load_module
from tests.vm.guest.waiting import wait_until

SITES = 96
APART = 32  # bytes: no site under another's jump
SLOWLY = 4  # sites in a batch for which nothing is remembered (REMEMBER_FROM in site.c)
LOOKUP = "kallsyms_lookup_size_offset"


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


def states(addresses: Sequence[int], batch: int) -> dict[int, State | None]:
    """What becomes of probes that are attached so many at a time; None where one is refused."""
    with Enforcer() as enforcer:
        enforcer.create("attaching", module="sctp")
        program = enforcer.program(constant_program(0))
        refused = set()
        for first in range(0, len(addresses), batch):
            some = addresses[first : first + batch]
            results = enforcer.try_attach(
                [
                    Site(at, number, program, Kind.OBSERVE, Action.REPORT)
                    for number, at in enumerate(some, first)
                ]
            )
            refused |= {at for at, result in zip(some, results, strict=True) if result.index is None}
        assert LOOKUP not in Path("/sys/kernel/debug/kprobes/list").read_text(encoding="utf-8")
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


@pytest.mark.timeout(240)
def test_a_batch_becomes_what_single_probes_become() -> None:
    subprocess.run(["modprobe", "sctp"], check=True)
    load_module("o2c")
    with KernelText() as text:
        addresses = places(text)
    expected = states(addresses, SLOWLY)
    assert {State.JUMP, State.INT3} <= set(expected.values())
    assert states(addresses, SITES) == expected
