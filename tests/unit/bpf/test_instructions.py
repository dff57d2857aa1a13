# SPDX-License-Identifier: Apache-2.0
"""Instructions that depend on the moment or the context, and what the generated modules cover."""

from __future__ import annotations

import io
import struct
from typing import Any, get_args

import pytest
from elftools.elf.elffile import ELFFile

from o2cc.bpf.emit import emit_object
from o2cc.bpf.layout import REGISTER_OFFSETS, Layout
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.machine import Machine
from o2cc.ir.walk import Body, instructions
from tests.unit.bpf import generated
from tests.unit.bpf.elf_sections import section_named
from tests.unit.bpf.emulator import Emulator


def run_hook(code: Builder, kind: ir.HookKind, context: bytes, **facts: Any) -> tuple[int, Machine]:
    module = ir.Module("one", (), hooks=(ir.Hook("hook", kind, "target", code.finish()),))
    machine = Machine(module, **facts)
    emulator = Emulator(emit_object(module, layout=Layout.SITE, sources={}).data, machine)
    return emulator.run("hook", context), machine


def test_generated_checks_use_every_instruction_that_does_not_depend_on_the_moment() -> None:
    bodies: list[Body] = []
    for seed in range(40):
        module = generated.generate(seed, checks=3)
        bodies.extend(module.functions)
        bodies.extend(module.checks)
    used = {type(instruction) for body in bodies for instruction in instructions(body)}
    assert used == set(get_args(ir.Instruction)) - {ir.Argument, ir.Helper}


@pytest.mark.parametrize(
    "register", [name for name in REGISTER_OFFSETS if name not in ("orig_rax", "cs", "ss")]
)
def test_each_register_is_read_from_its_place_in_pt_regs(register: str) -> None:
    code = Builder()
    code.give_back(code.register(register))
    context = struct.pack("<21Q", *range(1000, 1021))
    # arch/x86/include/asm/ptrace.h, the fields of struct pt_regs in order
    fields = [
        "r15",
        "r14",
        "r13",
        "r12",
        "rbp",
        "rbx",
        "r11",
        "r10",
        "r9",
        "r8",
        "rax",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "orig_rax",
        "rip",
        "cs",
        "flags",
        "rsp",
        "ss",
    ]
    value, _ = run_hook(code, ir.HookKind.KPROBE, context)
    assert value == 1000 + fields.index(register)


@pytest.mark.parametrize("index", [0, 1, 5, 11])
def test_arguments_of_a_raw_tracepoint(index: int) -> None:
    code = Builder()
    code.give_back(code.argument(index))
    value, _ = run_hook(code, ir.HookKind.RAW_TRACEPOINT, struct.pack("<12Q", *range(7, 19)))
    assert value == 7 + index


@pytest.mark.parametrize(
    ("kind", "facts", "expected"),
    [
        (ir.HelperKind.NOW, {"now": 123456789012345}, 123456789012345),
        (ir.HelperKind.CPU, {"cpu": 3}, 3),
        (ir.HelperKind.TASK, {"task": 0xFFFF888012345678}, 0xFFFF888012345678),
        (ir.HelperKind.PID_TGID, {"pid_tgid": 5 << 32 | 6}, 5 << 32 | 6),
        (ir.HelperKind.KILL, {"kill_result": 2**64 - 1}, 2**64 - 1),
    ],
)
def test_facts_of_the_moment(kind: ir.HelperKind, facts: dict[str, int], expected: int) -> None:
    code = Builder()
    code.give_back(code.helper(kind))
    value, machine = run_hook(code, ir.HookKind.SYSCALL, b"", **facts)
    assert value == expected
    assert machine.killed == ([0] if kind is ir.HelperKind.KILL else [])


def test_a_symbol_that_the_kernel_lacks_is_zero() -> None:
    code = Builder()
    code.give_back(code.binary(ir.BinaryOperator.EQ, code.symbol("no_such_symbol"), 0))
    value, _ = run_hook(code, ir.HookKind.SYSCALL, b"")
    assert value == 1


def test_what_is_added_to_a_symbol_is_not_lost() -> None:
    code = Builder()
    address = code.symbol("page_offset_base")
    code.give_back(code.binary(ir.BinaryOperator.ADD, address, 24))
    value, _ = run_hook(code, ir.HookKind.SYSCALL, b"", symbols={"page_offset_base": 4096})
    assert value == 4120


def test_fields_of_an_entry_are_read_and_written_in_their_order() -> None:
    """Catches a length that LLVM reads before the start that it belongs to, while another processor writes both."""
    code = Builder()
    entry = code.lookup("ranges", 7)
    there, none = code.label("there"), code.label("none")
    code.branch(entry, there, none)
    code.start(there)
    start = code.entry_load(entry, "ranges", "start")
    length = code.entry_load(entry, "ranges", "length")
    again = code.entry_load(entry, "ranges", "start")
    for field in ("length", "start", "length"):
        code.entry_store(entry, "ranges", field, 0)
    same = code.binary(ir.BinaryOperator.EQ, start, again)
    code.give_back(code.binary(ir.BinaryOperator.AND, code.add(start, length), same))
    code.start(none)
    code.give_back(0)
    ranges = ir.Map("ranges", ir.MapKind.HASH, ("key",), ("start", "length"), 16)
    hook = ir.Hook("hook", ir.HookKind.RAW_TRACEPOINT, "kfree", code.finish())
    module = ir.Module("one", (), hooks=(hook,), maps=(ranges,))
    elf = ELFFile(io.BytesIO(emit_object(module, layout=Layout.SITE, sources={}).data))
    found = list[tuple[str, int]]()
    frame = 10
    for opcode, registers, offset, _ in struct.iter_unpack(
        "<BBhi", section_named(elf, "raw_tracepoint/kfree").data()
    ):
        if opcode == 0x79 and registers >> 4 != frame:  # BPF_LDX | BPF_MEM | BPF_DW
            found.append(("read", offset))
        elif opcode in (0x7A, 0x7B) and registers & 15 != frame:  # BPF_ST, BPF_STX
            found.append(("write", offset))
    assert found == [
        *(("read", offset) for offset in (0, 8, 0)),
        *(("write", offset) for offset in (8, 0, 8)),
    ]
