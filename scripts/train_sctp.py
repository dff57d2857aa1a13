# SPDX-License-Identifier: Apache-2.0
"""Makes examples/sctp.tree.json again from nothing: boots kernels, records their objects, labels, trains.

    .venv/bin/python -m scripts.train_sctp --boots 5

Every boot is a fresh VM (tests/vm/machine.py) with another KASLR layout, recorded under each workload of
tests/vm/guest/object_workloads.py.  Recordings (scripts/recordings.py) stay in --recordings and are not committed;
--keep trains on those that are there without booting anything, after labelling them anew.  A trial of the whole way, which
leaves the shipped tree alone:

    .venv/bin/python -m scripts.train_sctp --boots 2 --kernels 6.1 --workloads sctp forged --seconds 2 \\
        --recordings DIRECTORY --output DIRECTORY

Classes of the tree: structs of SCTP, what SCTP handles but shares with the rest of the kernel, `payload` for what holds
data and no struct, and `other`: a policy for SCTP asks of an object whether SCTP may touch it, and not what else it is.
The workload `forged` fills buffers with bytes of real SCTP objects; no tree is trained on it, it only says how many of
them are accepted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from o2cc.diagnostics import DiagnosticError
from o2cc.profile.labels import PAYLOAD
from o2cc.profile.write import at_most_per_class, profile_rows
from o2cc.trees.adversary import accepts, accepts_as_text, copied
from o2cc.trees.dataset import Profile, read_profiles, schema
from o2cc.trees.file import write_tree
from o2cc.trees.report import report_as_text
from o2cc.trees.study import study
from o2cc.trees.train import Options
from o2cc.trees.train import train as train_tree
from scripts.fetch_kernels import SERIES, cache_dir, ensure
from scripts.recordings import Boot, boots_in
from tests.vm.guest import object_workloads
from tests.vm.machine import run

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "examples"
TREE_NAME = "sctp.tree.json"
REPORT_NAME = "sctp.tree.report.txt"
OTHER = "other"
OWN = frozenset(
    {
        "sctp_association",
        "sctp_bind_bucket",
        "sctp_chunk",
        "sctp_datamsg",
        "sctp_endpoint",
        "sctp_shared_key",
        "sctp_sock",
        "sctp6_sock",
        "sctp_sockaddr_entry",
        "sctp_stream_out_ext",
        "sctp_transport",
    }
)
SHARED = frozenset({"sk_buff", "socket_alloc", "seq_file", "task_struct"})
"""What SCTP's functions are given though others allocate it."""

BY_SITE = {
    "sctp_get_port_local": "sctp_bind_bucket",
    "dst_alloc": "dst_entry",
    "__genradix_ptr_alloc": PAYLOAD,
    "shmem_symlink": PAYLOAD,
    "load_elf_phdrs": PAYLOAD,
    "p9_fcall_init": PAYLOAD,
    "p9pdu_readf": PAYLOAD,
}
"""Classes of objects whose type is known by the function alone (6.1 and 6.12): their caches are merged, or have room behind
the struct (net/sctp/socket.c, net/core/dst.c); the type is a union (lib/generic-radix-tree.c, see `DATA`); or they hold data:
targets of symbolic links (mm/shmem.c), headers of a program as its file has them (fs/binfmt_elf.c), messages of the
machine's 9P file system and their strings (net/9p/client.c, net/9p/protocol.c)."""

DATA = frozenset({"char[]", "u8[]", "unsigned char[]", "genradix_node"})
"""Labels of buffers that hold data, as payload does: characters, and nodes of arrays of anything (lib/generic-radix-tree.c),
which are pages in 6.1 and slab objects in 6.12."""

FORGED = "forged"
BUDGET = 2500
"""BPF instructions of the tree in a policy."""
LEAST = 10
"""Different samples of a class that is trained."""
LEAST_IN_MACRO = 50
"""Samples of a class that counts in the report's macro figures."""
PER_CLASS = 150
"""Samples of each label and moment that one recording gives."""


def record_boots(
    directory: Path,
    boots: int,
    series: Sequence[str],
    workloads: Sequence[str],
    seconds: float,
    limit: float,
) -> None:
    """Record ``boots`` boots of each kernel, those that are not there yet.  Exits when a VM fails."""
    for name in series:
        kernel = ensure(name)
        for number in range(boots):
            results = directory / f"{name}-{number}"
            if (results / "boot.json").exists():
                continue
            outcome = run(
                kernel,
                [
                    *(sys.executable, "-m", "scripts.profile_guest"),
                    *("--seconds", str(seconds), "--workloads", *workloads),
                ],
                results=results,
                timeout=limit,
                on_output=lambda text: print(text, end="", flush=True),
            )
            if not outcome.ok:
                sys.exit(f"boot {number} of {name}: {outcome.ending}, status {outcome.status}")


