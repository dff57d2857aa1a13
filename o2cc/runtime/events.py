# SPDX-License-Identifier: Apache-2.0
"""Events of a loaded compartment: from the ring buffer's words to what a person or a program reads."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from o2cc.bpf.info import ObjectInfo

KINDS: Mapping[int, str] = {
    1: "store",
    2: "untracked object",
    3: "indirect call",
    4: "forbidden call",
    5: "gate argument",
    6: "foreign free",
    7: "entry argument",
}

CLASSES: Mapping[int, str] = {
    1: "user memory",
    2: "own data",
    3: "own code",
    4: "stack",
    5: "slab object",
    6: "page",
    7: "kernel memory",
}

_SOFTIRQ = 0xFF00  # include/linux/preempt.h, 6.1
_HARDIRQ = 0xF0000


@dataclass(frozen=True)
class Event:
    """One verdict against a site.  ``time`` is CLOCK_MONOTONIC in nanoseconds."""

    time: int
    cpu: int
    pid: int
    tgid: int
    task: str
    context: str
    compartment: str
    kind: str
    function: str
    offset: int
    instruction: str
    note: str
    address: int
    size: int
    hit: str
    base: int
    cache: str
    file: str
    line: int

    def sentence(self) -> str:
        """One line for a person."""
        where = f"{self.function}+{self.offset:#x}"
        what = f"{self.hit}"
        if self.cache:
            what = f"{self.cache} object {self.base:#x}+{self.address - self.base:#x}"
        elif self.hit == "slab object":
            what = f"slab object {self.base:#x}+{self.address - self.base:#x}"
        size = f" ({self.size} bytes)" if self.size else ""
        note = f", {self.note}" if self.note else ""
        seconds = self.time / 1e9
        return (
            f"{seconds:.6f} cpu {self.cpu} {self.task}[{self.pid}] {self.context} {self.compartment}: "
            f"{self.kind} at {where} to {self.address:#x}{size}, {what}{note} [{self.file}:{self.line}]"
        )


def _text(*words: int) -> str:
    data = b"".join(word.to_bytes(8, "little") for word in words)
    return data.split(b"\0", 1)[0].decode(errors="replace")


def _context(count: int) -> str:
    # In an int3 handler the hard interrupt bits are the probe's own (kernel/kprobes: NMI-like entry), so that a
    # soft interrupt is the safest statement when both are set.
    if count & _SOFTIRQ:
        return "softirq"
    return "irq" if count & _HARDIRQ else "task"


def decode(record: bytes, info: ObjectInfo) -> Event:
    """A record of the map `events` (its fields are in ``info``)."""
    names = next(m.fields for m in info.maps if m.name == "events")
    words = dict(zip(names, struct.unpack_from(f"<{len(names)}Q", record), strict=True))
    site = next(s for s in info.sites if s.number == words["site"])
    return Event(
        time=words["time"],
        cpu=words["cpu"],
        pid=words["pid_tgid"] & 0xFFFFFFFF,
        tgid=words["pid_tgid"] >> 32,
        task=_text(words["comm0"], words["comm1"]),
        context=_context(words["context"]),
        compartment=info.name,
        kind=KINDS.get(words["kind"], f"kind {words['kind']}"),
        function=site.function,
        offset=site.offset,
        instruction=site.kind,
        note=site.note,
        address=words["address"],
        size=words["size"],
        hit=CLASSES.get(words["class"], f"class {words['class']}"),
        base=words["base"],
        cache=_text(words["name0"], words["name1"]),
        file=site.file,
        line=site.line,
    )
