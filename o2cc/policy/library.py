# SPDX-License-Identifier: Apache-2.0
"""Modules from files: `std.*` from the installation's stdlib, others from beside the policy.  The rim: does I/O.

Code: O2C0209 module that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from o2cc.diagnostics import DiagnosticError, SourceFile, error
from o2cc.policy.names import ParsedModule
from o2cc.resources import resource_directory
from o2cc.syntax import nodes
from o2cc.syntax.parser import parse

_STANDARD = "std"
_SUFFIX = ".o2c"


class FileResolver:
    """Finds modules in directories: ``use std.net`` is ``net.o2c`` of the stdlib, ``use a.b`` is ``a/b.o2c`` in
    ``directory`` (the policy's own; None: only the stdlib), or else in the first of ``further`` that has it."""

    def __init__(
        self, directory: Path | None = None, standard: Path | None = None, further: Sequence[Path] = ()
    ) -> None:
        self.directories = (*((directory,) if directory is not None else ()), *further)
        self.standard = standard if standard is not None else resource_directory("stdlib")
        self._parsed: dict[str, ParsedModule] = {}

    def __call__(self, name: str) -> ParsedModule | None:
        """The parsed module; None if there is no such file.  Raises DiagnosticError."""
        known = self._parsed.get(name)
        if known is not None:
            return known
        found = self._path(name)
        if found is None:
            return None
        path, shown = found
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise DiagnosticError(
                error("O2C0209", f"module `{name}` cannot be read: {_reason(failure)}", path=str(path))
            ) from failure
        source = SourceFile(shown, text)
        module = ParsedModule(name, source, parse(source))
        self._parsed[name] = module
        return module

    def read_used(self, module: ParsedModule) -> None:
        """Parse what a module uses, and what that uses, ahead of their first use; what is not there is not
        complained about yet.  Raises DiagnosticError."""
        for item in module.file.items:
            if isinstance(item, nodes.Use) and item.module.text not in self._parsed:
                found = self(item.module.text)
                if found is not None:
                    self.read_used(found)

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """The sources that were read, for messages about them."""
        return tuple(module.source for module in self._parsed.values())

    def names(self) -> Iterable[str]:
        """All modules that there are."""
        names = [f"{_STANDARD}.{path.stem}" for path in sorted(self.standard.glob(f"*{_SUFFIX}"))]
        for directory in self.directories:
            names.extend(path.stem for path in sorted(directory.glob(f"*{_SUFFIX}")))
        return names

    def _path(self, name: str) -> tuple[Path, str] | None:
        first, *rest = name.split(".")
        if first == _STANDARD:
            relative = Path(*rest).with_suffix(_SUFFIX) if rest else None
            if relative is None:
                return None
            path = self.standard / relative
            return (path, f"stdlib/{relative.as_posix()}") if path.is_file() else None
        for directory in self.directories:
            path = directory / Path(first, *rest).with_suffix(_SUFFIX)
            if path.is_file():
                return path, str(path)
        return None


def _reason(failure: Exception) -> str:
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror.lower()
    return "it is not UTF-8 text"
