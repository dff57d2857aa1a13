# SPDX-License-Identifier: Apache-2.0
"""Which functions of other modules' tables an object is told to allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from o2cc.bpf.info import MapInfo, ObjectInfo, OpsTargetsInfo
from o2cc.diagnostics import DiagnosticError, error
from o2cc.kernel.description import OpsTable
from o2cc.runtime.call_targets import resolve
from tests.unit.runtime.made import info, site

TABLES = {
    "nft_ct": [
        OpsTable("a", ".rodata", 0, "nft_expr_ops", (("eval", "ct_eval"), ("init", "ct_init"))),
        OpsTable("b", ".rodata", 64, "nft_object_ops", (("eval", "ct_object"),)),
    ],
    "nft_nat": [OpsTable("c", ".rodata", 0, "nft_expr_ops", (("eval", "nat_eval"),))],
}
ADDRESSES = {"ct_eval": (0x10,), "ct_init": (0x20, 0x28), "ct_object": (0x30,), "nat_eval": (0x40,)}


def _tables(module: str) -> list[OpsTable]:
    if module not in TABLES:
        raise DiagnosticError(error("O2C0421", f"there is no file of the module `{module}`"))
    return TABLES[module]


def _addresses(module: str, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    return {name: ADDRESSES.get(name, ()) for name in names}


def _object(*rules: OpsTargetsInfo, capacity: int = 16) -> ObjectInfo:
    call_targets = MapInfo("call_targets", "hash", ("address",), ("scopes", "gate"), capacity)
    return replace(info(site(0)), ops_targets=rules, maps=(call_targets,))


def _rule(*modules: str, struct: str = "nft_expr_ops", scopes: int = 1, excluded: str = "") -> OpsTargetsInfo:
    return OpsTargetsInfo(struct, modules, (excluded,) if excluded else (), scopes, "made.o2c", 7)


def _resolve(*rules: OpsTargetsInfo, modules: tuple[str, ...] = ("nft_ct", "nft_nat")) -> dict[int, int]:
    found, notes = resolve(_object(*rules), modules, _tables, _addresses)
    assert notes == ()
    return {address: scopes for address, (scopes, _) in found.items()}


def test_only_tables_of_the_named_struct_count() -> None:
    assert set(_resolve(_rule("nft_ct"))) == {0x10, 0x20, 0x28}


def test_patterns_take_dashes_for_underscores() -> None:
    assert set(_resolve(_rule("nft-*"))) == {0x10, 0x20, 0x28, 0x40}


def test_excluded_functions_are_left_out() -> None:
    assert set(_resolve(_rule("nft_ct", excluded="ct_init"))) == {0x10}


def test_scopes_of_two_rules_are_joined_and_kept_apart() -> None:
    found = _resolve(_rule("nft_*", scopes=2), _rule("nft_nat", scopes=4))
    assert found == {0x10: 2, 0x20: 2, 0x28: 2, 0x40: 6}


def test_each_member_has_its_gate() -> None:
    """Catches the gate of one member that looks at the arguments of another; a place in an array counts as its member."""
    rule = replace(_rule("nft_*"), gates=(("eval", 3), ("init", 5)))
    found, _ = resolve(_object(rule), ("nft_ct", "nft_nat"), _tables, _addresses)
    assert {address: gate for address, (_, gate) in found.items()} == {0x10: 3, 0x20: 5, 0x28: 5, 0x40: 3}
    rule = replace(_rule("nft_*"), gates=(("init", 5),))
    found, _ = resolve(_object(rule), ("nft_ct",), _tables, _addresses)
    assert found[0x10] == (1, 0)


def test_a_pattern_that_no_loaded_module_fits_is_told() -> None:
    found, notes = resolve(_object(_rule("xt_*")), ("nft_ct",), _tables, _addresses)
    assert found == {}
    assert [note.code for note in notes] == ["O2C0824"]


def test_a_module_whose_tables_nothing_tells_is_an_error_with_the_remedy() -> None:
    with pytest.raises(DiagnosticError) as caught:
        resolve(_object(_rule("nft_*")), ("nft_ct", "nft_made"), _tables, _addresses)
    (problem,) = caught.value.diagnostics
    assert problem.code == "O2C0822"
    assert "nft_made" in problem.message
    assert "o2c scan nft_made" in (problem.help or "")


def test_a_function_that_the_kernel_does_not_list_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDRESSES, "nat_eval", ())
    with pytest.raises(DiagnosticError, match="nat_eval"):
        _resolve(_rule("nft_nat"))


def test_more_targets_than_the_map_holds_is_an_error() -> None:
    with pytest.raises(DiagnosticError) as caught:
        resolve(_object(_rule("nft_*"), capacity=3), ("nft_ct", "nft_nat"), _tables, _addresses)
    assert caught.value.diagnostics[0].code == "O2C0823"
