# SPDX-License-Identifier: Apache-2.0
"""What BTF says of allocating functions."""

from __future__ import annotations

import pytest

from o2cc.kernel.btf import Btf, read_btf
from o2cc.profile.labels import Types
from tests.unit.kernel.build import BtfWriter


def _kernel() -> Btf:
    writer = BtfWriter()
    number = writer.integer("int", 4, signed=True)
    thing = writer.struct("thing", 40, [])
    pointer = writer.pointer(writer.add(10, "", 0, thing))  # to const struct thing
    alias = writer.typedef("thing_t", pointer)
    for name, returns in (
        ("make", pointer),
        ("make_alias", alias),
        ("count", number),
        ("numbers", writer.pointer(number)),
        ("anything", writer.pointer(0)),
        ("nothing", 0),
        ("unnamed", writer.pointer(writer.struct("", 8, []))),
    ):
        writer.function(name, writer.prototype(returns, []))
    return read_btf(writer.bytes(), "made")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("make", "thing"),
        ("make_alias", "thing"),
        ("count", None),
        ("numbers", None),
        ("anything", None),
        ("nothing", None),
        ("unnamed", None),
        ("absent", None),
    ],
)
def test_the_struct_behind_the_result(function: str, expected: str | None) -> None:
    assert Types(_kernel(), lambda name: None).result(function, "") == expected


def test_sizes_of_structs() -> None:
    types = Types(_kernel(), lambda name: None)
    assert types.size("thing", "") == 40
    assert types.size("thing", "a_module_without_btf") == 40
    assert types.size("absent", "") is None


def test_a_modules_own_types_come_first() -> None:
    kernel = _kernel()
    writer = BtfWriter(kernel.end_id, kernel.end_string)
    writer.struct("own", 24, [])
    module = read_btf(writer.bytes(), "module", kernel)
    types = Types(kernel, {"m": module}.get)
    assert types.size("own", "m") == 24
    assert types.size("own", "") is None
    assert types.result("make", "m") == "thing"
