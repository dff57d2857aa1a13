# SPDX-License-Identifier: Apache-2.0
"""Which kernel log lines mean that the kernel is unwell."""

from __future__ import annotations

import pytest

from tests.vm.splats import parse_kmsg, splats

TROUBLE = [
    "WARNING: CPU: 1 PID: 320 at net/sctp/socket.c:8437 sctp_set_state+0x1a/0x20 [sctp]",
    "BUG: kernel NULL pointer dereference, address: 0000000000000018",
    "BUG: unable to handle page fault for address: ffffc90000a3f000",
    "BUG: KASAN: slab-out-of-bounds in victim_store+0x40/0x60 [victim]",
    "BUG: KFENCE: use-after-free read in victim_read+0x1b/0x30 [victim]",
    "BUG: sleeping function called from invalid context at mm/slab.h:400",
    "BUG: scheduling while atomic: python/320/0x00000002",
    "BUG kmalloc-64 (Tainted: G           OE    ): Object already free",
    "kernel BUG at mm/usercopy.c:102!",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "Oops: general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP",
    "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] PREEMPT SMP NOPTI",
    "invalid opcode: 0000 [#1] PREEMPT SMP",
    "traps: PANIC: double fault, error_code: 0x0",
    "Kernel panic - not syncing: Fatal exception in interrupt",
    "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-.... }",
    "INFO: task modprobe:412 blocked for more than 120 seconds.",
    "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python:320]",
    "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
    "refcount_t: underflow; use-after-free.",
    "list_add corruption. next->prev should be prev (ffff8881), but was dead. (next=ffff).",
    "unregister_netdevice: waiting for lo to become free. Usage count = 2",
    "UBSAN: array-index-out-of-bounds in net/sctp/sm_statefuns.c:10:2",
    "stack segment: 0000 [#1] PREEMPT SMP",
]

HARMLESS = [
    "o2c: loading out-of-tree module taints kernel.",
    "o2c: module verification failed: signature and/or required key missing - tainting kernel",
    "mtrr: your CPUs had inconsistent fixed MTRR settings",
    "tsc: Unable to calibrate against PIT",
    "PM: RTC time: 00:59:49, date: 2026-11-30",
    "Spectre V2 : WARNING, spectre mitigations are off",
    "x86/mm: Checked W+X mappings: passed, no W+X pages found.",
    "rcu: \tRCU restricting CPUs from NR_CPUS=8192 to nr_cpu_ids=2.",
    "rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.",
    "ACPI: DEBUG: done",
    "sctp: Hash tables configured (bind 256/256)",
]


@pytest.mark.parametrize("line", TROUBLE)
def test_trouble_is_found(line: str) -> None:
    assert splats([f"[    1.000000] {line}"]) == [f"[    1.000000] {line}"]


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_lines_are_not(line: str) -> None:
    assert splats([f"[    1.000000] {line}"]) == []


def test_only_what_is_tolerated_is_left_out() -> None:
    log = ["WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2", "WARNING: CPU: 0 PID: 1 at b.c:1 g+0x1/0x2"]
    assert splats(log, tolerate=r"at a\.c") == log[1:]


def test_kmsg_records_become_dmesg_lines() -> None:
    raw = "6,339,5140900,-;NET: Registered PF_INET6\n SUBSYSTEM=net\n DEVICE=n1\n4,340,65000001,c;a;b\n"
    assert parse_kmsg(raw) == ["[    5.140900] NET: Registered PF_INET6", "[   65.000001] a;b"]


def test_kmsg_text_that_is_no_record_is_kept() -> None:
    assert parse_kmsg("o2c-init: no overlay\n\n") == ["o2c-init: no overlay"]
