# SPDX-License-Identifier: Apache-2.0
"""What a loaded policy reported since the last look, told so that one can work on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from o2cc.runtime.events import Event
from o2cc.runtime.monitor import Losses, follow


@dataclass(frozen=True)
class Reports:
    """The events, and how many violations no event tells of."""

    events: tuple[Event, ...]
    lost: int

    def kinds(self) -> dict[str, int]:
        """Each kind of report at each place, and how often it came; violations without an event stand by themselves."""
        found = Counter(_kind(event) for event in self.events)
        if self.lost:
            found["violations without an event"] = self.lost
        return dict(sorted(found.items()))


def _kind(event: Event) -> str:
    note = f", {event.note}" if event.note else ""
    where = event.hit
    if event.hit == "slab object":
        held = f" ({', '.join(event.tracking)})" if event.tracking else ""
        where = f"{event.cache or 'slab'} object+{event.address - event.base:#x}{held}"
    size = f" of {event.size} bytes" if event.size else ""
    return f"{event.kind} at {event.function}+{event.offset:#x}{note}: {where}{size}"


def reports(name: str) -> Reports:
    """What the compartment reported since the last call."""
    events: list[Event] = []
    lost = 0
    for item in follow(name, seconds=0):
        if isinstance(item, Losses):
            lost += item.rate_limited + item.lost
        else:
            events.append(item)
    return Reports(tuple(events), lost)
