# SPDX-License-Identifier: Apache-2.0
"""Finds a kernel on disk and opens what a scan needs of it, each part when it is first asked for.

A kernel is named by its boot image (``vmlinuz``, or an ELF ``vmlinux``), by a directory into which its package was
unpacked (``boot/`` and ``lib/modules/`` below it, or a directory that holds the image itself), or by its release:
then it is looked for in ``kernels/RELEASE`` of the cache directory (``$O2C_CACHE``, else ``$XDG_CACHE_HOME/o2c``, else
``~/.cache/o2c``) and in the root file system.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from o2cc.files import read_bytes
from o2cc.kernel.description import KernelFacts
from o2cc.kernel.elf import ElfFile, read_elf
from o2cc.kernel.errors import BROKEN_BTF, NO_KERNEL, failure
from o2cc.kernel.image import MODULE_SUFFIXES, decompress, kernel_image
from o2cc.resources import cache_directory
from o2cc.second_process import Task, begin

# What reads BTF and symbols is imported when it is needed: it brings numpy, and finding a kernel takes none of it.
if TYPE_CHECKING:
    from o2cc.kernel.btf import Btf
    from o2cc.kernel.kallsyms import KernelSymbols

_VERSION = re.compile(rb"Linux version ([0-9][^ \0]{0,80}) ")


# Ten strings in a row that every `kallsyms_token_table` has.
_TABLE_MARK = b"".join(b"%d\0" % digit for digit in range(10))


@dataclass(frozen=True)
class KernelParts:
    """What is kept of a kernel: release, build id, the bytes of its BTF (empty: none), its symbols."""

    release: str
    build_id: str
    btf: bytes
    symbols: KernelSymbols


@dataclass(frozen=True)
class Kernel:
    """A kernel image and, if known, the directory of its modules (``.../lib/modules/RELEASE``)."""

    path: Path
    modules: Path | None = None
    _ahead: list[Task[KernelParts]] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def image(self) -> bytes:
        """The kernel's ELF file. Raises DiagnosticError O2C0901, O2C0403 or O2C0404."""
        return self._unpack()

    @cached_property
    def parts(self) -> KernelParts:
        """What a scan of a module needs; unlike the whole image it is small enough to be kept."""
        return self._ahead.pop().result() if self._ahead else self._read_parts()

    def _read_parts(self) -> KernelParts:
        elf = self.elf if "image" in self.__dict__ else read_elf(self._unpack(), str(self.path))
        from o2cc.kernel.kallsyms import read_kallsyms

        found = [elf.section_by_name.get(name) for name in (".rodata", ".BTF")]
        rodata, btf = (elf.content(section) if section is not None else b"" for section in found)
        banner = _VERSION.search(rodata) or _VERSION.search(elf.data)
        release = banner.group(1).decode("ascii", "replace") if banner is not None else ""
        build_id = elf.build_id
        # The tables are read-only data in every version; a kernel that keeps them elsewhere is searched whole.
        tables = rodata if rodata.find(_TABLE_MARK) >= 0 else elf.data
        del elf  # a third of all memory of a scan, and not needed for the rest
        return KernelParts(release, build_id, btf, read_kallsyms(tables, str(self.path)))

    def _unpack(self) -> bytes:
        return kernel_image(read_bytes(self.path), str(self.path))

    def prefetch(self) -> None:
        """Start to read `parts` in the background; whoever asks for them waits for that, and is told what goes wrong."""
        if not self._ahead and not {"image", "parts"} & self.__dict__.keys():
            self._ahead.append(begin(self._read_parts))

    def forget(self) -> None:
        """Drop what was read, types and symbols above all, to be read again by whoever still asks."""
        self._ahead.clear()
        for name in ("parts", "image", "elf", "btf", "facts"):
            self.__dict__.pop(name, None)

    @cached_property
    def elf(self) -> ElfFile:
        return read_elf(self.image, str(self.path))

    @property
    def release(self) -> str:
        """The release in the kernel's own version banner; empty if it has none."""
        return self.parts.release

    @cached_property
    def btf(self) -> Btf:
        """The kernel's BTF. Raises DiagnosticError O2C0405 if there is none or it is broken."""
        from o2cc.kernel.btf import read_btf

        if not self.parts.btf:
            raise failure(BROKEN_BTF, "this kernel has no BTF", str(self.path))
        return read_btf(self.parts.btf, str(self.path))

    @property
    def symbols(self) -> KernelSymbols:
        return self.parts.symbols

    @cached_property
    def facts(self) -> KernelFacts:
        """What checks need to know of this kernel."""
        from o2cc.kernel.types import kernel_facts

        return kernel_facts(self.btf, self.symbols, self.build_id)

    @property
    def build_id(self) -> str:
        return self.parts.build_id

    def find_module(self, name: str) -> Path:
        """The file of a module by name (``-`` and ``_`` alike). Raises DiagnosticError O2C0421."""
        found = self._module_files.get(name.replace("-", "_"))
        if found is None:
            raise failure(NO_KERNEL, f"the kernel has no module `{name}`", str(self.modules or self.path))
        return Path(found)

    def has_module(self, name: str) -> bool:
        return name.replace("-", "_") in self._module_files

    @cached_property
    def _module_files(self) -> dict[str, str]:
        if self.modules is None:
            return {}
        return {_kernel_name(os.path.basename(path)): path for path in _module_paths(self.modules)}


