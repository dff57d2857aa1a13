# SPDX-License-Identifier: Apache-2.0
"""Where the module is whose objects a profile is made for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from o2cc.diagnostics import DiagnosticError, error
from o2cc.trees.features import PAGE_BYTES

TEXT, CONSTANTS, DATA = (".text", ".exit.text"), (".rodata", ".data..ro_after_init"), (".data", ".bss")
"""How sections are named that the compiler calls the compartment's code, constants and variables
(`o2cc.lower.places.section_kind`)."""

_FAR = 1 << 20


def own_bounds(sections: Mapping[str, int]) -> dict[str, int]:
    """Bounds of a module for `Layout`.  A section reaches to the next one, the last of a region to its page's end."""
    starts = sorted(set(sections.values()))
    following = dict(zip(starts, [*starts[1:], 0], strict=True))

    def end(start: int) -> int:
        near = following[start] - start
        return following[start] if 0 < near < _FAR else (start // PAGE_BYTES + 1) * PAGE_BYTES

    def bounds(name: str, prefixes: tuple[str, ...], excluded: tuple[str, ...] = ()) -> dict[str, int]:
        inside = [
            start
            for section, start in sections.items()
            if section.startswith(prefixes) and not (excluded and section.startswith(excluded))
        ]
        return {name: min(inside, default=0), f"{name}_end": max(map(end, inside), default=0)}

    return bounds("own_text", TEXT) | bounds("own_constants", CONSTANTS) | bounds("own_data", DATA, CONSTANTS)


def module_sections(module: str) -> dict[str, int]:
    """Addresses of a loaded module's sections, by name.  Raises DiagnosticError (O2C0850) when it is not loaded."""
    directory = Path(f"/sys/module/{module}/sections")
    try:
        return {path.name: int(path.read_text(), 16) for path in directory.iterdir()}
    except OSError as problem:
        why = os.strerror(problem.errno or 0).lower()
        raise DiagnosticError(
            error("O2C0850", f"the sections of module `{module}` cannot be read: {why}", path=str(directory))
        ) from None
