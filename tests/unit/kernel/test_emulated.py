# SPDX-License-Identifier: Apache-2.0
"""Generated functions are run in an emulator, and what the scanner claims is compared with what happens.

Checked at every store: the address, the frame address or its bounds, the stack height, and that a value number
means the same 64-bit number until what defines it runs again.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import unicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from o2cc.kernel.description import Function, Site
from o2cc.kernel.elf import read_elf

from .build import analyse, assemble, layout_of

CODE, DATA, STACK = 0x100000, 0x200000, 0x300000
SIZE = 0x10000
POOL = ("rax", "rbx", "rdx", "rsi", "rdi", "rbp", "r8", "r12", "r13", "r14")
ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
FRAME = 0x40

registers = st.sampled_from(POOL)
offsets = st.integers(-4, 4).map(lambda number: number * 8)
slots = st.integers(0, FRAME // 8 - 1).map(lambda number: number * 8)

# `{d}` is the bytes pushed since the frame was made: stores to the frame stay inside of it.
simple = st.one_of(
    st.builds(lambda a, b: f"mov {a}, {b}", registers, registers),
    st.builds(lambda a, b, c: f"lea {a}, [{b} {c:+d}]", registers, registers, offsets),
    st.builds(lambda a, c: f"add {a}, {c}", registers, offsets),
    st.builds(lambda a, c: f"sub {a}, {c}", registers, offsets),
    st.builds(lambda a, b, c: f"mov {a}, [{b} {c:+d}]", registers, registers, offsets),
    st.builds(lambda a, b, c: f"mov [{b} {c:+d}], {a}", registers, registers, offsets),
    st.builds(lambda a, k: f"mov [rsp + {{d}} + {k}], {a}", registers, slots),
    st.builds(lambda a, k: f"mov {a}, [rsp + {{d}} + {k}]", registers, slots),
    st.builds(lambda a, k: f"lea {a}, [rsp + {{d}} + {k}]", registers, slots),
    st.builds(lambda a: f"mov {a}, 0x208000", registers),
    st.builds(lambda a, b: f"xchg {a}, {b}", registers, registers),
    st.builds(lambda a, b: f"test al, 8\ncmove {a}, {b}", registers, registers),
    st.just("call helper"),
)
# What tells wrong claims apart: a slot, something that may change it, and a store through what is reloaded.
telling = st.one_of(
    st.builds(lambda a, b: f"mov [{a}], {b}", registers, registers),
    st.builds(lambda a, b, k: f"mov {a}, [rsp + {{d}} + {k}]\nmov [{a}], {b}", registers, registers, slots),
    st.builds(
        lambda a, b, k: (
            f"mov [rsp + {{d}} + {k}], {a}\nlea rdi, [rsp + {{d}} + {k}]\ncall helper\n"
            f"mov {b}, [rsp + {{d}} + {k}]\nmov [{b}], {a}\nmov [rax], {b}"
        ),
        registers,
        registers,
        slots,
    ),
    st.builds(
        lambda a, b, c, k: (
            f"mov [rsp + {{d}} + {k}], {a}\nmov [{a}], {a}\nlea {b}, [rsp + {{d}} + {k}]\n"
            f"test bl, 64\ncmovne {b}, {c}\nmov [{b}], {c}\nmov {a}, [rsp + {{d}} + {k}]\nmov [{a}], {b}"
        ),
        registers,
        registers,
        registers,
        slots,
    ),
    st.builds(
        lambda a, b, k: (
            f"mov [rsp + {{d}} + {k}], {a}\nmov [{a}], {a}\nmov [rsp + {{d}} + {k}], {b}\n"
            f"mov {a}, [rsp + {{d}} + {k}]\nmov [{a}], {b}"
        ),
        registers,
        registers,
        slots,
    ),
    st.builds(
        lambda a, b, k: (
            f"mov [rsp + {{d}} + {k}], {a}\nmov [{a}], {a}\nmov dword ptr [rsp + {{d}} + {k}], 0x203000\n"
            f"mov {b}, [rsp + {{d}} + {k}]\nmov [{b}], {a}"
        ),
        registers,
        registers,
        slots,
    ),
)
# Two ways that leave different values in a register and in a slot, in turn within one run if it is repeated.
branching = st.builds(
    lambda a, b, c, d, k: [
        (
            "if",
            [f"mov {a}, {b}", f"mov [rsp + {{d}} + {k}], {b}", f"add {d}, 8"],
            [f"mov {a}, {c}", f"mov [rsp + {{d}} + {k}], {c}", f"add {d}, 8"],
        ),
        f"mov [{a}], {b}",
        f"mov {c}, [rsp + {{d}} + {k}]\nmov [{c}], {a}",
    ],
    registers,
    registers,
    registers,
    registers,
    slots,
)
steps = st.one_of(simple, simple, telling)


def nested(inner: st.SearchStrategy[list[object]]) -> st.SearchStrategy[list[object]]:
    return st.lists(
        st.one_of(
            steps,
            branching,
            st.tuples(st.just("if"), inner, inner),
            st.tuples(st.just("loop"), inner),
            st.tuples(st.just("push"), registers, inner, registers),
        ),
        min_size=1,
        max_size=8,
    )


programs = st.recursive(st.lists(steps, min_size=1, max_size=8), nested, max_leaves=10)
prologues = st.sampled_from(("plain", "saves", "rounded"))


@dataclass
class Writer:
    """Turns a generated program into assembler text."""

    lines: list[str] = field(default_factory=list)
    labels: int = 0

    def write(self, program: object, depth: int) -> None:
        items: list[Any] = program if isinstance(program, list) else [program]
        for item in items:
            if isinstance(item, list):
                self.write(item, depth)
                continue
            if isinstance(item, str):
                self.lines.append(item.replace("{d}", str(depth)))
                continue
            label = f".Lgen{self.labels}"
            self.labels += 1
            if item[0] == "if":
                self.lines.append(f"test {POOL[self.labels % 3]}, 0x18\nje {label}else")
                self.write(item[1], depth)
                self.lines.append(f"jmp {label}end\n{label}else:")
                self.write(item[2], depth)
                self.lines.append(f"{label}end:")
            elif item[0] == "loop":
                # r15 counts, saved around inner loops.
                self.lines.append(f"push r15\nmov r15d, 3\n{label}:")
                self.write(item[1], depth + 8)
                self.lines.append(f"dec r15d\njne {label}\npop r15")
            else:
                self.lines.append(f"push {item[1]}")
                self.write(item[2], depth + 8)
                self.lines.append(f"pop {item[3]}")


def program_text(program: object, prologue: str) -> str:
    writer = Writer()
    writer.write(program, 0)
    body = "\n".join(writer.lines)
    before, after = {
        "plain": (f"sub rsp, {FRAME}", f"add rsp, {FRAME}"),
        "saves": (f"push rbx\npush r12\nsub rsp, {FRAME}", f"add rsp, {FRAME}\npop r12\npop rbx"),
        "rounded": (
            f"push r11\nlea r11, [rsp + 8]\nand rsp, -32\npush r11\nsub rsp, {FRAME}",
            f"add rsp, {FRAME}\npop r11\nlea rsp, [r11 - 8]\npop r11",
        ),
    }[prologue]
    helper = (
        ".type helper, @function\nhelper:\nmov [rdi], rsi\nmov rax, 0x204000\nmov rcx, rax\nmov rdx, rax\n"
        "lea rsi, [rax + 64]\nmov rdi, rsi\nmov r8, rax\nmov r9, rax\nmov r10, rax\nmov r11, rax\nret\n.size helper, .-helper\n"
    )
    return f".text\n{helper}.globl f\n.type f, @function\nf:\n{before}\nbody:\n{body}\n{after}\nret\n.size f, .-f\n"


class Run:
    """One run of `f`, with the claims checked as it goes."""

    def __init__(self, text: str, shift: int = 0) -> None:
        self.functions = {item.name: item for item in analyse(text)}
        self.described: Function = self.functions["f"]
        layout = layout_of(text)
        code = next(section for section in layout.sections if section.name == ".text")
        self.start = CODE + self.described.offset
        self.helper = CODE + self.functions["helper"].offset
        self.body = CODE + next(
            symbol.value for symbol in read_elf(assemble(text), "f").symbols if symbol.name == "body"
        )
        self.frame: range | None = None
        self.stores = self.astray = False
        self.machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        for address in (CODE, DATA, STACK):
            self.machine.mem_map(address, SIZE)
        # Every word of memory is a pointer into the data, so that any loaded value can be followed.
        self.machine.mem_write(CODE, code.content)
        words = b"".join(
            (DATA + 0x4000 + index * 24 % 0x6000 // 8 * 8).to_bytes(8, "little") for index in range(SIZE // 8)
        )
        self.machine.mem_write(DATA, words)
        self.machine.mem_write(STACK, words)
        self.entry_rsp = STACK + 0x8008 + shift
        self.stack = range(STACK, STACK + SIZE)
        self.machine.mem_write(self.entry_rsp, (CODE + SIZE - 16).to_bytes(8, "little"))
        for index, register in enumerate((*POOL, "rcx", "r9", "r10", "r11", "r15")):
            self.machine.reg_write(self.constant(register), DATA + 0x5000 + 0x108 * index)
        self.machine.reg_write(x86.UC_X86_REG_RSP, self.entry_rsp)
        self.initial = {register: self.register(register) for register in ARGUMENTS}
        self.held: dict[int, int] = {}
        self.defined_at: dict[int, list[int]] = {}
        for number, source in enumerate(self.described.values):
            if source.kind in ("call", "load", "merge", "unknown"):
                self.defined_at.setdefault(source.site, []).append(number)
        self.expected: tuple[Site, int] | None = None
        self.checked = 0
        self.failures: list[str] = []

    @staticmethod
    def constant(register: str) -> int:
        return int(getattr(x86, f"UC_X86_REG_{register.upper()}"))

    def register(self, register: str) -> int:
        return int(self.machine.reg_read(self.constant(register)))

    def execute(self) -> None:
        self.machine.hook_add(unicorn.UC_HOOK_CODE, self.before)
        self.machine.hook_add(unicorn.UC_HOOK_MEM_WRITE, self.on_write)
        self.machine.emu_start(self.start, CODE + SIZE - 16, count=5000)

    def before(self, machine: unicorn.Uc, address: int, size: int, data: object) -> None:
        self.expected = None
        if self.astray:
            return
        if address == self.body and self.frame is None:
            self.frame = range(self.register("rsp"), self.register("rsp") + FRAME)
        self.stores = address == self.helper
        offset = address - self.start
        if not 0 <= offset < self.described.size:
            return
        # A value that is defined here means another number from now on. A merge is defined when its block is
        # entered; the others by an instruction, after which their register is read.
        for number in self.defined_at.get(offset, ()):
            self.held.pop(number, None)
        site = self.described.site_by_offset.get(offset)
        if site is None:
            return
        rsp = self.register("rsp")
        if site.stack_height is not None and self.entry_rsp - rsp != site.stack_height:
            self.failures.append(
                f"+{offset:#x}: stack height {self.entry_rsp - rsp:#x}, not {site.stack_height:#x}"
            )
        operand = site.operand
        if operand is None or not site.writes or operand.base is None:
            return
        self.stores = True
        base = self.register(operand.base)
        self.expected = (site, base + operand.displacement)
        if site.value is None or site.value_source is None:
            return
        number = (base - site.value_offset) % (1 << 64)
        kind = site.value_source.kind
        if kind == "stack" and number != self.entry_rsp:
            self.failures.append(f"+{offset:#x}: not relative to the entry stack pointer")
        if kind == "argument" and number != self.initial[ARGUMENTS[site.value_source.number]]:
            self.failures.append(f"+{offset:#x}: not argument {site.value_source.number}")
        if kind == "constant" and number != site.value_source.number:
            self.failures.append(f"+{offset:#x}: not the constant {site.value_source.number:#x}")
        if self.held.setdefault(site.value, number) != number:
            self.failures.append(f"+{offset:#x}: value {site.value} ({kind}) is two numbers")

    def on_write(
        self, machine: unicorn.Uc, access: int, address: int, size: int, value: int, data: object
    ) -> None:
        if self.stores and self.frame is not None and address in self.stack and address not in self.frame:
            # Correct code does not write onto saved registers, return addresses or what it pushed.
            self.machine.emu_stop()
            self.astray = True
            return
        if self.expected is None:
            return
        site, expected = self.expected
        self.expected = None
        self.checked += 1
        place = address - self.entry_rsp
        if address != expected or size != site.size:
            self.failures.append(
                f"+{site.offset:#x}: writes {size} bytes at {address:#x}, not at {expected:#x}"
            )
        if site.frame_offset is not None and place != site.frame_offset:
            self.failures.append(f"+{site.offset:#x}: frame address {place:#x}, not {site.frame_offset:#x}")
        if site.frame_range is not None and not site.frame_range[0] <= place <= site.frame_range[1] - size:
            self.failures.append(f"+{site.offset:#x}: frame address {place:#x} outside {site.frame_range}")


@settings(
    max_examples=160, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(programs, prologues, st.sampled_from((0, 8, 16, 24)))
def test_claims_hold_when_generated_code_runs(program: object, prologue: str, shift: int) -> None:
    run = Run(program_text(program, prologue), shift)
    # A program may go astray (a wild pointer after arithmetic); what it did until then was checked.
    with contextlib.suppress(unicorn.UcError):
        run.execute()
    assert not run.failures


def test_the_comparison_notices_what_is_wrong() -> None:
    run = Run(program_text(["mov [rsp + {d} + 8], rdi", "mov [rsi + 8], rdi"], "saves"))
    run.execute()
    assert (run.checked, run.failures) == (2, [])
    run = Run(program_text(["mov [rsp + {d} + 8], rdi"], "plain"))
    run.entry_rsp += 8
    run.execute()
    assert run.failures
