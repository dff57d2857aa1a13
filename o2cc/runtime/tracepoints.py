# SPDX-License-Identifier: Apache-2.0
"""The hooks at tracepoints that o2c.ko has in hand, and what says when each is to run.

They run at every free in the system.  Through a link of the kernel's an interrupt inside a hook runs the same one not again
(kernel/trace/bpf_trace.c __bpf_trace_run, 6.1 and 6.12), and each call costs the kernel's way to a program; o2c.ko runs them with
interrupts off, and only where a word of the object says that there is something to do (bpf_runtime/module/tracepoint.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from o2cc.bpf.info import HookInfo, ObjectInfo
from o2cc.runtime import phases
from o2cc.runtime.tables import table

KIND = "raw_tracepoint"
FUNCTION = "kmem_cache_free_bulk"
"""What no tracepoint tells of: o2c.ko takes the kprobe hook there like one (Feature.FREE_BULK)."""

WORDS: Mapping[str, tuple[str, str, int]] = {
    "o2c_kfree": ("known_objects", "count", 0),
    "o2c_cache_free": ("known_objects", "count", 0),
    "o2c_bulk_free": ("known_objects", "count", 0),
    "o2c_page_free": ("known_pages", "count", 0),
    "o2c_page_alloc": ("globals", "phase", phases.TRANSITION),
}
"""By hook (o2cc/lower/library/hooks.ir): the table and column that say whether it has anything to do, and the value of a
column that must be one; the rows of the others are found by what is freed, and 0 is nothing to do."""


@dataclass(frozen=True)
class Tracepoint:
    """A hook for o2c.ko to attach.  It runs when the word at byte ``offset`` of the data ``section`` says so, each time if that
    is empty; see `struct o2c_tracepoint` in o2c.h."""

    hook: HookInfo
    section: str = ""
    offset: int = 0
    value: int = 0


def tracepoints(info: ObjectInfo) -> tuple[Tracepoint, ...]:
    """The hooks of an object at tracepoints, and at what o2c.ko serves like one."""
    return tuple(
        _tracepoint(info, hook)
        for hook in info.hooks
        if hook.kind == KIND or (hook.kind == "kprobe" and hook.target == FUNCTION)
    )


def _tracepoint(info: ObjectInfo, hook: HookInfo) -> Tracepoint:
    name, column, value = WORDS.get(hook.name, ("", "", 0))
    layout = table(info, name)
    if layout is None:
        return Tracepoint(hook)
    offset = next(offset for found, offset, _ in layout.columns if found == column)
    return Tracepoint(hook, layout.section, layout.offset + offset, value)
