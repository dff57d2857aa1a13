# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/ir.md are parsed, verified and printed; what it names exists."""

import re
from pathlib import Path

import pytest

from o2cc.diagnostics import SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.parser import parse_library, parse_module
from o2cc.ir.printer import print_module
from o2cc.ir.verifier import require_valid
from o2cc.passes.registry import PASSES

TEXT = (Path(__file__).parents[3] / "docs" / "ir.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```ir\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    source = SourceFile(f"example{number}.ir", EXAMPLES[number])
    module = parse_module(source) if "module " in EXAMPLES[number] else parse_library(source)
    require_valid(module)
    assert parse_module(SourceFile("again.ir", print_module(module))) == module


def test_the_whole_module_is_printed_as_it_stands_there() -> None:
    text = re.sub(r" +; one row a line", "", EXAMPLES[0]).replace("0x20", "32")
    assert print_module(parse_module(SourceFile("a.ir", EXAMPLES[0]))) == text


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_every_operation_is_named() -> None:
    words = set(re.findall(r"[a-z_]+", TEXT))
    for kind in (ir.BinaryOperator, ir.HelperKind, ir.SiteKind, ir.HookKind, ir.MapKind, ir.Verdict):
        assert {item.value for item in kind} <= words


def test_every_pass_is_named() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE)) == set(PASSES)
