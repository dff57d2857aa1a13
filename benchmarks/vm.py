# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks that place probes share: one file each, of which the host runs one half and a VM the other.

The host's half compiles the SCTP policy for the kernel's own module and boots (`tests.vm.machine`: emulation, so that
counts are evidence and times are good for ratios within one boot only).  The guest's half measures and prints.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from o2cc.bpf.layout import Layout
from o2cc.diagnostics import SourceFile
from o2cc.driver import compile_policy
from o2cc.options import CompileOptions, Degrade
from scripts.fetch_kernels import SERIES, Kernel, ensure
from tests.vm import kbuild
from tests.vm.guest.enforcer_support import load_module
from tests.vm.machine import run
from tests.vm.policies import SCTP_POLICY, sctp_deny_text

Objects = Callable[[Kernel], Mapping[str, bytes]]


def reporting(kernel: Kernel, layout: Layout) -> bytes:
    """examples/sctp.o2c as it is: it reports."""
    return _compiled(kernel, SCTP_POLICY.read_text(encoding="utf-8"), layout, Degrade.REPORT)


def denying(kernel: Kernel) -> bytes:
    """The same with `on violation deny`, its probes jump-optimized where the kernel can."""
    return _compiled(kernel, sctp_deny_text().replace("probes strict", ""), Layout.SHAPE, None)


def _compiled(kernel: Kernel, text: str, layout: Layout, degrade: Degrade | None) -> bytes:
    module = next(path for path in kernel.modules_dir.rglob("sctp.ko*") if path.is_file())
    options = CompileOptions(kernel=str(module), layout=layout, degrade=degrade)
    return compile_policy(SourceFile(str(SCTP_POLICY), text), options).output


def guest_object(name: str) -> bytes:
    """In the guest: one of the host half's objects."""
    return (Path(os.environ["O2C_RESULTS"]) / name).read_bytes()


def main(
    description: str | None,
    name: str,
    objects: Objects,
    guest: Callable[[], None],
    limit: int,
    *,
    count_instructions: bool = False,
) -> None:
    """The command line of a benchmark: ``objects`` are made on the host by name, ``guest`` runs in the VM, for at most
    ``limit`` seconds.  ``count_instructions``: its clocks count instructions (see tests/vm/machine.py), unless
    ``--time`` is given."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", choices=SERIES, default=next(iter(SERIES)))
    parser.add_argument("--limit", type=int, default=limit, help="seconds until the VM is killed")
    if count_instructions:
        parser.add_argument(
            "--time", action="store_true", help="measure time instead of counting instructions"
        )
    parser.add_argument("--guest", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.guest:
        subprocess.run(["modprobe", "sctp"], check=True)
        load_module("o2c")
        guest()
        return
    kernel = ensure(options.kernel)
    for source in kbuild.module_sources():
        kbuild.build_module(kernel, source)
    with tempfile.TemporaryDirectory() as scratch:
        for file, data in objects(kernel).items():
            (Path(scratch) / file).write_bytes(data)
        counting = count_instructions and not options.time
        print(f"{kernel.release}, load average of the host {os.getloadavg()[0]:.1f}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--guest"]
        outcome = run(
            kernel,
            command,
            results=Path(scratch),
            timeout=options.limit,
            count_instructions=counting,
            on_output=lambda text: print(text, end="", flush=True),
        )
        print(f"load average of the host afterwards {os.getloadavg()[0]:.1f}")
    if not outcome.ok:
        sys.exit(f"the VM ended by {outcome.ending}, status {outcome.status}")
    for line in outcome.splats:
        print(f"kernel: {line}")
