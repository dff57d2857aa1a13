# SPDX-License-Identifier: Apache-2.0
"""Bounds of a module from the addresses of its sections."""

from __future__ import annotations

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.profile.compartment import module_sections, own_bounds


def test_regions_of_one_kind_are_one_range() -> None:
    """Catches constants counted as data (`.data..ro_after_init`), and a last section that has no end."""
    bounds = own_bounds(
        {
            ".text": 0x1000,
            ".text.unlikely": 0x5000,
            ".rodata": 0x6000,
            ".data..ro_after_init": 0x7000,
            ".data": 0x20_0000,
            ".bss": 0x20_0800,
        }
    )
    assert (bounds["own_text"], bounds["own_text_end"]) == (0x1000, 0x6000)
    assert (bounds["own_constants"], bounds["own_constants_end"]) == (0x6000, 0x8000)
    assert (bounds["own_data"], bounds["own_data_end"]) == (0x20_0000, 0x20_1000)


def test_a_module_that_is_not_loaded_is_told() -> None:
    with pytest.raises(DiagnosticError) as caught:
        module_sections("no_such_module")
    assert [item.code for item in caught.value.diagnostics] == ["O2C0850"]
