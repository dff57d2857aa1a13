# SPDX-License-Identifier: Apache-2.0
"""Labelled samples -> a profile (`o2cc.trees.dataset.schema`)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from o2cc.files import write_atomic
from o2cc.profile.labels import Label
from o2cc.profile.samples import Sample
from o2cc.trees.dataset import schema
from o2cc.trees.features import Layout


def at_most_per_class(
    samples: Sequence[Sample], labels: Sequence[Label], limit: int
) -> tuple[list[Sample], list[Label]]:
    """The first ``limit`` samples of each label and moment."""
    counts: Counter[tuple[str, str]] = Counter()
    kept: list[Sample] = []
    kept_labels: list[Label] = []
    for sample, label in zip(samples, labels, strict=True):
        key = (label.name, sample.moment)
        counts[key] += 1
        if counts[key] <= limit:
            kept.append(sample)
            kept_labels.append(label)
    return kept, kept_labels


def profile_rows(
    samples: Sequence[Sample],
    labels: Sequence[Label],
    *,
    kernel: str,
    boot: str,
    workload: str,
    layout: Layout,
) -> list[dict[str, object]]:
    """Rows of a profile, by the names of its columns."""
    bounds = asdict(layout)
    return [
        {
            "kernel": kernel,
            "boot": boot,
            "workload": workload,
            "label": label.name,
            "evidence": label.evidence,
            "moment": sample.moment,
            "cache": sample.cache,
            "address": sample.address,
            "size": sample.size,
            "cache_flags": sample.flags,
            "words": list(sample.words),
            "layout": bounds,
        }
        for sample, label in zip(samples, labels, strict=True)
    ]


def write_profile(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the file, whole or not at all.  Raises DiagnosticError (O2C0905)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())
