# SPDX-License-Identifier: Apache-2.0
"""What o2c.ko is asked and answers, as values: sites and their fate, counters, modes, refusals.

The numbers of the enumerations are those of bpf_runtime/module/o2c.h (ABI version 1). `o2cc.runtime.enforcer` carries
them to the kernel module and back.
"""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass

NO_REGISTER = 0xFF
RIP = 16
NO_PROGRAM = 0xFFFFFFFF
OWNER_MAX = 240
FREE_POINTER = 8  # bytes


class Kind(enum.IntEnum):
    """What the instruction at a site is."""

    STORE = 1
    RMW = 2
    STRING = 3
    ICALL = 4
    IJUMP = 5
    CALL = 6
    TAIL_JUMP = 7
    ENTRY = 8
    RETURN = 9
    OBSERVE = 10
    HEAP = 11


class HeapOperation(enum.IntEnum):
    """What the function at a HEAP site does (`Site.size`).

    `Site.base` is the register with the size, or NO_REGISTER: the size is `Site.displacement`; `Site.index` is the
    register with the GFP flags. No program runs there: `Site.program` is NO_PROGRAM, the action REPORT.
    """

    ALLOC = 1
    ALLOC_CACHE = 2
    FREE_CACHE = 3
    REALLOC = 4
    DUPLICATE = 5
    KVALLOC = 6
    PAGES = 7
    PAGES_ADDRESS = 8
    BULK_ALLOC = 9
    BULK_FREE = 10


class Feature(enum.IntFlag):
    """What this build of the kernel module can do beyond the first ABI."""

    DRAIN = 1
    KVMALLOC = 2
    PAGES = 4
    VMALLOC = 8
    BULK = 16
    LARGE = 32
    TRACEPOINT = 64
    FREE_BULK = 128


def is_older(features: Feature) -> bool:
    """Whether a build of the kernel module is one from before it had all hooks, at tracepoints and for frees in bulk."""
    return Feature.TRACEPOINT | Feature.FREE_BULK not in features


class DrainState(enum.IntEnum):
    """How far a compartment is from having nothing left in its private heap."""

    NOT = 0
    GOING_ON = 1
    DONE = 2


class Action(enum.IntEnum):
    """What a verdict "deny" leads to."""

    REPORT = 0
    DENY = 1
    KILL = 2
    PANIC = 3


class Mode(enum.IntEnum):
    """How a site denies, fixed when it is attached."""

    OBSERVE = 0
    SKIP = 1
    POISON = 2


class State(enum.IntEnum):
    """What is in the text at a site now."""

    UNARMED = 0
    INT3 = 1
    JUMP = 2


class OnMissed(enum.IntEnum):
    """What follows when kprobes skipped a check."""

    REPORT = 0
    KILL = 1


class Reason(enum.IntEnum):
    """Why a site was refused."""

    NONE = 0
    RESERVED = 1
    PROGRAM = 2
    ADDRESS = 3
    MODULE = 4
    BYTES = 5
    FORM = 6
    KIND = 7
    OPERAND = 8
    TAIL = 9
    LAST_FUNCTION = 10
    PROBE = 11
    FTRACE = 12
    LIMIT = 13
    HEAP = 14


_REASON_TEXTS = {
    Reason.NONE: "no reason given",
    Reason.RESERVED: "a value of the request is out of range",
    Reason.PROGRAM: "there is no program for probes of that index",
    Reason.ADDRESS: "the address is not readable kernel text",
    Reason.MODULE: "the module is not loaded, or is loading or going away",
    Reason.BYTES: "the instruction is not the one that the compiler saw",
    Reason.FORM: "the kernel module cannot deny this instruction",
    Reason.KIND: "the instruction is of another kind",
    Reason.OPERAND: "length or operand differ from the instruction's",
    Reason.TAIL: "a jump that is not in tail position cannot be denied",
    Reason.LAST_FUNCTION: "the last function of this module cannot be probed on this kernel",
    Reason.PROBE: "kprobes refused the address",
    Reason.FTRACE: "the address is a function's ftrace entry, which can only be observed",
    Reason.LIMIT: "a limit was reached or memory ran out",
    Reason.HEAP: "the compartment has no private heap, or the operation is unknown",
}


def reason_text(reason: Reason) -> str:
    """Why a site was refused, in words."""
    return _REASON_TEXTS[reason]


class EnforcerError(Exception):
    """The kernel module refused a request.

    `errno` is the error number, `site` the position in the batch of the refused site (None when it is not about one),
    `reason` why that site was refused.
    """

    def __init__(
        self, operation: str, number: int, site: int | None = None, reason: Reason = Reason.NONE
    ) -> None:
        self.operation = operation
        self.errno = number
        self.site = site
        self.reason = reason
        text = f"{operation}: {os.strerror(number)}"
        if site is not None:
            text += f" (site {site}: {reason_text(reason)})"
        super().__init__(text)


@dataclass(frozen=True)
class Site:
    """One site to attach. `program` is what `Enforcer.program` returned; registers are hardware numbers.

    `code` are the bytes that the compiler saw, as long as the instruction; `mask` has 0xff where they must match
    (default: everywhere). For ENTRY, RETURN and OBSERVE `code` is empty and there is no operand.  `line` is that of the
    policy, for the message of a panic.
    """

    address: int
    cookie: int
    program: int
    kind: Kind
    action: Action = Action.DENY
    code: bytes = b""
    mask: bytes | None = None
    base: int = NO_REGISTER
    index: int = NO_REGISTER
    scale: int = 0
    displacement: int = 0
    size: int = 0
    deny_result: int = -errno.EFAULT
    strict: bool = False
    tail: bool = False
    line: int = 0


@dataclass(frozen=True)
class Attached:
    """The fate of one site: its index in the compartment and mode, or the error and reason."""

    index: int | None
    mode: Mode
    errno: int
    reason: Reason


@dataclass(frozen=True)
class SiteStats:
    """Counters of one site since commit."""

    address: int
    cookie: int
    hits: int
    denied: int
    missed: int
    errors: int
    index: int
    kind: Kind
    mode: Mode
    state: State
    action: Action


@dataclass(frozen=True)
class HeapStats:
    """A private heap: bytes in its slabs, allocations, failed ones (limit or memory), those left to the kernel."""

    bytes: int
    allocations: int
    failures: int
    passed: int


@dataclass(frozen=True)
class Drain:
    """Whether a compartment drains, and the bytes in blocks of its private heap that still hold something."""

    state: DrainState
    bytes: int


@dataclass(frozen=True)
class Info:
    """A compartment as a whole; the counters are sums over its sites."""

    name: str
    keep: bool
    strict: bool
    on_missed: OnMissed
    committed: bool
    sites: int
    programs: int
    skip: int
    poison: int
    observe: int
    hits: int
    denied: int
    missed: int
    errors: int
    killed: int
    kills_lost: int
    tracepoints: int