def class_of(label: str, *, of_module: bool) -> str:
    """The class of the shipped tree that a label belongs to; ``of_module``: SCTP's own code allocated the object."""
    if label in OWN or label in SHARED or label == PAYLOAD:
        return label
    if label.startswith("site:"):
        function = label.removeprefix("site:").split("/")[0]
        if function in BY_SITE:
            return BY_SITE[function]
    if of_module or label in DATA or label.startswith("sctp_"):
        # What SCTP allocates besides its structs are cookies, parameters, keys, lists of addresses.
        return PAYLOAD
    return OTHER


def labelled(boot: Boot) -> Iterator[dict[str, object]]:
    """Rows of a profile: the samples of one boot with the tree's classes."""
    labeller = boot.labeller()
    own = boot.own_addresses()
    for workload in boot.workloads:
        samples, layout = boot.samples(workload)
        kept, labels = at_most_per_class(samples, [labeller.label(sample) for sample in samples], PER_CLASS)
        rows = profile_rows(
            kept, labels, kernel=boot.kernel, boot=boot.boot, workload=workload, layout=layout
        )
        for sample, row in zip(kept, rows, strict=True):
            row["label"] = class_of(str(row["label"]), of_module=sample.site in own)
            yield row


def profile_of(boots: list[Boot], path: Path) -> Profile:
    """One profile of all boots, which also is written, so that `o2c train` can take it."""
    table = pa.concat_tables(pa.Table.from_pylist(list(labelled(boot)), schema=schema()) for boot in boots)
    pq.write_table(table, path, compression="zstd")
    return read_profiles([path])


def train(
    profile: Profile, boots: list[Boot], path: Path, *, families: bool
) -> tuple[str, dict[str, object]]:
    """Train, write the tree to ``path``, and give back the report as text and as JSON."""
    forged = profile.workload == FORGED
    options = Options(
        budget=BUDGET,
        least=LEAST,
        guarded=OWN | {"socket_alloc"},  # every file system has an inode that looks like a socket's
        depths=(12, 24),
        leaves=(48, 96, 160, 240),
        feature_counts=(48, 96),
        pruning=(0.0, 1e-4),
    )
    names = [f"{boot.kernel} {boot.boot}" for boot in boots]
    trained = train_tree(profile.take(~forged), options, names)
    write_tree(trained.tree, path)
    result = study(trained, own=OWN, least=LEAST_IN_MACRO, seed=options.seed, families=families)
    payload = profile.take(forged & (profile.label == PAYLOAD))
    copies = payload.take(
        copied(payload, profile.take(~forged & np.isin(profile.label.astype(str), sorted(OWN))))
    )
    adversary = accepts(trained.tree, copies, OWN)
    text = [
        *(warning.message for warning in trained.warnings),
        *report_as_text(trained, result),
        "",
        *accepts_as_text(adversary),
    ]
    document = {**result.as_json(), "forged": [asdict(line) for line in adversary]}
    return "\n".join(text), document


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boots", type=int, default=5, help="of each kernel")
    parser.add_argument("--kernels", nargs="*", default=list(SERIES))
    parser.add_argument("--seconds", type=float, default=10.0, help="recorded under each workload")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one boot may take")
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=object_workloads.NAMES,
        default=list(object_workloads.NAMES),
        metavar="NAME",
        help=f"what to record: {', '.join(object_workloads.NAMES)}",
    )
    parser.add_argument("--recordings", type=Path, default=cache_dir() / "recordings")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory for the tree and its report")
    parser.add_argument("--keep", action="store_true", help="train on the recordings that are there")
    parser.add_argument(
        "--families", action="store_true", help="compare with other models, which takes longer"
    )
    arguments = parser.parse_args()
    if not arguments.keep:
        record_boots(
            arguments.recordings,
            arguments.boots,
            arguments.kernels,
            arguments.workloads,
            arguments.seconds,
            arguments.limit,
        )
    boots = boots_in(arguments.recordings)
    if not boots:
        sys.exit(f"no recordings in {arguments.recordings}")
    profile = profile_of(boots, arguments.recordings / "sctp-all.parquet")
    tree = arguments.output / TREE_NAME
    try:
        text, document = train(profile, boots, tree, families=arguments.families)
    except DiagnosticError as failure:
        sys.exit(str(failure))
    head = f"Trained by scripts/train_sctp.py on {len(profile):,} samples of {len(boots)} boots."
    report = arguments.output / REPORT_NAME
    report.write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    (arguments.recordings / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{tree}, {report}")


if __name__ == "__main__":
    main()
