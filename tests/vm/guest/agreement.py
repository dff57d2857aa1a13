# SPDX-License-Identifier: Apache-2.0
"""Running generated checks in the kernel and in the reference interpreter, on the same registers."""

from __future__ import annotations

import os
import random
import struct
from functools import cache
from pathlib import Path

from o2cc.bpf.info import read
from o2cc.bpf.layout import REGISTER_OFFSETS
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from tests.unit.bpf import generated
from tests.vm.guest.bpf_calls import Loaded

SOURCES = {generated.SOURCE: generated.SOURCE_TEXT}
_REGISTERS = tuple(REGISTER_OFFSETS)


def pt_regs(registers: dict[str, int]) -> bytes:
    """struct pt_regs with these registers, zero for all others."""
    return struct.pack(f"<{len(_REGISTERS)}Q", *(registers.get(name, 0) for name in _REGISTERS))


def machine_of(module: ir.Module) -> Machine:
    """A machine whose kernel memory holds the beginning of the kernel's banner, where this kernel has it."""
    made = Machine(module)
    address = _banner_address()
    made.symbols = {generated.BANNER: address}
    made.memory.write(address, f"Linux version {os.uname().release} ".encode())
    return made


@cache
def _banner_address() -> int:
    lines = Path("/proc/kallsyms").read_text().splitlines()
    (address,) = [int(line.split()[0], 16) for line in lines if line.endswith(f" {generated.BANNER}")]
    return address


def records(object_: Loaded, capacity: int = 1 << 20) -> list[tuple[int, ...]]:
    """The events that the object's programs sent."""
    return [struct.unpack("<3Q", record) for record in object_.records("events", capacity)]


def assert_alike(
    object_: Loaded, data: bytes, module: ir.Module, interpreter: Interpreter, choose: random.Random
) -> None:
    """Every site of the loaded ``data`` answers as the interpreter does, time and again on chosen registers."""
    programs = {site.number: site.program for site in read(data).sites}
    for _ in range(12):
        for site in module.sites:
            registers = generated.registers(choose)
            expected = interpreter.run_site(site.number, registers)
            got = object_.run(programs[site.number], pt_regs(registers))
            assert got == expected.value & 0xFFFFFFFF, (site, registers, expected.path)
