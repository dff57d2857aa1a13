# SPDX-License-Identifier: Apache-2.0
"""The machine instruction of a site, from the bytes in the kernel's memory, as o2c.ko wants it described.  Pure.

o2c.ko decodes the text itself and refuses what differs, so that nothing rests on this file alone; a site that is of
another kind than the compiler says is found here, with a reason in words.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from iced_x86 import (
    Code,
    Decoder,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from o2cc.bpf.info import SiteInfo
from o2cc.ir.nodes import SiteKind
from o2cc.runtime.enforcer_types import NO_REGISTER, RIP, Action, Kind, Site
from o2cc.runtime.plan import cookie_of

MAXIMUM_LENGTH = 15
_RDI = 7
_CALLS = {
    SiteKind.CALL: (Kind.CALL, FlowControl.CALL),
    SiteKind.TAIL_CALL: (Kind.TAIL_JUMP, FlowControl.UNCONDITIONAL_BRANCH),
}
_READS_TOO = (OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


class NotDeniable(Exception):
    """Why a violation at a site cannot be denied, in words."""


@dataclass(frozen=True)
class Placed:
    """A site with its address, the bytes there, and what the object says of it."""

    site: SiteInfo
    address: int
    code: bytes
    action: Action
    stack_height: int  # bytes to the return address, 0xffff when not known
    denied_result: int = -errno.EFAULT  # of a call
    behind: int = 0  # of an entry or return: bytes to where a breakpoint can take its place, 0 where none may


def observed(placed: Placed, program: int) -> Site:
    """The site as one at which the program runs and nothing is denied."""
    kind, address, displacement = Kind.OBSERVE, placed.address, 0
    strict = placed.site.keep_int3
    if placed.site.kind == SiteKind.RETURN:
        kind, displacement, strict = Kind.RETURN, placed.behind, False
    elif placed.site.kind == SiteKind.ENTRY:
        kind, address, strict = Kind.ENTRY, placed.address + placed.behind, False
    return Site(
        address,
        cookie_of(placed.site),
        program,
        kind,
        Action.REPORT,
        displacement=displacement,
        strict=strict,
    )


def enforced(placed: Placed, program: int) -> Site:
    """The site as one at which a violation is denied.  Raises NotDeniable."""
    site = placed.site
    if site.kind in (SiteKind.RETURN, SiteKind.ENTRY):
        raise NotDeniable("the entry or return of a function can only be observed")
    if site.probe_offset != site.offset:
        raise NotDeniable("the probe is before the instruction, which it cannot step over")
    instruction = Decoder(64, placed.code, ip=placed.address).decode()
    if instruction.is_invalid or instruction.len > len(placed.code):
        raise NotDeniable("the bytes in memory are no instruction")
    if instruction.code == Code.INT3:
        raise NotDeniable("another probe is at the instruction")
    kind, size = _kind(placed, instruction)
    tail = kind in (Kind.TAIL_JUMP, Kind.IJUMP) and placed.stack_height == 0
    if kind is Kind.IJUMP and not tail:
        raise NotDeniable("a jump inside a function cannot be stepped over")
    base, index, scale, displacement = NO_REGISTER, NO_REGISTER, 0, 0
    if kind is Kind.STRING:
        base = _RDI
    elif kind in (Kind.STORE, Kind.RMW):
        base, index, scale, displacement = _operand(instruction)
    return Site(
        placed.address,
        cookie_of(site),
        program,
        kind,
        placed.action,
        placed.code[: instruction.len],
        base=base,
        index=index,
        scale=scale,
        displacement=displacement,
        size=size,
        deny_result=placed.denied_result,
        strict=site.keep_int3,
        tail=tail,
        line=site.line,
    )


def _kind(placed: Placed, instruction: Instruction) -> tuple[Kind, int]:
    """What the instruction is, and how many bytes it writes.  Raises NotDeniable when it is not what it should be."""
    kind, flow = SiteKind(placed.site.kind), instruction.flow_control
    if kind in _CALLS:
        wanted, expected = _CALLS[kind]
        if flow != expected:
            raise NotDeniable("the instruction in memory is not the call that the compiler saw")
        return wanted, 0
    if kind is SiteKind.INDIRECT_CALL:
        # a call of a thunk is a direct one
        if flow not in (FlowControl.INDIRECT_CALL, FlowControl.CALL):
            raise NotDeniable("the instruction in memory is not the call that the compiler saw")
        return Kind.ICALL, 0
    if kind is SiteKind.INDIRECT_JUMP:
        if flow not in (FlowControl.INDIRECT_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
            raise NotDeniable("the instruction in memory is not the jump that the compiler saw")
        return Kind.IJUMP, 0
    size = int(MemorySizeExt.size(instruction.memory_size))
    if instruction.is_string_instruction:
        return Kind.STRING, size
    accesses = [memory.access for memory in InstructionInfoFactory().info(instruction).used_memory()]
    if any(access in _READS_TOO for access in accesses):
        return Kind.RMW, size
    if any(access in (OpAccess.WRITE, OpAccess.COND_WRITE) for access in accesses):
        return Kind.STORE, size
    raise NotDeniable("the instruction in memory writes nothing")


def _number(register: Any) -> int:
    if register == Register.NONE:
        return NO_REGISTER
    if register == Register.RIP:
        return RIP
    return int(RegisterExt.number(register))


def _operand(instruction: Instruction) -> tuple[int, int, int, int]:
    """Base, index, scale and displacement of the memory operand, by hardware numbers."""
    if not any(instruction.op_kind(i) == OpKind.MEMORY for i in range(instruction.op_count)):
        return NO_REGISTER, NO_REGISTER, 0, 0
    displacement = int(instruction.memory_displacement)
    if instruction.memory_base == Register.RIP:
        displacement -= int(instruction.next_ip)
    displacement = (displacement + 2**31) % 2**32 - 2**31
    index = _number(instruction.memory_index)
    scale = 0 if index == NO_REGISTER else int(instruction.memory_index_scale)
    return _number(instruction.memory_base), index, scale, displacement
