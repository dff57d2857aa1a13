# SPDX-License-Identifier: Apache-2.0
"""Client of o2c.ko: the ioctls of /dev/o2c as typed calls.

One `Enforcer` is one open file; it creates a compartment or opens a kept one, and all later calls act on that. Nothing
is decided in the kernel before `commit`.

Raises `EnforcerError` for everything that the kernel refuses: it carries the errno and, for sites, which and why.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from o2cc.runtime import enforcer_abi as abi
from o2cc.runtime.enforcer_types import (
    Action,
    Attached,
    Drain,
    DrainState,
    EnforcerError,
    Feature,
    HeapStats,
    Info,
    Kind,
    Mode,
    OnMissed,
    Reason,
    Site,
    SiteStats,
    State,
)

DEVICE = Path("/dev/o2c")

_SLAB = Path("/sys/kernel/slab")
_LIBC = ctypes.CDLL(None, use_errno=True)


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
        answer = abi.VersionData()
        try:
            self._call("version", abi.IOC_VERSION, answer)
            if answer.abi != abi.ABI_VERSION or answer.site_size != ctypes.sizeof(abi.SiteData):
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
        request = abi.CreateData(
            flags=(abi.CREATE_KEEP if keep else 0) | (abi.CREATE_STRICT if strict else 0),
            on_missed=on_missed,
            name=_text("create", name, abi.NAME_LENGTH),
            module=_text("create", module, abi.MODULE_LENGTH),
        )
        self._call("create", abi.IOC_CREATE, request)

    def open(self, name: str) -> None:
        """Take hold of a compartment that is loaded already. ENOENT: there is none."""
        self._call("open", abi.IOC_OPEN, abi.OpenData(name=_text("open", name, abi.NAME_LENGTH)))

    def program(self, program: int | Path) -> int:
        """Register a BPF program of type kprobe or raw tracepoint, by file descriptor or bpffs path; returns its index."""
        request = abi.ProgramData(fd=-1)
        if isinstance(program, int):
            request.fd = program
            self._call("program", abi.IOC_PROGRAM, request)
        else:
            path = ctypes.create_string_buffer(os.fsencode(program))
            if len(path) > abi.PATH_MAX:
                raise EnforcerError("program", errno.ENAMETOOLONG)
            request.path = ctypes.addressof(path)
            self._call("program", abi.IOC_PROGRAM, request)
        return int(request.index)

    def tracepoint(self, name: str, program: int, *, map: int = 0, offset: int = 0, value: int = 0) -> None:
        """Put a hook at a tracepoint of the kernel, in force from here on. `program` is the index of one of type raw
        tracepoint; at the function `kmem_cache_free_bulk` (Feature.FREE_BULK) of type kprobe.

        It runs with interrupts off; with the id of a `map`, an array map of one value that a program of the compartment uses,
        only when the words from its byte `offset` on say so (`struct o2c_tracepoint` in o2c.h: which, and what `value` is).
        ENOENT: no such tracepoint, program or map. EEXIST: the compartment has one there. EINVAL: a program of another type, or
        that reads more than the tracepoint gives; a word that is not there.
        """
        request = abi.TracepointData(
            name=_text("tracepoint", name, abi.NAME_LENGTH),
            program=program,
            map=map,
            offset=offset,
            value=value,
        )
        self._call("tracepoint", abi.IOC_TRACEPOINT, request)

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
        request = abi.HeapData(
            shadow=shadow, owner=owner, limit=limit, ctor_offset=ctor_offset, flags_offset=flags_offset
        )
        self._call("heap", abi.IOC_HEAP, request)
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
        answer = abi.HeapStatsData()
        self._call("heap", abi.IOC_HEAP_STATS, answer)
        return HeapStats(answer.bytes, answer.allocations, answer.failures, answer.passed)

    def drain(self, *, start: bool = False, auto: bool = False) -> Drain:
        """Ask how far draining is; with `start`, begin: no new private objects, and all else stays in force.

        With `auto` the kernel detaches the compartment when nothing is left, also when this file is closed, if the
        compartment is kept. ENODEV: that has happened. ENODATA: it was not committed.
        """
        begin = start or auto
        request = abi.DrainData(flags=(abi.DRAIN_START if begin else 0) | (abi.DRAIN_AUTO if auto else 0))
        self._call("drain", abi.IOC_DRAIN, request)
        return Drain(DrainState(request.state), request.bytes)

    def attach(self, sites: Sequence[Site]) -> list[Attached]:
        """Attach all sites or, when one is refused, none of the same batch (4096 sites) and raise."""
        return self._attach(sites, 0)

    def try_attach(self, sites: Sequence[Site]) -> list[Attached]:
        """Attach what can be attached; the refused ones carry their error and reason."""
        return self._attach(sites, abi.ATTACH_BEST_EFFORT)

    def commit(self) -> None:
        """Switch every attached site on, at once."""
        self._call("commit", abi.IOC_COMMIT, None)

    def stats(self) -> list[SiteStats]:
        """The counters of all sites, in the order of attachment."""
        result: list[SiteStats] = []
        buffer = (abi.SiteStatsData * 1024)()
        while True:
            request = abi.StatsData(buffer=ctypes.addressof(buffer), first=len(result), count=len(buffer))
            self._call("stats", abi.IOC_STATS, request)
            result.extend(_site_stats(buffer[i]) for i in range(request.returned))
            if not request.returned or len(result) >= request.total:
                return result

    def info(self) -> Info:
        """The compartment as a whole."""
        answer = abi.InfoData()
        self._call("info", abi.IOC_INFO, answer)
        return Info(
            name=answer.name.decode("ascii", "replace"),
            keep=bool(answer.flags & abi.CREATE_KEEP),
            strict=bool(answer.flags & abi.CREATE_STRICT),
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
            tracepoints=answer.tracepoints,
        )

    def detach(self) -> None:
        """Remove the compartment: every probe, then the text is as it was. May take seconds."""
        self._call("detach", abi.IOC_DETACH, None)

    def _attach(self, sites: Sequence[Site], flags: int) -> list[Attached]:
        result: list[Attached] = []
        for start in range(0, len(sites), abi.MAX_BATCH):
            batch = sites[start : start + abi.MAX_BATCH]
            encoded = _encode_all(batch, start)
            results = (abi.ResultData * len(batch))()
            request = abi.AttachData(
                sites=ctypes.addressof(encoded),
                results=ctypes.addressof(results),
                count=len(batch),
                site_size=ctypes.sizeof(abi.SiteData),
                flags=flags,
            )
            try:
                self._call("attach", abi.IOC_ATTACH, request)
            except EnforcerError as error:
                site = None if request.failed == abi.NOT_AN_INDEX else start + request.failed
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


def _encode_all(sites: Sequence[Site], start: int) -> ctypes.Array[abi.SiteData]:
    encoded = (abi.SiteData * len(sites))()
    for position, site in enumerate(sites):
        mask = b"\xff" * len(site.code) if site.mask is None else site.mask
        if len(site.code) > abi.INSTRUCTION_MAX or len(mask) != len(site.code):
            raise EnforcerError("attach", errno.EINVAL, start + position, Reason.RESERVED)
        target = encoded[position]
        target.address = site.address
        target.cookie = site.cookie
        target.line = site.line
        target.deny_result = site.deny_result
        target.program = site.program
        target.kind = site.kind
        target.action = site.action
        target.flags = (abi.SITE_STRICT if site.strict else 0) | (abi.SITE_TAIL if site.tail else 0)
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


def _attached(result: abi.ResultData) -> Attached:
    index = None if result.index == abi.NOT_AN_INDEX else int(result.index)
    return Attached(index, Mode(result.mode), -int(result.error), _reason(result.reason))


def _site_stats(stats: abi.SiteStatsData) -> SiteStats:
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
