# SPDX-License-Identifier: Apache-2.0
"""Makes examples/sctp.tree.json again from nothing: boots kernels, profiles them, trains.

    .venv/bin/python -m scripts.train_sctp --boots 5

Every boot is a fresh VM (tests/vm/machine.py) with another KASLR layout, profiled under each workload of
tests/vm/guest/object_workloads.py.  Profiles stay in --profiles and are not committed; --keep trains on those that are
there without booting anything.

Classes of the tree: the structs of SCTP, what it shares with the rest of the kernel (`SHARED`), `payload`, and `other`
for everything else: a policy for SCTP asks of an object whether SCTP may touch it, and not what else it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from o2cc.profile.labels import PAYLOAD
from o2cc.trees.dataset import read_profiles
from o2cc.trees.file import write_tree
from o2cc.trees.report import report_as_text
from o2cc.trees.study import study
from o2cc.trees.train import Options
from o2cc.trees.train import train as train_tree
from scripts.fetch_kernels import SERIES, ensure
from tests.vm.machine import run

PROJECT = Path(__file__).resolve().parents[1]
TREE = PROJECT / "examples/sctp.tree.json"
REPORT = PROJECT / "examples/sctp.tree.report.txt"
OTHER = "other"
OWN_PREFIX = "sctp"
SHARED = frozenset({"sk_buff", "sock", "socket_alloc"})
BUDGET = 1500
"""BPF instructions of the tree in a policy: about 200 leaves at most."""
LEAST_IN_MACRO = 20
"""Samples of a class that counts in the report's macro figures."""


def record_boots(directory: Path, boots: int, series: tuple[str, ...], seconds: float, limit: float) -> None:
    """Profile ``boots`` boots of each kernel.  Exits when a VM fails."""
    for name in series:
        kernel = ensure(name)
        for number in range(boots):
            results = directory / f"{name}-{number}"
            outcome = run(
                kernel,
                [sys.executable, "-m", "scripts.profile_guest", "--seconds", str(seconds)],
                results=results,
                timeout=limit,
                on_output=lambda text: print(text, end="", flush=True),
            )
            if not outcome.ok:
                sys.exit(f"boot {number} of {name}: {outcome.ending}, status {outcome.status}")


def class_of(label: str) -> str:
    """The class of the shipped tree that a label belongs to."""
    if label == PAYLOAD or label in SHARED:
        return label
    return label if label.startswith(OWN_PREFIX) else OTHER


def reduce_profiles(paths: list[Path], output: Path) -> None:
    """One profile of all, with the labels of the tree."""
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    labels = [class_of(label) for label in table.column("label").to_pylist()]
    column = table.column_names.index("label")
    pq.write_table(table.set_column(column, "label", pa.array(labels)), output)


def train(profile: Path, sources: list[Path]) -> str:
    """Train, write the tree, and give back the report."""
    options = Options(budget=BUDGET, leaves=(32, 128, 200))
    trained = train_tree(read_profiles([profile]), options, [path.name for path in sources])
    write_tree(trained.tree, TREE)
    own = frozenset(name for name in trained.tree.classes if name.startswith(OWN_PREFIX))
    result = study(trained, own=own, least=LEAST_IN_MACRO, seed=options.seed, families=False)
    return "\n".join([*(warning.message for warning in trained.warnings), *report_as_text(trained, result)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boots", type=int, default=5, help="of each kernel")
    parser.add_argument("--kernels", nargs="*", default=list(SERIES))
    parser.add_argument("--seconds", type=float, default=15.0, help="recorded under each workload")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one boot may take")
    parser.add_argument("--profiles", type=Path, default=PROJECT / "build/sctp-profiles")
    parser.add_argument("--keep", action="store_true", help="train on the profiles that are there")
    arguments = parser.parse_args()
    if not arguments.keep:
        record_boots(
            arguments.profiles,
            arguments.boots,
            tuple(arguments.kernels),
            arguments.seconds,
            arguments.limit,
        )
    paths = sorted(arguments.profiles.glob("*/*.parquet"))
    if not paths:
        sys.exit(f"no profiles in {arguments.profiles}")
    merged = arguments.profiles / "sctp-all.parquet"
    reduce_profiles(paths, merged)
    report = train(merged, paths)
    boots = {path.parent.name for path in paths}
    REPORT.write_text(
        f"Trained by scripts/train_sctp.py on {len(paths)} profiles of {len(boots)} boots.\n\n{report}\n",
        encoding="utf-8",
    )
    print(f"{TREE.relative_to(PROJECT)}, {REPORT.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
