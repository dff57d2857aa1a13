# SPDX-License-Identifier: Apache-2.0
"""Instructions as the analyses see them, and the registers, memory operands and links that they name."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple

from o2cc.kernel.boost import Boost, boost_class
from o2cc.kernel.description import StaticAddress

REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
NO_REGISTER = -1
CALLEE_SAVED = (RBX, RBP, 12, 13, 14, 15)
CALLER_SAVED_MASK = sum(
    1 << register for register in range(16) if register != RSP and register not in CALLEE_SAVED
)
ARGUMENT_REGISTERS = (RDI, RSI, RDX, RCX, 8, 9)


class Flow:
    """How control goes on after an instruction. Plain numbers: they are looked up for every instruction, and that of
    an ``Enum``'s member takes several times as long."""

    NEXT: Final = 0
    JUMP: Final = 1
    CONDITIONAL: Final = 2
    CALL: Final = 3
    INDIRECT_CALL: Final = 4
    INDIRECT_JUMP: Final = 5
    RETURN: Final = 6
    STOP: Final = 7


class Effect:
    """What an instruction does to registers, and the meaning of ``Instruction.effect``'s further items."""

    NONE: Final = 0  # changes only what ``written`` says
    MOVE: Final = 1  # (to, from)
    ADDRESS: Final = 2  # (to, base, displacement): to = base + displacement
    CONSTANT: Final = 3  # (to, number)
    STATIC: Final = 4  # (to, StaticAddress)
    ADD: Final = 5  # (to, number): to += number
    LOAD: Final = 6  # (to, Memory)
    PUSH: Final = 7  # (from or NO_REGISTER,)
    POP: Final = 8  # (to or NO_REGISTER,)
    LEAVE: Final = 9
    STORE: Final = 10  # (from,): 8 bytes of it go to ``write``
    ALIGN: Final = 11  # (to, alignment): to &= -alignment


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory operand; ``size`` 0: not known. Registers as indices into `REGISTERS`."""

    base: int
    index: int
    scale: int
    displacement: int
    segment: str | None
    static: StaticAddress | None
    size: int


class Link(NamedTuple):
    """What the linker puts into a field of the code: the address of a place plus ``addend``.

    ``address`` is the place's in the common space, None for an import (then ``symbol`` names it).
    ``relative``: the field is relative to its own address.
    """

    address: int | None
    symbol: str | None
    addend: int
    relative: bool
    size: int


@cache
def registers_in(mask: int) -> tuple[int, ...]:
    """The numbers of the registers in a bit mask."""
    return tuple(register for register in range(16) if mask >> register & 1)


class Instruction:
    """One decoded instruction. ``write`` is the memory that it writes apart from pushes."""

    __slots__ = (
        "address", "bit_register", "body", "effect", "flow", "is_nop", "length",
        "lock", "mnemonic", "modifies", "operand", "place", "reads_stack_register", "relocated", "rep", "stack_write", "string", "symbol",
        "target",
        "write", "written",
    )  # fmt: skip

    address: int
    length: int
    mnemonic: str
    flow: int
    target: int | None
    symbol: str | None
    operand: Memory | int | None
    effect: tuple[Any, ...]
    written: int
    write: Memory | None
    string: bool
    rep: bool
    lock: bool
    modifies: bool
    bit_register: int
    stack_write: bool
    relocated: tuple[tuple[int, int], ...]
    body: bytes
    is_nop: bool
    place: StaticAddress | None
    reads_stack_register: int

    def at(self, address: int) -> "Instruction":
        """The same at another address."""
        item = Instruction()
        item.address = address
        item.length, item.mnemonic, item.flow, item.body = self.length, self.mnemonic, self.flow, self.body
        item.target, item.symbol, item.operand, item.effect = (
            self.target,
            self.symbol,
            self.operand,
            self.effect,
        )
        item.written, item.write, item.string, item.rep = self.written, self.write, self.string, self.rep
        item.lock, item.modifies, item.bit_register = self.lock, self.modifies, self.bit_register
        item.stack_write, item.relocated, item.is_nop = self.stack_write, self.relocated, self.is_nop
        item.place, item.reads_stack_register = self.place, self.reads_stack_register
        return item

    @property
    def end(self) -> int:
        return self.address + self.length

    @property
    def boost(self) -> Boost:
        """Whether a jump-optimized probe may displace it."""
        return boost_class(self.body)

    @property
    def hash(self) -> int:
        """32 bits over its bytes, those that the linker fills in taken as zero."""
        if not self.relocated:
            return zlib.crc32(self.body)
        blank = bytearray(self.body)
        for position, size in self.relocated:
            blank[position : position + size] = bytes(size)
        return zlib.crc32(blank)


@dataclass(frozen=True)
class Code:
    """Executable bytes at ``address``, with the linker's fields by address and a way to name addresses.

    ``absolute``: the code is linked for its final addresses (the kernel), so a number that lies in the image is
    an address. ``decoded`` has instructions by their bytes, of those that are the same wherever they are.
    """

    address: int
    content: bytes
    links: Mapping[int, Link]
    link_addresses: Sequence[int]
    absolute: tuple[int, int] | None
    decoded: dict[bytes, Instruction] = field(default_factory=dict)


class Places:
    """Turns addresses into `StaticAddress` values; given by the layout."""

    def static_address(self, address: int) -> StaticAddress:
        raise NotImplementedError

    def name_at(self, address: int) -> str | None:
        """The name of what starts at ``address`` if that is code with a name."""
        raise NotImplementedError
