# SPDX-License-Identifier: Apache-2.0
"""A module by its file alone: the kernel that it belongs to is found by where the file lies and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from o2cc.kernel import kept
from o2cc.kernel.description import Description
from o2cc.kernel.elf import read_elf
from o2cc.kernel.kernels import Kernel, module_name, open_kernel, read_module
from o2cc.second_process import Task, begin


@dataclass(frozen=True)
class ModuleFile:
    """An unpacked module and its kernel.

    ``known``: its description, if one was kept; ``entry``: where to keep the one that is made, if anywhere.
    """

    path: Path
    data: bytes
    kernel: Kernel
    known: Description | None = None
    entry: Path | None = None

    def describe(self, structs: Sequence[str] = ()) -> Description:
        """Scan the module; errors are those of `o2cc.kernel.scan.describe_module`."""
        if self.known is not None and not structs:
            return self.known
        from o2cc.kernel.scan import describe_module  # late: the decoder is loaded while the kernel unpacks

        return describe_module(self.data, str(self.path), module_name(self.path), self.kernel, structs)

    def begin_to_keep(self, description: Description) -> Task[bytes] | None:
        """Begin to encode what `describe` made, for `keep`; None if it is kept already, or not to be."""
        if self.entry is None or self.known is not None:
            return None
        return begin(partial(kept.encoded, description))

    def keep(self, encoded: Task[bytes] | None) -> None:
        """Keep what `describe` made for the next time."""
        if self.entry is not None and encoded is not None:
            kept.keep(self.entry, encoded.result())


def open_module_file(path: str | Path, *, caching: bool = False) -> ModuleFile:
    """Read a module (``.ko``, also packed) and find its kernel, which is unpacked in the background from then on, unless
    ``caching`` is wanted and the description is kept.

    Raises DiagnosticError: O2C0401 to O2C0403 and O2C0901 for the module's file, O2C0421 when its kernel is not there.
    """
    path = Path(path)
    data = read_module(path)
    elf = read_elf(data, str(path))
    kernel = kernel_of_module(path, elf.release)
    entry = kept.entry(elf, module_name(path), kernel) if caching else None
    known = kept.recall(entry, elf) if entry is not None else None
    if known is None:
        kernel.prefetch()
    return ModuleFile(path, data, kernel, known, entry)


def kernel_of_module(path: Path, release: str) -> Kernel:
    """The kernel of a module of ``release``: beside it in an unpacked package, or by the release.

    Raises DiagnosticError O2C0421 when there is none.
    """
    for parent in path.resolve().parents:
        image = parent / "boot" / f"vmlinuz-{release}"
        if release and image.is_file():
            return open_kernel(str(image))
    return open_kernel(release or "(unnamed)")
