# SPDX-License-Identifier: Apache-2.0
"""The compiled code of generated checks does what the reference interpreter says, in both layouts.

Here on an emulated machine; tests/vm/guest/test_objects.py does the same in real kernels.
"""

from __future__ import annotations

import random
import struct

import pytest

from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import read
from o2cc.bpf.layout import REGISTER_OFFSETS, Layout
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.ir.verifier import verify
from tests.unit.bpf import generated
from tests.unit.bpf.emulator import Emulator

SOURCES = {generated.SOURCE: generated.SOURCE_TEXT}
BANNER_ADDRESS = 0xFFFFFFFF82001000


def machine(module: ir.Module) -> Machine:
    made = Machine(module, symbols={generated.BANNER: BANNER_ADDRESS})
    made.memory.write(BANNER_ADDRESS, b"Linux version 6.1.0 (somebody)")
    return made


def context(registers: dict[str, int]) -> bytes:
    return struct.pack(f"<{len(REGISTER_OFFSETS)}Q", *(registers.get(name, 0) for name in REGISTER_OFFSETS))


def table_rows(emulator: Emulator, data: bytes) -> dict[str, list[tuple[int, ...]]]:
    return {
        table.name: [
            tuple(
                int.from_bytes(emulator.data[table.section][place : place + size], "little")
                for _, offset, size in table.columns
                for place in [table.offset + row * table.stride + offset]
            )
            for row in range(table.length)
        ]
        for table in read(data).tables
    }


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("seed", range(40))
def test_compiled_checks_agree_with_the_interpreter(seed: int, layout: Layout) -> None:
    module = generated.generate(seed, checks=3, sites_each=2)
    assert verify(module) == ()
    data = emit_object(module, layout=layout, sources=SOURCES).data
    interpreter, emulator = Interpreter(machine(module)), Emulator(data, machine(module))
    random_ = random.Random(seed)
    sites = {site.number: site for site in read(data).sites}
    for _ in range(8):
        for site in module.sites:
            registers = generated.registers(random_)
            expected = interpreter.run_site(site.number, registers)
            emulator.cookie = sites[site.number].cookie or 0
            got = emulator.run(sites[site.number].program, context(registers))
            assert got == expected.value, (site, registers, expected.path)
    mine, reference = emulator.machine, interpreter.machine
    assert mine.events == reference.events
    assert {n: m.entries for n, m in mine.maps.items()} == {n: m.entries for n, m in reference.maps.items()}
    rows = table_rows(emulator, data)
    for name, state in reference.tables.items():
        columns = [column for column, _ in state.definition.columns]
        wanted = [tuple(state.load(row, c) for c in columns) for row in range(state.definition.length)]
        assert rows[name] == wanted, name
    assert any(mine.maps[name].entries for name in mine.maps)


def test_a_stray_cookie_is_denied_and_counted() -> None:
    module = generated.generate(3, checks=2, sites_each=2)
    data = emit_object(module, layout=Layout.SHAPE, sources=SOURCES).data
    emulator = Emulator(data, machine(module))
    sites = read(data).sites
    first, last = sites[0], sites[-1]
    assert first.program != last.program
    for cookie in (last.cookie, 4, 1 << 40, (1 << 64) - 1):
        emulator.cookie = cookie or 0
        assert emulator.run(first.program, context({})) == ir.Verdict.DENY.code
    assert table_rows(emulator, data)["o2c_stray_cookies"] == [(4,)]
