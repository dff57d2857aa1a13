# SPDX-License-Identifier: Apache-2.0
"""The phase of a loaded compartment: one word in its data, which every check reads, and what ends the transition.

The checks end a transition themselves: the first one that meets an untracked object after the end writes the word
(`in_transition` in o2cc/lower/library/state.ir).  Until then the word is behind; `Phase` says what counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from o2cc.bpf.info import ObjectInfo
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import state, tables

if TYPE_CHECKING:
    from o2cc.runtime.status import Status, UntrackedObject

INERT, TRANSITION, FINAL = 0, 1, 2
NUMBERS: Mapping[str, int] = {"transition": TRANSITION, "final": FINAL}
NAMES: Mapping[int, str] = {INERT: "inert", **{number: name for name, number in NUMBERS.items()}}
_NEVER = 2**64 - 1
_STILL_TO_COME = 2**63
_SECOND = 1e9
_SHOWN = 5  # objects in a refusal
_LOOK_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Phase:
    """The phase that counts at one moment.  Times in seconds: ``touched``: since the last touch of an object from
    before loading (None: there was none); ``quiet``, ``at_most``: the policy's limits (None: it has none); ``quiet_left``, ``left``:
    until they end the transition.  ``ended``: by itself, and no check has met that yet."""

    number: int
    touched: float | None = None
    quiet: float | None = None
    at_most: float | None = None
    quiet_left: float | None = None
    left: float | None = None
    ended: bool = False

    @property
    def name(self) -> str:
        return NAMES.get(self.number, str(self.number))


def phase_of(words: Mapping[str, int], now: int) -> Phase:
    """The phase by the words of the table `globals`, at a time in nanoseconds of the monotonic clock."""
    number, last = words.get("phase", 0), words.get("last_untracked", 0)
    touched = max(0, now - last) / _SECOND if last else None
    started = words.get("started", 0)
    if not started or started > now:
        started = now
    quiet, at_most = words.get("quiet", _NEVER), words.get("at_most", _NEVER)
    silence = max(0, now - max(started, last))
    quiet_left = None if quiet == _NEVER else (quiet - silence) / _SECOND
    left = None if at_most == _NEVER else (at_most - (now - started)) / _SECOND
    ended = number == TRANSITION and min(quiet_left or 0, left or 0) < 0
    return Phase(
        FINAL if ended else number,
        touched,
        None if quiet == _NEVER else quiet / _SECOND,
        None if at_most == _NEVER else at_most / _SECOND,
        quiet_left,
        left,
        ended,
    )


def reason(phase: Phase, objects: int) -> str:
    """Why the phase is what it is, and what would change it.  ``objects``: those from before loading that were touched and live."""
    if phase.ended:
        over = (
            f"no object from before loading was touched for {phase.quiet:.0f} s"
            if phase.quiet_left is not None and phase.quiet_left < 0
            else f"{phase.at_most:.0f} s are over"
        )
        return f"{over}, which ends the transition; access to one is a violation now"
    if phase.number == FINAL:
        return "what is not tracked and not granted is a violation"
    if phase.number == INERT:
        return "nothing is checked; `o2c phase NAME transition` starts the checks"
    if phase.touched is None:
        seen = "no object from before loading was touched yet"
    elif not objects:
        seen = f"the objects from before loading that were touched are gone, the last touch was {phase.touched:.0f} s ago"
    else:
        many = "1 object" if objects == 1 else f"{objects} objects"
        seen = f"{many} from before loading in use, the last one touched {phase.touched:.0f} s ago"
    ends = []
    if phase.quiet_left is not None:
        ends.append(f"when none is touched for another {phase.quiet_left:.0f} s")
    if phase.left is not None:
        ends.append(f"{'at the latest ' if ends else ''}in {phase.left:.0f} s")
    by_itself = (
        f"; the transition ends {', '.join(ends)}" if ends else "; the transition does not end by itself"
    )
    return f"{seen}{by_itself}; `o2c phase NAME final` ends it now"


def set_phase(name: str, phase: str) -> None:
    """Switch a loaded compartment to a phase; the time of a transition begins anew.

    Raises DiagnosticError: O2C0802 not loaded, O2C0805 no right to.
    """
    _, info = state.load(name)
    maps = state.pins(name) / "maps"
    with _globals(info, maps) as live:
        if NUMBERS[phase] == TRANSITION:
            live.set("globals", 0, "last_untracked", 0)
            live.set("globals", 0, "started", time.monotonic_ns())
        live.set("globals", 0, "phase", NUMBERS[phase])


def require_no_old_objects(look: Callable[[], Status], patience: float) -> None:
    """Wait, for at most ``patience`` seconds, until nothing is in use that the final phase would deny access to, nor
    what an audition accepted: it belongs to something that has other old objects, which are touched at its end.

    ``look`` looks how things are now.  Raises DiagnosticError (O2C0844) when something still is in use.
    """
    end = time.monotonic() + patience
    while (now := look()).denied_when_final or now.still_accepted:
        if time.monotonic() >= end:
            raise (
                _in_use(now.denied_when_final)
                if now.denied_when_final
                else _accepted_in_use(now.still_accepted)
            )
        time.sleep(_LOOK_EVERY)


def _in_use(objects: Sequence[UntrackedObject]) -> DiagnosticError:
    count = len(objects)
    latest = sorted(objects, key=lambda item: item.last_seen)[:_SHOWN]
    return DiagnosticError(
        error(
            "O2C0844",
            f"{count} object{'s' if count > 1 else ''} from before loading in use: access would be denied from now on",
            notes=tuple(
                f"touched {item.last_seen:.0f} s ago, {item.count} times since loading, first by {item.place}"
                for item in latest
            ),
            help="end what uses them (connections, sockets) and wait for it with `--wait SECONDS`; "
            "or deny access to them: `--force`",
        )
    )


def _accepted_in_use(count: int) -> DiagnosticError:
    return DiagnosticError(
        error(
            "O2C0844",
            f"{count} object{'s' if count > 1 else ''} from before loading, accepted by the audition, in use: access to others "
            "that belong with them would be denied from now on",
            notes=("what an open connection touches only at its end (keys, lists) was not judged so far",),
            help="end what uses them (connections, sockets) and wait for it with `--wait SECONDS`; "
            "or deny access to the others, over which the kernel may stop: `--force`",
        )
    )


def hold(info: ObjectInfo, maps: Path) -> None:
    """No transition ends while checks are being attached.  Raises DiagnosticError (O2C0805)."""
    with _globals(info, maps) as live:
        live.set("globals", 0, "started", _STILL_TO_COME)


def begin(info: ObjectInfo, maps: Path) -> None:
    """All checks are in place: the time of the transition begins.  Raises DiagnosticError (O2C0805)."""
    with _globals(info, maps) as live:
        live.set("globals", 0, "started", time.monotonic_ns())


def end(info: ObjectInfo, maps: Path) -> None:
    """Checks say nothing from now on and kill nobody.  Raises DiagnosticError (O2C0805)."""
    with _globals(info, maps) as live:
        live.set("globals", 0, "phase", INERT)


@contextmanager
def _globals(info: ObjectInfo, maps: Path) -> Iterator[tables.LiveTables]:
    try:
        with tables.live(info, maps) as live:
            yield live
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0805",
                f"`{maps}` cannot be changed: {os.strerror(problem.errno or 0).lower()}",
                help="run as root",
            )
        ) from None
