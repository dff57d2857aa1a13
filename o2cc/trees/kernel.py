# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled tree in the running kernel, over many vectors at once, and measures it.

A small program of type XDP calls the tree for every element of an array map (`bpf_loop`, kernels from 5.17
on) and is run by BPF_PROG_TEST_RUN; nothing is attached.  Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
Structures and numbers are those of include/uapi/linux/bpf.h and btf.h, 6.12, x86-64.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from o2cc.trees.bytecode import CALL_FUNCTION, FUNCTION, MAP_FD, MAP_VALUE, Assembler, Op
from o2cc.trees.compile import CompiledTree, Form, Subprogram
from o2cc.trees.tree import Indices, Words

SYSCALL_BPF = 321
MAP_CREATE, PROG_LOAD, PROG_TEST_RUN, OBJ_GET_INFO, BTF_LOAD = 0, 5, 10, 15, 18
MAP_TYPE_ARRAY, MAP_MMAPABLE = 2, 0x400
PROG_TYPE_XDP, XDP_PASS = 6, 2
HELPER_MAP_LOOKUP, HELPER_LOOP = 1, 181
MOST_LOOPS = 1 << 23
LOG_STATISTICS = 4
BATCH_BYTES = 32 * 2**20
PACKET = bytes(64)
LICENSE = b"GPL\0"
BTF_INT, BTF_FUNCTION, BTF_PROTOTYPE = 1, 12, 13

_libc = ctypes.CDLL(None, use_errno=True)


class KernelRunError(Exception):
    """The kernel refused something.

    `log` is what its verifier said last, one line an item; empty when the verifier was not even reached, for
    lack of rights or of BPF.
    """

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = tuple(log)


def _bpf(command: int, attributes: bytearray, what: str) -> int:
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    result = int(_libc.syscall(SYSCALL_BPF, command, buffer, len(attributes)))
    del buffer
    if result < 0:
        number = ctypes.get_errno()
        raise KernelRunError(f"{what}: {os.strerror(number)}")
    return result


