# SPDX-License-Identifier: Apache-2.0
"""Draws labelled allocation sites at random, to be checked against the kernel's source (docs/label-audit.md).

    .venv/bin/python -m scripts.label_sample --seed 4 --count 100
    .venv/bin/python -m scripts.label_sample --seed 4 --count 100 --recordings DIRECTORY

Without --recordings it draws from the tables `descriptions/*/allocations.json.xz`: sites of payload, and sites with a
constant size for which the table has a type.  With it, from what the samples of recorded boots (scripts/recordings.py)
are labelled, by every rule.  Printed is one site a line: kernel, site, label, evidence, size; sizes of 0 are not known.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow.parquet as pq

from o2cc.profile.labels import PAYLOAD, Labeller
from o2cc.profile.samples import Sample
from o2cc.profile.site_types import FILE_NAME, SiteTable
from scripts.recordings import Boot, boots_in

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, order=True)
class Labelled:
    """A site with a label that is a type.  ``size``: bytes, 0 where the table does not know them."""

    kernel: str
    site: str
    label: str
    evidence: str
    size: int


def of_table(table: SiteTable) -> Iterator[Labelled]:
    """The sites that a table labels without knowing more of the object."""
    for name, site in table.sites.items():
        if site.payload:
            yield Labelled(table.release, name, PAYLOAD, "payload", site.asked or 0)
        elif site.asked:
            choice, evidence = site.choose(site.asked, 0)
            if choice.name is not None:
                yield Labelled(table.release, name, choice.name, evidence, site.asked)


def of_samples(kernel: str, labeller: Labeller, samples: Iterable[Sample]) -> Iterator[Labelled]:
    """The labelled sites of samples of one boot, each as often as it differs in what labels depend on."""
    for row in labeller.rows(tuple(samples)):
        if row["evidence"] not in ("site", "conflict") and row["site"]:
            size = int(row["asked"] or row["size"])
            yield Labelled(kernel, str(row["site"]), str(row["label"]), str(row["evidence"]), size)


def recorded_samples(boot: Boot) -> Iterator[Sample]:
    """All samples of a boot, without their words, which no label depends on."""
    columns = [field.name for field in fields(Sample) if field.name != "words"]
    for workload in boot.workloads:
        for row in pq.read_table(boot.directory / f"{workload}.parquet", columns=columns).to_pylist():
            yield Sample(words=(), **row)


def draw(population: Iterable[Labelled], seed: int, count: int) -> list[Labelled]:
    """``count`` of the sites, all if there are fewer: each site and label of a kernel once, whatever its sizes.

    The same for the same population in any order.
    """
    first: dict[tuple[str, str, str], Labelled] = {}
    for item in sorted(population):
        first.setdefault((item.kernel, item.site, item.label), item)
    sites: Collection[Labelled] = first.values()
    return random.Random(seed).sample(list(sites), min(count, len(sites)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--recordings", type=Path, help="directory of recorded boots")
    arguments = parser.parse_args()
    population: set[Labelled] = set()
    if arguments.recordings:
        for boot in boots_in(arguments.recordings):
            population.update(of_samples(boot.kernel, boot.labeller(), recorded_samples(boot)))
    else:
        for path in sorted((PROJECT / "descriptions").glob(f"*/{FILE_NAME}")):
            population.update(of_table(SiteTable.from_bytes(path.read_bytes())))
    sites = len({(item.kernel, item.site, item.label) for item in population})
    print(f"# {sites} labelled sites, seed {arguments.seed}")
    for item in draw(population, arguments.seed, arguments.count):
        print(item.kernel, item.site, item.label, item.evidence, item.size, sep="\t")


if __name__ == "__main__":
    main()
