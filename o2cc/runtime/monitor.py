# SPDX-License-Identifier: Apache-2.0
"""Follows the events of a loaded compartment, and what was not sent or not delivered of them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import kernel_calls, state, tables
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError
from o2cc.runtime.events import Decoder, Event
from o2cc.runtime.libbpf import RingBuffer

_POLL = 200  # milliseconds
_ASK_EVERY = 1.0  # seconds between two questions to o2c.ko, which adds up the counters of all sites


@dataclass(frozen=True)
class Losses:
    """What no event tells of.  Violations: over the rate limit of their site; no room in the buffer.  ``missed``: hits at
    which o2c.ko could run no check."""

    rate_limited: int
    lost: int
    missed: int = 0

    def __sub__(self, other: Losses) -> Losses:
        return Losses(
            max(0, self.rate_limited - other.rate_limited),
            max(0, self.lost - other.lost),
            max(0, self.missed - other.missed),
        )

    def __bool__(self) -> bool:
        return bool(self.rate_limited or self.lost or self.missed)

    def sentence(self) -> str:
        """One line for a person."""
        parts = []
        if self.rate_limited:
            parts.append(
                f"{self.rate_limited} violations without an event: over the rate limit of their site"
            )
        if self.lost:
            parts.append(f"{self.lost} events lost: the buffer was full")
        if self.missed:
            parts.append(f"{self.missed} checks did not run: skipped inside another probe's handler")
        return "; ".join(parts)


def losses_of(live: tables.LiveTables, missed: int = 0) -> Losses:
    """The losses since loading, from the counters."""
    rows = live.rows("counters")
    lost = live.rows("globals")[0].get("lost_events", 0)
    unsent = sum(max(0, row["denied"] - row["sent"]) for row in rows)
    return Losses(max(0, unsent - lost), lost, missed)


def _missed(name: str) -> int:
    """Checks of a compartment that o2c.ko could not run; 0 when it does not have it any more."""
    try:
        with Enforcer() as enforcer:
            enforcer.open(name)
            return enforcer.info().missed
    except EnforcerError:
        return 0


def follow(name: str, *, seconds: float | None = None) -> Iterator[Event | Losses]:
    """The events of a compartment as they come, oldest first, and new losses; ends with the time or the compartment.

    Raises DiagnosticError: O2C0802 not loaded, O2C0805 no right to, O2C0809 somebody else reads the events.
    """
    saved, info = state.load(name)
    directory = state.pins(name)
    decoder = Decoder(info)
    received: list[Event] = []
    deadline = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        try:
            stack.callback(os.close, _reader_lock(name))
            live = stack.enter_context(tables.live(info, directory / "maps"))
            descriptor = kernel_calls.get_pinned(directory / "maps" / "events")
            stack.callback(os.close, descriptor)
            buffer = stack.enter_context(
                RingBuffer(descriptor, lambda record: received.append(decoder.decode(record)))
            )
        except OSError as problem:
            raise DiagnosticError(
                error(
                    "O2C0805",
                    f"the events of `{name}` cannot be read: {os.strerror(problem.errno or 0).lower()}",
                    help="run as root",
                )
            ) from None
        before, missed, asked = Losses(0, 0), 0, 0.0
        while True:
            left = _POLL if deadline is None else int(max(0.0, deadline - time.monotonic()) * 1000)
            buffer.poll(min(_POLL, left))
            yield from received
            received.clear()
            if saved.by_module and time.monotonic() - asked >= _ASK_EVERY:
                missed, asked = max(missed, _missed(name)), time.monotonic()
            now = losses_of(live, missed)
            if now - before:
                yield now - before
                before = now
            if (deadline is not None and time.monotonic() >= deadline) or not directory.is_dir():
                return


def _reader_lock(name: str) -> int:
    """A ring buffer has one reader: two would each see a part.  Raises DiagnosticError (O2C0809), OSError."""
    descriptor = os.open(state.RUN / name / "reader.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DiagnosticError(
            error(
                "O2C0809",
                f"another process reads the events of `{name}`",
                help="end the other `o2c monitor`; each event is delivered once",
            )
        ) from None
    return descriptor
