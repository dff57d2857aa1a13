# SPDX-License-Identifier: Apache-2.0
"""The parser's tables in the cache: the same parser, made anew when the cache is not to be trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.resources import resource_directory
from o2cc.syntax import parser
from o2cc.syntax.parser import parse

_SOURCES = sorted(
    [*resource_directory("stdlib").glob("*.o2c"), *resource_directory("examples").glob("*.o2c")]
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path / "cache"))
    parser.grammar.cache_clear()
    yield tmp_path / "cache"
    parser.grammar.cache_clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with good tables, for tests that spoil them: making them takes half a second."""
    directory = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2C_CACHE", str(directory))
        parser.grammar.cache_clear()
        parser.grammar()
    return directory


@pytest.fixture
def tables(made: Path, own_cache: Path) -> Path:
    """The file of good tables, in the cache of this test."""
    shutil.copytree(made, own_cache)
    parser.grammar.cache_clear()
    return _tables(own_cache)


def _tables(cache: Path) -> Path:
    (found,) = (cache / "grammar").iterdir()
    return found


def _again() -> None:
    parser.grammar.cache_clear()
    parser.grammar()


def test_cached_tables_parse_alike(own_cache: Path) -> None:
    built = [parse(SourceFile(path.name, path.read_text())) for path in _SOURCES]
    assert _tables(own_cache).is_file()
    parser.grammar.cache_clear()
    assert [parse(SourceFile(path.name, path.read_text())) for path in _SOURCES] == built


def test_cached_tables_give_the_same_messages(own_cache: Path) -> None:
    source = SourceFile("x.o2c", "compartment sctp { code modules\n  write struct { a }\n")
    messages = []
    for _ in range(2):
        with pytest.raises(DiagnosticError) as caught:
            parse(source)
        messages.append(caught.value.diagnostics)
        parser.grammar.cache_clear()
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"data": {}, "memo": {}}', "\0\xff", '{"data": 1, "memo": []}']
)
def test_broken_tables_are_made_anew(tables: Path, content: str) -> None:
    tables.write_text(content)
    _again()
    assert len(json.loads(tables.read_bytes())["data"]["parser"]["parser"]["states"]) > 100
    parse(SourceFile("x.o2c", "const a = 1\n"))


def test_tables_that_others_can_write_are_not_used(tables: Path) -> None:
    document = json.loads(tables.read_bytes())
    document["data"]["parser"]["parser"]["states"] = {}
    tables.write_text(json.dumps(document))
    tables.chmod(0o666)
    parse(SourceFile("x.o2c", "const a = 1\n"))


def test_unwritable_cache_is_no_error(own_cache: Path) -> None:
    own_cache.write_text("a file where the directory should be")
    parse(SourceFile("x.o2c", "const a = 1\n"))
