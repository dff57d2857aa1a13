# SPDX-License-Identifier: Apache-2.0
"""A module by its file alone: the kernel that it belongs to is found by where the file lies and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from o2cc.kernel.description import Description
from o2cc.kernel.elf import read_elf
from o2cc.kernel.kernels import Kernel, module_name, open_kernel, read_module


@dataclass(frozen=True)
class ModuleFile:
    """An unpacked module and its kernel."""

    path: Path
    data: bytes
    kernel: Kernel

    def describe(self, structs: Sequence[str] = ()) -> Description:
        """Scan the module; errors are those of `o2cc.kernel.scan.describe_module`."""
        from o2cc.kernel.scan import describe_module  # late: the decoder is loaded while the kernel unpacks

        return describe_module(self.data, str(self.path), module_name(self.path), self.kernel, structs)


def open_module_file(path: str | Path) -> ModuleFile:
    """Read a module (``.ko``, also packed) and find its kernel, which is unpacked in the background from then on.

    Raises DiagnosticError: O2C0401 to O2C0403 and O2C0901 for the module's file, O2C0421 when its kernel is not there.
    """
    path = Path(path)
    data = read_module(path)
    kernel = kernel_of_module(path, read_elf(data, str(path)).release)
    kernel.prefetch()
    return ModuleFile(path, data, kernel)


def kernel_of_module(path: Path, release: str) -> Kernel:
    """The kernel of a module of ``release``: beside it in an unpacked package, or by the release.

    Raises DiagnosticError O2C0421 when there is none.
    """
    for parent in path.resolve().parents:
        image = parent / "boot" / f"vmlinuz-{release}"
        if release and image.is_file():
            return open_kernel(str(image))
    return open_kernel(release or "(unnamed)")
