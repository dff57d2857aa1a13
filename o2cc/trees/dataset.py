# SPDX-License-Identifier: Apache-2.0
"""Profiles: labelled samples of kernel objects, read from Parquet.

Columns (see `schema`): one row is one object at one moment.

    kernel       release of the kernel, as `uname -r`
    boot         identity of the boot, as /proc/sys/kernel/random/boot_id
    workload     what was running
    label        type of the object, or the site that allocated it
    evidence     how the label is known: `payload`, `cache`, `debug`, `flow`, ... (docs/profiles.md)
    moment       `alloc`, `live` (in the middle of its life), `access` (by the compartment) or `free`
    address      of the object
    size         in bytes
    cache        name of the slab cache
    cache_flags  its flags
    words        the object's 8-byte words from its start, as many as were read
    layout       the bounds of `o2cc.trees.features.Layout` in that boot
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2cc.diagnostics import DiagnosticError, error
from o2cc.trees.features import LAYOUT_FIELDS, Objects, extract, feature_set
from o2cc.trees.tree import FeatureKind

MOMENTS = ("alloc", "live", "access", "free")
TEXT_COLUMNS = ("kernel", "boot", "workload", "label", "evidence", "moment", "cache")
NUMBER_COLUMNS = ("address", "size", "cache_flags")
GENERAL_CACHE_PREFIXES = ("kmalloc-", "dma-kmalloc-")
"""Names of the caches that kmalloc serves from (mm/slab_common.c, 6.1): they hold objects of any type."""


@dataclass(frozen=True)
class Profile:
    """Samples as columns; every array has n rows.  Text columns are arrays of str objects."""

    objects: Objects
    kernel: NDArray[np.object_]
    boot: NDArray[np.object_]
    workload: NDArray[np.object_]
    label: NDArray[np.object_]
    evidence: NDArray[np.object_]
    moment: NDArray[np.object_]
    cache: NDArray[np.object_]
    words_known: int
    """Words of every object that are known, or known to be missing; features go no further."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def in_general_cache(self) -> NDArray[np.bool_]:
        """Which samples come from kmalloc's caches, by row."""
        return np.array([name.startswith(GENERAL_CACHE_PREFIXES) for name in self.cache], dtype=np.bool_)

    def take(self, rows: NDArray[Any]) -> Profile:
        """The chosen rows (numbers, or a mask)."""
        objects = self.objects
        return replace(
            self,
            objects=Objects(
                objects.words[rows],
                objects.present[rows],
                objects.address[rows],
                objects.size[rows],
                objects.cache_flags[rows],
                objects.layout[rows],
            ),
            **{name: getattr(self, name)[rows] for name in TEXT_COLUMNS},
        )


def schema() -> Any:
    """The Arrow schema of a profile."""
    import pyarrow as pa

    return pa.schema(
        [
            *((name, pa.string()) for name in TEXT_COLUMNS),
            *((name, pa.uint64()) for name in NUMBER_COLUMNS),
            ("words", pa.list_(pa.uint64())),
            ("layout", pa.struct([(name, pa.uint64()) for name in LAYOUT_FIELDS])),
        ]
    )


def _broken(message: str, path: str, help: str | None = None) -> DiagnosticError:
    return DiagnosticError(error("O2C0720", message, path=path, help=help))


def read_profiles(paths: Sequence[Path]) -> Profile:
    """All samples of several Parquet files; DiagnosticError when one is broken or there is no sample."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as problem:
            raise _broken(f"cannot read the profile: {str(problem)[:200]}", str(path)) from None
        lacking = [name for name in schema().names if name not in table.column_names]
        if lacking:
            raise _broken(
                f"the profile lacks the columns {', '.join(f'`{name}`' for name in lacking)}", str(path)
            )
        try:
            table = table.select(schema().names).cast(schema())
        except (ValueError, pa.ArrowException) as problem:
            raise _broken(
                f"a column has another type than profiles have: {str(problem)[:200]}", str(path)
            ) from None
        for name in schema().names:
            if table.column(name).null_count:
                raise _broken(f"column `{name}` has empty values", str(path))
        tables.append(table)
    if not tables or not sum(len(table) for table in tables):
        raise DiagnosticError(
            error("O2C0721", "the profiles hold no samples", path=str(paths[0]) if paths else None)
        )
    return profile_from_table(pa.concat_tables(tables).combine_chunks(), str(paths[0]))


def profile_from_table(table: Any, path: str) -> Profile:
    """A profile from an Arrow table of `schema()`, which has rows; DiagnosticError when values make no sense."""
    texts = {name: np.array(table.column(name).to_pylist(), dtype=object) for name in TEXT_COLUMNS}
    wrong = sorted(set(texts["moment"]) - set(MOMENTS))
    if wrong:
        raise _broken(f"a sample's moment is `{wrong[0]}`, moments are alloc, live, access and free", path)
    unnamed = [name for name in sorted(set(texts["label"])) if not name or not name.isprintable()]
    if unnamed:
        raise _broken(f"the label {unnamed[0][:40]!r} is empty or cannot be printed", path)
    numbers = {name: np.asarray(table.column(name).to_numpy(), dtype=np.uint64) for name in NUMBER_COLUMNS}
    if (numbers["size"] == 0).any():
        raise _broken("a sample's object has no bytes", path)
    lists = table.column("words").combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    flat = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.uint64)
    count, width = len(lengths), int(lengths.max())
    whole_words = np.minimum(numbers["size"] // np.uint64(8), np.uint64(2**31)).astype(np.int64)
    if (lengths > whole_words).any():
        raise _broken("a sample has more words than its object", path)
    words = np.zeros((count, width), dtype=np.uint64)
    present = np.arange(width) < lengths[:, None]
    words[present] = flat
    cut = lengths[lengths < whole_words]
    layout_column = table.column("layout").combine_chunks()
    unknown = [name for name in LAYOUT_FIELDS if layout_column.field(name).null_count]
    if unknown:
        raise _broken(f"the layout lacks `{unknown[0]}`", path, "record the profile again with this o2c")
    layout = np.stack(
        [layout_column.field(name).to_numpy(zero_copy_only=False) for name in LAYOUT_FIELDS], axis=1
    )
    objects = Objects(
        words, present, numbers["address"], numbers["size"], numbers["cache_flags"], layout.astype(np.uint64)
    )
    return Profile(objects=objects, words_known=int(cut.min()) if len(cut) else width, **texts)


def without_near_duplicates(profile: Profile) -> Profile:
    """One sample of each set that differs in nothing but addresses and other raw values.

    Samples are near duplicates when their label, moment, kernel, boot, workload, size, and the classes and offsets of all
    words are equal, counters and flags apart: they teach little, and they would make intervals too narrow.
    """
    shape = tuple(
        feature
        for feature in feature_set("classes", profile.words_known)
        if feature.kind not in (FeatureKind.LOW, FeatureKind.HIGH)
    )
    features = extract(shape, profile.objects)
    groups = [
        np.unique(getattr(profile, n).astype(str), return_inverse=True)[1]
        for n in TEXT_COLUMNS
        if n != "cache"
    ]
    rows = np.column_stack([features, *(group.astype(np.uint64) for group in groups)])
    _, first = np.unique(rows, axis=0, return_index=True)
    return profile.take(np.sort(first))
