# SPDX-License-Identifier: Apache-2.0
"""The ioctls of /dev/o2c as C sees them: structures, request numbers and flags of bpf_runtime/module/o2c.h."""

from __future__ import annotations

import ctypes

ABI_VERSION = 1

NAME_LENGTH = 32
MODULE_LENGTH = 64
INSTRUCTION_MAX = 16
MAX_BATCH = 4096
NOT_AN_INDEX = 0xFFFFFFFF
PATH_MAX = 4096

_MAGIC = 0xC2


class VersionData(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("site_size", ctypes.c_uint32),
        ("max_batch", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
    )


class CreateData(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("on_missed", ctypes.c_uint32),
        ("name", ctypes.c_char * NAME_LENGTH),
        ("module", ctypes.c_char * MODULE_LENGTH),
        ("reserved", ctypes.c_uint64),
    )


class OpenData(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * NAME_LENGTH),)


class ProgramData(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_int32),
        ("index", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
    )


class SiteData(ctypes.Structure):
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
        ("bytes", ctypes.c_uint8 * INSTRUCTION_MAX),
        ("mask", ctypes.c_uint8 * INSTRUCTION_MAX),
        ("line", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class ResultData(ctypes.Structure):
    _fields_ = (
        ("error", ctypes.c_int32),
        ("reason", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
    )


class AttachData(ctypes.Structure):
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


class SiteStatsData(ctypes.Structure):
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


class StatsData(ctypes.Structure):
    _fields_ = (
        ("buffer", ctypes.c_uint64),
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("returned", ctypes.c_uint32),
        ("total", ctypes.c_uint32),
    )


class InfoData(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * NAME_LENGTH),
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
        ("tracepoints", ctypes.c_uint32),
        ("reserved32", ctypes.c_uint32),
        ("reserved", ctypes.c_uint64),
    )


class HeapData(ctypes.Structure):
    _fields_ = (
        ("shadow", ctypes.c_uint32),
        ("owner", ctypes.c_uint32),
        ("limit", ctypes.c_uint64),
        ("generation", ctypes.c_uint32),
        ("ctor_offset", ctypes.c_uint16),
        ("flags_offset", ctypes.c_uint16),
    )


class HeapStatsData(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint64),
        ("allocations", ctypes.c_uint64),
        ("failures", ctypes.c_uint64),
        ("passed", ctypes.c_uint64),
    )


class DrainData(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 2),
    )


class TracepointData(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * NAME_LENGTH),
        ("program", ctypes.c_uint32),
        ("map", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
        ("value", ctypes.c_uint32),
        ("reserved", ctypes.c_uint64),
    )


_WRITE = 1
_READ = 2


def _request(direction: int, number: int, size: int) -> int:
    """The number of an ioctl (include/uapi/asm-generic/ioctl.h)."""
    return direction << 30 | size << 16 | _MAGIC << 8 | number


IOC_VERSION = _request(_READ, 0, ctypes.sizeof(VersionData))
IOC_CREATE = _request(_WRITE, 1, ctypes.sizeof(CreateData))
IOC_OPEN = _request(_WRITE, 2, ctypes.sizeof(OpenData))
IOC_PROGRAM = _request(_READ | _WRITE, 3, ctypes.sizeof(ProgramData))
IOC_ATTACH = _request(_READ | _WRITE, 4, ctypes.sizeof(AttachData))
IOC_COMMIT = _request(0, 5, 0)
IOC_STATS = _request(_READ | _WRITE, 6, ctypes.sizeof(StatsData))
IOC_INFO = _request(_READ, 7, ctypes.sizeof(InfoData))
IOC_DETACH = _request(0, 8, 0)
IOC_HEAP = _request(_READ | _WRITE, 9, ctypes.sizeof(HeapData))
IOC_HEAP_STATS = _request(_READ, 10, ctypes.sizeof(HeapStatsData))
IOC_DRAIN = _request(_READ | _WRITE, 11, ctypes.sizeof(DrainData))
IOC_TRACEPOINT = _request(_WRITE, 12, ctypes.sizeof(TracepointData))

CREATE_KEEP = 1
CREATE_STRICT = 2
DRAIN_START = 1
DRAIN_AUTO = 2
SITE_STRICT = 1
SITE_TAIL = 2
ATTACH_BEST_EFFORT = 1
