# SPDX-License-Identifier: Apache-2.0
"""What the running kernel says of itself: release, build ids, addresses, settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from o2cc.diagnostics import Diagnostic, error

_KALLSYMS = Path("/proc/kallsyms")
_OPTIMIZATION = Path("/proc/sys/debug/kprobes-optimization")
OPTIMIZATION_MARKER = Path("/run/o2c/optimization-is-off")


def build_id(notes: bytes) -> str:
    """Hex of the NT_GNU_BUILD_ID note in a notes section, "" if there is none (gABI, notes)."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = (int.from_bytes(notes[at + i : at + i + 4], "little") for i in (0, 4, 8))
        name_end = at + 12 + (name_size + 3) // 4 * 4
        if kind == 3 and notes[at + 12 : at + 15] == b"GNU":
            return notes[name_end : name_end + size].hex()
        at = name_end + (size + 3) // 4 * 4
    return ""


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def kernel_build_id() -> str:
    """Build id of the running kernel, "" when it cannot be read."""
    return build_id(_read("/sys/kernel/notes"))


def module_build_id(name: str) -> str:
    """Build id of a loaded module, "" when it is not loaded."""
    return build_id(_read(f"/sys/module/{name.replace('-', '_')}/notes/.note.gnu.build-id"))


def module_source_version(name: str) -> str:
    """The `srcversion` of a loaded module, "" where it has none."""
    return _read(f"/sys/module/{name.replace('-', '_')}/srcversion").decode().strip()


def module_loaded(name: str) -> bool:
    """Whether a module of that name is loaded (and not built in)."""
    return Path(f"/sys/module/{name.replace('-', '_')}/initstate").exists()


def loaded_modules() -> tuple[str, ...]:
    """Names of the modules that are loaded, sorted."""
    return tuple(sorted(path.parent.name for path in Path("/sys/module").glob("*/initstate")))


def mismatches(identity: Mapping[str, str]) -> tuple[Diagnostic, ...]:
    """Why an object with this identity is not for the running kernel (O2C0810, O2C0811); empty when it is."""
    found: list[Diagnostic] = []
    release = os.uname().release
    if identity.get("release") != release:
        found.append(
            error(
                "O2C0810",
                f"this object is for kernel `{identity.get('release')}`, and `{release}` runs here",
                help="compile the policy again with `o2cc --kernel` for this kernel",
            )
        )
        return tuple(found)
    wanted, running = identity.get("kernel_build_id", ""), kernel_build_id()
    if wanted and running and wanted != running:
        found.append(
            error(
                "O2C0810",
                f"this object is for another build of kernel `{release}`",
                notes=(
                    f"build id of the object's kernel: {wanted}",
                    f"build id of the running kernel: {running}",
                ),
                help="scan this kernel with `o2c scan`, then compile the policy again",
            )
        )
    if identity.get("kind") == "module":
        name = identity.get("target", "")
        if not module_loaded(name):
            found.append(error("O2C0811", f"the module `{name}` is not loaded", help=f"modprobe {name}"))
        elif identity.get("build_id") and module_build_id(name) != identity["build_id"]:
            found.append(
                error(
                    "O2C0811",
                    f"the loaded module `{name}` is another build than the one described",
                    notes=(
                        f"described: {identity['build_id']}",
                        f"loaded: {module_build_id(name) or 'no build id'}",
                    ),
                    help="scan the module that is loaded with `o2c scan`, then compile the policy again",
                )
            )
        elif identity.get("srcversion") and module_source_version(name) not in ("", identity["srcversion"]):
            found.append(
                error(
                    "O2C0811",
                    f"the loaded module `{name}` is made from other sources than the one described",
                    notes=(
                        f"described: {identity['srcversion']}",
                        f"loaded: {module_source_version(name)}",
                    ),
                    help="scan the module that is loaded with `o2c scan`, then compile the policy again",
                )
            )
    return tuple(found)


@dataclass(frozen=True)
class Symbols:
    """Addresses of functions: unique ones by name, and the names that several share."""

    addresses: Mapping[str, int]
    ambiguous: frozenset[str]


