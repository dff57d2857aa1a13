# SPDX-License-Identifier: Apache-2.0
"""What the tests of o2c.ko share: the module of single instructions, and a BPF program that denies by cookie.

The program is written by hand (there is no C compiler for BPF in the guest): it looks its verdict up in an array map,
at the index that is the site's cookie, so that a test changes verdicts while the sites stay attached.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import iced_x86
from iced_x86 import Decoder, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import NO_REGISTER, RIP, Action, EnforcerError, Kind, Site
from tests.vm.kbuild import guest_module

FORM_BUFFER = 512
PROCESS, SOFTIRQ, HARDIRQ = range(3)
RSP, R11 = 4, 11
WENT_ON, CALLED = 0x600D, 0x1234
ARITHMETIC_FLAGS = 0x8D5
DIRECTION_FLAG = 0x400

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_BPF = 321
_BPF_MAP_CREATE, _BPF_MAP_LOOKUP_ELEM, _BPF_MAP_UPDATE_ELEM, _BPF_PROG_LOAD, _BPF_OBJ_PIN = 0, 1, 2, 5, 6
_BPF_OBJ_GET_INFO_BY_FD = 15
_BPF_MAP_TYPE_ARRAY = 2
_BPF_LOG_STATS = 4  # errors and a summary, not every instruction
_BPF_PROG_TYPE_KPROBE, _BPF_PROG_TYPE_SOCKET_FILTER = 2, 1
RAW_TRACEPOINT = 17  # enum bpf_prog_type
_HELPER_MAP_LOOKUP, _HELPER_GET_ATTACH_COOKIE = 1, 174


def load_module(name: str) -> None:
    """Load one of our modules; nothing when it is there."""
    if not Path(f"/sys/module/{name}").exists():
        subprocess.run(["insmod", str(guest_module(name))], check=True)


def unload_module(name: str) -> int:
    """Exit status of rmmod."""
    return subprocess.run(["rmmod", name], check=False, capture_output=True).returncode


def bpf(command: int, attributes: bytes) -> int:
    """The system call; its result.  Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
    result = int(_LIBC.syscall(_SYS_BPF, command, buffer, len(buffer)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def array_map(value_size: int, entries: int = 1) -> int:
    """A new array map; its descriptor."""
    return bpf(_BPF_MAP_CREATE, struct.pack("<IIII", _BPF_MAP_TYPE_ARRAY, 4, value_size, entries))


def read_map(descriptor: int, value_size: int, index: int = 0) -> bytes:
    """A value of an array map."""
    key = ctypes.create_string_buffer(struct.pack("<I", index), 4)
    value = ctypes.create_string_buffer(value_size)
    bpf(
        _BPF_MAP_LOOKUP_ELEM,
        struct.pack("<IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(value), 0),
    )
    return value.raw


def write_map(descriptor: int, value: bytes, index: int = 0) -> None:
    """Set a value of an array map."""
    key = ctypes.create_string_buffer(struct.pack("<I", index), 4)
    buffer = ctypes.create_string_buffer(value, len(value))
    bpf(
        _BPF_MAP_UPDATE_ELEM,
        struct.pack("<IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(buffer), 0),
    )


def map_id(descriptor: int) -> int:
    """The id of a map."""
    info = ctypes.create_string_buffer(80)
    bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", descriptor, len(info), ctypes.addressof(info)))
    return int(struct.unpack_from("<II", info)[1])


def instruction(opcode: int, to: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """A BPF instruction."""
    return struct.pack("<BBhi", opcode, source << 4 | to, offset, immediate)


def load_program(instructions: bytes, kind: int = _BPF_PROG_TYPE_KPROBE, expected: int = 0) -> int:
    """Load a program; returns its descriptor."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    text = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(65536)
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(text),
        _BPF_LOG_STATS,
        len(log),
        ctypes.addressof(log),
        0,
        0,
        b"o2c_test",
        0,
        expected,
    )
    try:
        return bpf(_BPF_PROG_LOAD, attributes)
    except OSError as error:
        raise OSError(error.errno, f"{error}: {log.value.decode()}") from None


def constant_program(verdict: int, kind: int = _BPF_PROG_TYPE_KPROBE) -> int:
    """A program that returns `verdict`."""
    return load_program(instruction(0xB7, 0, immediate=verdict) + instruction(0x95), kind)


def socket_filter() -> int:
    """A program of a type that must be refused."""
    return constant_program(0, _BPF_PROG_TYPE_SOCKET_FILTER)


def pin(descriptor: int, path: Path) -> None:
    """Pin a program in bpffs."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(_BPF_OBJ_PIN, struct.pack("<QII", ctypes.addressof(name), descriptor, 0))


class Verdicts:
    """A program whose verdict for a cookie can be set (0 at first)."""

    def __init__(self, entries: int = 1024) -> None:
        self.map = array_map(4, entries)
        self.program = load_program(
            instruction(0x85, immediate=_HELPER_GET_ATTACH_COOKIE)
            + instruction(0x63, 10, 0, -4)  # *(u32 *)(r10 - 4) = r0
            + instruction(0x18, 1, 1, 0, self.map)  # r1 = map
            + instruction(0)
            + instruction(0xBF, 2, 10)  # r2 = r10 - 4
            + instruction(0x07, 2, immediate=-4)
            + instruction(0x85, immediate=_HELPER_MAP_LOOKUP)
            + instruction(0x15, 0, 0, 1, 0)  # if r0 == 0 goto exit
            + instruction(0x61, 0, 0)  # r0 = *(u32 *)r0
            + instruction(0x95)
        )

    def set(self, cookie: int, verdict: int) -> None:
        write_map(self.map, struct.pack("<I", verdict), cookie)

    def close(self) -> None:
        os.close(self.program)
        os.close(self.map)


class Shadow:
    """An owner shadow (a byte for each page frame of the first 8 GiB) and a program that uses it."""

    FRAMES = 2 << 20

    def __init__(self) -> None:
        self.map = array_map(self.FRAMES)
        self.program = load_program(
            instruction(0x18, 1, 2, 0, self.map)  # r1 = address of the map's value
            + instruction(0)
            + instruction(0x71, 0, 1)  # r0 = *(u8 *)r1
            + instruction(0xB7, 0)
            + instruction(0x95)
        )
        self.id = map_id(self.map)

    def _read(self) -> bytes:
        return read_map(self.map, self.FRAMES)

    def owner(self, frame: int) -> int:
        return self._read()[frame]

    def owners(self, frames: Iterable[int]) -> set[int]:
        shadow = self._read()
        return {shadow[frame] for frame in frames}

    def values(self) -> set[int]:
        """All bytes that occur."""
        return set(self._read())

    def owned(self) -> int:
        """How many frames have an owner."""
        return self.FRAMES - self._read().count(0)

    def close(self) -> None:
        os.close(self.program)
        os.close(self.map)


@dataclass(frozen=True)
class Form:
    """One instruction of the test module."""

    number: int
    name: str
    address: int
    function: int
    target: int
    code: bytes

    @property
    def instruction(self) -> Instruction:
        return Decoder(64, self.code, ip=self.address).decode()

    def kind(self) -> Kind:
        """The kind of site, as a compiler would tell it from the decoded instruction."""
        name = self.name
        if name.startswith("call"):
            return Kind.CALL if name == "call_direct" else Kind.ICALL
        if name.startswith("jump"):
            return Kind.TAIL_JUMP if name == "jump_direct" else Kind.IJUMP
        if self.instruction.is_string_instruction:
            return Kind.STRING
        for memory in InstructionInfoFactory().info(self.instruction).used_memory():
            if memory.access in (OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE):
                return Kind.RMW
        return Kind.STORE

    def site(self, program: int, cookie: int | None = None, **changes: Any) -> Site:
        """The site as a compiler would describe it; `changes` replace members."""
        instruction = self.instruction
        kind = self.kind()
        site = Site(
            address=self.address,
            cookie=self.number if cookie is None else cookie,
            program=program,
            kind=kind,
            action=Action.DENY,
            code=self.code[: instruction.len],
            tail=self.name.startswith("jump"),
        )
        if kind in (Kind.STORE, Kind.RMW, Kind.STRING):
            size = iced_x86.MemorySizeExt.size(instruction.memory_size)
            if kind is Kind.STRING:
                site = replace(site, base=7, size=size)
            else:
                site = _with_operand(replace(site, size=size), instruction)
        return replace(site, **changes)


def _number(register: Any) -> int:
    if register == Register.NONE:
        return NO_REGISTER
    if register == Register.RIP:
        return RIP
    return int(iced_x86.RegisterExt.number(register))


def _with_operand(site: Site, instruction: Instruction) -> Site:
    memory = any(instruction.op_kind(i) == OpKind.MEMORY for i in range(instruction.op_count))
    if not memory:
        return site
    index = _number(instruction.memory_index)
    displacement = instruction.memory_displacement
    if instruction.memory_base == Register.RIP:
        displacement -= instruction.next_ip
    displacement = (displacement + 2**31) % 2**32 - 2**31
    return replace(
        site,
        base=_number(instruction.memory_base),
        index=index,
        scale=0 if index == NO_REGISTER else instruction.memory_index_scale,
        displacement=displacement,
    )


def detach_what_is_left(*names: str) -> None:
    """Take compartments of these names out, those that there are."""
    for name in names:
        try:
            with Enforcer() as kept:
                kept.open(name)
                kept.detach()
        except EnforcerError:
            continue  # none was left


class _FormInfo(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
        ("target", ctypes.c_uint64),
        ("name", ctypes.c_char * 40),
        ("bytes", ctypes.c_uint8 * 16),
    )


class _FormRun(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint32),
        ("context", ctypes.c_uint32),
        ("registers", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_uint64),
        ("pointers", ctypes.c_uint64),
        ("per_cpu", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("vector", ctypes.c_uint8 * 16),
        ("buffer", ctypes.c_uint8 * FORM_BUFFER),
    )


class _FormHammer(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint32),
        ("milliseconds", ctypes.c_uint32),
        ("registers", ctypes.c_uint64 * 16),
        ("pointers", ctypes.c_uint64),
        ("runs", ctypes.c_uint64 * 3),
        ("written", ctypes.c_uint64),
        ("wrong", ctypes.c_uint64),
    )


def _ioctl(descriptor: int, number: int, argument: ctypes.Structure) -> None:
    request = 3 << 30 | ctypes.sizeof(argument) << 16 | ord("F") << 8 | number
    if _LIBC.ioctl(descriptor, ctypes.c_ulong(request), ctypes.byref(argument)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@dataclass(frozen=True)
class Machine:
    """Registers (hardware numbers; rsp's is a stack slot's), flags and memory, before or after an instruction."""

    registers: tuple[int, ...]
    flags: int
    memory: bytes
    per_cpu: int = 0
    calls: int = 0

    @property
    def went_on(self) -> bool:
        return self.registers[R11] == WENT_ON


class Forms:
    """The test module's device."""

    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Load the module and open its device, also once more after `close`."""
        load_module("o2c_forms")
        self.descriptor = os.open("/dev/o2c_forms", os.O_RDWR | os.O_CLOEXEC)
        self.all: dict[str, Form] = {}
        while True:
            info = _FormInfo(number=len(self.all))
            try:
                _ioctl(self.descriptor, 0, info)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                break
            name = info.name.decode()
            self.all[name] = Form(
                info.number, name, info.address, info.function, info.target, bytes(info.bytes)
            )

    def runnable(self) -> list[Form]:
        return [form for form in self.all.values() if not form.name.startswith("refused_")]

    def close(self) -> None:
        os.close(self.descriptor)

    def ioctl(self, number: int, argument: ctypes.Structure) -> None:
        _ioctl(self.descriptor, number, argument)

    def run(
        self,
        form: Form,
        before: Machine,
        pointers: int,
        context: int = PROCESS,
        vector: bytes = bytes(range(16)),
    ) -> Machine:
        """Run one instruction; registers in the bit mask `pointers` are offsets into the memory."""
        request = _FormRun(
            number=form.number,
            context=context,
            registers=(ctypes.c_uint64 * 16)(*before.registers),
            flags=before.flags,
            pointers=pointers,
            per_cpu=before.per_cpu,
            vector=(ctypes.c_uint8 * 16)(*vector),
            buffer=(ctypes.c_uint8 * FORM_BUFFER)(*before.memory),
        )
        _ioctl(self.descriptor, 1, request)
        return Machine(
            tuple(request.registers),
            request.flags & (ARITHMETIC_FLAGS | DIRECTION_FLAG),
            bytes(request.buffer),
            request.per_cpu,
            request.calls,
        )

    def hammer(self, form: Form, registers: tuple[int, ...], pointers: int, milliseconds: int) -> _FormHammer:
        request = _FormHammer(
            number=form.number,
            milliseconds=milliseconds,
            registers=(ctypes.c_uint64 * 16)(*registers),
            pointers=pointers,
        )
        _ioctl(self.descriptor, 2, request)
        return request


def start_state(form: Form, flags: int = 0, seed: int = 0) -> tuple[Machine, int]:
    """Registers and memory that suit the form, and the mask of registers that are pointers."""
    memory = bytearray((7 * i + 13 * seed + 1) % 251 + 1 for i in range(FORM_BUFFER))
    registers = [0x1111_0000_0000_0000 + 0x0101 * number + seed for number in range(16)]
    registers[R11] = 0
    registers[1] = 0x8877_6655_4433_2211 + seed
    pointers = {7}
    registers[7] = 0x80
    name = form.name
    if form.instruction.is_string_instruction:
        registers[1] = 5 + seed % 3
        registers[6] = 0x10
        registers[7] = 0x100
        pointers = {6, 7}
    elif name.startswith(("call", "jump")):
        pointers = set()
        registers[0] = form.target
    elif name == "mov_negative":
        registers[2], pointers = 0x80, {2}
    elif name in ("mov_index", "mov_index_displaced", "add_index_gs_free"):
        registers[2] = 3
    elif name == "mov_index_only":
        registers[2], pointers = 0x40, {2}
    elif name.startswith(("bts", "btr", "btc")):
        registers[1] = 137 + seed
    elif name in ("cmpxchg8b", "cmpxchg16b"):
        half = 8 if name == "cmpxchg16b" else 4
        if seed % 2 == 0:
            registers[0] = int.from_bytes(memory[0x80 : 0x80 + half], "little")
            registers[2] = int.from_bytes(memory[0x80 + half : 0x80 + 2 * half], "little")
    elif name.startswith(("cmpxchg", "retry")) and seed % 2 == 0:
        registers[0] = int.from_bytes(memory[0x80:0x88], "little")
    elif name.startswith("mov_"):
        for other, number in {"rax": 0, "rbx": 3, "rbp": 5, "r8": 8, "r12": 12, "r13": 13, "r15": 15}.items():
            if name == f"mov_{other}":
                registers[number], pointers = 0x80, {number}
    mask = sum(1 << number for number in pointers)
    return Machine(tuple(registers), flags, bytes(memory), per_cpu=0x7777_0000 + seed), mask


def text_of(form: Form, length: int = 16) -> bytes:
    """What stands at the instruction now, read through /proc/kcore's file of the kernel's text: the module itself."""
    descriptor = os.open("/dev/o2c_forms", os.O_RDWR | os.O_CLOEXEC)
    try:
        info = _FormInfo(number=form.number)
        _ioctl(descriptor, 0, info)
        return bytes(info.bytes)[:length]
    finally:
        os.close(descriptor)
