# SPDX-License-Identifier: Apache-2.0
"""The SCTP example as its user has it: it compiles with its tree for every described kernel, and its tests pass."""

from __future__ import annotations

from functools import cache

import pytest

from o2cc.bpf.layout import Layout
from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.compiler import Compiled, Options, Stopwatch
from o2cc.diagnostics import SourceFile
from o2cc.driver import compile_source
from o2cc.options import CompileOptions
from o2cc.resources import resource_directory
from o2cc.trees.file import read_tree

POLICY = resource_directory("examples") / "sctp.o2c"
RELEASES = sorted(path.parent.name for path in resource_directory("descriptions").glob("*/sctp.o2k"))


@cache
def compiled(release: str) -> Compiled:
    source = SourceFile(str(POLICY), POLICY.read_text(encoding="utf-8"))
    options = Options(layout=Layout.SHAPE)
    return compile_source(source, CompileOptions(kernel=release), options, Stopwatch())[0]


def test_it_is_described_for_two_kernels() -> None:
    assert len(RELEASES) >= 2


@pytest.mark.parametrize("release", RELEASES)
def test_it_compiles_with_its_tree(release: str) -> None:
    """Catches a tree of another format, and classes that the policy accepts but the tree does not know."""
    result = compiled(release)
    audition = result.policy.audition
    assert audition is not None
    tree = read_tree(POLICY.with_name(audition.path))
    assert set(audition.own) <= set(tree.classes)
    rows = next(table for table in result.module.tables if table.name == "audition_classes").rows
    assert len(rows) == len(tree.classes)
    assert any(function.name == "classify" for function in result.module.functions)
    assert [feature.name for feature in result.policy.required_features] == [], (
        "it reports: no o2c.ko is needed"
    )


@pytest.mark.parametrize("release", RELEASES)
def test_its_tests_pass(release: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2c, "o2c", ["test", str(POLICY), "-k", release]) == 0
    assert "0 failed" in capsys.readouterr().out
