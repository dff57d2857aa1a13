# SPDX-License-Identifier: Apache-2.0
"""What the shells offer: files where a file is meant, kernels, codes, names of what is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from o2cc.cli.o2c import o2c
from o2cc.cli.o2cc import o2cc
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import state

_RELEASES = ["6.1.0-57-amd64", "6.12.117+deb12-amd64"]


def offered(command: click.Command, *words: str) -> list[tuple[str, str]]:
    """(type, value) of what is offered for the last of the words."""
    name = "o2cc" if command is o2cc else "o2c"
    shell = ShellComplete(command, {}, name, f"_{name.upper()}_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(list(words[:-1]), words[-1])]


def _parameters(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _parameters(inner, (*path, name))
        return
    for parameter in command.params:
        yield path, parameter


_FILE_WORDS = (".o2c", ".o2k", ".parquet", "FILE", "DIR", "POLICY", "MODULE", "SOURCE", "TREE")
_FILES = [
    (path, parameter)
    for command, name in ((o2cc, "o2cc"), (o2c, "o2c"))
    for path, parameter in _parameters(command, (name,))
    if any(word in parameter.make_metavar(click.Context(command)) for word in _FILE_WORDS)
]


def test_there_are_parameters_for_files() -> None:
    assert len(_FILES) > 25


@pytest.mark.parametrize(
    ("path", "parameter"),
    _FILES,
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.name,
)
def test_files_are_offered_where_a_file_is_meant(path: tuple[str, ...], parameter: click.Parameter) -> None:
    """Catches a parameter that is a plain string, for which the shells offer nothing, not even files."""
    items = parameter.shell_complete(click.Context(click.Command(path[-1])), "./po")
    assert [item.type for item in items] in (["file"], ["dir"])


@pytest.fixture
def own_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path))
    directory = tmp_path / "descriptions" / "6.2.0-own"
    directory.mkdir(parents=True)
    (directory / "sctp.o2k").touch()
    return directory.name


@pytest.mark.parametrize(
    "words", [("explain", "f", "p.o2c", "-k"), ("load", "p.o2c", "-k"), ("doctor", "--kernel")]
)
def test_kernels_that_something_is_known_of(own_kernel: str, words: tuple[str, ...]) -> None:
    bundled, newest = _RELEASES
    assert offered(o2c, *words, "6.") == [("plain", bundled), ("plain", own_kernel), ("plain", newest)]
    assert offered(o2c, *words, "6.2") == [("plain", own_kernel)]
    assert offered(o2c, *words, "./x") == [("file", "./x")]


def test_codes_in_any_case() -> None:
    assert ("plain", "O2C0101") in offered(o2cc, "--explain", "o2c01")
    assert offered(o2cc, "--explain", "O2C0101") == [("plain", "O2C0101")]


@pytest.mark.parametrize("command", ["status", "monitor", "unload", "phase"])
def test_names_of_what_is_loaded(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "names", lambda: ("sctp", "tipc"))
    monkeypatch.setattr(state, "leftovers", lambda: ("sctp_old",))
    assert offered(o2c, command, "s") == [("plain", "sctp"), ("plain", "sctp_old")]


def test_who_may_not_look_is_offered_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an error message in the middle of a command line."""

    def refuse() -> tuple[str, ...]:
        raise DiagnosticError(error("O2C0805", "it cannot be read"))

    monkeypatch.setattr(state, "RUN", tmp_path)
    monkeypatch.setattr(state, "leftovers", refuse)
    assert offered(o2c, "unload", "") == []


def test_phases() -> None:
    assert offered(o2c, "phase", "sctp", "") == [("plain", "transition"), ("plain", "final")]
    assert ("plain", "final") in offered(o2c, "phase", "f")
