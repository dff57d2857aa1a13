# SPDX-License-Identifier: Apache-2.0
"""Objects in a real kernel: the verifier takes them, and they compute what the reference interpreter says."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
from pathlib import Path

import pytest

from o2cc.bpf.emit import emit_object, emit_test_object
from o2cc.bpf.info import TableInfo, read
from o2cc.bpf.layout import REGISTER_OFFSETS, Layout
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from tests.unit.bpf import generated
from tests.vm.guest.bpf_calls import Loaded, loaded

_SOURCES = {generated.SOURCE: generated.SOURCE_TEXT}
_REGISTERS = tuple(REGISTER_OFFSETS)


def _context(registers: dict[str, int]) -> bytes:
    return struct.pack(f"<{len(_REGISTERS)}Q", *(registers.get(name, 0) for name in _REGISTERS))


def _machine(module: ir.Module) -> Machine:
    """A machine whose kernel memory holds the beginning of the kernel's banner, where this kernel has it."""
    machine = Machine(module)
    lines = Path("/proc/kallsyms").read_text().splitlines()
    (address,) = [int(line.split()[0], 16) for line in lines if line.split()[2] == generated.BANNER]
    machine.symbols = {generated.BANNER: address}
    machine.memory.write(address, f"Linux version {os.uname().release} ".encode())
    return machine


def _rows(image: bytes, table: TableInfo) -> list[dict[str, int]]:
    return [
        {
            name: int.from_bytes(image[place : place + size], "little")
            for name, offset, size in table.columns
            for place in [table.offset + row * table.stride + offset]
        }
        for row in range(table.length)
    ]


def _sections(data: bytes, object_: Loaded) -> dict[str, list[dict[str, int]]]:
    """The writable tables as they are in the kernel."""
    tables = [table for table in read(data).tables if table.section != ".rodata"]
    images = {}
    for section in {table.section for table in tables}:
        size = max(table.offset + table.stride * table.length for table in tables if table.section == section)
        images[section] = object_.section(section, size)
    return {table.name: _rows(images[table.section], table) for table in tables}


@pytest.mark.parametrize("seed", range(12))
def test_the_compiled_checks_agree_with_the_interpreter(seed: int, tmp_path: Path) -> None:
    module = generated.generate(seed, checks=8, sites_each=2)
    data = emit_test_object(module, sources=_SOURCES).data
    interpreter = Interpreter(_machine(module))
    random_ = random.Random(seed)
    programs = {site.number: site.program for site in read(data).sites}
    with loaded(data, tmp_path, f"differ_{seed}") as object_:
        for _ in range(12):
            for site in module.sites:
                registers = generated.registers(random_)
                expected = interpreter.run_site(site.number, registers)
                got = object_.run(programs[site.number], _context(registers))
                assert got == expected.value & 0xFFFFFFFF, (site, registers, expected.path)
        tables = _sections(data, object_)
        for name, state in interpreter.machine.tables.items():
            if name in tables:
                columns = [column for column, _ in state.definition.columns]
                expected_rows = [
                    {column: state.load(row, column) for column in columns}
                    for row in range(state.definition.length)
                ]
                assert tables[name] == expected_rows, name
        for name, map_ in interpreter.machine.maps.items():
            definition = map_.definition
            entries = object_.entries(name, len(definition.key), len(definition.fields))
            assert entries == {key: tuple(entry) for key, entry in map_.entries.items()}, name
        records = [struct.unpack("<3Q", record) for record in object_.records("events", 1 << 20)]
        assert records == [event.fields for event in interpreter.machine.events]
        assert len(set(programs)) == len(module.sites)


@pytest.mark.parametrize("layout", list(Layout))
def test_kprobe_objects_load_with_bpftool(layout: Layout, tmp_path: Path) -> None:
    module = generated.generate(100, checks=12, sites_each=3)
    result = emit_object(module, layout=layout, sources=_SOURCES)
    with loaded(result.data, tmp_path, f"kprobe_{layout.value}") as object_:
        assert object_.log == ""  # not a word about sections that libbpf does not know, or about BTF
        assert object_.programs() == sorted(name for name, _ in result.statistics.program_instructions)


def test_the_kernel_knows_the_policy_line_of_a_program(tmp_path: Path) -> None:
    module = generated.generate(101, checks=2)
    data = emit_object(module, layout=Layout.SITE, sources=_SOURCES).data
    site = read(data).sites[1]
    with loaded(data, tmp_path, "lines") as object_:
        dump = subprocess.run(
            [
                "bpftool",
                "prog",
                "dump",
                "xlated",
                "pinned",
                object_.directory / "programs" / site.program,
                "linum",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    line = generated.SOURCE_TEXT.splitlines()[site.line - 1]
    assert re.search(rf"^; {re.escape(line)} \[file:generated\.o2c line_num:{site.line} ", dump, re.MULTILINE)
    assert f"int {site.program}(struct pt_regs * ctx):" in dump
