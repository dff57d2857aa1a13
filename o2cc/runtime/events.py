# SPDX-License-Identifier: Apache-2.0
"""Events of a loaded compartment: from the ring buffer's words to what a person or a program reads.  Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from o2cc.bpf.info import ObjectInfo, SiteInfo

KINDS: Mapping[int, str] = {
    1: "store",
    2: "untracked object",
    3: "indirect call",
    4: "forbidden call",
    5: "gate argument",
    6: "foreign free",
    7: "entry argument",
    8: "private heap exhausted",
    9: "uncertain object",
    10: "audition disagrees at free",
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

# Bits of what is tracked of the object (map `objects`, library/state.ir).
TRACKING: Mapping[int, str] = {1: "own", 2: "held", 4: "typed", 8: "auditioned"}

# include/linux/preempt.h (6.1, 6.12)
_SERVING_SOFTIRQ = 0x100
_HARDIRQ = 0xF0000
_NMI = 0xF00000
_INT3_ENTRY = 0x110000  # what a breakpoint's own entry adds: one NMI and one hard interrupt level


@dataclass(frozen=True)
class Event:
    """One verdict against a site.  ``time`` is CLOCK_MONOTONIC in nanoseconds; ``tracking`` what is known of the
    object (`own`, `held`, `typed`, `auditioned`), empty when it is not tracked."""

    time: int
    cpu: int
    pid: int
    tgid: int
    task: str
    context: str
    compartment: str
    kind: str
    site: int
    function: str
    offset: int
    instruction: str
    note: str
    address: int
    size: int
    hit: str
    base: int
    cache: str
    tracking: tuple[str, ...]
    file: str
    line: int

    def sentence(self) -> str:
        """One line for a person."""
        where = f"{self.function}+{self.offset:#x}"
        what = self.hit
        if self.hit == "slab object":
            what = f"{self.cache or 'slab'} object {self.base:#x}+{self.address - self.base:#x}"
            if self.tracking:
                what += f" ({', '.join(self.tracking)})"
        size = f" ({self.size} bytes)" if self.size else ""
        target = f" to {self.address:#x}{size}, {what}" if self.address else ""
        note = f", {self.note}" if self.note else ""
        policy = f" [{self.file}:{self.line}]" if self.file else ""
        return (
            f"{self.time / 1e9:.6f} cpu {self.cpu} {self.task}[{self.pid}] {self.context} "
            f"{self.compartment}: {self.kind} at {where}{target}{note}{policy}"
        )

    def document(self) -> dict[str, object]:
        """The event as JSON takes it; addresses as hexadecimal text, which no reader rounds."""
        return {**asdict(self), "address": f"{self.address:#x}", "base": f"{self.base:#x}"}


def text_of(*words: int) -> str:
    """Characters that were read as words, up to the first NUL; what is not printable is replaced."""
    data = b"".join(word.to_bytes(8, "little") for word in words).split(b"\0", 1)[0]
    return "".join(c if c.isprintable() else "?" for c in data.decode(errors="replace"))


def context_of(count: int) -> str:
    """What the probe interrupted, by the processor's preempt_count in the probe.

    A breakpoint enters as an NMI does (``irqentry_nmi_enter`` in kernel/entry/common.c, 6.1); that level is taken off
    first. Held-off soft interrupts alone are task context.
    """
    if count & _NMI:
        count -= _INT3_ENTRY
    if count & _NMI:
        return "nmi"
    if count & _HARDIRQ:
        return "irq"
    return "softirq" if count & _SERVING_SOFTIRQ else "task"


class Decoder:
    """Decodes the records of one object's map `events`."""

    def __init__(self, info: ObjectInfo) -> None:
        """Raises ValueError when the object has no such map."""
        self._name = info.name
        self._sites: Mapping[int, SiteInfo] = {site.number: site for site in info.sites}
        names = next((m.fields for m in info.maps if m.name == "events"), None)
        if names is None:
            raise ValueError("the object has no map `events`")
        self._names = names
        self._format = struct.Struct(f"<{len(names)}Q")

    def decode(self, record: bytes) -> Event:
        """One record.  Raises ValueError when it is too short."""
        if len(record) < self._format.size:
            raise ValueError(f"a record of {len(record)} bytes, where {self._format.size} are needed")
        words = dict(zip(self._names, self._format.unpack_from(record), strict=True))
        site = self._sites.get(words["site"])
        return Event(
            time=words["time"],
            cpu=words["cpu"],
            pid=words["pid_tgid"] & 0xFFFFFFFF,
            tgid=words["pid_tgid"] >> 32,
            task=text_of(words["comm0"], words["comm1"]),
            context=context_of(words["context"]),
            compartment=self._name,
            kind=KINDS.get(words["kind"], f"kind {words['kind']}"),
            site=words["site"],
            function=site.function if site else f"site {words['site']}",
            offset=site.offset if site else 0,
            instruction=site.kind if site else "",
            note=site.note if site else "",
            address=words["address"],
            size=words["size"],
            hit=CLASSES.get(words["class"], f"class {words['class']}"),
            base=words["base"],
            cache=text_of(words["name0"], words["name1"]),
            tracking=tuple(name for bit, name in TRACKING.items() if words.get("flags", 0) & bit),
            file=site.file if site else "",
            line=site.line if site else 0,
        )
