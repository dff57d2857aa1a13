# SPDX-License-Identifier: Apache-2.0
"""Client of o2c.ko: the ioctls of /dev/o2c as typed calls.

The structures are those of bpf_runtime/module/o2c.h (ABI version 1). One `Enforcer` is one open file; it creates a
compartment or opens a kept one, and all later calls act on that. Nothing is decided in the kernel before `commit`.

Raises `EnforcerError` for everything that the kernel refuses: it carries the errno and, for sites, which and why.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ABI_VERSION = 1
DEVICE = Path("/dev/o2c")
NO_REGISTER = 0xFF
RIP = 16
NO_PROGRAM = 0xFFFFFFFF
OWNER_MAX = 240
FREE_POINTER = 8  # bytes

_NAME_LENGTH = 32
_MODULE_LENGTH = 64
_INSTRUCTION_MAX = 16
_MAX_BATCH = 4096
_MAGIC = 0xC2
_NOT_AN_INDEX = 0xFFFFFFFF
_PATH_MAX = 4096


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
    Reason.PROGRAM: "there is no program of that index",
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
            text += f" (site {site}: {_REASON_TEXTS[reason]})"
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


class _Version(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("site_size", ctypes.c_uint32),
        ("max_batch", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
    )


class _Create(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("on_missed", ctypes.c_uint32),
        ("name", ctypes.c_char * _NAME_LENGTH),
        ("module", ctypes.c_char * _MODULE_LENGTH),
        ("reserved", ctypes.c_uint64),
    )


class _Open(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * _NAME_LENGTH),)


class _Program(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_int32),
        ("index", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
    )


class _Site(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("cookie", ctypes.c_uint64),
        ("deny_result", ctypes.c_int64),
        ("program", ctypes.c_uint32),
        ("kind", ctypes.c_uint8),
        ("action", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("length", ctypes.c_uint8),
        ("base", ctypes.c_uint8),
        ("index", ctypes.c_uint8),
        ("scale", ctypes.c_uint8),
        ("size", ctypes.c_uint8),
        ("displacement", ctypes.c_int32),
        ("bytes", ctypes.c_uint8 * _INSTRUCTION_MAX),
        ("mask", ctypes.c_uint8 * _INSTRUCTION_MAX),
        ("line", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("error", ctypes.c_int32),
        ("reason", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
    )


class _Attach(ctypes.Structure):
    _fields_ = (
        ("sites", ctypes.c_uint64),
        ("results", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("site_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("attached", ctypes.c_uint32),
        ("failed", ctypes.c_uint32),
        ("reason", ctypes.c_uint32),
    )


class _SiteStats(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("cookie", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("denied", ctypes.c_uint64),
        ("missed", ctypes.c_uint64),
        ("errors", ctypes.c_uint64),
        ("index", ctypes.c_uint32),
        ("kind", ctypes.c_uint8),
        ("mode", ctypes.c_uint8),
        ("state", ctypes.c_uint8),
        ("action", ctypes.c_uint8),
    )


class _Stats(ctypes.Structure):
    _fields_ = (
        ("buffer", ctypes.c_uint64),
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("returned", ctypes.c_uint32),
        ("total", ctypes.c_uint32),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * _NAME_LENGTH),
        ("flags", ctypes.c_uint32),
        ("on_missed", ctypes.c_uint32),
        ("committed", ctypes.c_uint32),
        ("sites", ctypes.c_uint32),
        ("programs", ctypes.c_uint32),
        ("skip", ctypes.c_uint32),
        ("poison", ctypes.c_uint32),
        ("observe", ctypes.c_uint32),
        ("hits", ctypes.c_uint64),
        ("denied", ctypes.c_uint64),
        ("missed", ctypes.c_uint64),
        ("errors", ctypes.c_uint64),
        ("killed", ctypes.c_uint64),
        ("kills_lost", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 2),
    )


class _Heap(ctypes.Structure):
    _fields_ = (
        ("shadow", ctypes.c_uint32),
        ("owner", ctypes.c_uint32),
        ("limit", ctypes.c_uint64),
        ("generation", ctypes.c_uint32),
        ("ctor_offset", ctypes.c_uint16),
        ("flags_offset", ctypes.c_uint16),
    )


class _HeapStats(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint64),
        ("allocations", ctypes.c_uint64),
        ("failures", ctypes.c_uint64),
        ("passed", ctypes.c_uint64),
    )


class _Drain(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 2),
    )


_LIBC = ctypes.CDLL(None, use_errno=True)
_WRITE = 1
_READ = 2


def _request(direction: int, number: int, size: int) -> int:
    """The number of an ioctl (include/uapi/asm-generic/ioctl.h)."""
    return direction << 30 | size << 16 | _MAGIC << 8 | number


_IOC_VERSION = _request(_READ, 0, ctypes.sizeof(_Version))
_IOC_CREATE = _request(_WRITE, 1, ctypes.sizeof(_Create))
_IOC_OPEN = _request(_WRITE, 2, ctypes.sizeof(_Open))
_IOC_PROGRAM = _request(_READ | _WRITE, 3, ctypes.sizeof(_Program))
_IOC_ATTACH = _request(_READ | _WRITE, 4, ctypes.sizeof(_Attach))
_IOC_COMMIT = _request(0, 5, 0)
_IOC_STATS = _request(_READ | _WRITE, 6, ctypes.sizeof(_Stats))
_IOC_INFO = _request(_READ, 7, ctypes.sizeof(_Info))
_IOC_DETACH = _request(0, 8, 0)
_IOC_HEAP = _request(_READ | _WRITE, 9, ctypes.sizeof(_Heap))
_IOC_HEAP_STATS = _request(_READ, 10, ctypes.sizeof(_HeapStats))
_IOC_DRAIN = _request(_READ | _WRITE, 11, ctypes.sizeof(_Drain))

_SLAB = Path("/sys/kernel/slab")

_CREATE_KEEP = 1
_CREATE_STRICT = 2
_DRAIN_START = 1
_DRAIN_AUTO = 2
_SITE_STRICT = 1
_SITE_TAIL = 2
_ATTACH_BEST_EFFORT = 1


def reason_text(reason: Reason) -> str:
    """Why a site was refused, in words."""
    return _REASON_TEXTS[reason]


def available(device: Path = DEVICE) -> bool:
    """True when the module is loaded (its device exists)."""
    return device.exists()


class Enforcer:
    """One open file of the device, to be used as a context manager.

    Closing it removes the compartment, unless this was committed with `keep`.
    """

    def __init__(self, device: Path = DEVICE) -> None:
        try:
            self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EnforcerError(f"open {device}", error.errno or errno.EIO) from None
        answer = _Version()
        try:
            self._call("version", _IOC_VERSION, answer)
            if answer.abi != ABI_VERSION or answer.site_size != ctypes.sizeof(_Site):
                raise EnforcerError("version", errno.EPROTONOSUPPORT)
        except EnforcerError:
            self.close()
            raise
        self.features = Feature(answer.features)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The file descriptor; -1 after `close`."""
        return self._fd

    def close(self) -> None:
        """Close the file. May take seconds: the kernel removes the probes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def create(
        self,
        name: str,
        *,
        module: str = "",
        keep: bool = False,
        strict: bool = False,
        on_missed: OnMissed = OnMissed.REPORT,
    ) -> None:
        """Create a compartment on this file. EEXIST: one of that name is loaded."""
        request = _Create(
            flags=(_CREATE_KEEP if keep else 0) | (_CREATE_STRICT if strict else 0),
            on_missed=on_missed,
            name=_text("create", name, _NAME_LENGTH),
            module=_text("create", module, _MODULE_LENGTH),
        )
        self._call("create", _IOC_CREATE, request)

    def open(self, name: str) -> None:
        """Take hold of a compartment that is loaded already. ENOENT: there is none."""
        self._call("open", _IOC_OPEN, _Open(name=_text("open", name, _NAME_LENGTH)))

    def program(self, program: int | Path) -> int:
        """Register a BPF program of type kprobe, by file descriptor or bpffs path; returns its index."""
        request = _Program(fd=-1)
        if isinstance(program, int):
            request.fd = program
            self._call("program", _IOC_PROGRAM, request)
        else:
            path = ctypes.create_string_buffer(os.fsencode(program))
            if len(path) > _PATH_MAX:
                raise EnforcerError("program", errno.ENAMETOOLONG)
            request.path = ctypes.addressof(path)
            self._call("program", _IOC_PROGRAM, request)
        return int(request.index)

    def heap(
        self, shadow: int, owner: int, limit: int, *, ctor_offset: int = 0, flags_offset: int = 0
    ) -> str:
        """Give the compartment a private heap of at most `limit` bytes; returns the prefix of its caches' names.

        `shadow` is the id of an array map of one value, a byte for each page frame, that a program of the compartment
        uses (ENOENT: none does). The bytes of its slabs become `owner` (1 to OWNER_MAX) plus the logarithm of the size of
        a slot; the last FREE_POINTER bytes of each slot are the allocator's. The offsets are those of members of struct
        kmem_cache; without them caches are left to the kernel. EOPNOTSUPP: this kernel gives the heap's caches other slots,
        as when it debugs its allocator, or does not tell.
        """
        request = _Heap(
            shadow=shadow, owner=owner, limit=limit, ctor_offset=ctor_offset, flags_offset=flags_offset
        )
        self._call("heap", _IOC_HEAP, request)
        prefix = f"o2c-{request.generation}-"
        caches = list(_SLAB.glob(f"{prefix}*"))
        try:
            for setting in _SLAB.glob(f"{prefix}*/skip_kfence"):  # where the kernel has KFENCE
                setting.write_text("1")
            fits = bool(caches) and all(
                int((cache / "slab_size").read_text()) == int(cache.name.removeprefix(prefix))
                for cache in caches
            )
        except OSError:
            fits = False
        if not fits:
            raise EnforcerError("heap", errno.EOPNOTSUPP)
        return prefix

    def heap_stats(self) -> HeapStats:
        """Counters of the private heap. ENODATA: there is none."""
        answer = _HeapStats()
        self._call("heap", _IOC_HEAP_STATS, answer)
        return HeapStats(answer.bytes, answer.allocations, answer.failures, answer.passed)

    def drain(self, *, start: bool = False, auto: bool = False) -> Drain:
        """Ask how far draining is; with `start`, begin: no new private objects, and all else stays in force.

        With `auto` the kernel detaches the compartment when nothing is left, also when this file is closed, if the
        compartment is kept. ENODEV: that has happened. ENODATA: it was not committed.
        """
        begin = start or auto
        request = _Drain(flags=(_DRAIN_START if begin else 0) | (_DRAIN_AUTO if auto else 0))
        self._call("drain", _IOC_DRAIN, request)
        return Drain(DrainState(request.state), request.bytes)

    def attach(self, sites: Sequence[Site]) -> list[Attached]:
        """Attach all sites or, when one is refused, none of the same batch (4096 sites) and raise."""
        return self._attach(sites, 0)

    def try_attach(self, sites: Sequence[Site]) -> list[Attached]:
        """Attach what can be attached; the refused ones carry their error and reason."""
        return self._attach(sites, _ATTACH_BEST_EFFORT)

    def commit(self) -> None:
        """Switch every attached site on, at once."""
        self._call("commit", _IOC_COMMIT, None)

    def stats(self) -> list[SiteStats]:
        """The counters of all sites, in the order of attachment."""
        result: list[SiteStats] = []
        buffer = (_SiteStats * 1024)()
        while True:
            request = _Stats(buffer=ctypes.addressof(buffer), first=len(result), count=len(buffer))
            self._call("stats", _IOC_STATS, request)
            result.extend(_site_stats(buffer[i]) for i in range(request.returned))
            if not request.returned or len(result) >= request.total:
                return result

    def info(self) -> Info:
        """The compartment as a whole."""
        answer = _Info()
        self._call("info", _IOC_INFO, answer)
        return Info(
            name=answer.name.decode("ascii", "replace"),
            keep=bool(answer.flags & _CREATE_KEEP),
            strict=bool(answer.flags & _CREATE_STRICT),
            on_missed=OnMissed(answer.on_missed),
            committed=bool(answer.committed),
            sites=answer.sites,
            programs=answer.programs,
            skip=answer.skip,
            poison=answer.poison,
            observe=answer.observe,
            hits=answer.hits,
            denied=answer.denied,
            missed=answer.missed,
            errors=answer.errors,
            killed=answer.killed,
            kills_lost=answer.kills_lost,
        )

    def detach(self) -> None:
        """Remove the compartment: every probe, then the text is as it was. May take seconds."""
        self._call("detach", _IOC_DETACH, None)

    def _attach(self, sites: Sequence[Site], flags: int) -> list[Attached]:
        result: list[Attached] = []
        for start in range(0, len(sites), _MAX_BATCH):
            batch = sites[start : start + _MAX_BATCH]
            encoded = _encode_all(batch, start)
            results = (_Result * len(batch))()
            request = _Attach(
                sites=ctypes.addressof(encoded),
                results=ctypes.addressof(results),
                count=len(batch),
                site_size=ctypes.sizeof(_Site),
                flags=flags,
            )
            try:
                self._call("attach", _IOC_ATTACH, request)
            except EnforcerError as error:
                site = None if request.failed == _NOT_AN_INDEX else start + request.failed
                raise EnforcerError("attach", error.errno, site, _reason(request.reason)) from None
            result.extend(_attached(one) for one in results)
        return result

    def _call(self, operation: str, request: int, argument: ctypes.Structure | None) -> None:
        # fcntl.ioctl works on a copy of small arguments; what the kernel says about a refusal must come back
        address = None if argument is None else ctypes.byref(argument)
        if _LIBC.ioctl(ctypes.c_int(self._fd), ctypes.c_ulong(request), address) < 0:
            raise EnforcerError(operation, ctypes.get_errno())


def _text(operation: str, value: str, room: int) -> bytes:
    encoded = value.encode("utf-8", "surrogateescape")
    if len(encoded) >= room or b"\0" in encoded:
        raise EnforcerError(operation, errno.ENAMETOOLONG)
    return encoded


def _encode_all(sites: Iterable[Site], start: int) -> ctypes.Array[_Site]:
    listed = list(sites)
    encoded = (_Site * len(listed))()
    for position, site in enumerate(listed):
        mask = b"\xff" * len(site.code) if site.mask is None else site.mask
        if len(site.code) > _INSTRUCTION_MAX or len(mask) != len(site.code):
            raise EnforcerError("attach", errno.EINVAL, start + position, Reason.RESERVED)
        target = encoded[position]
        target.address = site.address
        target.cookie = site.cookie
        target.line = site.line
        target.deny_result = site.deny_result
        target.program = site.program
        target.kind = site.kind
        target.action = site.action
        target.flags = (_SITE_STRICT if site.strict else 0) | (_SITE_TAIL if site.tail else 0)
        target.length = len(site.code)
        target.base = site.base
        target.index = site.index
        target.scale = site.scale
        target.size = site.size
        target.displacement = site.displacement
        for at, (byte, compared) in enumerate(zip(site.code, mask, strict=True)):
            target.bytes[at] = byte
            target.mask[at] = compared
    return encoded


def _reason(value: int) -> Reason:
    try:
        return Reason(value)
    except ValueError:
        return Reason.NONE


def _attached(result: _Result) -> Attached:
    index = None if result.index == _NOT_AN_INDEX else int(result.index)
    return Attached(index, Mode(result.mode), -int(result.error), _reason(result.reason))


def _site_stats(stats: _SiteStats) -> SiteStats:
    return SiteStats(
        address=stats.address,
        cookie=stats.cookie,
        hits=stats.hits,
        denied=stats.denied,
        missed=stats.missed,
        errors=stats.errors,
        index=stats.index,
        kind=Kind(stats.kind),
        mode=Mode(stats.mode),
        state=State(stats.state),
        action=Action(stats.action),
    )
