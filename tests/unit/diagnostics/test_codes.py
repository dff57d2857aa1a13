# SPDX-License-Identifier: Apache-2.0
"""Every code in the sources has a page, every page a code, and pages have the agreed form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import o2cc
from o2cc.diagnostics import DiagnosticError
from o2cc.report.explain import explain, explanation, known_codes, title

_PACKAGE = Path(o2cc.__file__).parent
_LITERAL = re.compile(r"""["'](O2C0[1-9][0-9]{2})["']""")


def _codes_in_use() -> set[str]:
    return {
        code for path in _PACKAGE.rglob("*.py") for code in _LITERAL.findall(path.read_text(encoding="utf-8"))
    }


def test_every_code_has_a_page() -> None:
    assert _codes_in_use() - set(known_codes()) == set()


def test_every_page_has_a_code() -> None:
    assert set(known_codes()) - _codes_in_use() == set()


@pytest.mark.parametrize("code", known_codes())
def test_page_has_title_and_text(code: str) -> None:
    page = explanation(code)
    assert page is not None
    lines = page.splitlines()
    assert lines[0].startswith(f"# {code}: ")
    assert title(page)
    assert lines[1] == ""
    assert len(" ".join(lines[2:])) > 80
    assert all(len(line) <= 125 for line in lines)


@pytest.mark.parametrize("given", ["O2C0101", "o2c0101", "0101", "101", " O2C0101 "])
def test_explain_takes_a_code_in_any_form(given: str) -> None:
    assert explain(given).startswith("# O2C0101: ")


def test_list_of_all() -> None:
    assert len(explain("all").splitlines()) == len(known_codes()) + 2


@pytest.mark.parametrize("given", ["", "O2C", "O2C9999", "O2C0000", "../O2C0101", "x" * 1000, "\0"])
def test_explain_refuses_what_is_no_code(given: str) -> None:
    with pytest.raises(DiagnosticError) as refusal:
        explain(given)
    assert refusal.value.diagnostics[0].code == "O2C0904"
