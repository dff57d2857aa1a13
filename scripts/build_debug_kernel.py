# SPDX-License-Identifier: Apache-2.0
"""Build a small kernel with KASAN, lockdep and other checking from Debian's kernel source package, for the VM tests.

``python -m scripts.build_debug_kernel`` fetches the source package ``linux-source-6.1`` from the archive that this
machine is configured for, in the version of the cached 6.1 kernel, unpacks it into the cache, configures it by
``scripts/debug_kernel.config`` and builds it.  Sources and objects stay at
``<cache>/kernels/<release>/usr/src/linux-headers-<release>``, where modules are built against them.  Afterwards
``debug`` is a kernel series like the others, but never among the default ones::

    .venv/bin/python -m tests.vm.kbuild --kernel debug
    .venv/bin/python -m tests.vm.machine --kernel debug --timeout 1800 -- COMMAND ...

It costs about 25 minutes of CPU time and 4 GB of disk. Debian packages that it needs: bc, bison, dwarves, flex,
gcc-12, libelf-dev, libssl-dev, make, xz-utils. No root needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.fetch_kernels import (
    DEBUG,
    LAYOUT,
    STAMP,
    FetchError,
    Kernel,
    cache_dir,
    ensure,
)
from tests.vm import kbuild

BASE = "6.1"
CONFIG = Path(__file__).with_name("debug_kernel.config")
LOCAL_VERSION = "-o2c-debug"
UNCONFINED = ("net/sctp", "net/netfilter", "net/sched")
"""Code that policies are about is built as a distribution builds it, without calls to KASAN in it."""
_NMI_CHECK = "\t\t\tverify_lock_unused(lock, &hlock, subclass);\n"
"""Taken out of kernel/locking/lockdep.c: it reports every lock of a BPF map that is taken at a breakpoint in the kernel,
which counts as an NMI. Those locks have a guard of their own (htab_lock_bucket() in kernel/bpf/hashtab.c), and lockdep
would be off for the rest of the run."""


def wanted(fragment: str) -> dict[str, str]:
    """``CONFIG_NAME=value`` lines of a configuration."""
    return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", fragment, re.MULTILINE))


def not_taken(fragment: str, config: str) -> list[str]:
    """Lines of ``fragment`` that the finished configuration does not have: something they depend on is missing."""
    have = wanted(config)
    return [f"{name}={value}" for name, value in wanted(fragment).items() if have.get(name) != value]


def fetch_source(version: str, into: Path) -> Path:
    """The unpacked kernel source of Debian's ``linux-source-6.1``; an existing one is kept."""
    if (into / "Makefile").exists():
        return into
    scratch = into.with_name(f".{into.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        package = f"linux-source-{BASE}"
        _run(["apt-get", "download", "-q", f"{package}={version}"], scratch)
        [deb] = scratch.glob("*.deb")
        _run(["dpkg", "-x", str(deb), str(scratch)], scratch)
        tree = scratch / "tree"
        tree.mkdir()
        archive = scratch / f"usr/src/{package}.tar.xz"
        _run(["tar", "-xf", str(archive), "--strip-components=1", "-C", str(tree)], scratch)
        for directory in UNCONFINED:
            with (tree / directory / "Makefile").open("a") as makefile:
                makefile.write("\n# Confined by policies: as a distribution builds it\nKASAN_SANITIZE := n\n")
        lockdep = tree / "kernel/locking/lockdep.c"
        text = lockdep.read_text()
        if _NMI_CHECK not in text:
            raise FetchError(f"{package} {version} has another lockdep.c")
        lockdep.write_text(text.replace(_NMI_CHECK, ""))
        tree.rename(into)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return into


def configure(tree: Path) -> str:
    """Configure, unless it is configured so already; the kernel's release.  Raises FetchError."""
    fragment = CONFIG.read_text()
    used = tree / ".o2c-config"
    if not used.exists() or used.read_text() != fragment:
        used.unlink(missing_ok=True)
        settings = f'{fragment}CONFIG_LOCALVERSION="{LOCAL_VERSION}"\n'
        (tree / "o2c.config").write_text(settings)
        _make(tree, "allnoconfig", "KCONFIG_ALLCONFIG=o2c.config")
        if missing := not_taken(fragment, (tree / ".config").read_text()):
            raise FetchError(f"this kernel does not take {', '.join(missing)}")
        used.write_text(fragment)
    return _make(tree, "-s", "kernelrelease").strip()


def build(jobs: int, shown: bool = True) -> Kernel:
    """Fetch, configure, build and register the kernel; what is there already is not done again.

    Raises FetchError when a tool or package is missing or the build fails.
    """
    version = ensure(BASE).package_version
    # Debian's 6.1.192-3 is upstream's 6.1.192.
    release = f"{version.split('-')[0]}{LOCAL_VERSION}"
    # Without symbolic links: the test machine mounts the modules before it has changed its root.
    final = (cache_dir() / "kernels").resolve() / release
    tree = fetch_source(version, final / f"usr/src/linux-headers-{release}")
    made = configure(tree)
    if made != release:
        raise FetchError(f"the source package builds {made}, not {release}")
    _make(tree, f"-j{jobs}", "bzImage", "modules", shown=shown)
    _make(tree, "-s", "modules_install", f"INSTALL_MOD_PATH={final}", "DEPMOD=true")
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod is None:
        raise FetchError("`depmod` is missing (package kmod)")
    _run([depmod, "-b", str(final), release], final)
    boot = final / "boot"
    boot.mkdir(exist_ok=True)
    for source, name in (
        ("arch/x86/boot/bzImage", "vmlinuz"),
        ("System.map", "System.map"),
        (".config", "config"),
    ):
        shutil.copy(tree / source, boot / f"{name}-{release}")
    kernel = Kernel(
        series=DEBUG,
        release=release,
        package_version=f"{version} {_make(tree, '-s', 'kernelversion').strip()}",
        vmlinuz=boot / f"vmlinuz-{release}",
        modules_dir=final / "lib/modules" / release,
        build_dir=tree,
        system_map=boot / f"System.map-{release}",
        config=boot / f"config-{release}",
    )
    for module in kernel.modules_dir.rglob("*.ko"):
        try:
            kbuild.add_btf(kernel, module)
        except kbuild.BuildError as error:
            raise FetchError(str(error)) from error
    stamp = {name: str(value) for name, value in asdict(kernel).items()}
    (final / STAMP).write_text(json.dumps(stamp | {"layout": LAYOUT}, indent=1) + "\n")
    return kernel


def _make(tree: Path, *arguments: str, shown: bool = False) -> str:
    return _run(["make", "ARCH=x86_64", "CC=gcc-12", "HOSTCC=gcc-12", *arguments], tree, shown)


def _run(command: Iterable[str], directory: Path, shown: bool = False) -> str:
    command = list(command)
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "KBUILD_BUILD_USER": "o2c",
        "KBUILD_BUILD_HOST": "o2c",
        "KBUILD_BUILD_TIMESTAMP": "2025-01-01",
    }
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdout=None if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            text=True,
            check=False,
        )
    except OSError as error:
        raise FetchError(f"`{command[0]}` failed: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or "").strip().splitlines()[-5:])
        raise FetchError(f"`{' '.join(command[:6])}` failed with status {done.returncode}: {tail}")
    return done.stdout or ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="build a kernel with KASAN and lockdep for the VM tests")
    parser.add_argument("--jobs", "-j", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    try:
        kernel = build(options.jobs)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({name: str(value) for name, value in asdict(kernel).items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
