# SPDX-License-Identifier: Apache-2.0
"""Descriptions of module files, kept in the user's cache directory: compiling again needs no second scan.

An entry's name is the hash of all that a description is made from: the module, its kernel's image, the modules whose
types it uses, and the scanner.  Whatever differs is another entry; one that is damaged or not of this module is none.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from o2cc.diagnostics import DiagnosticError
from o2cc.files import read_bytes, read_own_file, write_own_file
from o2cc.kernel import codec
from o2cc.kernel.description import Description
from o2cc.kernel.elf import ElfFile
from o2cc.kernel.kernels import Kernel
from o2cc.resources import cache_directory

_LIMIT = 16  # entries; one of sctp is 0.5 MB
_LEVEL = 3  # of zstd: the description's own takes three times as long for a fifth less


def entry(elf: ElfFile, name: str, kernel: Kernel) -> Path | None:
    """Where the description of the module ``name`` is kept; None if there is no home directory or something that it is
    made from cannot be read, which scanning will tell."""
    key = hashlib.sha256(name.encode())
    try:
        for part in _inputs(elf, kernel):
            key.update(hashlib.sha256(part).digest())
        return cache_directory() / "scans" / f"{key.hexdigest()[:32]}.o2k"
    except (RuntimeError, DiagnosticError):
        return None


def _inputs(elf: ElfFile, kernel: Kernel) -> Iterator[bytes]:
    yield _scanner()
    yield elf.data
    yield read_bytes(kernel.path)
    for name in filter(None, elf.module_info().get("depends", "").split(",")):
        yield read_bytes(kernel.find_module(name)) if kernel.has_module(name) else b""


@cache
def _scanner() -> bytes:
    """Changes with the code that makes descriptions and with the decoder below it."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    found = importlib.util.find_spec("iced_x86")
    places = found.submodule_search_locations if found is not None else None
    libraries = sorted(path for place in places or () for path in Path(place).glob("*.so"))
    return code + repr([(s.st_size, s.st_mtime_ns) for s in map(Path.stat, libraries)]).encode()


def recall(path: Path, elf: ElfFile) -> Description | None:
    """The description that is kept for a module, if there is a whole one."""
    try:
        found = codec.decode(read_own_file(path), str(path))
    except (OSError, DiagnosticError):
        return None
    return found if found.target.sha256 == hashlib.sha256(elf.data).hexdigest() else None


def encoded(description: Description) -> bytes:
    """What `keep` writes of a description."""
    return codec.encode(description, _LEVEL)


def keep(path: Path, data: bytes) -> None:
    """Keep a description, and of all that are kept the latest only."""
    write_own_file(path, data)
    with suppress(OSError):
        entries = sorted(path.parent.glob("*.o2k"), key=lambda file: file.stat().st_mtime_ns)
        for old in entries[:-_LIMIT]:
            old.unlink()
