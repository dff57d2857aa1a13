# SPDX-License-Identifier: Apache-2.0
"""Which words of an object o2c.ko looks at before it runs a hook, and that nothing is lost where it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2cc.bpf.info import HookInfo, TableInfo
from o2cc.ir.nodes import HookKind
from o2cc.runtime import tracepoints
from o2cc.runtime.phases import FINAL, INERT, TRANSITION
from o2cc.simulation.world import VMEMMAP
from tests.unit.lower.confined import confined
from tests.unit.runtime.made import info

GOLDEN_RATIO = 0x9E3779B97F4A7C15
ROWS = 65536


def test_the_words_are_those_of_the_tables() -> None:
    tables = (
        TableInfo("globals", ".data", 0, 32, 1, (("page_offset", 0, 8), ("phase", 16, 8))),
        TableInfo("known_objects", ".bss", 256, 4, 65536, (("count", 0, 4),)),
    )
    hooks = {
        name: HookInfo(name, kind, tracepoints.FUNCTION if kind == "kprobe" else name, name)
        for name, kind in (
            ("o2c_kfree", "raw_tracepoint"),
            ("o2c_page_alloc", "raw_tracepoint"),
            ("o2c_page_free", "raw_tracepoint"),
            ("o2c_percpu_free", "raw_tracepoint"),
            ("o2c_bulk_free", "kprobe"),
            ("o2c_prepare", "syscall"),
        )
    }
    found = tracepoints.tracepoints(replace(info(tables=tables), hooks=tuple(hooks.values())))
    assert found == (
        tracepoints.Tracepoint(hooks["o2c_kfree"], ".bss", 256),
        tracepoints.Tracepoint(hooks["o2c_page_alloc"], ".data", 16, TRANSITION),
        tracepoints.Tracepoint(hooks["o2c_page_free"]),  # its table is not there: it runs each time
        tracepoints.Tracepoint(hooks["o2c_percpu_free"]),
        tracepoints.Tracepoint(hooks["o2c_bulk_free"], ".bss", 256),
    )


def test_every_hook_that_looks_at_a_count_is_told_apart() -> None:
    """Catches a hook of another name, which o2c.ko would run at every free of the system."""
    module = confined().module
    kinds = HookKind.RAW_TRACEPOINT, HookKind.KPROBE
    there = {hook.name for hook in module.hooks if hook.kind in kinds}
    assert there - set(tracepoints.WORDS) == {"o2c_percpu_free"}
    assert set(tracepoints.WORDS) <= there
    columns = {table.name: {name for name, _ in table.columns} for table in module.tables}
    assert all(column in columns[table] for table, column, _ in tracepoints.WORDS.values())


@given(st.integers(0, 2**64 - 1))
def test_the_rows_are_those_of_the_interface(number: int) -> None:
    """Catches a hash that is changed on one side only (o2c.h, `struct o2c_tracepoint`): frees would pass unseen."""
    kernel = confined()
    assert kernel.call("object_row", number) == number * GOLDEN_RATIO % 2**64 >> 48
    assert kernel.call("frame_row", number) == (number >> 3) % ROWS


@pytest.mark.parametrize(("phase", "noted"), [(INERT, False), (TRANSITION, True), (FINAL, False)])
def test_new_pages_matter_in_the_transition_only(phase: int, noted: bool) -> None:
    kernel = confined()
    kernel.phase(phase)
    kernel.hook("o2c_page_alloc", VMEMMAP, 0, 0, 0)
    assert any(row != (0,) for row in kernel.world.machine.tables["young_pages"].rows.values()) is noted
