# SPDX-License-Identifier: Apache-2.0
"""Every example of the language reference parses and is formatted; those for a target are checked against it.

The words after the language of a fenced example: `fragment=KIND` says what it is a part of, `target=MODULE`
that it is for this module, of which descriptions are bundled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from o2cc.compiler import parse_policy
from o2cc.diagnostics import Severity, SourceFile
from o2cc.driver import compile_policy, find_description
from o2cc.kernel.description import Description
from o2cc.options import CompileOptions
from o2cc.policy.checker import check
from o2cc.resources import resource_directory
from o2cc.syntax import nodes as n
from o2cc.syntax.formatter import format_source
from o2cc.syntax.parser import grammar, parse
from tests.unit.standard_library import standard_library

_REFERENCE = Path(__file__).parents[3] / "docs" / "language.md"
_TEXT = _REFERENCE.read_text(encoding="utf-8")
_FENCE = re.compile(r"^```o2c(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_USES = "use std.linux\nuse std.net\n\n"
_WRAPPERS = {
    "file": "{}",
    "compartment": _USES + 'compartment sctp {{\n    code   modules "sctp"\n{}}}\n',
    "test": _USES + 'compartment sctp {{\n    code   modules "sctp"\n    call   imports\n}}\n\n{}',
    "clauses": "extern fn fragment(p, q, n) {{\n{}}}\n",
    "expression": "const FRAGMENT = {}",
}


@dataclass(frozen=True)
class Example:
    """One fenced example: its line in the reference, what it is, and the whole file around it."""

    line: int
    kind: str
    target: str | None
    text: str

    def __str__(self) -> str:
        return f"line-{self.line}"

    @property
    def source(self) -> SourceFile:
        return SourceFile("language.md", self.text)


def _examples() -> list[Example]:
    found: list[Example] = []
    for match in _FENCE.finditer(_TEXT):
        info = dict(word.split("=") for word in match["info"].split())
        kind = info.get("fragment", "file")
        # A fragment of a compartment that brings its own code needs none from the wrapper.
        wrapper = _WRAPPERS[kind]
        if kind == "compartment" and re.search(r"^ *code ", match["text"], re.MULTILINE):
            wrapper = "compartment fragment {{\n{}}}\n"
        line = _TEXT[: match.start()].count("\n") + 1
        found.append(Example(line, kind, info.get("target"), wrapper.format(match["text"])))
    return found


_EXAMPLES = _examples()
_FOR_TARGETS = [example for example in _EXAMPLES if example.target]
_RELEASES = sorted(path.name for path in resource_directory("descriptions").iterdir())


@pytest.mark.parametrize("example", _EXAMPLES, ids=str)
def test_example_parses(example: Example) -> None:
    assert parse(example.source).items


@pytest.mark.parametrize("example", [e for e in _EXAMPLES if e.kind != "expression"], ids=str)
def test_example_is_formatted(example: Example) -> None:
    assert format_source(example.source) == example.text


@cache
def _description(target: str, release: str) -> Description:
    return find_description(target, release, SourceFile("language.md", ""))


@pytest.mark.parametrize("release", _RELEASES)
@pytest.mark.parametrize("example", _FOR_TARGETS, ids=str)
def test_example_for_a_target_is_accepted(example: Example, release: str) -> None:
    assert example.target is not None
    policy, found = check(
        parse_policy(example.source), _description(example.target, release), standard_library()
    )
    assert policy.name in ("sctp", "example")
    assert [d.message for d in found if d.severity is Severity.ERROR] == []


def test_first_example_compiles() -> None:
    compiled = compile_policy(_EXAMPLES[0].source, CompileOptions())
    assert compiled.output.startswith(b"\x7fELF")


def test_most_examples_are_for_targets() -> None:
    assert len(_FOR_TARGETS) >= 10


def test_every_form_of_the_language_has_an_example() -> None:
    seen = {type(node).__name__ for example in _EXAMPLES for node in n.walk(parse(example.source))}
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
