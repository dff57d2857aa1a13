# SPDX-License-Identifier: Apache-2.0
"""Every example of the language reference parses, and is laid out as the formatter does it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from o2cc.diagnostics import SourceFile
from o2cc.syntax import nodes as n
from o2cc.syntax.formatter import format_source
from o2cc.syntax.parser import grammar, parse

_REFERENCE = Path(__file__).parents[3] / "docs" / "language.md"
_FENCE = re.compile(r"^```o2c(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_WRAPPERS = {
    "": "{}",
    "fragment=compartment": "compartment fragment {{\n{}}}\n",
    "fragment=clauses": "extern fn fragment(p, q, n) {{\n{}}}\n",
    "fragment=expression": "const FRAGMENT = {}",
}
_TEXT = _REFERENCE.read_text(encoding="utf-8")
_EXAMPLES = [
    pytest.param(
        _WRAPPERS[match["info"].strip()].format(match["text"]),
        id=f"line-{_TEXT[: match.start()].count(chr(10)) + 1}",
    )
    for match in _FENCE.finditer(_TEXT)
]


@pytest.mark.parametrize("text", _EXAMPLES)
def test_example_parses(text: str) -> None:
    assert parse(SourceFile("language.md", text)).items


@pytest.mark.parametrize("text", [p for p in _EXAMPLES if "FRAGMENT" not in str(p.values[0])])
def test_example_is_formatted(text: str) -> None:
    assert format_source(SourceFile("language.md", text)) == text


def test_every_form_of_the_language_has_an_example() -> None:
    seen = {
        type(node).__name__
        for example in _EXAMPLES
        for node in n.walk(parse(SourceFile("language.md", str(example.values[0]))))
    }
    forms = {
        name
        for name, kind in vars(n).items()
        if isinstance(kind, type) and issubclass(kind, n.Node) and kind is not n.Node
    }
    assert forms - seen == set()


def test_every_keyword_is_in_the_reference() -> None:
    words = set(re.findall(r"[A-Za-z_]+", _TEXT))
    keywords = {t.pattern.value for t in grammar().terminals if t.pattern.value.isalpha()}
    assert keywords - words == set()
