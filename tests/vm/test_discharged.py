# SPDX-License-Identifier: Apache-2.0
"""The discharged stores of a real module, against runs of its real machine code in an emulator.

No kernel is booted: each function of sctp that has discharged stores runs alone, with arbitrary registers and
memory; calls are stepped over and may return anything.  At each discharged store the address that the registers
give is compared with what the proof says: inside the frame, or allowed since the last call.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import unicorn
from unicorn import x86_const as x86

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Block, Function, Site
from o2cc.kernel.elf import read_elf
from o2cc.kernel.kernels import open_kernel, read_module
from o2cc.kernel.layout import module_layout
from o2cc.kernel.scan import scan_module
from o2cc.passes.checked_before import HARMLESS
from o2cc.passes.manager import Pass, PassContext, run_pipeline
from o2cc.passes.registry import PASSES
from scripts.fetch_kernels import FetchError, ensure

ROUNDS = 8
STEPS = 4000
CODE, STACK, HEAP, PAGE = 0x1000_0000, 0x70_0000_0000, 0x50_0000_0000, 0x1000
CALLER_SAVED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
REGISTERS = (*CALLER_SAVED, "rbx", "rbp", "r12", "r13", "r14", "r15")


@dataclass
class Report:
    """What was seen: executed stores by reason, distinct discharged ones, and wrong ones."""

    executed: Counter[str] = field(default_factory=Counter)
    distinct: set[tuple[str, int]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


class Run:
    """One run of one function."""

    def __init__(
        self,
        function: Function,
        code: bytes,
        reasons: dict[tuple[str, int], str],
        choose: random.Random,
        report: Report,
    ) -> None:
        self.function, self.reasons, self.choose, self.report = function, reasons, choose, report
        self.machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.machine.mem_map(CODE, (len(code) // PAGE + 2) * PAGE)
        self.machine.mem_write(CODE, code)
        self.machine.mem_map(STACK, 32 * PAGE)
        self.slot = STACK + 16 * PAGE + 8
        self.pages: set[int] = set()
        self.blocks = {block.start: block for block in function.blocks}
        self.block: Block | None = None
        self.allowed: set[int] = set()
        self.steps = 0
        for name in REGISTERS:
            self.set(name, self.anything())
        self.set("rsp", self.slot)

    def anything(self) -> int:
        """Mostly a pointer into a small heap, so that objects meet; sometimes a small or any number."""
        pick = self.choose.random()
        if pick < 0.7:
            return HEAP + self.choose.randrange(64) * 0x200
        return self.choose.choice([0, 1, 2, 0xFFFF, self.choose.getrandbits(64)])

    def get(self, name: str) -> int:
        return int(self.machine.reg_read(getattr(x86, f"UC_X86_REG_{name.upper()}")))

    def set(self, name: str, value: int) -> None:
        self.machine.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), value)

    def execute(self) -> None:
        self.machine.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self.on_unmapped)
        self.machine.hook_add(unicorn.UC_HOOK_CODE, self.on_instruction)
        with contextlib.suppress(unicorn.UcError):  # a wild jump or address ends the run
            self.machine.emu_start(CODE, CODE + self.function.size + PAGE // 2)

    def on_unmapped(
        self, machine: unicorn.Uc, access: int, address: int, size: int, value: int, data: object
    ) -> bool:
        for page in {address // PAGE * PAGE, (address + size - 1) // PAGE * PAGE} - self.pages:
            if len(self.pages) > 300:
                return False
            machine.mem_map(page, PAGE)
            self.pages.add(page)
            machine.mem_write(page, b"".join(self.anything().to_bytes(8, "little") for _ in range(PAGE // 8)))
        return True

    def on_instruction(self, machine: unicorn.Uc, address: int, size: int, data: object) -> None:
        offset = address - CODE
        self.steps += 1
        if self.steps > STEPS or not self.follow(offset):
            machine.emu_stop()
            return
        site = self.function.site_by_offset.get(offset)
        if site is None:
            return
        if site.kind in ("call", "indirect_call"):
            if site.target not in HARMLESS:
                self.allowed.clear()
            self.set("rip", address + site.length)
            for name in CALLER_SAVED:
                self.set(name, self.anything())
        elif site.kind in ("return", "tail_call", "indirect_jump"):
            machine.emu_stop()
        elif site.writes:
            self.on_store(site)

    def follow(self, offset: int) -> bool:
        """Whether the instruction is where the description's control flow leads: jumps out of the function are
        not linked in the file, and fall through."""
        if offset in self.blocks:
            if self.block is not None and offset not in self.block.successors:
                return False
            self.block = self.blocks[offset]
            return True
        return self.block is not None and self.block.start < offset < self.block.end

    def on_store(self, site: Site) -> None:
        operand = site.operand
        if (
            operand is None
            or operand.base is None
            or operand.segment is not None
            or operand.static is not None
        ):
            return
        address = self.get(operand.base) + operand.displacement
        if operand.index is not None:
            address += self.get(operand.index) * operand.scale
        address %= 1 << 64
        length = site.size * (min(self.get("rcx"), 512) if site.rep else 1)
        touched = range(address, address + length)
        place = (self.function.name, site.offset)
        reason = self.reasons.get(place, "checked")
        self.report.executed[reason] += 1
        if reason == "checked":
            if operand.index is None and not site.rep:
                self.allowed.update(touched)
            return
        self.report.distinct.add(place)
        lowest = self.get("rsp") - (8 if site.kind == "push" else 0)
        if reason == "checked-before":
            right = self.allowed.issuperset(touched)
        else:
            right = lowest <= address and address + length <= self.slot
        if not right:
            self.report.wrong.append(
                f"{place[0]}+{place[1]:#x} ({reason}): {address - self.slot:#x} from the slot"
            )


@pytest.mark.timeout(300)
def test_discharged_stores_of_sctp_are_what_their_proofs_say(kernel: str) -> None:
    try:
        image = ensure(kernel)
    except FetchError as problem:
        pytest.fail(f"not run: {problem}", pytrace=False)
    (path,) = Path(image.modules_dir).rglob("sctp.ko*")
    target = scan_module(path, open_kernel(str(image.vmlinuz)))
    sites = dict.fromkeys(
        (function.name, site.offset)
        for function in target.functions
        for site in function.sites
        if site.writes and site.operand is not None and site.operand.is_memory and not function.initial
    )
    check = ir.Check("store", (ir.Block("entry", (), ir.Decide(ir.Verdict.ALLOW)),))
    module = ir.Module(
        "sctp",
        (),
        checks=(check,),
        sites=tuple(
            ir.Site(number, name, offset, ir.SiteKind.STORE, "store", ())
            for number, (name, offset) in enumerate(sites)
        ),
    )
    passes: list[Pass] = [PASSES["discharge-own-frame"](), PASSES["discharge-checked-before"]()]
    context = PassContext(target, control_flow_kept=True, skips_violations=False)
    result = run_pipeline(module, passes, context)
    reasons = {(proof.function, proof.offset): proof.reason for proof in result.discharged}

    layout = module_layout(read_elf(read_module(path), str(path)))
    sections = {section.name: section.content for section in layout.sections if section.executable}
    choose = random.Random(kernel)
    report = Report()
    for function in target.functions:
        if function.section not in sections or function.parent is not None or function.initial:
            continue
        if any((function.name, site.offset) in reasons for site in function.sites):
            code = sections[function.section][function.offset : function.offset + function.size]
            for _ in range(ROUNDS):
                Run(function, code, reasons, choose, report).execute()
    assert report.wrong == []
    assert report.executed["own-frame"] > 5000
    assert report.executed["checked-before"] > 100
    assert len(report.distinct) > 600
