# SPDX-License-Identifier: Apache-2.0
"""The private heap when a policy is loaded: how large the owner shadow is on this machine, and what o2c.ko is asked for.

The shadow is the one resizable table of the object, which is all that its ``.bss`` holds: the loader sets the section's size
and the number of rows that the checks compare with, both in the file, before libbpf sees it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder

from o2cc.bpf.info import HeapCallInfo, HeapInfo, ObjectInfo
from o2cc.bpf.layout import rows_name
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import (
    NO_PROGRAM,
    NO_REGISTER,
    Action,
    Feature,
    HeapOperation,
    Kind,
    Site,
    reason_text,
)
from o2cc.runtime.instructions import MAXIMUM_LENGTH
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.plan import NO_FUNCTION, SEVERAL_FUNCTIONS
from o2cc.runtime.running_kernel import Symbols
from o2cc.runtime.state import Failure
from o2cc.runtime.tables import table

OWNER = 1
COOKIE = 2**64 - 1  # of the calls that are redirected: no site's
SHADOW = "owner"
SHADOW_SECTION = ".bss"
_PAGE_SHIFT = 12  # x86-64
_IOMEM = Path("/proc/iomem")
_MAXIMUM_FRAMES = 1 << 29  # the verifier lets no pointer go further into a map's value
_HARDWARE_ORDER = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_ZEROED = "zeroed_page"
_OPERATIONS = {
    **{operation.name.lower(): operation for operation in HeapOperation},
    _ZEROED: HeapOperation.PAGES_ADDRESS,
}
_FEATURES = {
    HeapOperation.KVALLOC: Feature.KVMALLOC,
    HeapOperation.PAGES: Feature.PAGES,
    HeapOperation.PAGES_ADDRESS: Feature.PAGES,
    HeapOperation.BULK_ALLOC: Feature.BULK,
    HeapOperation.BULK_FREE: Feature.BULK,
}
_FREES = (HeapOperation.FREE_CACHE, HeapOperation.BULK_FREE)
_CACHE_ALLOCATIONS = (HeapOperation.ALLOC_CACHE, HeapOperation.BULK_ALLOC)
_SECTION_SIZE_OFFSET = 0x20  # sh_size in Elf64_Shdr


@dataclass(frozen=True)
class Redirected:
    """A call of the private heap, where it is in the running kernel, and its bytes there."""

    call: HeapCallInfo
    address: int
    code: bytes


def frames_of(iomem: str) -> int:
    """How many page frames a machine has, by the text of /proc/iomem; 0 when that hides the addresses."""
    highest = 0
    for line in iomem.splitlines():
        bounds, _, name = line.strip().partition(" : ")
        if name == "System RAM":
            highest = max(highest, int(bounds.split("-")[1], 16) + 1)
    return min(-(-highest >> _PAGE_SHIFT), _MAXIMUM_FRAMES)


def page_frames() -> int:
    """How many page frames this machine has; memory that is plugged in later lies beyond.

    Raises DiagnosticError (O2C0838) when the kernel does not tell.
    """
    try:
        frames = frames_of(_IOMEM.read_text())
    except (OSError, ValueError):
        frames = 0
    if frames <= 1:
        raise DiagnosticError(
            error(
                "O2C0838",
                "how much memory this machine has is not known, and the private heap needs it",
                help=f"`{_IOMEM}` tells root",
            )
        )
    return frames


def resized(data: bytes, info: ObjectInfo, frames: int) -> bytes:
    """The object with an owner shadow for so many page frames; as it is when it has none."""
    shadow, rows = table(info, SHADOW), table(info, rows_name(SHADOW))
    if shadow is None or rows is None:
        return data
    patched = bytearray(data)
    elf = ELFFile(io.BytesIO(data))
    for index, section in enumerate(elf.iter_sections()):
        if section.name == shadow.section:
            header = elf["e_shoff"] + index * elf["e_shentsize"]
            struct.pack_into("<Q", patched, header + _SECTION_SIZE_OFFSET, frames * shadow.stride)
        elif section.name == rows.section:
            struct.pack_into("<Q", patched, section["sh_offset"] + rows.offset, frames)
    return bytes(patched)


def place(
    heap: HeapInfo, symbols: Symbols, text: KernelText
) -> tuple[tuple[Redirected, ...], tuple[Failure, ...]]:
    """The calls with their addresses and bytes, and those that the running kernel does not have as they were compiled."""
    found: list[Redirected] = []
    lost: list[Failure] = []
    for call in heap.calls:
        address = symbols.addresses.get(call.function)
        if address is None or call.function in symbols.ambiguous:
            lost.append(_failure(call, NO_FUNCTION if address is None else SEVERAL_FUNCTIONS))
            continue
        code = text.read(address + call.offset, MAXIMUM_LENGTH)
        length = Decoder(64, code, ip=address + call.offset).decode().len
        found.append(Redirected(call, address + call.offset, code[:length]))
    return tuple(found), tuple(lost)


def attach(
    enforcer: Enforcer, heap: HeapInfo, shadow: int, calls: Sequence[Redirected]
) -> tuple[Failure, ...]:
    """Ask for the heap and redirect the calls, still inert; those that were refused.  ``shadow`` is the id of the map, which
    a program of the compartment must use.

    These probes come first: of several at one address kprobes runs the newest first (kernel/kprobes.c add_new_kprobe, 6.1
    and 6.12), and what the gate asks must be asked before the call is another one.

    Where a call that frees by the name of a cache cannot be redirected, the caches stay the kernel's own: freeing an object
    of another cache than the one that is named is a WARNING (mm/slab.h, 6.1, and mm/slub.c, 6.12: cache_from_obj).

    Raises EnforcerError when there can be no such heap.
    """
    enforcer.heap(shadow, OWNER, heap.limit, ctor_offset=heap.ctor_offset, flags_offset=heap.flags_offset)
    frees = [item for item in calls if _operation(item.call) in _FREES]
    others = [item for item in calls if _operation(item.call) not in _FREES]
    failures = list(_redirect(enforcer, frees))
    if len(frees) - len(failures) < sum(_operation(call) in _FREES for call in heap.calls):
        kept = [item for item in others if _operation(item.call) in _CACHE_ALLOCATIONS]
        failures += (
            _failure(item.call, "a call that frees such objects cannot be redirected") for item in kept
        )
        others = [item for item in others if item not in kept]
    return (*failures, *_redirect(enforcer, others))


def _redirect(enforcer: Enforcer, calls: Sequence[Redirected]) -> tuple[Failure, ...]:
    able = [item for item in calls if _feature(item.call) in enforcer.features]
    results = enforcer.try_attach([_site(item) for item in able]) if able else []
    return (
        *(
            _failure(item.call, "this build of o2c.ko cannot do that")
            for item in calls
            if _feature(item.call) not in enforcer.features
        ),
        *(
            _failure(item.call, f"refused: {reason_text(result.reason)}")
            for item, result in zip(able, results, strict=True)
            if result.index is None
        ),
    )


def _operation(call: HeapCallInfo) -> HeapOperation:
    return _OPERATIONS[call.operation]


def _feature(call: HeapCallInfo) -> Feature:
    """What o2c.ko must be able to do for a call; nothing beyond its first version for most."""
    return _FEATURES.get(_operation(call), Feature(0))


def _site(item: Redirected) -> Site:
    return Site(
        address=item.address,
        cookie=COOKIE,
        program=NO_PROGRAM,
        kind=Kind.HEAP,
        action=Action.REPORT,
        code=item.code,
        base=NO_REGISTER if not item.call.size else _HARDWARE_ORDER.index(item.call.size),
        index=_HARDWARE_ORDER.index(item.call.flags or "rax"),
        scale=int(item.call.operation == _ZEROED),
        size=_operation(item.call),
    )


def _failure(call: HeapCallInfo, reason: str) -> Failure:
    place = f"{call.function}+{call.offset:#x}"
    return Failure(-1, place, f"the call of `{call.called}` does not go to the private heap: {reason}")
