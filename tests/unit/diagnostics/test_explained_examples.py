# SPDX-License-Identifier: Apache-2.0
"""Pages of syntax codes: the wrong example gives the code that the page explains, the right one parses."""

from __future__ import annotations

import re

import pytest

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.report.explain import explanation, known_codes
from o2cc.syntax.parser import parse

_BLOCK = re.compile(r"(?:^ {4}.*\n(?:\n(?= {4}))?)+", re.MULTILINE)
_SYNTAX_CODES = [code for code in known_codes() if code.startswith("O2C01")]


def _examples(code: str) -> list[str]:
    page = explanation(code)
    assert page is not None
    return ["".join(line[4:] + "\n" for line in block.splitlines()) for block in _BLOCK.findall(page)]


def _codes(text: str) -> list[set[str]]:
    """Codes of the text as a file, and as the inside of a compartment; an empty set when it parses."""
    found: list[set[str]] = []
    for whole in (text, f"compartment example {{\n{text}}}\n"):
        try:
            parse(SourceFile("example.o2c", whole))
            found.append(set())
        except DiagnosticError as problem:
            found.append({diagnostic.code for diagnostic in problem.diagnostics})
    return found


@pytest.mark.parametrize("code", [code for code in _SYNTAX_CODES if len(_examples(code)) > 1])
def test_wrong_and_right_example(code: str) -> None:
    wrong, *_, right = _examples(code)
    assert any(code in codes for codes in _codes(wrong))
    assert set() in _codes(right)


@pytest.mark.parametrize("code", [code for code in _SYNTAX_CODES if len(_examples(code)) == 1])
def test_single_example(code: str) -> None:
    """One example shows either what is wrong or what is right."""
    (example,) = _examples(code)
    assert any(codes in ({code}, set()) for codes in _codes(example))


def test_enough_pages_have_examples() -> None:
    assert sum(bool(_examples(code)) for code in _SYNTAX_CODES) >= 10
