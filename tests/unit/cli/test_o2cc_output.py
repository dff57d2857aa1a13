# SPDX-License-Identifier: Apache-2.0
"""What `o2cc` does with the result of a compilation; the compilation itself is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from o2cc.bpf.layout import Layout
from o2cc.cli.common import run
from o2cc.cli.o2cc import o2cc
from o2cc.diagnostics import Diagnostic, SourceFile, error, warning
from o2cc.options import Compiled, CompileOptions, Degrade, Emit

WARNING = warning("O2C0101", "mild", path="a.o2c")


class FakeCompiler:
    """Remembers how it was called."""

    def __init__(self) -> None:
        self.options: CompileOptions | None = None
        self.diagnostics: tuple[Diagnostic, ...] = ()

    def __call__(self, source: SourceFile, options: CompileOptions, **_: Any) -> Compiled:
        self.options = options
        return Compiled(b"\x7fELF", {"sites": 3, "grants": []}, self.diagnostics)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    import o2cc.driver

    fake = FakeCompiler()
    monkeypatch.setattr(o2cc.driver, "compile_policy", fake)
    monkeypatch.chdir(tmp_path)
    Path("a.o2c").write_text("// a policy\n")
    return fake


def test_output_and_statistics(compiler: FakeCompiler) -> None:
    assert run(o2cc, "o2cc", ["a.o2c", "-o", "b.o", "--stats", "s.json"]) == 0
    assert Path("b.o").read_bytes() == b"\x7fELF"
    assert json.loads(Path("s.json").read_text())["sites"] == 3


def test_default_output(compiler: FakeCompiler) -> None:
    assert run(o2cc, "o2cc", ["a.o2c"]) == 0
    assert sorted(os.listdir()) == ["a.bpf.o", "a.o2c"]


def test_statistics_to_the_standard_output(
    compiler: FakeCompiler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(o2cc, "o2cc", ["a.o2c", "--emit", "check", "--stats", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"] == 3
    assert os.listdir() == ["a.o2c"]


def test_options_arrive(compiler: FakeCompiler) -> None:
    arguments = [
        "a.o2c",
        "-k",
        "6.1",
        "--layout",
        "shape",
        "--degrade",
        "report",
        "-p",
        "a, b",
        "-I",
        "x",
        "-I",
        "y",
    ]
    for directory in ("x", "y"):
        os.mkdir(directory)
    assert run(o2cc, "o2cc", [*arguments, "--emit", "check"]) == 0
    assert compiler.options == CompileOptions(
        kernel="6.1",
        layout=Layout.SHAPE,
        emit=Emit.CHECK,
        degrade=Degrade.REPORT,
        passes=("a", "b"),
        search_path=("x", "y"),
    )


@pytest.mark.parametrize("output", ["missing/b.o", ".", "/dev/full"])
def test_unwritable_output(compiler: FakeCompiler, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2cc, "o2cc", ["a.o2c", "-o", output, "--stats", "s.json"]) == 1
    assert "O2C0905" in capsys.readouterr().err
    assert os.listdir() == ["a.o2c"]


@pytest.mark.parametrize("figures", ["missing/s.json", "."])
def test_unwritable_figures(compiler: FakeCompiler, figures: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2cc, "o2cc", ["a.o2c", "-o", "b.o", "--stats", figures]) == 1
    assert "O2C0905" in capsys.readouterr().err
    assert compiler.options is None  # told before the long work
    assert os.listdir() == ["a.o2c"]


def test_errors_write_nothing(compiler: FakeCompiler) -> None:
    compiler.diagnostics = (error("O2C0101", "bad"),)
    assert run(o2cc, "o2cc", ["a.o2c", "--stats", "s.json"]) == 1
    assert os.listdir() == ["a.o2c"]


@pytest.mark.parametrize(
    ("option", "status", "shown"),
    [
        ((), 0, "warning[O2C0101]"),
        (("-W", "error"), 1, "error[O2C0101]"),
        (("-W", "error=O2C0101"), 1, "error[O2C0101]"),
        (("-W", "no-O2C0101"), 0, ""),
    ],
)
def test_warnings(
    compiler: FakeCompiler,
    option: tuple[str, ...],
    status: int,
    shown: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiler.diagnostics = (WARNING,)
    assert run(o2cc, "o2cc", ["a.o2c", *option]) == status
    shown_in_fact = capsys.readouterr().err
    assert shown in shown_in_fact
    assert bool(shown) == bool(shown_in_fact)
    assert os.path.exists("a.bpf.o") == (status == 0)


def test_figures_are_asked_for_only_with_stats(compiler: FakeCompiler) -> None:
    assert run(o2cc, "o2cc", ["a.o2c", "--emit", "check"]) == 0
    assert compiler.options is not None
    assert not compiler.options.figures
    assert run(o2cc, "o2cc", ["a.o2c", "--emit", "check", "--stats", "s.json"]) == 0
    assert compiler.options.figures
