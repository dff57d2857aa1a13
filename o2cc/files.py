# SPDX-License-Identifier: Apache-2.0
"""Reading inputs and writing outputs, with diagnostics for whatever can go wrong.

Outputs are written whole or not at all: to a temporary file in the same directory, then renamed.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile, error

# A policy is limited to 1 Mi characters (o2cc.syntax.lexical); what is longer is not read into memory whole.
MAX_TEXT_BYTES = 16 << 20

STANDARD_STREAM = "-"

_PART = 1 << 20


def _reason(problem: OSError) -> str:
    return (problem.strerror or str(problem)).lower()


def _cannot_read(path: str, problem: OSError) -> Diagnostic:
    if problem.errno == errno.ENOENT:
        return error("O2C0901", f"there is no file `{path}`", path=path)
    if problem.errno == errno.EISDIR:
        return error("O2C0901", f"`{path}` is a directory, not a file", path=path)
    return error("O2C0901", f"cannot read `{path}`: {_reason(problem)}", path=path)


def read_bytes(path: str | Path, *, limit: int | None = None) -> bytes:
    """The content of a file.

    Raises DiagnosticError: O2C0901 when it cannot be read, O2C0903 when it is longer than `limit` bytes.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read() if limit is None else _read_at_most(file, limit + 1)
    except ValueError:  # a NUL in the path
        raise DiagnosticError(error("O2C0901", f"`{name!r}` is not the name of a file")) from None
    except OSError as problem:
        raise DiagnosticError(_cannot_read(name, problem)) from None
    if limit is not None and len(data) > limit:
        raise DiagnosticError(error("O2C0903", f"`{name}` is larger than {limit} bytes", path=name))
    return data


def _read_at_most(file: BinaryIO, size: int) -> bytes:
    """Up to ``size`` bytes; asked for at once they would take that much memory for a short file as well."""
    parts = []
    while size and (part := file.read(min(size, _PART))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_source(path: str | Path) -> SourceFile:
    """A text file as a source, named by its path; `-` is the standard input.

    Raises DiagnosticError: O2C0901, O2C0903, or O2C0902 when it is not UTF-8.
    """
    name = os.fspath(path)
    if name == STANDARD_STREAM:
        return decode_source("<stdin>", sys.stdin.buffer.read(MAX_TEXT_BYTES))
    return decode_source(name, read_bytes(name, limit=MAX_TEXT_BYTES))


def decode_source(name: str, data: bytes) -> SourceFile:
    """Bytes as a source. Raises DiagnosticError (O2C0902) when they are not UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        # The text up to the bad byte is valid, so its line and column can be told.
        good = SourceFile(name, data[: problem.start].decode("utf-8", "replace"))
        line, column = good.position(len(good.text))
        raise DiagnosticError(
            error(
                "O2C0902",
                f"`{name}` is not UTF-8 text",
                notes=(f"byte 0x{data[problem.start]:02x} at line {line}, column {column}",),
                path=name,
            )
        ) from None
    return SourceFile(name, text)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file whole or not at all, keeping the mode of a file that it replaces.

    What is there and is not a regular file (a device such as /dev/stdout, a pipe) is written directly.
    Raises DiagnosticError (O2C0905) when it cannot be written.
    """
    name = os.fspath(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    try:
        if name.endswith(os.sep):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        mode = os.stat(name).st_mode if os.path.exists(name) else None
        if mode is not None and not stat.S_ISREG(mode):
            _write_directly(name, content)
            return
        target = os.path.realpath(name)
        _write_and_rename(target, content, stat.S_IMODE(mode) if mode is not None else _default_mode())
    except ValueError:
        raise DiagnosticError(error("O2C0905", f"`{name!r}` is not the name of a file")) from None
    except OSError as problem:
        raise DiagnosticError(
            error("O2C0905", f"cannot write `{name}`: {_reason(problem)}", path=name)
        ) from None


def read_own_file(path: Path) -> bytes:
    """The content of a file that nobody but this user or root can have written.  Raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError("others can write it")
        return file.read()


def write_own_file(path: Path, data: bytes | str) -> None:
    """Write a file that `read_own_file` reads, for a cache: one that cannot be written is none, and nobody is told."""
    with suppress(OSError, DiagnosticError):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, data)
        path.chmod(0o644)


def require_writable(path: str | Path) -> None:
    """Raise now (O2C0905) what `write_atomic` would raise at the end of a long run: a missing or forbidden place."""
    name = os.fspath(path)
    try:
        directory = os.path.dirname(os.path.realpath(name))
    except ValueError:  # a NUL in the path
        raise DiagnosticError(error("O2C0905", f"`{name!r}` is not the name of a file")) from None
    if name.endswith(os.sep) or os.path.isdir(name):
        reason = errno.EISDIR
    elif not os.path.isdir(directory):
        reason = errno.ENOENT
    elif not os.path.exists(name) and not os.access(directory, os.W_OK | os.X_OK):
        reason = errno.EACCES
    else:
        return
    raise DiagnosticError(
        error("O2C0905", f"cannot write `{name}`: {os.strerror(reason).lower()}", path=name)
    )


def require_distinct(outputs: Sequence[str | Path], inputs: Iterable[str | Path]) -> None:
    """Raise (O2C0700) where an output is an input or another output, by the same name, another one or a link.

    To be called before anything is written. Devices and pipes can be written to by several, and lose nothing.
    """
    read = [
        name for name in (str(path) for path in inputs) if name != STANDARD_STREAM and os.path.isfile(name)
    ]
    names = [str(path) for path in outputs]
    for index, output in enumerate(names):
        if any(_same_file(output, other) for other in read):
            message = "the output would replace the source"
        elif any(_same_file(output, other) for other in names[:index]):
            message = "two outputs would be one file"
        else:
            continue
        raise DiagnosticError(error("O2C0700", message, path=output, help="give the output another name"))


def _same_file(one: str, other: str) -> bool:
    if STANDARD_STREAM in (one, other):
        return one == other
    try:
        if os.path.exists(one) and os.path.exists(other):
            return os.path.isfile(one) and os.path.samefile(one, other)
        return os.path.realpath(one) == os.path.realpath(other)
    except (OSError, ValueError):  # told where it is read or written
        return False


def _write_directly(name: str, content: bytes) -> None:
    with open(name, "wb") as file:
        file.write(content)


def _write_and_rename(target: str, content: bytes, mode: int) -> None:
    directory, base = os.path.split(target)
    handle, temporary = tempfile.mkstemp(prefix=f".{base[:100]}.", suffix=".tmp", dir=directory or ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
