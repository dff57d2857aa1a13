# SPDX-License-Identifier: Apache-2.0
"""Reads and writes description files (``.o2k``), and tells modules apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from o2cc.files import read_bytes, write_atomic
from o2cc.kernel import codec
from o2cc.kernel.description import Description
from o2cc.resources import cache_directory, resource_directory

_SIZE_LIMIT = 256 << 20


@dataclass(frozen=True, slots=True)
class BuildIdentity:
    """What a module file says of itself; empty strings for what it does not say."""

    release: str
    build_id: str
    srcversion: str


def load(path: str | Path) -> Description:
    """Read a description.

    Raises DiagnosticError: O2C0901 when the file cannot be read, O2C0410, O2C0411 or O2C0412 for its content.
    """
    return codec.decode(read_bytes(path, limit=_SIZE_LIMIT), str(path))


def save(description: Description, path: str | Path) -> int:
    """Write a description, whole or not at all; the number of bytes. Raises DiagnosticError O2C0905."""
    data = codec.encode(description)
    write_atomic(path, data)
    return len(data)


def read_build_identity(path: str | Path) -> BuildIdentity:
    """The identity of a module file (``.ko``, also packed). Raises DiagnosticError for what is no ELF file."""
    from o2cc.kernel.elf import read_elf  # late: the compiler only reads descriptions, and these bring numpy
    from o2cc.kernel.kernels import read_module

    elf = read_elf(read_module(Path(path)), str(path))
    return BuildIdentity(elf.release, elf.build_id, elf.module_info().get("srcversion", ""))


def user_descriptions() -> Path:
    """Where descriptions that a user made are looked for: ``RELEASE/TARGET.o2k`` below it."""
    return cache_directory() / "descriptions"


def bundled(target: str, release: str | None = None) -> list[Path]:
    """The descriptions of a target that travel with the package, newest release first; of one release if given.

    They lie in ``descriptions/RELEASE/TARGET.o2k``.
    """
    root = resource_directory("descriptions")
    found = [path for path in root.glob(f"*/{target}.o2k") if release is None or path.parent.name == release]
    return sorted(found, key=lambda path: (release_key(path.parent.name), path.parent.name), reverse=True)


def release_key(release: str) -> tuple[int, ...]:
    """Sorts releases by their numbers."""
    return tuple(int(number) for number in re.findall(r"[0-9]+", release))
