# SPDX-License-Identifier: Apache-2.0
"""Objects' descriptions of themselves, made by hand for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from o2cc.bpf.info import MapInfo, ObjectInfo, SiteInfo, TableInfo

EVENT_FIELDS = (
    "time", "site", "kind", "cpu", "pid_tgid", "comm0", "comm1", "context", "address", "size", "class", "base",
    "flags", "types", "name0", "name1",
)  # fmt: skip


def site(
    number: int, function: str = "f", offset: int = 0x10, kind: str = "store", **changes: Any
) -> SiteInfo:
    """A site; `changes` replace members."""
    members: dict[str, object] = {
        "number": number,
        "function": function,
        "offset": offset,
        "probe_offset": offset,
        "kind": kind,
        "check": "check",
        "program": "program",
        "cookie": number + 100,
        "return_probe": kind == "return",
        "file": "made.o2c",
        "line": 7,
        "note": "",
    }
    return SiteInfo(**{**members, **changes})


def info(*sites: SiteInfo, tables: tuple[TableInfo, ...] = (), **identity: str) -> ObjectInfo:
    """An object with these sites."""
    return ObjectInfo(
        "made",
        "shape",
        {"release": "6.1.0", "target": "m", "kind": "module", **identity},
        (MapInfo("events", "ring_buffer", (), EVENT_FIELDS, 1 << 20),),
        tables,
        sites,
        (),
        {},
    )


def words(text: str) -> tuple[int, int]:
    """Up to sixteen characters as the two words that a program reads."""
    first, second = struct.unpack("<QQ", text.encode().ljust(16, b"\0"))
    return first, second


def record(changes: Mapping[str, int] | None = None, *, comm: str = "task", cache: str = "") -> bytes:
    """A record of the map `events`."""
    values = dict.fromkeys(EVENT_FIELDS, 0)
    values["comm0"], values["comm1"] = words(comm)
    values["name0"], values["name1"] = words(cache)
    values.update(changes or {})
    return struct.pack(f"<{len(EVENT_FIELDS)}Q", *values.values())
