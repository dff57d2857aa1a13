# SPDX-License-Identifier: Apache-2.0
"""The named constants that the library's text uses: struct offsets and sizes of the described kernel.

Everything comes from the description, that is from the kernel's BTF and symbols, but for three numbers that are
preprocessor constants: the offset of a page (x86-64), SLAB_RED_ZONE before it became an enumerator, and limits
of our own.
"""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.diagnostics import DiagnosticError, error
from o2cc.kernel.description import KernelFacts

EVENT_BURST = 20  # events a second and site
FRAME_DEPTH = 16  # frames of the compartment that a stack walk follows
TRACKED_PAGES = 128  # of one range outside the slab allocator; 32 bytes each where alloc_percpu gave it
TRACKED_STEPS = TRACKED_PAGES + 64  # of adding a range, pages that are looked at again included
SLAB_RED_ZONE_6_1 = 0x400  # include/linux/slab.h, 6.1; from 6.9 on 1 << _SLAB_RED_ZONE

_FIELDS = (
    "page.compound_head",
    "page.flags",
    "page.mapping",
    "page._mapcount",
    "slab.slab_cache",
    "kmem_cache.size",
    "kmem_cache.object_size",
    "kmem_cache.flags",
    "kmem_cache.name",
    "kmem_cache.refcount",
    "task_struct.comm",
    "hlist_node.next",
    "hlist_node.pprev",
)


def kernel_constants(kernel: KernelFacts, release: str) -> dict[str, int]:
    """Named constants of one kernel.  Raises DiagnosticError (O2C0510) when the description lacks one."""
    constants: dict[str, int] = {}
    missing: list[str] = []
    for name in _FIELDS:
        field = kernel.fields.get(name)
        if field is None:
            missing.append(name)
        else:
            constants[f"offset({name})"] = field.offset
    # Kernels without SLUB_DEBUG have no red zones: any readable field does, the flag is never set.
    pad = kernel.fields.get("kmem_cache.red_left_pad")
    constants["offset(kmem_cache.red_left_pad)"] = pad.offset if pad else 0
    red_zone_bit = kernel.enums.get("_SLAB_RED_ZONE")
    constants["const(SLAB_RED_ZONE)"] = (
        0 if pad is None else 1 << red_zone_bit if red_zone_bit is not None else SLAB_RED_ZONE_6_1
    )
    # Pages of the kernel image and of firmware, and those that the reclaim knows: page cache and user memory.
    barred = [kernel.enums.get(name) for name in ("PG_reserved", "PG_lru")]
    constants["const(PAGE_BARRED)"] = sum(1 << bit for bit in barred if bit is not None)
    if None in barred:
        missing.append("PG_reserved, PG_lru")
    page_size = kernel.sizes.get("page")
    if page_size is None:
        missing.append("struct page")
    else:
        constants["size(struct page)"] = page_size
    constants["const(THREAD_SIZE)"] = kernel.constants.get("thread_size", 16384)
    constants["const(EVENT_BURST)"] = EVENT_BURST
    constants["const(FRAME_DEPTH)"] = FRAME_DEPTH
    constants["const(TRACKED_PAGES)"] = TRACKED_PAGES
    constants["const(TRACKED_STEPS)"] = TRACKED_STEPS
    if missing:
        raise DiagnosticError(
            error(
                "O2C0510",
                f"the description of `{release}` lacks what checks need: {', '.join(f'`{m}`' for m in missing)}",
                help="make the description again with this version of `o2c scan`",
            )
        )
    return constants


def slab_test(kernel: KernelFacts, release: str) -> tuple[int, int, int, int]:
    """How a head page tells that it belongs to the slab allocator: (offset, size, mask, value).

    A bit of ``page.flags`` while ``PG_slab`` is one (enum pageflags, 6.1), the top byte of ``page.page_type``
    since it is a page type (enum pagetype, 6.12).  Raises DiagnosticError (O2C0510).
    """
    if (bit := kernel.enums.get("PG_slab")) is not None and (flags := kernel.fields.get("page.flags")):
        return flags.offset, 8, 1 << bit, 1 << bit
    if (number := kernel.enums.get("PGTY_slab")) is not None and (
        field := kernel.fields.get("page.page_type")
    ):
        return field.offset, 4, 0xFF000000, number << 24
    raise DiagnosticError(
        error("O2C0510", f"the description of `{release}` does not tell how slab pages are marked")
    )


def preempt_count_place(kernel: KernelFacts) -> tuple[str, int]:
    """Per-CPU symbol and offset of the preemption count (arch/x86/include/asm/preempt.h, 6.1 and 6.12)."""
    hot = kernel.fields.get("pcpu_hot.preempt_count")
    return ("pcpu_hot", hot.offset) if hot is not None else ("__preempt_count", 0)


def merged(*parts: Mapping[str, int]) -> dict[str, int]:
    """One environment from several."""
    environment: dict[str, int] = {}
    for part in parts:
        environment.update(part)
    return environment
