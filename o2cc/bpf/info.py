# SPDX-License-Identifier: Apache-2.0
"""What an object says about itself to our loader: the section ``.o2c.info``.

Canonical JSON (sorted keys, no spaces), compressed with zstd, in a section that is not loaded.  Its ELF type
is SHT_STRTAB, the one kind of unknown section that libbpf (1.1 to 1.5) passes over without a message.
docs/object.md describes the fields.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import zstandard

from o2cc.diagnostics import DiagnosticError, error

SECTION = ".o2c.info"
FORMAT = 4
_LEVEL = 9
_MAXIMUM = 256 << 20  # bytes of JSON that a reader accepts


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map: its kind, the names of the words of keys and entries, and its capacity (entries, or bytes)."""

    name: str
    kind: str
    key: tuple[str, ...]
    fields: tuple[str, ...]
    capacity: int


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table: where it is in the object's data.  ``columns`` are (name, offset in a row, size) in bytes."""

    name: str
    section: str
    offset: int
    stride: int
    length: int
    columns: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """A site.  ``cookie`` is the attach cookie of the `shape` layout, else None; ``return_probe``: the program
    is for a probe of the function's return.  ``file`` and ``line`` are the policy's, "" and 0 when unknown.
    ``program`` is "" for a site whose decision another site's program makes: nothing is attached for it, and
    events may name its number.  ``code``: the instruction at the probe (`o2cc.bpf.code`), "" where it cannot be compared.
    ``keep_int3``: the kernel must not make a jump of the probe, since other code enters the bytes that it would take."""

    number: int
    function: str
    offset: int
    probe_offset: int
    kind: str
    check: str
    program: str
    cookie: int | None
    return_probe: bool
    file: str
    line: int
    note: str
    code: str = ""
    keep_int3: bool = False


@dataclass(frozen=True, slots=True)
class HookInfo:
    """A program that belongs to no site."""

    name: str
    kind: str
    target: str
    program: str


@dataclass(frozen=True, slots=True)
class OpsTargetsInfo:
    """Functions that may be called through pointers and stand in tables of ``struct`` in loaded modules that match
    ``modules`` (globs), but for ``excluded``.  ``scopes`` and ``gates`` (number by member of the table, 0 for others): the
    words that the map ``call_targets`` holds for each.
    ``file`` and ``line`` are the policy's."""

    struct: str
    modules: tuple[str, ...]
    excluded: tuple[str, ...]
    scopes: int
    file: str
    line: int
    gates: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class HeapCallInfo:
    """A call (or tail jump) that the private heap serves: what is called, what stands for it (`alloc`, `alloc_cache`,
    `free_cache`, `realloc`, `duplicate`), and the registers with the size or cache and with the GFP flags ("": none)."""

    function: str
    offset: int
    tail: bool
    called: str
    operation: str
    size: str
    flags: str


@dataclass(frozen=True, slots=True)
class HeapInfo:
    """A private heap of at most ``limit`` bytes.  The offsets are those of members of ``struct kmem_cache``; ``file`` and
    ``line`` are the policy's."""

    limit: int
    ctor_offset: int
    flags_offset: int
    file: str
    line: int
    calls: tuple[HeapCallInfo, ...]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Everything that is in the section."""

    name: str
    layout: str
    identity: dict[str, str]
    maps: tuple[MapInfo, ...]
    tables: tuple[TableInfo, ...]
    sites: tuple[SiteInfo, ...]
    hooks: tuple[HookInfo, ...]
    discharged: dict[str, int]
    ops_targets: tuple[OpsTargetsInfo, ...] = ()
    heap: HeapInfo | None = None


def encode(info: ObjectInfo) -> bytes:
    """The section's content."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": info.name,
        "layout": info.layout,
        "identity": info.identity,
        "maps": [asdict(item) for item in info.maps],
        "tables": [asdict(item) for item in info.tables],
        "sites": _columns(SiteInfo, info.sites),
        "hooks": [asdict(item) for item in info.hooks],
        "discharged": info.discharged,
        "ops_targets": [asdict(item) for item in info.ops_targets],
        "heap": None if info.heap is None else asdict(info.heap),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(text.encode())


def _columns(kind: type, items: Sequence[Any]) -> dict[str, list[Any]]:
    """A list for each field: smaller and faster than an object for each item."""
    return {field.name: [getattr(item, field.name) for item in items] for field in fields(kind)}


def decode(content: bytes, path: str = "") -> ObjectInfo:
    """Reads the section's content.  Raises DiagnosticError (O2C0608) when it is broken."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            text = reader.read(_MAXIMUM)
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise DiagnosticError(
                error(
                    "O2C0609",
                    f"this object has format {document['format']}, this version reads {FORMAT}",
                    path=path or None,
                    help="compile the policy again",
                )
            )
        sites = document["sites"]
        rows = zip(*(sites[field.name] for field in fields(SiteInfo)), strict=True)
        return ObjectInfo(
            name=str(document["name"]),
            layout=str(document["layout"]),
            identity={str(k): str(v) for k, v in document["identity"].items()},
            maps=tuple(
                MapInfo(**{**item, "key": tuple(item["key"]), "fields": tuple(item["fields"])})
                for item in document["maps"]
            ),
            tables=tuple(
                TableInfo(
                    **{**item, "columns": tuple((str(n), int(o), int(s)) for n, o, s in item["columns"])}
                )
                for item in document["tables"]
            ),
            sites=tuple(SiteInfo(*row) for row in rows),
            hooks=tuple(HookInfo(**item) for item in document["hooks"]),
            discharged={str(k): int(v) for k, v in document["discharged"].items()},
            ops_targets=tuple(
                OpsTargetsInfo(
                    **{
                        **item,
                        "modules": tuple(item["modules"]),
                        "excluded": tuple(item["excluded"]),
                        "gates": tuple((str(member), int(gate)) for member, gate in item["gates"]),
                    }
                )
                for item in document["ops_targets"]
            ),
            heap=_heap(document["heap"]),
        )
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DiagnosticError(
            error("O2C0608", "the object's description of itself is damaged", path=path or None)
        ) from problem


def _heap(document: dict[str, Any] | None) -> HeapInfo | None:
    if document is None:
        return None
    return HeapInfo(**{**document, "calls": tuple(HeapCallInfo(**call) for call in document["calls"])})


def read(data: bytes, path: str = "") -> ObjectInfo:
    """Finds and reads the section in an object file.

    Raises DiagnosticError (O2C0608) when the file is no such object or is damaged.
    """
    from elftools.common.exceptions import ELFError  # late: the compiler only writes
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(SECTION)
        content = None if section is None else section.data()
    except (
        ELFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OSError,
        OverflowError,
    ) as problem:
        raise DiagnosticError(
            error("O2C0608", "this is not an ELF file that can be read", path=path or None)
        ) from problem
    if content is None:
        raise DiagnosticError(
            error(
                "O2C0608",
                f"this object was not made by o2cc: it has no section `{SECTION}`",
                path=path or None,
            )
        )
    return decode(content, path)
