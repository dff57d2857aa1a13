# SPDX-License-Identifier: Apache-2.0
"""What is loaded: pins in bpffs, and a directory under /run that says how they came to be.

/sys/fs/bpf/o2c/NAME/maps/MAP      maps, data sections as `.bss`
/sys/fs/bpf/o2c/NAME/links/NUMBER  what keeps each probe attached
/run/o2c/NAME/state.json           identity, time, failures
/run/o2c/NAME/object.bpf.o         the object, for the names of sites and fields
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    site: int  # -1 for a hook, and for a call of the private heap
    place: str
    reason: str


@dataclass(frozen=True)
class State:
    """How a compartment was loaded.  ``enforced``: o2c.ko carries its verdicts out.  ``by_module``: o2c.ko has its probes,
    not perf, as it always is when enforced.  ``problems``: what did not come out as it should, and `status` goes on saying."""

    name: str
    loaded_at: float  # seconds since the epoch
    boot_id: str
    attached: int
    failures: tuple[Failure, ...]
    enforced: bool
    degraded: str | None
    observed: tuple[Failure, ...] = ()  # where a violation is only reported though the policy says more
    by_module: bool = False
    problems: tuple[str, ...] = ()


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
        observed = tuple(Failure(**item) for item in document.pop("observed"))
        document.setdefault("by_module", document["enforced"])  # written before there was the difference
        problems = tuple(map(str, document.pop("problems", ())))
        state = State(**document, failures=failures, observed=observed, problems=problems)
    except PermissionError as problem:
        raise DiagnosticError(_forbidden(directory, "read", problem)) from None
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


def recorded() -> tuple[str, ...]:
    """The compartments that something was written down of.

    Raises DiagnosticError (O2C0805) for who may not look: that none is loaded would be wrong.
    """
    try:
        return tuple(sorted(entry.name for entry in RUN.iterdir() if (entry / "state.json").exists()))
    except PermissionError as problem:
        raise DiagnosticError(_forbidden(RUN, "read", problem)) from None
    except OSError:
        return ()


def _forbidden(path: Path, what: str, problem: OSError) -> Diagnostic:
    return error(
        "O2C0805",
        f"`{path}` cannot be {what}: {os.strerror(problem.errno or 0).lower()}",
        help="run as root",
    )


def names() -> tuple[str, ...]:
    """The compartments that are loaded: written down, and with pins."""
    return tuple(name for name in recorded() if pins(name).is_dir())


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}")


def check_name(name: str) -> str:
    """The name, when it can be one: it becomes part of paths, and o2c.ko takes 31 characters.

    Raises DiagnosticError (O2C0808).
    """
    if not _NAME.fullmatch(name):
        raise DiagnosticError(
            error(
                "O2C0808",
                f"`{name[:80]}` cannot be the name of a compartment",
                help="a letter, then letters, digits, `_`, `.`, `-`; at most 31 characters",
            )
        )
    return name


def only(name: str | None) -> str:
    """The compartment that a command means: the one named, or the one that is loaded.

    Raises DiagnosticError (O2C0802: none is loaded, O2C0807: several are).
    """
    if name is not None:
        return check_name(name)
    loaded = names()
    if len(loaded) == 1:
        return loaded[0]
    if not loaded:
        raise DiagnosticError(
            error("O2C0802", "no compartment is loaded", help="`o2c load POLICY` loads one")
        )
    raise DiagnosticError(
        error(
            "O2C0807",
            "several compartments are loaded, and none is named",
            help=f"name one of {', '.join(f'`{n}`' for n in loaded)}",
        )
    )


def leftovers() -> tuple[str, ...]:
    """What loaders left behind that were killed: pins without a state."""
    loaded = set(names())
    try:
        return tuple(sorted(entry.name for entry in BPFFS.iterdir() if entry.name not in loaded))
    except PermissionError as problem:
        raise DiagnosticError(_forbidden(BPFFS, "read", problem)) from None
    except OSError:  # nothing was ever loaded
        return ()


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keeps two processes from loading or unloading one compartment at once; ends with the process.

    Raises DiagnosticError (O2C0805: no right to, O2C0806: somebody is at it).
    """
    try:
        RUN.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(RUN / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise DiagnosticError(_forbidden(RUN, "written", problem)) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiagnosticError(
                error("O2C0806", f"another process is loading or unloading `{name}`", help="wait for it")
            ) from None
        yield
    finally:
        os.close(descriptor)


def forget(name: str) -> None:
    """Remove what was written down."""
    shutil.rmtree(RUN / name, ignore_errors=True)


def others_only_report(name: str) -> bool:
    """Whether another loaded compartment needs probe optimization off: one whose probes are perf's."""
    for other in names():
        if other != name:
            with suppress(DiagnosticError):
                if not load(other)[0].by_module:
                    return True
    return False
