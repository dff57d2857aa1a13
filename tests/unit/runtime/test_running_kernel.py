# SPDX-License-Identifier: Apache-2.0
"""Functions by name, from the text of /proc/kallsyms."""

from __future__ import annotations

import pytest

from o2cc.runtime.running_kernel import Symbols, symbols_in

KALLSYMS = """\
ffffffff81000000 T start
ffffffff81000040 t twice
ffffffff81000080 t twice
ffffffff810000c0 D data
ffffffff81000100 W weak
ffffffff81000140 T restart
ffffffffc0001000 t start\t[our_module]
ffffffffc0001040 T own\t[our_module]
ffffffffc0001080 t own\t[our_module]
ffffffffc00010c0 d table\t[our_module]
ffffffffc0002000 t start\t[module]
"""


@pytest.mark.parametrize(
    ("module", "names", "addresses", "ambiguous"),
    [
        (
            None,
            None,
            {
                "start": 0xFFFFFFFF81000000,
                "twice": 0xFFFFFFFF81000040,
                "weak": 0xFFFFFFFF81000100,
                "restart": 0xFFFFFFFF81000140,
            },
            {"twice"},
        ),
        (None, ["start", "missing", "data"], {"start": 0xFFFFFFFF81000000}, set()),
        (None, ["twice"], {"twice": 0xFFFFFFFF81000040}, {"twice"}),
        (None, [], {}, set()),
        ("our-module", None, {"start": 0xFFFFFFFFC0001000, "own": 0xFFFFFFFFC0001040}, {"own"}),
        ("our_module", ["start"], {"start": 0xFFFFFFFFC0001000}, set()),
        ("module", None, {"start": 0xFFFFFFFFC0002000}, set()),
        ("absent", None, {}, set()),
    ],
)
def test_functions_are_found_by_whose_they_are_and_by_name(
    module: str | None, names: list[str] | None, addresses: dict[str, int], ambiguous: set[str]
) -> None:
    assert symbols_in(KALLSYMS, module, names) == Symbols(addresses, frozenset(ambiguous))
