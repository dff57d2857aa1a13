# SPDX-License-Identifier: Apache-2.0
"""Inside a VM: profiles the kernel once for each workload; the files go to $O2C_RESULTS.

profile_guest.py --seconds 15 --per-class 150
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.vm.guest import object_workloads

PROJECT = Path(__file__).resolve().parents[1]
START = 6.0
"""Seconds that a workload runs longer than the recording, which takes that long to start under emulation."""


def profile(workload: str, seconds: float, per_class: int) -> Path:
    """One profile, of the boot that runs this."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    output = Path(os.environ["O2C_RESULTS"]) / f"{os.uname().release}-{boot[:8]}-{workload}.parquet"
    script = [sys.executable, object_workloads.__file__, workload, str(seconds + START)]
    with subprocess.Popen(script) as running:
        subprocess.run(
            [
                *(sys.executable, "-m", "o2cc.cli.o2c", "profile", "-o", str(output)),
                *("--workload", workload, "--seconds", str(seconds), "--per-class", str(per_class)),
            ],
            check=True,
        )
        running.terminate()
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile the running kernel under each workload")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--per-class", type=int, default=150)
    parser.add_argument("--workloads", nargs="*", default=list(object_workloads.NAMES))
    arguments = parser.parse_args()
    subprocess.run(["modprobe", "sctp"], check=True)
    for workload in arguments.workloads:
        started = time.monotonic()
        print(profile(workload, arguments.seconds, arguments.per_class), round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
