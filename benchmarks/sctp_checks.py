# SPDX-License-Identifier: Apache-2.0
"""How many checks an SCTP message costs, by what is at the site (a jump, int3), and how long these checks are.

    python -m benchmarks.sctp_checks [--kernel 6.1|6.12] [--limit 2400]

Boots a VM (see benchmarks/vm.py), loads the SCTP policy with `on violation deny` through o2c.ko with every site that
has a program (about 4,100, which takes minutes), waits until the kernel has made jumps of the probes that it can, and
carries the verified traffic of tests/vm/guest/sctp_workload.py twice: 12 associations over loopback with few and with
more messages each.  o2c.ko counts hits by site.  What the second run has more, divided by the messages that it carries
more, is what one message costs, both ends, acknowledgements and fragments of large ones included; the first run's
remainder is what an association costs from INIT to its end.

`instructions` is the mean length, over the checks that ran, of the check's program with every function that it can
call, each once: an upper bound for a check without loops, not a count of what was executed.  Denials and skipped checks are printed: in proper traffic there should be none.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks import vm
from o2cc.bpf.info import SiteInfo, read
from o2cc.runtime import loader, plan
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import SiteStats, State
from o2cc.runtime.libbpf import BpfObject
from o2cc.runtime.loader import LoadOptions
from scripts.fetch_kernels import Kernel
from tests.vm.guest import sctp_workload

FEW, MORE = 4, 24  # messages in each association, each way
_SETTLED = 5.0  # seconds without another probe optimized


def objects(kernel: Kernel) -> Mapping[str, bytes]:
    """The policy."""
    return {"deny": vm.denying(kernel)}


def stats(name: str) -> dict[int, SiteStats]:
    """o2c.ko's counters by what it knows a site by."""
    with Enforcer() as enforcer:
        enforcer.open(name)
        return {item.cookie: item for item in enforcer.stats()}


def settle(name: str) -> Counter[State]:
    """Wait until the kernel optimizes no further probe; what is at the sites then."""
    before = -1
    while True:
        found = Counter(item.state for item in stats(name).values())
        if found[State.JUMP] == before:
            return found
        before = found[State.JUMP]
        time.sleep(_SETTLED)


def program_lengths(data: bytes) -> dict[str, int]:
    """Instructions of each program, the functions that it can call included, as the verifier left them."""
    with BpfObject(data) as loaded:
        loaded.load()
        shown = subprocess.run(["bpftool", "-j", "prog", "show"], check=True, capture_output=True).stdout
        lengths = {item["id"]: item["bytes_xlated"] // 8 for item in json.loads(shown)}
        return {name: lengths[_id(item.descriptor)] for name, item in loaded.programs().items()}


def _id(descriptor: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("prog_id")).split()[1])


def traffic(messages: int) -> sctp_workload.Summary:
    """Carry messages, and print how that went."""
    summary = sctp_workload.run(messages=messages, limit=300.0)
    print(f"# {summary}", flush=True)
    return summary


def guest() -> None:
    """Load, carry twice, and print."""
    data = vm.guest_object("deny")
    sites = {plan.cookie_of(site): site for site in read(data).sites if site.program}
    lengths = program_lengths(data)
    begin = time.monotonic()
    loaded = loader.load(data, options=LoadOptions(accept_gaps=True))
    print(
        f"# {loaded.attached} probes, {len(loaded.failures)} refused, {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    at = settle(loaded.name)
    print(
        "# at the sites: " + ", ".join(f"{count} {state.name.lower()}" for state, count in sorted(at.items()))
    )
    traffic(1)  # what happens once only
    first = stats(loaded.name)
    few = traffic(FEW)
    second = stats(loaded.name)
    more = traffic(MORE)
    third = stats(loaded.name)
    short = {cookie: second[cookie].hits - first[cookie].hits for cookie in sites if cookie in first}
    long = {cookie: third[cookie].hits - second[cookie].hits for cookie in short}
    extra = {cookie: long[cookie] - short[cookie] for cookie in short}
    messages = more.messages - few.messages
    print(f"{messages} messages more, {(more.bytes - few.bytes) / messages:.0f} bytes each")
    print(f"{'':16}{'a message':>11}{'an association':>16}{'instructions':>14}")
    kinds = sorted({sites[cookie].kind for cookie in extra if extra[cookie]})
    groups = {
        state.name.lower(): {c for c in extra if third[c].state is state}
        for state in (State.JUMP, State.INT3)
    }
    groups |= {kind: {c for c in extra if sites[c].kind == kind} for kind in kinds}
    groups["all"] = set(extra)
    for name, members in groups.items():
        checks = sum(extra[c] for c in members)
        once = (sum(short[c] for c in members) - checks * few.messages / messages) / few.associations
        print(f"{name:16}{checks / messages:11.1f}{once:16.1f}{_mean(members, extra, sites, lengths):14.0f}")
    denied = sum(item.denied for item in third.values()) - sum(item.denied for item in first.values())
    missed = sum(item.missed for item in third.values()) - sum(item.missed for item in first.values())
    print(f"denied {denied}, skipped {missed}")
    loader.unload(loaded.name)


def _mean(
    members: set[int], runs: Mapping[int, int], sites: Mapping[int, SiteInfo], lengths: Mapping[str, int]
) -> float:
    total = sum(runs[c] for c in members)
    return sum(runs[c] * lengths[sites[c].program] for c in members) / total if total else 0.0


if __name__ == "__main__":
    vm.main(__doc__, "sctp_checks", objects, guest, limit=2400)
