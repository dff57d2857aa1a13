# SPDX-License-Identifier: Apache-2.0
"""Build the project's own kernel modules for a kernel in the cache.

A module is a directory with a ``Kbuild`` file (``obj-m := name.o``) and its sources. Those that match
:data:`SOURCES` are what the VM tests need; ``python -m tests.vm.kbuild`` builds them all, for both kernels.
The results lie in ``<cache>/modules/<release>/<name>.ko``; in the guest ``$O2C_MODULES`` is
``<cache>/modules``, so a guest test loads ``$O2C_MODULES/$(uname -r)/o2c.ko`` (:func:`guest_module`).

Sources are copied before they are built, so that the working tree stays clean, and a module whose
sources, kernel and variables are unchanged is not built again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from o2cc.kernel.image import kernel_image
from scripts.fetch_kernels import SERIES, FetchError, Kernel, cache_dir, ensure

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = ("bpf_runtime/module", "tests/kernel/*")
"""Patterns of module directories, relative to the project: those that have a Kbuild file."""

_PRODUCTS = (
    "*.o",
    "*.ko",
    "*.mod",
    "*.mod.c",
    "*.cmd",
    ".*.cmd",
    "*.symvers",
    "modules.order",
    ".tmp*",
    "*.d",
)


class BuildError(Exception):
    """A module does not build; the message ends with what the compiler said."""


def module_sources() -> list[Path]:
    """The directories that match :data:`SOURCES`."""
    return [file.parent for pattern in SOURCES for file in sorted(PROJECT.glob(f"{pattern}/Kbuild"))]


def modules_dir(kernel: Kernel) -> Path:
    """Where the modules for ``kernel`` are put."""
    return cache_dir() / "modules" / kernel.release


def guest_module(name: str) -> Path:
    """In the guest: the ``.ko`` of one of our modules for the running kernel (it may not exist)."""
    return Path(os.environ["O2C_MODULES"]) / os.uname().release / f"{name}.ko"


def source_hash(source_dir: Path, kernel: Kernel, variables: Mapping[str, str]) -> str:
    """SHA-256 over names and contents of the sources, the kernel's version and the make variables."""
    digest = hashlib.sha256(
        f"{kernel.release} {kernel.package_version} {sorted(variables.items())}\n".encode()
    )
    for path in sorted(source_dir.rglob("*")):
        if path.is_file() and not any(path.match(pattern) for pattern in _PRODUCTS):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(source_dir)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def build_module(
    kernel: Kernel,
    source_dir: Path,
    out_dir: Path | None = None,
    *,
    variables: Mapping[str, str] | None = None,
) -> Path:
    """Build what is in ``source_dir`` against the headers of ``kernel``; return the ``.ko`` of the only module,
    or of the one that has the directory's name.

    ``out_dir`` is :func:`modules_dir` unless given; ``variables`` go to make (``{"KCFLAGS": "-DX"}``).
    Raises BuildError.
    """
    out_dir = out_dir or modules_dir(kernel)
    out_dir.mkdir(parents=True, exist_ok=True)
    variables = variables or {}
    digest = source_hash(source_dir, kernel, variables)
    stamp = out_dir / f".{source_dir.name}.stamp"
    if stamp.exists():
        known, *names = stamp.read_text().split()
        if known == digest and names and all((out_dir / name).exists() for name in names):
            return out_dir / names[0]
        for name in names:
            (out_dir / name).unlink(missing_ok=True)  # no test may use what the sources no longer say
        stamp.unlink()
    with tempfile.TemporaryDirectory(prefix="o2c-kbuild-") as scratch:
        work = Path(scratch) / source_dir.name
        shutil.copytree(source_dir, work, ignore=shutil.ignore_patterns(*_PRODUCTS))
        command = ["make", "-s", "-C", str(kernel.build_dir), f"M={work}", "modules"]
        command += [f"{name}={value}" for name, value in variables.items()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"cannot build {source_dir.name} for {kernel.release}: {error}") from error
        said = (done.stdout + done.stderr).replace(str(work), str(source_dir)).strip()
        # The directory's own module first.
        built = sorted(work.glob("*.ko"), key=lambda path: (path.stem != source_dir.name, path.name))
        if done.returncode != 0 or not built:
            found = "" if done.returncode else " (no module was built)"
            raise BuildError(f"cannot build {source_dir.name} for {kernel.release}{found}:\n{said}")
        for module in built:
            add_btf(kernel, module)
        # By way of a rename: a guest that is being started never sees half a module.
        for module in built:
            partial = out_dir / f".{module.name}.{os.getpid()}"
            shutil.copy(module, partial)
            partial.rename(out_dir / module.name)
    stamp.write_text(" ".join((digest, *(module.name for module in built))))
    # The compiler's only: objtool has much to say about code that is written to be odd.
    if warnings := [line for line in said.splitlines() if "warning:" in line and "objtool:" not in line]:
        print("\n".join(warnings), file=sys.stderr)
    return out_dir / built[0].name


def add_btf(kernel: Kernel, module: Path) -> None:
    """Give a module the BTF that a build in the kernel's own tree gives it: distribution headers lack the
    vmlinux that the kernel's build asks for, so that it leaves modules without types. Raises BuildError."""
    elf = modules_dir(kernel) / "vmlinux"
    if not elf.exists() or elf.stat().st_mtime < kernel.vmlinuz.stat().st_mtime:
        partial = elf.with_suffix(f".{os.getpid()}")
        partial.write_bytes(kernel_image(kernel.vmlinuz.read_bytes(), str(kernel.vmlinuz)))
        partial.rename(elf)
    command = ["pahole", "-J", "--btf_base", str(elf), str(module)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"cannot make types of {module.name}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"cannot make types of {module.name}: {done.stderr.strip()}")
    subprocess.run(["strip", "-g", str(module)], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.kbuild", description="build the project's modules"
    )
    parser.add_argument("--kernel", action="append", help="kernel series (default: all)")
    parser.add_argument("directory", nargs="*", type=Path, help="module directories (default: the project's)")
    options = parser.parse_args(arguments)
    try:
        for series in options.kernel or SERIES:
            for source in options.directory or module_sources():
                print(build_module(ensure(series), source.resolve()))
    except (BuildError, FetchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
