# SPDX-License-Identifier: Apache-2.0
"""Facts about the booted kernel that all other guest tests stand on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def test_kernel_is_the_one_asked_for(kernel_series: str) -> None:
    release = os.uname().release
    assert (
        release.endswith("-o2c-debug")
        if kernel_series == "debug"
        else release.startswith(f"{kernel_series}.")
    )


def test_is_root_with_all_file_systems() -> None:
    assert os.geteuid() == 0
    mounted = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    for path, kind in {
        "/sys/kernel/debug": "debugfs",
        "/sys/kernel/tracing": "tracefs",
        "/sys/fs/bpf": "bpf",
        "/sys/fs/cgroup": "cgroup2",
    }.items():
        assert mounted[path] == kind


def test_kernel_has_btf() -> None:
    # BTF_MAGIC, little endian (include/uapi/linux/btf.h)
    assert Path("/sys/kernel/btf/vmlinux").read_bytes()[:2] == b"\x9f\xeb"


def test_kprobes_can_be_set_and_optimized() -> None:
    assert Path("/sys/kernel/debug/kprobes/enabled").read_text().strip() == "1"
    assert Path("/proc/sys/debug/kprobes-optimization").read_text().strip() == "1"
    events = Path("/sys/kernel/tracing/kprobe_events")
    _write(events, "p:o2c_boot_test do_sys_openat2")
    assert "o2c_boot_test" in events.read_text()
    _write(events, "-:o2c_boot_test")
    assert "o2c_boot_test" not in events.read_text()


def _write(events: Path, line: str) -> None:
    """One write without O_TRUNC, which would drop every event there is."""
    file = os.open(events, os.O_WRONLY)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def test_modules_load_and_unload() -> None:
    subprocess.run(["modprobe", "dummy"], check=True)
    assert Path("/sys/module/dummy").is_dir()
    subprocess.run(["modprobe", "-r", "dummy"], check=True)
    assert not Path("/sys/module/dummy").exists()


def test_changes_stay_in_the_guest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with open("/usr/share/o2c-guest-only", "w") as file:  # below is the host's tree, read-only
        file.write("x")
