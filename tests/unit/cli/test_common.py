# SPDX-License-Identifier: Apache-2.0
"""Exit statuses, diagnostics and the last resort of every command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click
import pytest

from o2cc.cli.common import EXIT_INTERNAL, Reporter, diagnostic_command, run
from o2cc.diagnostics import DiagnosticError, SourceFile, Span, error, warning


def _command(outcome: BaseException | int | None, *, warn: bool = False) -> click.Command:
    @click.command()
    @diagnostic_command
    def command(reporter: Reporter) -> int | None:
        if warn:
            reporter.add(warning("O2C0101", "mild"))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return command


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (None, 0),
        (0, 0),
        (3, 3),
        (DiagnosticError(error("O2C0101", "bad")), 1),
        (KeyboardInterrupt(), 130),
        (click.UsageError("how"), 2),
        (ZeroDivisionError("nobody thought of it"), EXIT_INTERNAL),
        (RecursionError(), EXIT_INTERNAL),
        (MemoryError(), 1),
    ],
)
def test_status(outcome: BaseException | int | None, status: int) -> None:
    assert run(_command(outcome), "o2c", []) == status


def test_warnings_alone_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_command(None, warn=True), "o2c", []) == 0
    assert "warning[O2C0101]: mild" in capsys.readouterr().err


def test_errors_come_with_the_warnings_before_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_command(DiagnosticError(error("O2C0102", "bad")), warn=True), "o2c", []) == 1
    shown = capsys.readouterr().err
    assert "O2C0101" in shown
    assert "1 error, 1 warning" in shown


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("settings", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_only_where_they_are_wanted(
    settings: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches commands that print coloured words on a terminal and never ask."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)

    @click.command()
    def command() -> None:
        click.echo(click.style("word", fg="red"))

    assert run(command, "o2c", []) == 0
    assert ("\x1b[31m" in terminal.getvalue()) is coloured
    assert "word" in terminal.getvalue()


def test_internal_error_says_whose_fault_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("O2C_DEBUG", raising=False)
    run(_command(ZeroDivisionError("x" * 5000)), "o2c", [])
    shown = capsys.readouterr().err
    assert "O2C0999" in shown
    assert "not in your input" in shown
    assert "Traceback" not in shown
    assert len(shown) < 1500
    monkeypatch.setenv("O2C_DEBUG", "1")
    run(_command(ZeroDivisionError("x")), "o2c", [])
    assert "Traceback" in capsys.readouterr().err


def test_want_of_memory_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_command(MemoryError()), "o2c", []) == 1
    shown = capsys.readouterr().err
    assert "error[O2C0908]: not enough memory" in shown
    assert "bug" not in shown


def test_json_is_a_document_also_when_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_command(None), "o2c", ["--error-format", "json"]) == 0
    assert json.loads(capsys.readouterr().err)["diagnostics"] == []


def test_error_format_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("O2C_ERROR_FORMAT", "concise")
    run(_command(DiagnosticError(error("O2C0101", "bad", path="x"))), "o2c", [])
    assert capsys.readouterr().err == "x: error[O2C0101]: bad\n"


def test_lines_of_sources_that_nobody_made_known_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = f"{tmp_path}/p.o2c"
    source = SourceFile(path, "use std.linux\n")
    with open(path, "w", encoding="utf-8") as file:
        file.write(source.text)
    run(_command(DiagnosticError(error("O2C0101", "bad", source.span(4, 7)))), "o2c", [])
    assert "1 | use std.linux" in capsys.readouterr().err


def test_lines_of_the_standard_library_are_found_from_anywhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(_command(DiagnosticError(error("O2C0101", "bad", Span("stdlib/net.o2c", 0, 2)))), "o2c", [])
    assert "1 | // SPDX" in capsys.readouterr().err
