# SPDX-License-Identifier: Apache-2.0
"""The standard library and the examples, as the parser and the formatter see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2cc.diagnostics import SourceFile
from o2cc.resources import resource_directory
from o2cc.syntax import nodes as n
from o2cc.syntax.formatter import format_source
from o2cc.syntax.parser import parse

_FILES = sorted(path for name in ("stdlib", "examples") for path in resource_directory(name).rglob("*.o2c"))


def _source(path: Path) -> SourceFile:
    return SourceFile(path.name, path.read_text(encoding="utf-8"))


def _comments(file: n.PolicyFile) -> list[str]:
    return [" ".join(comment.text.split()) for comment in file.comments]


def test_there_are_files() -> None:
    assert len(_FILES) >= 5


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_formatting_keeps_meaning_and_comments_and_settles(path: Path) -> None:
    source = _source(path)
    formatted = SourceFile(path.name, format_source(source))
    before, after = parse(source), parse(formatted)
    assert n.without_spans(after).items == n.without_spans(before).items
    assert _comments(after) == _comments(before)
    assert format_source(formatted) == formatted.text


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_every_span_is_inside_its_parent(path: Path) -> None:
    for node in n.walk(parse(_source(path))):
        for child in n.children(node):
            assert node.span.start <= child.span.start <= child.span.end <= node.span.end


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_is_formatted(path: Path) -> None:
    """`o2c fmt stdlib examples` mends it."""
    assert format_source(_source(path)) == path.read_text(encoding="utf-8")
