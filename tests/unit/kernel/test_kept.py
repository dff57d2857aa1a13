# SPDX-License-Identifier: Apache-2.0
"""Descriptions of module files that are kept for the next compilation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from o2cc.cli.common import run
from o2cc.cli.o2cc import o2cc
from o2cc.diagnostics import SourceFile
from o2cc.driver import find_description
from o2cc.kernel import kept
from o2cc.kernel.description import Description

from .build import RELEASE, assemble, kernel_file, module_source
from .test_scan import BODY, MODULE


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample module in its kernel's package, which names a module that it depends on; nothing is kept yet."""
    monkeypatch.setenv("O2C_CACHE", str(tmp_path / "cache"))
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").write_bytes(kernel_file())
    path = tmp_path / "lib" / "modules" / RELEASE / "kernel" / "sample.ko"
    path.parent.mkdir(parents=True)
    path.write_bytes(assemble(MODULE))
    return path


def describe(path: Path) -> Description:
    return find_description("sample", str(path), SourceFile("sample.o2c", ""))


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.o2k"))


def refuse_to_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Description:
        raise AssertionError("it was scanned again")

    monkeypatch.setattr("o2cc.kernel.scan.describe_module", refuse)


def test_the_second_time_nothing_is_scanned(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = describe(module)
    assert len(entries(tmp_path)) == 1
    refuse_to_scan(monkeypatch)
    assert describe(module) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-40] + bytes(byte ^ 0x55 for byte in data[-40:]),
        lambda data: b"no description at all",
    ],
)
def test_a_damaged_entry_is_made_again(module: Path, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    first = describe(module)
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert describe(module) == first
    assert entry.read_bytes() == whole


def test_the_entry_of_another_module_is_not_taken(module: Path, tmp_path: Path) -> None:
    first = describe(module)
    (entry,) = entries(tmp_path)
    module.write_bytes(
        assemble(module_source(BODY.replace("mov [rdi + 0x10], esi", "mov [rdi + 0x18], esi")))
    )
    other = describe(module)
    assert other != first
    (new,) = set(entries(tmp_path)) - {entry}
    new.write_bytes(entry.read_bytes())
    assert describe(module) == other


@pytest.mark.parametrize("what", ["module", "kernel", "scanner"])
def test_whatever_differs_is_another_entry(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    describe(module)
    match what:
        case "module":
            module.write_bytes(module.read_bytes() + b"\0")
        case "kernel":
            image = tmp_path / "boot" / f"vmlinuz-{RELEASE}"
            image.write_bytes(image.read_bytes() + b"\0")
        case _:
            monkeypatch.setattr(kept, "_scanner", lambda: b"another")
    describe(module)
    assert len(entries(tmp_path)) == 2


def test_types_of_another_module_are_part_of_the_key(module: Path, tmp_path: Path) -> None:
    module.write_bytes(assemble(module_source(BODY).replace("vermagic=", "depends=helper\\0vermagic=")))
    describe(module)
    other = module.with_name("helper.ko")
    for count, content in ((2, assemble(MODULE)), (3, assemble(MODULE) + b"\0")):
        other.write_bytes(content)
        describe(module)
        assert len(entries(tmp_path)) == count


def test_a_file_that_others_can_write_is_not_trusted(module: Path, tmp_path: Path) -> None:
    first = describe(module)
    (entry,) = entries(tmp_path)
    module.write_bytes(module.read_bytes() + b"\0")
    describe(module)
    (new,) = set(entries(tmp_path)) - {entry}
    new.chmod(0o666)
    assert describe(module).functions == first.functions
    assert new.stat().st_mode & 0o777 == 0o644  # made again


def test_without_a_place_to_keep_it(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    monkeypatch.setenv("O2C_CACHE", str(blocked / "below"))
    assert describe(module) == describe(module)


def test_only_the_latest_are_kept(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_LIMIT", 2)
    found: list[Path] = []
    for number in range(4):
        module.write_bytes(module.read_bytes() + b"\0")
        describe(module)
        (new,) = set(entries(tmp_path)) - set(found)
        os.utime(new, ns=(number, number))
        found = [*found[-1:], new]
    assert entries(tmp_path) == sorted(found)


def test_the_user_can_go_without(module: Path, tmp_path: Path) -> None:
    policy = tmp_path / "sample.o2c"
    policy.write_text('compartment sample {\n    code   modules "sample"\n}\n')
    command = [str(policy), "-k", str(module), "--emit", "check"]
    # Both end after the scan: the sample's kernel lacks what checks need.
    assert run(o2cc, "o2cc", [*command, "--no-cache"]) == 1
    assert entries(tmp_path) == []
    assert run(o2cc, "o2cc", command) == 1
    assert len(entries(tmp_path)) == 1
