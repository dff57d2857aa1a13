# SPDX-License-Identifier: Apache-2.0
"""Whatever file a command is given, it ends with a diagnostic that names it, and leaves nothing behind."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.cli.o2cc import o2cc
from o2cc.resources import resource_directory

_DESCRIPTIONS = resource_directory("descriptions")
_RELEASES = sorted(path.name for path in _DESCRIPTIONS.iterdir())
_RELEASE = _RELEASES[0]
_POLICY = resource_directory("examples") / "cls_route.o2c"
_DESCRIPTION = (_DESCRIPTIONS / _RELEASE / "cls_route.o2k").read_bytes()
_ELF = b"\x7fELF\x02\x01\x01" + bytes(9)
_BTF = b"\x9f\xeb\x01\x00\x18\x00\x00\x00"


def _noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Contents that no command has a use for.
_CONTENTS: dict[str, bytes] = {
    "zeros": bytes(4096),
    "binary": bytes(range(256)) * 64,
    "noise": _noise(5000),
    "elf_header_only": _ELF + bytes(48),
    "elf_of_noise": _ELF + _noise(5000),
    "btf_of_noise": _BTF + _noise(2000),
    "gzip_of_noise": gzip.compress(_noise(500)),
    "gzip_cut": gzip.compress(_noise(5000))[:2000],
    "xz_cut": lzma.compress(_noise(5000))[:2000],
    "braces": b"{" * 100_000,
    "brackets": b"[" * 100_000,
    "ten_megabytes": b"// " + b"x" * (10 << 20),
    "description_cut": _DESCRIPTION[: len(_DESCRIPTION) // 2],
    "description_changed": _DESCRIPTION[:2000] + b"\xff\xff\xff" + _DESCRIPTION[2003:],
    "description_header": _DESCRIPTION[:10],
}
_MODULE = "module m { }\nfunction decide(x) {\nentry:\n  return 1\n}\n"
_KINDS = [*_CONTENTS, "empty", "missing", "directory"]


@dataclass(frozen=True)
class Command:
    """A command line with a place for a file; `empty_is_fine` where an empty file means something."""

    name: str
    command: click.Command
    suffix: str
    arguments: Callable[[str], list[str]]
    empty_is_fine: bool = False
    directory_is_fine: bool = False

    def __str__(self) -> str:
        return self.name


_OUT = ["-o", "out"]
_COMMANDS = [
    Command("o2cc", o2cc, ".o2c", lambda f: [f, "-k", _RELEASE, *_OUT, "--stats", "figures"]),
    Command("o2cc-kernel", o2cc, ".o2k", lambda f: ["good.o2c", "-k", f, *_OUT, "--stats", "figures"]),
    Command("o2cc-module", o2cc, ".ko", lambda f: ["good.o2c", "-k", f, *_OUT, "--stats", "figures"]),
    Command("scan", o2c, ".ko", lambda f: ["scan", f, *_OUT]),
    Command("scan-xz", o2c, ".ko.xz", lambda f: ["scan", f, *_OUT]),
    Command("scan-zst", o2c, ".ko.zst", lambda f: ["scan", f, *_OUT]),
    Command("scan-kernel", o2c, ".img", lambda f: ["scan", "--builtin", "ip6_*", "--kernel", f, *_OUT]),
    Command("show", o2c, ".o2k", lambda f: ["show", f]),
    Command("gates", o2c, ".o2k", lambda f: ["gates", f]),
    Command("gates-module", o2c, ".ko", lambda f: ["gates", f]),
    Command("test", o2c, ".o2c", lambda f: ["test", f]),
    Command("fmt", o2c, ".o2c", lambda f: ["fmt", f], empty_is_fine=True, directory_is_fine=True),
    Command("explain", o2c, ".o2c", lambda f: ["explain", "f+0x1", f, "-k", _RELEASE]),
    Command("explain-ir", o2c, ".ir", lambda f: ["explain", "f+0x1", f]),
    Command("explain-kernel", o2c, ".o2k", lambda f: ["explain", "f+0x1", "good.o2c", "-k", f]),
    Command("opt", o2c, ".ir", lambda f: ["opt", f, "--default", *_OUT]),
    Command("tree-show", o2c, ".json", lambda f: ["tree", "show", f]),
    Command("tree-import", o2c, ".json", lambda f: ["tree", "import", f, *_OUT]),
    Command("stats", o2c, ".json", lambda f: ["stats", f]),
    Command("load", o2c, ".bpf.o", lambda f: ["load", f]),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.o2c").write_bytes(_POLICY.read_bytes())
    (tmp_path / "good.o2k").write_bytes(_DESCRIPTION)
    return tmp_path


def _make(kind: str, path: Path) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(_CONTENTS.get(kind, b""))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("command", _COMMANDS, ids=str)
def test_a_diagnostic_names_the_file(
    command: Command, kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"input{command.suffix}"
    _make(kind, here / name)
    before = {path: path.stat().st_size for path in here.iterdir()}
    begin = time.process_time()
    status = run(command.command, "command", command.arguments(name))
    took = time.process_time() - begin
    shown = capsys.readouterr()
    fine = (kind == "empty" and command.empty_is_fine) or (kind == "directory" and command.directory_is_fine)
    assert status == (0 if fine else 1)
    if not fine:
        assert re.search(r"error\[O2C\d{4}\]", shown.err)
        assert name in shown.err
    assert "O2C0999" not in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err) < 20_000
    assert shown.out == ""
    assert {path: path.stat().st_size for path in here.iterdir()} == before
    assert took < 10


@pytest.mark.parametrize("output", ["", "missing/out", "good.o2k/out", "directory", "new/", "a\0b"])
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (o2cc, ["good.o2c", "-k", "good.o2k", "-o"]),
        (o2cc, ["good.o2c", "-k", "good.o2k", "--emit", "check", "--stats"]),
        (o2c, ["opt", "module.ir", "-o"]),
    ],
    ids=["object", "figures", "opt"],
)
def test_output_that_cannot_be_written(
    command: click.Command,
    arguments: list[str],
    output: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "directory").mkdir()
    (here / "module.ir").write_text(_MODULE)
    if not output and "-o" in arguments and command is o2cc:
        return  # an empty name is as none: the default
    before = sorted(os.listdir(here))
    assert run(command, "command", [*arguments, output]) == 1
    shown = capsys.readouterr()
    assert "error[O2C0905]" in shown.err
    assert "Traceback" not in shown.err
    assert sorted(os.listdir(here)) == before
    assert os.listdir(here / "directory") == []


_SAME_FILE = [
    (o2cc, ["good.o2c", "-k", "good.o2k", "-o", "good.o2c"]),
    (o2cc, ["good.o2c", "-k", "good.o2k", "-o", "good.o2k"]),
    (o2cc, ["good.o2c", "-k", "good.o2k", "-o", "./symbolic"]),
    (o2cc, ["good.o2c", "-k", "good.o2k", "-o", "hard"]),
    (o2cc, ["good.o2c", "-k", "good.o2k", "--emit", "check", "--stats", "good.o2c"]),
    (o2cc, ["uses.o2c", "-k", "good.o2k", "-o", "used.o2c"]),
    (o2cc, ["audition.o2c", "-k", "good.o2k", "-o", "sctp.tree.json"]),
    (o2cc, ["good.o2c", "-k", "good.o2k", "-o", "new", "--stats", "./new"]),
    (o2cc, ["good.o2c", "-k", "good.o2k", "-o", "-", "--stats", "-"]),
    (o2c, ["scan", "some.ko", "-o", "some.ko"]),
    (o2c, ["opt", "some.ir", "-o", "some.ir"]),
    (o2c, ["tree", "import", "sctp.tree.json"]),
    (o2c, ["train", "a.parquet", "b.parquet", "-o", "b.parquet"]),
    (o2c, ["train", "a.parquet", "-o", "new", "--report", "report"]),
    (o2c, ["train", "a.parquet", "-o", "./report/report.txt", "--report", "report"]),
]


@pytest.mark.parametrize(("command", "arguments"), _SAME_FILE, ids=lambda given: str(given)[:60])
def test_no_output_replaces_an_input_or_another_output(
    command: click.Command, arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an object, a description or figures in the place of what they were made from."""
    examples = resource_directory("examples")
    (here / "uses.o2c").write_text(f"use used\n{_POLICY.read_text()}")
    (here / "used.o2c").touch()
    (here / "audition.o2c").write_bytes((examples / "sctp.o2c").read_bytes())
    (here / "sctp.tree.json").write_bytes((examples / "sctp.tree.json").read_bytes())
    (here / "some.ir").write_text(_MODULE)
    for name in ("some.ko", "a.parquet", "b.parquet"):
        (here / name).write_text(name)
    (here / "report").mkdir()
    (here / "report" / "report.json").hardlink_to(here / "a.parquet")
    (here / "symbolic").symlink_to("good.o2c")
    (here / "hard").hardlink_to(here / "good.o2k")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert run(command, "command", arguments) == 1
    shown = capsys.readouterr()
    assert "error[O2C0700]" in shown.err
    assert shown.err.count("error[") == 1
    assert shown.out == ""
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_two_outputs_to_a_device_lose_nothing(here: Path) -> None:
    arguments = ["good.o2c", "-k", "good.o2k", "--emit", "ir", "-o", "/dev/null", "--stats", "/dev/null"]
    assert run(o2cc, "o2cc", arguments) == 0


def test_description_of_another_target(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "other.o2k").write_bytes((_DESCRIPTIONS / _RELEASE / "nf_tables.o2k").read_bytes())
    assert run(o2cc, "o2cc", ["good.o2c", "-k", "other.o2k", "-o", "out"]) == 1
    shown = capsys.readouterr().err
    assert "nf_tables" in shown
    assert "good.o2c:" in shown or "other.o2k" in shown
    assert not (here / "out").exists()


def test_kernel_that_nothing_is_known_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2cc, "o2cc", ["good.o2c", "-k", "9.9.9-none", "-o", "out"]) == 1
    shown = capsys.readouterr().err
    assert "O2C0910" in shown
    assert "9.9.9-none" in shown
    assert not (here / "out").exists()


def test_unknown_field_has_its_place(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _POLICY.read_text().replace("{ root }", "{ rooot }")
    (here / "policy.o2c").write_text(text)
    assert run(o2cc, "o2cc", ["policy.o2c", "-k", "good.o2k", "--error-format", "concise", "-o", "out"]) == 1
    line = text[: text.index("rooot")].count("\n") + 1
    shown = capsys.readouterr().err
    assert f"policy.o2c:{line}:" in shown
    assert "rooot" in shown
    assert not (here / "out").exists()
