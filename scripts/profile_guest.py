# SPDX-License-Identifier: Apache-2.0
"""Inside a VM: profiles the kernel once for each workload; the files go to $O2C_RESULTS.

    python -m scripts.profile_guest --seconds 15 --per-class 150

It does what `o2c profile` does, in one process: under emulation, starting takes longer than recording.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from o2cc.profile.labels import share
from o2cc.profile.record import record, running_btf, running_labeller, running_program
from o2cc.profile.write import at_most_per_class, write_profile
from tests.vm.guest import object_workloads

LONGEST = 300.0
"""Seconds after which a workload ends by itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile the running kernel under each workload")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--per-class", type=int, default=150)
    parser.add_argument("--workloads", nargs="*", default=list(object_workloads.NAMES))
    arguments = parser.parse_args()
    subprocess.run(["modprobe", "sctp"], check=True)
    release = os.uname().release
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = time.monotonic()
    kernel = running_btf()
    program = running_program(kernel, per_site=arguments.per_class)
    labeller = running_labeller(kernel)
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)
    for workload in arguments.workloads:
        script = [sys.executable, object_workloads.__file__, workload, str(LONGEST)]
        with subprocess.Popen(script) as running:
            recording = record(program, seconds=arguments.seconds)
            running.terminate()
        labels = [labeller.label(sample) for sample in recording.samples]
        samples, labels = at_most_per_class(recording.samples, labels, arguments.per_class)
        write_profile(
            Path(os.environ["O2C_RESULTS"]) / f"{release}-{boot[:8]}-{workload}.parquet",
            samples,
            labels,
            kernel=release,
            boot=boot,
            workload=workload,
            layout=recording.layout,
        )
        sites_path = Path(os.environ["O2C_RESULTS"]) / f"{release}-{boot[:8]}-{workload}.sites.json"
        sites_path.write_text(json.dumps(labeller.rows(recording.samples), indent=0) + "\n")
        print(
            f"{time.monotonic() - started:6.1f} s {workload}: {share(samples, labels)} {recording.counters}"
        )
        print("  ", Counter(label.name for label in labels if label.is_type).most_common(40), flush=True)


if __name__ == "__main__":
    main()
