# SPDX-License-Identifier: Apache-2.0
"""Inside a VM: records the kernel's objects once for each workload; the files go to $O2C_RESULTS (scripts/recordings.py).

    python -m scripts.profile_guest --seconds 12 --per-site 150

It does what `o2c profile` does before it labels, in one process: under emulation, starting takes longer than recording.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from o2cc.profile.record import (
    PROBED_FUNCTIONS,
    Recording,
    record,
    running_btf,
    running_program,
    some_functions,
)
from o2cc.profile.samples import Sample
from scripts.recordings import write_boot, write_samples
from tests.vm.guest import object_workloads

MODULE = "sctp"
LONGEST = 600.0
"""Seconds after which a workload ends by itself."""

COMPARTMENT_SHARE = 2.5
"""How much longer the compartment's own workloads are recorded: their objects are fewer."""

COPIED = 12
"""Objects of each cache that the workload `forged` copies."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the running kernel's objects under each workload")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--per-site", type=int, default=150)
    parser.add_argument("--workloads", nargs="*", default=list(object_workloads.NAMES))
    arguments = parser.parse_args()
    subprocess.run(["modprobe", MODULE], check=True)
    results = Path(os.environ["O2C_RESULTS"])
    started = time.monotonic()
    program = running_program(running_btf(), per_site=arguments.per_site)
    functions = some_functions(MODULE, PROBED_FUNCTIONS, Path("/proc/sys/kernel/random/boot_id").read_text())
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)
    images = results / object_workloads.IMAGES
    for workload in arguments.workloads:
        own = workload.startswith(MODULE)
        seconds = arguments.seconds * (COMPARTMENT_SHARE if own else 1.0)
        script = [sys.executable, object_workloads.__file__, workload, str(LONGEST)]
        with subprocess.Popen(script, cwd=results) as running:
            recording = record(program, seconds=seconds, functions=functions if own else ())
            running.terminate()
        write_samples(results, workload, recording.samples, recording.layout)
        if own:
            images.write_bytes(_images(recording))
        moments = Counter(sample.moment for sample in recording.samples)
        print(
            f"{time.monotonic() - started:6.1f} s {workload}: {dict(moments)} {recording.counters}",
            flush=True,
        )
    images.unlink(missing_ok=True)
    write_boot(results, MODULE)


def _images(recording: Recording) -> bytes:
    """What objects of the compartment hold, for the workload `forged`; see `object_workloads.forged`."""
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as lines:
        own = [int(line.split()[0], 16) for line in lines if line.endswith(f"[{MODULE}]\n")]
    low, high = min(own), max(own)
    kept: Counter[tuple[int, int]] = Counter()
    images: list[bytes] = []
    for sample in recording.samples:
        key = (sample.site, sample.size)
        if low <= sample.site <= high and kept[key] < COPIED:
            kept[key] += 1
            images.append(_image(sample))
    return object_workloads.pack_images(images)


def _image(sample: Sample) -> bytes:
    """As much of an object as was recorded, then zeros up to its size."""
    return b"".join(word.to_bytes(8, "little") for word in sample.words).ljust(sample.size, b"\0")


if __name__ == "__main__":
    main()