def _address(data: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(data)


@dataclass(frozen=True, slots=True)
class Effort:
    """What the verifier did: instructions that it walked, and the bytes of machine code that came out."""

    processed: int
    machine_bytes: int


class ArrayMap:
    """An array map that is also memory of this process; close it, or use it as a context."""

    def __init__(self, value_bytes: int, entries: int) -> None:
        attributes = bytearray(
            struct.pack("<5I", MAP_TYPE_ARRAY, 4, value_bytes, entries, MAP_MMAPABLE).ljust(128, b"\0")
        )
        self.descriptor = _bpf(MAP_CREATE, attributes, "cannot create a map")
        size = -(-value_bytes * entries // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self.memory = mmap.mmap(self.descriptor, size)
        except OSError:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Give the map back."""
        self.memory.close()
        os.close(self.descriptor)

    def __enter__(self) -> ArrayMap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def driver(
    subprograms: Sequence[Subprogram], count: int, stride: int, vectors: int, table: int
) -> list[Subprogram]:
    """The whole program: entry, loop body, then the tree, whose first subprogram is called for each vector.

    `vectors` and `table` are descriptors of maps; an element of `vectors` has `stride` bytes, the last eight
    of which receive the outcome.
    """
    entry = Assembler()
    entry.emit(Op.MOV_IMM, 1, immediate=count)
    entry.emit(Op.LD_IMM64, 2, FUNCTION, target="each")
    entry.emit(Op.MOV_IMM, 3)
    entry.emit(Op.MOV_IMM, 4)
    entry.emit(Op.CALL, immediate=HELPER_LOOP)
    entry.emit(Op.MOV_IMM, 0, immediate=XDP_PASS)
    entry.emit(Op.EXIT)
    each = Assembler()
    each.emit(Op.STX_U32, 10, 1, -4)
    each.emit(Op.LD_IMM64, 1, MAP_FD, immediate=vectors)
    each.emit(Op.MOV_REG, 2, 10)
    each.emit(Op.ADD_IMM, 2, immediate=-4)
    each.emit(Op.CALL, immediate=HELPER_MAP_LOOKUP)
    each.emit(Op.JEQ_IMM, 0, immediate=0, target="done")
    each.emit(Op.MOV_REG, 6, 0)
    each.emit(Op.MOV_REG, 1, 0)
    each.emit(Op.CALL, src=CALL_FUNCTION, target=subprograms[0].name)
    each.emit(Op.STX_U64, 6, 0, stride - 8)
    each.label("done")
    each.emit(Op.MOV_IMM, 0)
    each.emit(Op.EXIT)
    return [
        Subprogram("entry", entry),
        Subprogram("each", each),
        *(Subprogram(part.name, _with_table(part.code, table)) for part in subprograms),
    ]


def _with_table(code: Assembler, table: int) -> Assembler:
    """The code with the table's descriptor where it loads the table's address."""
    if not any(i.src == MAP_VALUE and i.op is Op.LD_IMM64 for i in code.instructions):
        return code
    fixed = [
        replace(i, immediate=table) if i.op is Op.LD_IMM64 and i.src == MAP_VALUE else i
        for i in code.instructions
    ]
    return Assembler(fixed, code.labels, code.position)


def link(subprograms: Sequence[Subprogram]) -> tuple[bytes, list[int]]:
    """One program's bytes, and the slot at which each subprogram starts."""
    starts = {}
    position = 0
    for subprogram in subprograms:
        starts[subprogram.name] = position
        position += subprogram.code.position
    encoded = b""
    for subprogram in subprograms:
        start = starts[subprogram.name]
        encoded += subprogram.code.encode({name: place - start for name, place in starts.items()})
    return encoded, list(starts.values())


def type_information(names: Sequence[str], callback: int) -> bytes:
    """BTF with one static function for each name, which `bpf_loop` asks for; `callback` has two arguments."""
    strings = bytearray(b"\0")

    def text(name: str) -> int:
        strings.extend(name.encode() + b"\0")
        return len(strings) - len(name) - 1

    types = struct.pack("<4I", text("int"), BTF_INT << 24, 4, 1 << 24 | 32)
    types += struct.pack("<4I", text("word"), BTF_INT << 24, 8, 64)
    types += struct.pack("<5I", 0, BTF_PROTOTYPE << 24 | 1, 1, text("a"), 2)
    types += struct.pack("<7I", 0, BTF_PROTOTYPE << 24 | 2, 1, text("a"), 2, text("b"), 2)
    for number, name in enumerate(names):
        types += struct.pack("<3I", text(name), BTF_FUNCTION << 24, 4 if number == callback else 3)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + bytes(strings)


FIRST_FUNCTION_TYPE = 5


class Program:
    """A loaded program; close it, or use it as a context."""

    def __init__(self, subprograms: Sequence[Subprogram]) -> None:
        code, starts = link(subprograms)
        information = type_information([s.name for s in subprograms], callback=1)
        data = ctypes.create_string_buffer(information, len(information))
        attributes = bytearray(
            struct.pack("<QQIII", _address(data), 0, len(information), 0, 0).ljust(128, b"\0")
        )
        btf = _bpf(BTF_LOAD, attributes, "the kernel refuses the type information")
        try:
            self.descriptor = _load(code, starts, btf)
        finally:
            os.close(btf)

    def close(self) -> None:
        """Give the program back."""
        os.close(self.descriptor)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self) -> int:
        """Run it once; returns the nanoseconds that it took."""
        data = ctypes.create_string_buffer(PACKET, len(PACKET))
        attributes = bytearray(128)
        struct.pack_into("<I", attributes, 0, self.descriptor)
        struct.pack_into("<I", attributes, 8, len(PACKET))
        struct.pack_into("<Q", attributes, 16, _address(data))
        struct.pack_into("<I", attributes, 32, 1)
        _bpf(PROG_TEST_RUN, attributes, "cannot run the program")
        returned, duration = (
            struct.unpack_from("<I", attributes, 4)[0],
            struct.unpack_from("<I", attributes, 36)[0],
        )
        if returned != XDP_PASS:
            raise KernelRunError(f"the program returned {returned}, not {XDP_PASS}")
        return int(duration)

    def effort(self) -> Effort:
        """What the verifier and the JIT say of it."""
        information = ctypes.create_string_buffer(256)
        attributes = bytearray(
            struct.pack("<IIQ", self.descriptor, 256, _address(information)).ljust(128, b"\0")
        )
        _bpf(OBJ_GET_INFO, attributes, "cannot ask about the program")
        processed = struct.unpack_from("<I", information.raw, 216)[0]
        return Effort(processed, struct.unpack_from("<I", information.raw, 16)[0])


def _load(code: bytes, starts: Sequence[int], btf: int) -> int:
    functions = b"".join(struct.pack("<II", start, FIRST_FUNCTION_TYPE + n) for n, start in enumerate(starts))
    code_data = ctypes.create_string_buffer(code, len(code))
    function_data = ctypes.create_string_buffer(functions, len(functions))
    license_data = ctypes.create_string_buffer(LICENSE, len(LICENSE))
    for level in (LOG_STATISTICS, 1):
        log = ctypes.create_string_buffer(64 * 1024 if level == LOG_STATISTICS else 16 * 2**20)
        attributes = bytearray(144)
        struct.pack_into(
            "<IIQQ", attributes, 0, PROG_TYPE_XDP, len(code) // 8, _address(code_data), _address(license_data)
        )
        struct.pack_into("<IIQ", attributes, 24, level, len(log), _address(log))
        struct.pack_into("16s", attributes, 48, b"o2c_tree")
        struct.pack_into("<IIQI", attributes, 72, btf, 8, _address(function_data), len(starts))
        try:
            return _bpf(PROG_LOAD, attributes, "the verifier rejects the program")
        except KernelRunError as problem:
            if level == 1 or ctypes.get_errno() == 1:  # EPERM: asking again for a log is no use
                raise KernelRunError(
                    str(problem), log.value.decode(errors="replace").splitlines()[-20:]
                ) from None
    raise AssertionError("unreachable")


def empty_tree() -> tuple[Subprogram, ...]:
    """A tree that decides nothing: what the loop around a prediction costs."""
    code = Assembler()
    code.emit(Op.MOV_IMM, 0)
    code.emit(Op.EXIT)
    return (Subprogram("tree", code),)


class LoadedTree:
    """A compiled tree in the kernel, fed from a batch of vectors; use it as a context.

    `beside` is another one that lives longer, whose vectors this one shares: programs are compared fairly only
    over the same memory.  Raises KernelRunError when the kernel refuses, with its verifier's last lines.
    """

    def __init__(self, compiled: CompiledTree, batch: int, beside: LoadedTree | None = None) -> None:
        self.width = len(compiled.features)
        if beside is not None and self.width != beside.width:
            raise ValueError("trees that share vectors must have the same features")
        self.stride = 8 * (self.width + 1)
        self.batch = max(1, min(batch, BATCH_BYTES // self.stride, MOST_LOOPS))
        self.release = os.uname().release
        with ExitStack() as stack:
            self._elements: ArrayMap = (
                beside._elements if beside else stack.enter_context(ArrayMap(self.stride, self.batch))
            )
            table = stack.enter_context(ArrayMap(max(len(compiled.table), 8), 1))
            table.memory[: len(compiled.table)] = compiled.table
            self._maps = (self._elements.descriptor, table.descriptor)
            whole = driver(compiled.subprograms, self.batch, self.stride, *self._maps)
            self._program = stack.enter_context(Program(whole))
            self._stack = stack.pop_all()

    def __enter__(self) -> LoadedTree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def predict(self, vectors: Words) -> Indices:
        """Outcome of every vector: uint64 of shape (n, features of the compiled tree) to shape (n,)."""
        outcomes = np.zeros(len(vectors), dtype=np.int64)
        count = self.batch * self.stride // 8
        words = np.frombuffer(self._elements.memory, dtype=np.uint64, count=count).reshape(self.batch, -1)
        for start in range(0, len(vectors), self.batch):
            part = vectors[start : start + self.batch]
            words[: len(part), :-1] = part
            words[:, -1] = np.uint64(2**64 - 1)
            self._program.run()
            outcomes[start : start + len(part)] = words[: len(part), -1].astype(np.int64)
        return outcomes

    def nanoseconds_with_loop(self, seconds: float) -> float:
        """Least time of one prediction of the present vectors over several runs, the loop around it included."""
        return _time(self._program, seconds) / self.batch

    def nanoseconds(self, seconds: float = 0.3) -> float:
        """Time of one prediction of the present vectors, without the loop around it."""
        empty = CompiledTree(Form.BRANCHES, empty_tree(), tuple(range(self.width)), b"", ())
        with LoadedTree(empty, self.batch, beside=self) as loop:
            return max(0.0, self.nanoseconds_with_loop(seconds) - loop.nanoseconds_with_loop(seconds / 3))

    def effort(self) -> Effort:
        """What the verifier and the JIT say of the program."""
        return self._program.effort()


def _time(program: Program, seconds: float) -> float:
    """Least nanoseconds of one run over runs that take about `seconds` together.

    The least, since whatever else the machine does only makes a run longer.
    """
    first = max(program.run(), 1)
    runs = int(min(max(5, seconds * 1e9 / first), 5000))
    return float(min(program.run() for _ in range(runs)))
