# SPDX-License-Identifier: Apache-2.0
"""Reading and writing: a diagnostic for everything that goes wrong, and never half a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.files import read_bytes, read_source, write_atomic


def _code(raised: pytest.ExceptionInfo[DiagnosticError]) -> str:
    (diagnostic,) = raised.value.diagnostics
    return diagnostic.code


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read_source(tmp_path / "none")
    assert _code(raised) == "O2C0901"
    assert raised.value.diagnostics[0].path == str(tmp_path / "none")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "/dev/null/x"])
def test_names_of_no_file(name: str) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read_source(name)
    assert _code(raised) == "O2C0901"


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read_source(tmp_path)
    assert _code(raised) == "O2C0901"
    assert "directory" in raised.value.diagnostics[0].message


def test_invalid_utf8_tells_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.o2c"
    path.write_bytes(b"use std\n\xc3\xa9 \xff")
    with pytest.raises(DiagnosticError) as raised:
        read_source(path)
    assert _code(raised) == "O2C0902"
    assert raised.value.diagnostics[0].notes == ("byte 0xff at line 2, column 3",)


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.o2c"
    path.write_bytes(b"\xef\xbb\xbfuse std")
    assert read_source(path).text == "use std"


def test_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(DiagnosticError) as raised:
        read_bytes(path, limit=4)
    assert _code(raised) == "O2C0903"


def test_a_high_limit_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1" * 3_000_000)
    assert read_bytes(path, limit=1 << 60) == b"1" * 3_000_000


def test_endless_input_is_not_read_whole() -> None:
    with pytest.raises(DiagnosticError) as raised:
        read_source("/dev/zero")
    assert _code(raised) == "O2C0903"


def test_write_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["out"]


def test_write_keeps_the_mode_and_follows_links(tmp_path: Path) -> None:
    path, link = tmp_path / "out", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_write_respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "out", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["", "missing/out", "directory", "a\0b", "x" * 300])
def test_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "directory").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiagnosticError) as raised:
        write_atomic(name, "x")
    assert _code(raised) == "O2C0905"
    assert os.listdir(tmp_path) == ["directory"]


def test_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(DiagnosticError) as raised:
        write_atomic(path, "new")
    assert "no space left" in raised.value.diagnostics[0].message
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_write_to_a_device() -> None:
    write_atomic("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_full_device_is_a_diagnostic() -> None:
    with pytest.raises(DiagnosticError) as raised:
        write_atomic("/dev/full", "x")
    assert _code(raised) == "O2C0905"
