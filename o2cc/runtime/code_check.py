# SPDX-License-Identifier: Apache-2.0
"""Is the code in memory what was scanned?  A build id says so only where the module has one; the bytes do, at each site.

O2c.ko compares the bytes that it is given with the text; they come from memory, so that this is the comparison with the
description.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from o2cc.diagnostics import Diagnostic, error
from o2cc.kernel.probed_code import parse
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.plan import Attachment

KPROBES = Path("/sys/kernel/debug/kprobes/list")
_LONGEST = 15
_JUMP = 5  # bytes of a jump that takes the place of a breakpoint
_PATCHED = (0xCC, 0xE9)  # int3, jmp rel32
_SHOWN = 5


def changed_places(
    attachments: Sequence[Attachment], text: KernelText, probed: frozenset[int]
) -> tuple[str, ...]:
    """Where memory holds another instruction than the description.  ``probed``: addresses of probes that are there."""
    found = []
    for attachment in attachments:
        site, address = attachment.site, attachment.address
        if not site.code:
            continue
        code, memory = parse(site.code), text.read(address, _LONGEST)
        if code.fits(memory) or memory[:1] in [bytes((byte,)) for byte in _PATCHED]:
            continue
        if any(at in probed for at in range(address - _JUMP + 1, address + code.length)):
            continue  # another's probe has changed it
        found.append(
            f"{site.function}+{site.probe_offset:#x}: {memory[: code.length].hex(' ') or 'unreadable'}"
        )
    return tuple(found)


def probed_addresses(path: Path = KPROBES) -> frozenset[int]:
    """Addresses of the kernel's kprobes (kernel/kprobes.c report_probe, 6.1); none without debugfs."""
    try:
        return frozenset(int(line.split()[0], 16) for line in path.read_text().splitlines() if line)
    except OSError:
        return frozenset()


def another_code(target: str, places: Sequence[str], checked: int) -> Diagnostic:
    """The refusal (O2C0812)."""
    more = len(places) - _SHOWN
    notes = (*places[:_SHOWN], f"and {more} more") if more > 0 else tuple(places)
    return error(
        "O2C0812",
        f"the code of `{target}` in memory is not what was scanned: {len(places)} of {checked} places differ",
        notes=notes,
        help="scan what is loaded with `o2c scan`, then compile the policy again",
    )