def symbols_in(kallsyms: str, module: str | None, names: Iterable[str] | None = None) -> Symbols:
    """Functions of a module (None: of the kernel itself) by the text of /proc/kallsyms; only those of ``names``, if given.

    There are 170,000 lines; what most of them say is not looked at where the end of a line tells enough.
    """
    found: Iterable[tuple[str, ...]]
    if module is not None:
        tag = f"\t[{module.replace('-', '_')}]"
        wanted = None if names is None else set(names)
        found = (tuple(line[: -len(tag)].split(" ", 2)) for line in _lines_ending_in(kallsyms, tag))
        found = (parts for parts in found if wanted is None or parts[2] in wanted)
    elif names is not None:
        ends = (f" {name}" for name in set(names))
        found = (tuple(line.split(" ", 2)) for end in ends for line in _lines_ending_in(kallsyms, end))
    else:
        found = re.findall(r"^([0-9a-f]+) ([tTwW]) (\S+)$", kallsyms, re.MULTILINE)
    addresses: dict[str, int] = {}
    ambiguous: set[str] = set()
    for number, kind, name in found:
        if kind not in "tTwW":
            continue
        address = int(number, 16)
        if addresses.setdefault(name, address) != address:
            ambiguous.add(name)
    return Symbols(addresses, frozenset(ambiguous))


def _lines_ending_in(text: str, end: str) -> Iterator[str]:
    """The lines of a text, each ended by a newline, that end so."""
    end += "\n"
    at = text.find(end)
    while at >= 0:
        yield text[text.rfind("\n", 0, at) + 1 : at + len(end) - 1]
        at = text.find(end, at + len(end) - 1)


def read_symbols(module: str | None) -> Symbols:
    """Functions of a module (None: of the kernel itself); addresses need root."""
    return symbols_in(read_kallsyms(), module)


def read_kallsyms() -> str:
    """The text of /proc/kallsyms.  Reading it takes the kernel longer than everything that is done with it."""
    return _KALLSYMS.read_text(encoding="ascii", errors="replace")


def functions_of(module: str, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Addresses of functions of a loaded module, or of those of the kernel that it refers to, by name.

    Where several functions of the module share a name, all of them.  Addresses need root.
    """
    wanted = set(names)
    own: dict[str, list[int]] = {}
    others: dict[str, list[int]] = {}
    tag = f"[{module}]"
    with _KALLSYMS.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            parts = line.split()
            if parts[2] in wanted and parts[1] in "tTwW" and int(parts[0], 16):
                place = own if parts[-1] == tag else others
                place.setdefault(parts[2], []).append(int(parts[0], 16))
    return {name: tuple(own.get(name) or others.get(name) or ()) for name in wanted}


class KprobeOptimizationOff:
    """Keeps the kernel from optimizing probes one by one while many are placed; restores the setting after.

    A marker file says that the setting is to be restored: who finds it, with optimization off, does what a killed
    process could not do any more.  With ``keep`` it stays off, and the marker stays, until `restore_optimization`.
    """

    def __init__(
        self, setting: Path = _OPTIMIZATION, marker: Path = OPTIMIZATION_MARKER, *, keep: bool = False
    ) -> None:
        self._setting = setting
        self._marker = marker
        self._keep = keep
        self._restore = False

    def __enter__(self) -> None:
        before = _read(str(self._setting)).strip()
        if before == b"1":
            self._marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._marker.touch()
            self._setting.write_text("0")
        self._restore = before == b"1" or (before == b"0" and self._marker.exists())

    def __exit__(self, *_: object) -> None:
        if self._restore and not self._keep:
            self._setting.write_text("1")
            self._marker.unlink(missing_ok=True)


def restore_optimization(setting: Path = _OPTIMIZATION, marker: Path = OPTIMIZATION_MARKER) -> None:
    """Switch optimization on again: nothing needs it off any more, or a process was killed while it kept it off."""
    if marker.exists():
        with KprobeOptimizationOff(setting, marker):
            pass
