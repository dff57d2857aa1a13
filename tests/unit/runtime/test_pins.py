# SPDX-License-Identifier: Apache-2.0
"""Taking a compartment's pins away, with files in the place of links and of the kernel's list of probes."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2cc.runtime import pins
from o2cc.runtime.progress import silent


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "o2c" / "made"
    for name in ("links/0", "links/12", "links/o2c_allocated", "maps/events"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).touch()
    return made


def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> Path:
    path = tmp_path / "list"
    path.write_text("ffffffffc0000000  k  made+0x0  made\n" * count)
    monkeypatch.setattr(pins, "KPROBES", path)
    return path


def test_hooks_stay_until_the_probes_of_the_checks_are_gone(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches checks that still run when nothing tells them any longer what is allocated."""
    path = probes(tmp_path, monkeypatch, 5)
    seen: list[bool] = []

    def slowly(seconds: float) -> None:
        assert not (directory / "links/12").exists()
        seen.append((directory / "links/o2c_allocated").exists())
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))

    monkeypatch.setattr("o2cc.runtime.pins.time.sleep", slowly)
    assert pins.remove(directory, silent) == 2
    assert seen == [True, True]
    assert len(path.read_text().splitlines()) == 3
    assert not directory.parent.exists()


def test_probes_of_others_are_not_waited_for_forever(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes(tmp_path, monkeypatch, 5)
    monkeypatch.setattr(pins, "_STUCK", 0.3)
    assert pins.remove(directory, silent) == 2
    assert not directory.exists()


def test_without_debugfs_there_is_nothing_to_look_at(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches seconds of waiting for what nothing shows."""
    monkeypatch.setattr(pins, "KPROBES", tmp_path / "none")
    monkeypatch.setattr("o2cc.runtime.pins.time.sleep", lambda seconds: pytest.fail("waits"))
    assert pins.remove(directory, silent) == 2
