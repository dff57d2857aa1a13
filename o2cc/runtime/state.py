# SPDX-License-Identifier: Apache-2.0
"""What is loaded: pins in bpffs, and a directory under /run that says how they came to be.

/sys/fs/bpf/o2c/NAME/maps/MAP      maps, data sections as `.bss`
/sys/fs/bpf/o2c/NAME/links/NUMBER  what keeps each probe attached
/run/o2c/NAME/state.json           identity, time, failures
/run/o2c/NAME/object.bpf.o         the object, for the names of sites and fields
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from o2cc.bpf.info import ObjectInfo
from o2cc.bpf.info import read as read_info
from o2cc.diagnostics import Diagnostic, DiagnosticError, error
from o2cc.files import write_atomic

BPFFS = Path("/sys/fs/bpf/o2c")
RUN = Path("/run/o2c")


@dataclass(frozen=True)
class Failure:
    """A site or hook without a probe, and why."""

    site: int  # -1 for a hook
    place: str
    reason: str


@dataclass(frozen=True)
class State:
    """How a compartment was loaded.  ``enforced``: o2c.ko carries its verdicts out."""

    name: str
    loaded_at: float  # seconds since the epoch
    boot_id: str
    attached: int
    failures: tuple[Failure, ...]
    enforced: bool
    degraded: str | None
    holder: int | None = None  # process that holds the enforcement module's file, if one does


def boot_id() -> str:
    """Tells one boot from another (Documentation/admin-guide/sysctl/kernel.rst)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pins(name: str) -> Path:
    return BPFFS / name


def save(state: State, data: bytes) -> None:
    """Write down how a compartment was loaded.  Raises DiagnosticError (O2C0905)."""
    directory = RUN / state.name
    directory.mkdir(parents=True, exist_ok=True)
    os.chmod(RUN, 0o700)
    write_atomic(directory / "object.bpf.o", data)
    write_atomic(directory / "state.json", json.dumps(asdict(state), indent=1))


def load(name: str) -> tuple[State, ObjectInfo]:
    """What was written down of a loaded compartment.  Raises DiagnosticError (O2C0802) when none is loaded."""
    directory = RUN / name
    try:
        document = json.loads((directory / "state.json").read_text())
        data = (directory / "object.bpf.o").read_bytes()
        failures = tuple(Failure(**item) for item in document.pop("failures"))
        state = State(**document, failures=failures)
    except (OSError, ValueError, TypeError, KeyError):
        raise DiagnosticError(not_loaded(name)) from None
    if state.boot_id != boot_id():
        raise DiagnosticError(not_loaded(name))
    return state, read_info(data, str(directory / "object.bpf.o"))


def not_loaded(name: str) -> Diagnostic:
    others = names()
    return error(
        "O2C0802",
        f"no compartment `{name}` is loaded",
        help=f"loaded: {', '.join(f'`{n}`' for n in others)}" if others else "`o2c load POLICY` loads one",
    )


def names() -> tuple[str, ...]:
    """The compartments that are loaded."""
    if not RUN.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in RUN.iterdir() if (entry / "state.json").exists()))


def forget(name: str) -> None:
    """Remove what was written down."""
    shutil.rmtree(RUN / name, ignore_errors=True)
