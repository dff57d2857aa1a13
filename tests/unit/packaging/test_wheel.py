# SPDX-License-Identifier: Apache-2.0
"""What an installation has, without a checkout beside it: the wheel, built here and used from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_PARTS = ("grammar", "stdlib", "examples", "descriptions", "bpf_runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    directory = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(_ROOT)).build(directory=str(directory), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as an installer does, in a directory of its own."""
    directory = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def _tracked(*paths: str) -> set[str]:
    """The files of the checkout that a wheel should have: what is there but for what builds leave behind."""
    ignored = {".ko", ".o", ".mod", ".cmd", ".pyc", ".c.mod"}
    found: set[str] = set()
    for path in paths:
        for file in (_ROOT / path).rglob("*"):
            relative = file.relative_to(_ROOT)
            built = file.suffix in ignored or file.name.endswith(".mod.c") or file.name.startswith(".")
            if file.is_file() and not built and file.name not in ("Module.symvers", "modules.order"):
                found.add(str(relative))
    return found


def test_everything_that_is_needed_travels(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = {path for path in _tracked("o2cc") if path not in names}
    missing |= {path for path in _tracked(*_PARTS) if f"o2cc/data/{path}" not in names}
    assert missing == set()


def test_nothing_else_travels(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    allowed = _tracked("o2cc") | {f"o2cc/data/{path}" for path in _tracked(*_PARTS)}
    assert set(names) - allowed == set()
    assert len(names) == len(set(names))


def test_commands_are_declared(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    text = entry_points.read_text()
    assert "o2cc = o2cc.cli.start:o2cc" in text
    assert "o2c = o2cc.cli.start:o2c" in text


def _run(installed: Path, where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with the unpacked wheel before anything else, in another directory."""
    code = (
        "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); name = sys.argv.pop(1);"
        "import o2cc; assert o2cc.__file__.startswith(sys.path[0]), o2cc.__file__;"
        "sys.argv[0] = name; runpy.run_module('o2cc.cli.' + name, run_name='__main__')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code, str(installed), *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_compiler_works_elsewhere(installed: Path, tmp_path: Path) -> None:
    policy = installed / "o2cc" / "data" / "examples" / "cls_route.o2c"
    release = sorted(path.name for path in (installed / "o2cc" / "data" / "descriptions").iterdir())[0]
    result = _run(installed, tmp_path, "o2cc", str(policy), "-k", release, "-o", "route.bpf.o")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "route.bpf.o").read_bytes().startswith(b"\x7fELF")


def test_explanations_travel(installed: Path, tmp_path: Path) -> None:
    result = _run(installed, tmp_path, "o2cc", "--explain", "O2C0101")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("# O2C0101")


def test_policy_tests_work_elsewhere(installed: Path, tmp_path: Path) -> None:
    policy = installed / "o2cc" / "data" / "examples" / "cls_route.o2c"
    release = sorted(path.name for path in (installed / "o2cc" / "data" / "descriptions").iterdir())[-1]
    result = _run(installed, tmp_path, "o2c", "test", str(policy), "-k", release)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 failed" in result.stdout
