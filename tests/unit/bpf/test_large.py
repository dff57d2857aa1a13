# SPDX-License-Identifier: Apache-2.0
"""A module of the size of sctp's: what an object of it may take."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import read
from o2cc.bpf.layout import REGISTER_OFFSETS, Layout
from o2cc.ir import nodes as ir
from tests.unit.bpf import modules

SITES, CHECKS = 4500, 200


def large() -> ir.Module:
    registers = list(REGISTER_OFFSETS)
    checks = []
    for number in range(CHECKS):
        check = modules.store_check(f"check_{number}", registers[number % 15])
        first = check.blocks[0]
        compare = first.instructions[-1]
        assert isinstance(compare, ir.Binary)
        distinct = replace(compare, right=ir.Constant(number))
        block = replace(first, instructions=(*first.instructions[:-1], distinct))
        checks.append(replace(check, blocks=(block, *check.blocks[1:])))
    sites = tuple(
        modules.site(
            n, f"check_{n % CHECKS}", f"sctp_some_function_name_{n // 7}", 0x10 * n % 4096, 8 * (n % 100)
        )
        for n in range(SITES)
    )
    return replace(modules.module(), checks=tuple(checks), sites=sites)


@pytest.mark.parametrize(("layout", "limit"), [(Layout.SITE, 3_000_000), (Layout.SHAPE, 600_000)])
def test_an_object_of_4500_sites_is_small_and_quickly_made(layout: Layout, limit: int) -> None:
    module = large()
    start = time.process_time()
    result = emit_object(module, layout=layout, sources=modules.SOURCES)
    seconds = time.process_time() - start
    assert len(result.data) < limit
    assert seconds < 4  # about 0.5 on the machine of the first measurement
    assert result.statistics.programs == (SITES if layout is Layout.SITE else CHECKS) + len(module.hooks)
    assert len(read(result.data).sites) == SITES
    if layout is Layout.SITE:
        assert result.statistics.instructions / SITES < 30
