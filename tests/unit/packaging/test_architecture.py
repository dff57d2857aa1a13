# SPDX-License-Identifier: Apache-2.0
"""The parts of the program know each other in one direction only, and docs/architecture.md names every part."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "o2cc"
# What everything may use, then a part a line, each of which may use only what stands before it.
BASE = {"__version__", "diagnostics", "resources", "files", "second_process"}
ORDER = (
    "report",
    "syntax",
    "kernel",
    "ir",
    "policy",
    "passes",
    "trees",
    "lower",
    "simulation",
    "bpf",
    "options",
    "compiler",
    "runtime",
    "profile",
    "driver",
    "cli",
)


def _imports(file: Path) -> Iterator[str]:
    """The parts of o2cc that a module imports, also inside of functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            first, *rest = node.module.split(".")
            if first == "o2cc":
                yield from rest[:1] or [alias.name for alias in node.names]


def _files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


def test_every_part_has_its_place() -> None:
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == {*ORDER, *BASE} - {"__version__"}


@pytest.mark.parametrize("part", ORDER)
def test_a_part_uses_only_what_stands_before_it(part: str) -> None:
    allowed = {part, *BASE, *ORDER[: ORDER.index(part)]}
    found = {file.name: set(_imports(file)) - allowed for file in _files(part)}
    assert {name: parts for name, parts in found.items() if parts} == {}


def test_the_page_names_every_folder() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - set(re.findall(r"`o2cc/(\w+)/`", text)) == set()


def test_files_and_functions_that_the_page_names_are_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w*]+/)+[\w.*]*)`", text)
    assert [
        name for name in named if name[0].islower() and not any((*ROOT.glob(name), *PACKAGE.glob(name)))
    ] == []
