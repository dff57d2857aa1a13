# SPDX-License-Identifier: Apache-2.0
"""The parts of the machine that need no machine: module order, what a module's build depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.fetch_kernels import Kernel
from tests.vm import kbuild, machine
from tests.vm.machine import MachineError, module_closure

DEPENDENCIES = """\
kernel/fs/overlayfs/overlay.ko.xz:
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/lib/crc-t10dif.ko.xz:
"""

KERNEL = Kernel(
    series="6.1",
    release="6.1.0-9-amd64",
    package_version="6.1.1-1",
    vmlinuz=Path("/nowhere/vmlinuz"),
    modules_dir=Path("/nowhere/modules"),
    build_dir=Path("/nowhere/build"),
    system_map=Path("/nowhere/map"),
    config=Path("/nowhere/config"),
)


def test_modules_come_after_what_they_need_and_once() -> None:
    order = module_closure(DEPENDENCIES, ["9p", "overlay", "9pnet"])
    assert order == [
        "kernel/fs/netfs/netfs.ko.xz",
        "kernel/net/9p/9pnet.ko.xz",
        "kernel/fs/9p/9p.ko.xz",
        "kernel/fs/overlayfs/overlay.ko.xz",
    ]


def test_built_in_modules_are_left_out_and_dashes_are_underscores() -> None:
    assert module_closure(DEPENDENCIES, ["virtio_pci", "crc_t10dif"]) == ["kernel/lib/crc-t10dif.ko.xz"]


def test_no_emulator_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError, match="qemu-system-x86_64"):
        machine.run(KERNEL, ["true"], results=tmp_path / "results")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "victim"
    (directory / "include").mkdir(parents=True)
    (directory / "Kbuild").write_text("obj-m := victim.o\n")
    (directory / "include/victim.h").write_text("#define A 1\n")
    return directory


def test_hash_covers_sources_kernel_and_variables(source: Path) -> None:
    seen = {kbuild.source_hash(source, KERNEL, {})}
    seen.add(kbuild.source_hash(source, KERNEL, {"KCFLAGS": "-DX"}))
    (source / "include/victim.h").write_text("#define A 2\n")
    seen.add(kbuild.source_hash(source, KERNEL, {}))
    (source / "include/victim.h").rename(source / "include/other.h")
    seen.add(kbuild.source_hash(source, KERNEL, {}))
    assert len(seen) == 4


def test_hash_leaves_out_what_a_build_leaves_behind(source: Path) -> None:
    before = kbuild.source_hash(source, KERNEL, {})
    for name in ("victim.ko", "victim.o", "victim.mod.c", ".victim.o.cmd", "Module.symvers", "modules.order"):
        (source / name).write_text("x")
    assert kbuild.source_hash(source, KERNEL, {}) == before


def test_failed_build_says_so_and_leaves_no_older_module(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "victim.ko").write_text("old")
    (out / ".victim.stamp").write_text("0 victim.ko")
    with pytest.raises(kbuild.BuildError, match=r"cannot build victim for 6\.1\.0-9-amd64"):
        kbuild.build_module(KERNEL, source, out)
    assert not (out / "victim.ko").exists()
