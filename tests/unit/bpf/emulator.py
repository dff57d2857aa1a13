# SPDX-License-Identifier: Apache-2.0
"""Runs programs of our objects without a kernel: an ELF reader and a BPF machine, both made only from the specification.

State (maps, rings, kernel memory, facts of the moment) is that of the reference interpreter's `Machine`, so that
runs of both can be compared; data sections are bytes here.  Stricter than the kernel where that finds mistakes: what
a call leaves in r1 to r5 cannot be used, nor stack bytes that nobody wrote.

Encoding: kernel Documentation/bpf/instruction-set.rst (6.1).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from o2cc.ir import nodes as ir
from o2cc.ir.machine import Event, Machine
from tests.unit.bpf.elf_sections import symbol_table

MASK = (1 << 64) - 1
_INSTRUCTION = struct.Struct("<BBhi")
_CONTEXT = 0x1 << 60
_STACK = 0x2 << 60
_SECTION = 0x3 << 60
_ENTRY = 0x4 << 60
_RECORD = 0x5 << 60
_MAP = 0x6 << 60
_STEP = 1 << 32
_FRAME = 512


class Fault(AssertionError):
    """What the verifier would have refused, or an instruction that this machine does not know."""


@dataclass(frozen=True)
class _Reference:
    """What a 64-bit load or a call refers to."""

    section: str
    value: int
    name: str


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class Emulator:
    """Runs the programs of an object by name."""

    def __init__(self, data: bytes, machine: Machine) -> None:
        elf = ELFFile(io.BytesIO(data))
        self.machine = machine
        self.cookie = 0
        self.code: dict[str, bytes] = {}
        self.data: dict[str, bytearray] = {}
        self.programs: dict[str, tuple[str, int]] = {}
        self._references: dict[tuple[str, int], _Reference] = {}
        self._sections: list[str] = []
        self._entries: list[tuple[ir.Map, list[int]]] = []
        self._records: list[list[int | None]] = []
        symbols = symbol_table(elf)
        for section in elf.iter_sections():
            flags = section["sh_flags"]
            if flags & 4:
                self.code[section.name] = section.data()
            elif section.name in (".rodata", ".data", ".bss"):
                self.data[section.name] = bytearray(
                    section.data() if section["sh_type"] == "SHT_PROGBITS" else section["sh_size"]
                )
        self._sections = sorted(self.data)

        def place(symbol: Any) -> _Reference:
            index = symbol["st_shndx"]
            name = "" if index == "SHN_UNDEF" else elf.get_section(index).name
            return _Reference(name, symbol["st_value"], symbol.name)

        for symbol in symbols.iter_symbols():
            reference = place(symbol)
            if reference.section in self.code and reference.section != ".text":
                self.programs[reference.name] = (reference.section, reference.value // 8)
        for section in elf.iter_sections():
            if isinstance(section, RelocationSection):
                target = elf.get_section(section["sh_info"]).name
                for relocation in section.iter_relocations():
                    key = (target, relocation["r_offset"] // 8)
                    self._references[key] = place(symbols.get_symbol(relocation["r_info_sym"]))
        self._maps = [map_.name for map_ in machine.module.maps]

    def run(self, program: str, context: bytes) -> int:
        """The 64-bit result of a program."""
        section, index = self.programs[program]
        self._context = context
        self._entries.clear()
        self._records.clear()
        self._frames: list[list[int | None]] = []
        self.executed = 0
        return self._call(section, index, [_CONTEXT])

    # --- memory -------------------------------------------------------------------------------------------

    def _place(self, address: int) -> tuple[int, int, int]:
        """Kind, number and offset of an address of this machine."""
        rest = address & ((1 << 60) - 1)
        return address >> 60, rest // _STEP, rest % _STEP

    def _load(self, address: int, size: int) -> int:
        kind, number, offset = self._place(address)
        if kind == _CONTEXT >> 60 and size == 8 and offset % 8 == 0 and offset + 8 <= len(self._context):
            return int(struct.unpack_from("<Q", self._context, offset)[0])
        if kind == _STACK >> 60:
            data = self._frames[number][offset : offset + size]
            if len(data) != size or None in data:
                raise Fault(f"stack bytes at {offset} are read and were not written")
            return int.from_bytes(bytes(b for b in data if b is not None), "little")
        if kind == _SECTION >> 60:
            section = self.data[self._sections[number]]
            if offset + size > len(section):
                raise Fault(f"load at {offset} of {self._sections[number]}")
            return int.from_bytes(section[offset : offset + size], "little")
        if kind == _ENTRY >> 60 and size == 8 and offset % 8 == 0:
            return self._entries[number][1][offset // 8]
        raise Fault(f"load of {size} bytes from {address:#x}")

    def _store(self, address: int, size: int, value: int) -> None:
        value &= (1 << 8 * size) - 1
        kind, number, offset = self._place(address)
        if kind == _STACK >> 60:
            if offset + size > _FRAME:
                raise Fault("store above the stack")
            self._frames[number][offset : offset + size] = value.to_bytes(size, "little")
        elif kind == _SECTION >> 60 and self._sections[number] != ".rodata":
            section = self.data[self._sections[number]]
            if offset + size > len(section):
                raise Fault(f"store at {offset} of {self._sections[number]}")
            section[offset : offset + size] = value.to_bytes(size, "little")
        elif kind == _ENTRY >> 60 and size == 8 and offset % 8 == 0:
            self._entries[number][1][offset // 8] = value
        elif kind == _RECORD >> 60 and size == 8 and offset % 8 == 0:
            self._records[number][offset // 8] = value
        else:
            raise Fault(f"store of {size} bytes to {address:#x}")

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        return tuple(self._load(address + 8 * i, 8) for i in range(count))

    # --- code ---------------------------------------------------------------------------------------------

    def _call(self, section: str, index: int, arguments: list[int]) -> int:
        code = self.code[section]
        self._frames.append([None] * _FRAME)
        number = len(self._frames) - 1
        registers: list[int | None] = [None, *arguments, *[None] * (9 - len(arguments))]
        registers.append(_STACK + number * _STEP + _FRAME)

        def get(register: int) -> int:
            value = registers[register]
            if value is None:
                raise Fault(f"r{register} is used and holds nothing ({section}, instruction {index})")
            return value

        while True:
            self.executed += 1
            if self.executed > 1_000_000:
                raise Fault("the program does not end")
            opcode, pair, offset, immediate = _INSTRUCTION.unpack_from(code, 8 * index)
            target, source = pair & 15, pair >> 4
            kind = opcode & 7
            here = index
            index += 1
            if opcode == 0x18:
                registers[target] = self._immediate(section, here)
                index += 1
            elif kind in (4, 7):
                bits = 64 if kind == 7 else 32
                second = get(source) if opcode & 8 else immediate
                first = 0 if opcode & 0xF0 == 0xB0 else get(target)
                registers[target] = _arithmetic(opcode & 0xF0, first, second, bits)
            elif kind == 1 and opcode & 0xE0 == 0x60:
                registers[target] = self._load((get(source) + offset) & MASK, _size(opcode))
            elif kind == 2:
                self._store((get(target) + offset) & MASK, _size(opcode), immediate)
            elif kind == 3 and opcode & 0xE0 == 0x60:
                self._store((get(target) + offset) & MASK, _size(opcode), get(source))
            elif kind == 3 and opcode & 0xE0 == 0xC0:
                self._atomic(registers, (get(target) + offset) & MASK, _size(opcode), source, immediate)
            elif opcode == 0x95:
                result = get(0)
                self._frames.pop()
                return result
            elif opcode == 0x85:
                if source == 1:
                    reference = self._references[section, here]
                    callee = reference.value // 8 + immediate + 1
                    parameters = [get(r) for r in range(1, 1 + self._parameters(reference.name))]
                    registers[0] = self._call(reference.section, callee, parameters)
                else:
                    registers[0] = self._helper(immediate, get)
                registers[1:6] = [None] * 5
            elif kind in (5, 6):
                if opcode & 0xF0 == 0:
                    index += offset
                else:
                    second = get(source) if opcode & 8 else immediate
                    if _holds(opcode & 0xF0, get(target), second, 64 if kind == 5 else 32):
                        index += offset
            else:
                raise Fault(f"unknown instruction {opcode:#x}")

    def _parameters(self, function: str) -> int:
        (found,) = [f for f in self.machine.module.functions if f.name == function]
        return len(found.parameters)

    def _immediate(self, section: str, index: int) -> int:
        low, high = (int(_INSTRUCTION.unpack_from(self.code[section], 8 * i)[3]) for i in (index, index + 1))
        reference = self._references.get((section, index))
        if reference is None:
            return (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32
        if reference.section == ".maps":
            return _MAP + self._maps.index(reference.name)
        if reference.section == "":
            # libbpf puts the address in place of the immediate: what LLVM added to it would be lost
            assert low == 0
            return self.machine.symbols.get(reference.name, 0)
        return _SECTION + self._sections.index(reference.section) * _STEP + reference.value + low

    def _atomic(self, registers: list[int | None], address: int, size: int, source: int, kind: int) -> None:
        old = self._load(address, size)
        value = registers[source]
        if value is None:
            raise Fault("an atomic instruction uses an empty register")
        changed = {0x00: old + value, 0x40: old | value, 0x50: old & value, 0xA0: old ^ value}
        if kind & ~1 in changed:
            self._store(address, size, changed[kind & ~1])
            if kind & 1:
                registers[source] = old
        elif kind == 0xF1:
            expected = registers[0]
            if expected is None:
                raise Fault("cmpxchg without r0")
            if old == expected & ((1 << 8 * size) - 1):
                self._store(address, size, value)
            registers[0] = old
        else:
            raise Fault(f"unknown atomic instruction {kind:#x}")

    def _map(self, pointer: int) -> ir.Map:
        if pointer >> 60 != _MAP >> 60:
            raise Fault("not a map")
        return self.machine.module.maps[pointer - _MAP]

    def _helper(self, number: int, get: Any) -> int:
        machine = self.machine
        if number == 1:
            map_ = self._map(get(1))
            entry = machine.maps[map_.name].lookup(self._words(get(2), len(map_.key)))
            if entry is None:
                return 0
            self._entries.append((map_, entry))
            return _ENTRY + (len(self._entries) - 1) * _STEP
        if number == 2:
            map_ = self._map(get(1))
            key, fields = self._words(get(2), len(map_.key)), self._words(get(3), len(map_.fields))
            error = machine.maps[map_.name].update(key, fields, no_replace=get(4) == 1)
            return error & 0xFFFFFFFF  # as in 6.1, where an int comes back
        if number == 3:
            map_ = self._map(get(1))
            return machine.maps[map_.name].delete(self._words(get(2), len(map_.key))) & 0xFFFFFFFF
        if number == 113:
            size = get(2)
            value = machine.memory.read(get(3), size)
            self._store(get(1), size, value or 0)
            return 0 if value is not None else -14 & MASK
        if number == 131:
            map_ = self._map(get(1))
            if get(2) != 8 * len(map_.fields) or get(3):
                raise Fault("a record of a wrong size")
            if not machine.rings[map_.name].emit((0,) * len(map_.fields)):
                return 0
            self._records.append([None] * len(map_.fields))
            return _RECORD + (len(self._records) - 1) * _STEP
        if number == 132:
            record = self._records[(get(1) - _RECORD) // _STEP]
            if None in record:
                raise Fault("a record is submitted before it is complete")
            name = next(m.name for m in machine.module.maps if m.kind is ir.MapKind.RING_BUFFER)
            machine.events.append(Event(name, tuple(word for word in record if word is not None)))
            return 0
        facts = {
            5: machine.now,
            8: machine.cpu,
            14: machine.pid_tgid,
            35: machine.task,
            109: machine.kill_result & 0xFFFFFFFF,
            174: self.cookie,
        }
        if number in facts:
            if number == 109:
                machine.killed.append(machine.pid_tgid)
            return facts[number] & MASK
        raise Fault(f"unknown helper {number}")


def _size(opcode: int) -> int:
    return {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[opcode & 0x18]


def _arithmetic(operation: int, first: int, second: int, bits: int) -> int:
    mask = (1 << bits) - 1
    a, b = first & mask, second & mask
    match operation:
        case 0x00:
            result = a + b
        case 0x10:
            result = a - b
        case 0x20:
            result = a * b
        case 0x30:
            result = a // b if b else 0
        case 0x40:
            result = a | b
        case 0x50:
            result = a & b
        case 0x60:
            result = a << (b & (bits - 1))
        case 0x70:
            result = a >> (b & (bits - 1))
        case 0x80:
            result = -a
        case 0x90:
            result = a % b if b else a
        case 0xA0:
            result = a ^ b
        case 0xB0:
            result = b
        case 0xC0:
            result = _signed(a, bits) >> (b & (bits - 1))
        case _:
            raise Fault(f"unknown arithmetic {operation:#x}")
    return result & mask


def _holds(operation: int, first: int, second: int, bits: int) -> bool:
    mask = (1 << bits) - 1
    a, b = first & mask, second & mask
    x, y = _signed(a, bits), _signed(b, bits)
    results = {
        0x10: a == b,
        0x20: a > b,
        0x30: a >= b,
        0x40: bool(a & b),
        0x50: a != b,
        0x60: x > y,
        0x70: x >= y,
        0xA0: a < b,
        0xB0: a <= b,
        0xC0: x < y,
        0xD0: x <= y,
    }
    if operation not in results:
        raise Fault(f"unknown jump {operation:#x}")
    return results[operation]
