# SPDX-License-Identifier: Apache-2.0
"""A kernel's memory as far as checks look at it: slab pages, a stack, symbols and the target's sections.

Every object has a slab page (or several) and a cache of its own, so that what a check finds by the slab's geometry
is exactly the object.  Offsets come from the description, as in the compiled checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.ir.walk import Body
from o2cc.kernel.description import Description
from o2cc.lower.constants import kernel_constants, slab_test

PAGE = 4096
PAGE_OFFSET = 0xFFFF_8880_0000_0000
VMALLOC = 0xFFFF_C900_0000_0000
VMEMMAP = 0xFFFF_EA00_0000_0000
STACK_POINTER = VMALLOC + 0x10_3800
KERNEL_IMAGE = 0xFFFF_FFFF_8100_0000
MODULE_AREA = 0xFFFF_FFFF_C000_0000
USER = 0x7F00_0000_0000

# The private heap as bpf_runtime/module/heap.c lays it out, and the table that says so (lower/library/private_heap.ir).
PRIVATE = "owner"
WHOLE_PAGE = 1
SMALLEST_SLOT = 4  # log2 of bytes
FREE_POINTER = 8  # bytes at the end of each slot
LARGEST_SLAB_OBJECT = 8192

_SYMBOL_STRIDE = 0x1_0000  # room behind each symbol for the object that it names
_SECTION_STRIDE = 0x100_0000
_CACHES = PAGE_OFFSET + (1 << 38)  # kmem_cache structs and names, apart from the objects


@dataclass
class World:
    """A machine for one module, with the addresses that things were given."""

    module: ir.Module
    description: Description
    machine: Machine = field(init=False)
    interpreter: Interpreter = field(init=False)
    sections: dict[str, int] = field(init=False)
    _symbols: dict[str, int] = field(init=False)
    _next_page: int = 1
    _next_cache: int = 0
    _next_user: int = USER

    def __post_init__(self) -> None:
        self.sections = {
            section.name: MODULE_AREA + index * _SECTION_STRIDE
            for index, section in enumerate(self.description.sections)
        }
        self._symbols = {
            section.anchor_symbol: self.sections[section.name] + section.anchor_offset
            for section in self.description.sections
            if section.anchor_symbol is not None
        }
        self.machine = Machine(self.module, symbols=self._symbols, now=1 << 30)
        for name in sorted(symbols_read(self.module)):
            self.symbol(name)
        for name, value in (
            ("page_offset_base", PAGE_OFFSET),
            ("vmalloc_base", VMALLOC),
            ("vmemmap_base", VMEMMAP),
        ):
            self.machine.memory.write_word(self.symbol(name), value)
        self.interpreter = Interpreter(self.machine)
        self._constants = kernel_constants(self.description.kernel, self.description.release)

    def symbol(self, name: str) -> int:
        """Address of a kernel symbol; each has some memory behind it."""
        found = self._symbols.get(name)
        if found is None:
            found = KERNEL_IMAGE + len(self._symbols) * _SYMBOL_STRIDE
            self._symbols[name] = found
        return found

    def function(self, name: str) -> int:
        """Address of a function of the target, else of the kernel."""
        own = self.description.function_by_name.get(name)
        return self.sections[own.section] + own.offset if own is not None else self.symbol(name)

    def data(self, name: str) -> int:
        """Address of a named object of the target, else of the kernel."""
        own = self.description.symbol_by_name.get(name)
        return self.sections[own.section] + own.offset if own is not None else self.symbol(name)

    def own_object(self, size: int) -> int:
        """A new object of ``size`` bytes as an allocation of the compartment gives it: from its private heap, if it has
        one."""
        return self.private_object(size) if PRIVATE in self.machine.tables else self.slab_object(size)

    def private_object(self, size: int) -> int:
        """A new object of ``size`` bytes in the private heap, as o2c.ko places it: in a slot of a slab up to
        LARGEST_SLAB_OBJECT bytes, else in pages of its own."""
        if size > LARGEST_SLAB_OBJECT:
            return self._private_pages(-(-size // PAGE))
        log = max(SMALLEST_SLOT, (size + FREE_POINTER - 1).bit_length())
        slot = 1 << log
        pages = max(1, slot // PAGE)
        self._next_page = -(-self._next_page // pages) * pages
        address = self.slab_object(slot - FREE_POINTER, f"o2c-1-{slot}", slot)
        self._mark(address, pages, WHOLE_PAGE + log)
        return address

    def _private_pages(self, count: int) -> int:
        address = PAGE_OFFSET + self._next_page * PAGE
        for number in range(self._next_page, self._next_page + count):
            head = VMEMMAP + number * self._constants["size(struct page)"]
            for offset in range(0, self._constants["size(struct page)"], 8):
                self.machine.memory.write_word(head + offset, 0)
        self._next_page += count + 1
        self._mark(address, count, WHOLE_PAGE)
        return address

    def _mark(self, address: int, pages: int, value: int) -> None:
        first = (address - PAGE_OFFSET) // PAGE
        for frame in range(first, first + pages):
            self.machine.tables[PRIVATE].store(frame, "slot", value)

    def slab_object(self, size: int, cache: str = "kmalloc", slot: int | None = None) -> int:
        """A new object of ``size`` bytes, alone in its slab, whose objects are ``slot`` bytes apart."""
        pages = max(1, -(-(slot or size) // PAGE))
        number = self._next_page
        self._next_page += pages + 1
        head = VMEMMAP + number * self._constants["size(struct page)"]
        memory = self.machine.memory
        offset, width, _, value = slab_test(self.description.kernel, self.description.release)
        link = self._constants["offset(page.compound_head)"]
        memory.write_word(head + link, 0)
        memory.write_word(head + offset, value, width)
        for tail in range(1, pages):
            memory.write_word(head + tail * self._constants["size(struct page)"] + link, head | 1)
        memory.write_word(
            head + self._constants["offset(slab.slab_cache)"], self._cache(size, cache, slot or max(8, size))
        )
        return PAGE_OFFSET + number * PAGE

    def _cache(self, size: int, name: str, slot: int) -> int:
        base = _CACHES + self._next_cache * PAGE
        self._next_cache += 1
        constants, memory = self._constants, self.machine.memory
        memory.write_word(base + constants["offset(kmem_cache.flags)"], 0, 4)
        memory.write_word(base + constants["offset(kmem_cache.red_left_pad)"], 0, 4)
        memory.write_word(base + constants["offset(kmem_cache.size)"], slot, 4)
        memory.write_word(base + constants["offset(kmem_cache.object_size)"], size, 4)
        memory.write_word(base + constants["offset(kmem_cache.refcount)"], 1, 4)
        memory.write_word(base + constants["offset(kmem_cache.name)"], base + PAGE // 2)
        memory.write(base + PAGE // 2, name.encode()[:31].ljust(32, b"\0"))
        return base

    def user_memory(self, size: int) -> int:
        """An address range of user space."""
        self._next_user += PAGE + size
        return self._next_user - size


def symbols_read(module: ir.Module) -> set[str]:
    """Names of the kernel symbols that any part of a module asks for."""
    bodies: tuple[Body, ...] = (*module.functions, *module.checks, *module.hooks)
    return {
        instruction.name
        for body in bodies
        for block in body.blocks
        for instruction in block.instructions
        if isinstance(instruction, ir.Symbol)
    }
