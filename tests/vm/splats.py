# SPDX-License-Identifier: Apache-2.0
"""Kernel log records and the signs of trouble in them. Pure text in, text out; used on both sides.

The patterns are the first lines that the kernel prints: lib/bug.c, arch/x86/kernel/{dumpstack,traps}.c,
mm/fault.c, mm/kasan/report.c, mm/kfence/report.c, kernel/rcu/tree_stall.h, kernel/hung_task.c,
kernel/watchdog.c, kernel/panic.c, mm/slub.c, lib/list_debug.c (6.1 and 6.12).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPLAT = re.compile(
    r"""
      \b(?:BUG|WARNING):\ |\bBUG\ \S+\ \((?:Not\ tainted|Tainted)|\bkernel\ BUG\ at\ |\bKernel\ panic\ -\ not\ syncing
    | \bOops:\ |\bOops\b.*\bPREEMPT\b
    | \bKASAN:\ |\bKFENCE:\ |\bUBSAN:\ |\bKCSAN:\
    | \bgeneral\ protection\ fault
    | \bunable\ to\ handle\ (?:kernel\ |page\ )
    | \bPANIC:\ double\ fault
    | \b(?:stack\ segment|invalid\ opcode|divide\ error):\ [0-9a-f]+\ \[\#
    | \brcu\S*:?\ .*\b(?:self-)?detected\ (?:expedited\ )?stalls?\b
    | \bINFO:\ task\ .*\ blocked\ for\ more\ than
    | \b(?:soft|hard)\ lockup\b|\bhard\ LOCKUP\b
    | \brefcount_t:\ |\blist_(?:add|del)\ corruption\b
    | \bunregister_netdevice:\ waiting\ for
    | \bbad:\ scheduling\ from|\bscheduling\ while\ atomic
    | \bstack-protector:\ Kernel\ stack\ is\ corrupted
    | \bDebug:\ sleeping\ function
    """,
    re.VERBOSE,
)


def parse_kmsg(raw: str) -> list[str]:
    """Lines of ``/dev/kmsg`` (``prio,sequence,microseconds,flags;text``) as ``[seconds] text``.

    Continuation lines (``" KEY=value"``) are dropped; what is not a record is kept as it is.
    """
    lines = []
    for line in raw.splitlines():
        if line.startswith(" "):
            continue
        head, separator, text = line.partition(";")
        fields = head.split(",")
        if separator and len(fields) >= 3 and fields[2].isdigit():
            lines.append(f"[{int(fields[2]) / 1e6:12.6f}] {text}")
        elif line:
            lines.append(line)
    return lines


def splats(log: Iterable[str], *, tolerate: str | None = None) -> list[str]:
    """The lines of a kernel log that say that the kernel is unwell.

    ``tolerate`` is a regular expression; a line in which it is found is not reported.
    """
    excuse = re.compile(tolerate) if tolerate is not None else None
    return [line for line in log if _SPLAT.search(line) and not (excuse and excuse.search(line))]