def module_files(directory: Path) -> list[Path]:
    """All module files below a directory, in order of their paths."""
    return [Path(path) for path in _module_paths(directory)]


def _module_paths(directory: Path) -> list[str]:
    """As `module_files`, in the order of paths: by their parts."""
    found = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(directory)
        for name in names
        if name.endswith(MODULE_SUFFIXES)
    ]
    return sorted(found, key=lambda path: path.split(os.sep))


def module_name(path: Path) -> str:
    """The module's name as the kernel knows it."""
    return _kernel_name(path.name)


def _kernel_name(file: str) -> str:
    return file.partition(".ko")[0].replace("-", "_")


def open_kernel(name: str, release: str | None = None) -> Kernel:
    """The kernel that ``name`` (a file, a directory or a release) stands for; in a directory with several that of
    ``release`` if it is there. Raises DiagnosticError O2C0421.
    """
    path = Path(name)
    if path.is_file():
        return Kernel(path, _modules_beside(path))
    if path.is_dir():
        found = _in_directory(path, release) or _in_directory(path, None)
        if found is None:
            raise failure(NO_KERNEL, "no kernel image (`vmlinuz-*`, `vmlinux`) in this directory", name)
        return found
    if "/" not in name:
        for root in (cache_directory() / "kernels" / name, Path("/")):
            found = _in_directory(root, name) if root.is_dir() else None
            if found is not None:
                return found
    kept = sorted(item.name for item in (cache_directory() / "kernels").glob("*") if item.is_dir())
    help = (
        "give `--kernel` a boot image, a directory of an unpacked kernel package, or an installed release"
        + (f"; in the cache: {', '.join(kept)}" if kept else "")
    )
    runs = ", which is the one that runs" if name == os.uname().release else ""
    raise failure(NO_KERNEL, f"no kernel `{name}` found{runs}", name, help)


def _in_directory(root: Path, release: str | None) -> Kernel | None:
    patterns: tuple[str, ...] = ("boot/vmlinuz-*", "vmlinuz-*", "vmlinuz", "vmlinux", "boot/vmlinux-*")
    if release is not None:
        patterns = (f"boot/vmlinuz-{release}", f"vmlinuz-{release}", f"boot/vmlinux-{release}")
    for pattern in patterns:
        images = sorted(path for path in root.glob(pattern) if path.is_file())
        if images:
            return Kernel(images[-1], _modules_beside(images[-1]))
    return None


def _modules_beside(image: Path) -> Path | None:
    release = image.name.partition("-")[2]
    for root in (image.parent.parent, image.parent):
        for base in (root / "lib" / "modules", root / "usr" / "lib" / "modules"):
            if release and (base / release).is_dir():
                return base / release
    return image.parent if image.parent.name == release and (image.parent / "kernel").is_dir() else None


def read_module(path: Path) -> bytes:
    """A module's ELF file, unpacked. Raises DiagnosticError O2C0901 or O2C0403."""
    return decompress(read_bytes(path), str(path))
