# SPDX-License-Identifier: Apache-2.0
"""How many machine instructions a check of the SCTP policy executes.

    python -m benchmarks.check_instructions [--limit 2400]

Boots a VM (see benchmarks/vm.py) whose clocks count executed instructions, one a nanosecond (QEMU's -icount), loads the
policy with `on violation deny` through o2c.ko, with what keeps track of memory everywhere and every 6th of the other sites,
and carries the verified traffic of tests/vm/guest/sctp_workload.py with BPF statistics on (kernel.bpf_stats_enabled): the
kernel then takes the time of each run of a program, which here is what the processor executed from the program's first
instruction to its last, helper functions included, and not what brought it there.  The measure's own share is taken away:
that of a program of two instructions, attached in the same way.

An interrupt while a check runs would count as well; o2c.ko keeps them off.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import vm
from o2cc.bpf.info import ObjectInfo, read
from o2cc.runtime import loader
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.plan import tracking_sites
from scripts.fetch_kernels import Kernel
from tests.vm.guest import sctp_workload
from tests.vm.guest.enforcer_support import Forms, constant_program, start_state

EVERY = 6
MESSAGES = 4  # in each association, each way
_EMPTY_RUNS = 200
_EMPTY_FORM = "mov_64"
_STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True)
class Runs:
    """How often programs ran, and for how many instructions, the measure's share included."""

    count: int
    instructions: int


def objects(kernel: Kernel) -> Mapping[str, bytes]:
    """The policy."""
    return {"deny": vm.denying(kernel)}


def runs() -> dict[str, Runs]:
    """All programs in the kernel by name."""
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], check=True, capture_output=True).stdout
    return {
        item["name"]: Runs(item["run_cnt"], item["run_time_ns"])
        for item in json.loads(shown)
        if "run_cnt" in item and "name" in item
    }


def share_of_the_measure() -> float:
    """What a run of a program that only returns comes to."""
    forms, program = Forms(), constant_program(0)
    form = forms.all[_EMPTY_FORM]
    with Enforcer() as enforcer:
        enforcer.create("empty")
        enforcer.attach([form.site(enforcer.program(program))])
        enforcer.commit()
        for _ in range(_EMPTY_RUNS):
            forms.run(form, *start_state(form))
        found = runs()["o2c_test"]
    assert found.count == _EMPTY_RUNS
    return found.instructions / found.count


def kinds(info: ObjectInfo) -> dict[str, str]:
    """The kind of the sites that a program serves; it serves one only."""
    return {site.program: site.kind for site in info.sites if site.program}


def guest() -> None:
    """Load, carry, and print."""
    data = vm.guest_object("deny")
    info = read(data)
    tracking = tracking_sites(info)
    options = LoadOptions(
        wanted=lambda site: site.number in tracking or site.number % EVERY == 0, accept_gaps=True
    )
    loaded = loader.load(data, options=options)
    print(f"# {loaded.attached} probes", flush=True)
    sctp_workload.run(messages=1, limit=600.0)  # what happens once only
    _STATISTICS.write_text("1")
    share = share_of_the_measure()
    summary = sctp_workload.run(messages=MESSAGES, limit=600.0)
    _STATISTICS.write_text("0")
    print(f"# {summary}\n# share of the measure: {share:.1f}", flush=True)
    count: Counter[str] = Counter()
    total: Counter[str] = Counter()
    kind_of = kinds(info)
    for name, found in runs().items():
        if name in kind_of and found.count:
            for group in (kind_of[name], "all"):
                count[group] += found.count
                total[group] += found.instructions
    print(f"{'':16}{'checks':>10}{'instructions':>14}")
    for group in sorted(count, key=lambda name: (name == "all", name)):
        print(f"{group:16}{count[group]:10}{total[group] / count[group] - share:14.1f}")
    with Enforcer() as enforcer:
        enforcer.open(loaded.name)
        told = enforcer.info()
    print(f"denied {told.denied}, skipped {told.missed}")
    loader.unload(loaded.name)


if __name__ == "__main__":
    vm.main(__doc__, "check_instructions", objects, guest, limit=2400, count_instructions=True)
