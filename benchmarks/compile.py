# SPDX-License-Identifier: Apache-2.0
"""Compiling the SCTP policy, beside the way of the O2C paper's prototype: one C program a site, by clang -O2.

    python benchmarks/compile.py [--runs 3] [--clang clang] [--kernel RELEASE|FILE]

Both are timed as whole processes in turns (A B A B ...): seconds of CPU and wall time, peak memory, size of the
object, instructions a program.  The C programs hold the check that the paper describes (arXiv 2401.05641, section 5):
address from the registers, page, slab cache, a lookup of the object in a hash map; no capabilities, stack frames or
gates.  Prints medians and their ratio; decides nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from o2cc.diagnostics import SourceFile
from o2cc.driver import find_description
from o2cc.kernel.description import Description, Site

_HEADER = """\
typedef unsigned long long u64; typedef unsigned int u32;
#define SEC(name) __attribute__((section(name), used))
struct pt_regs { u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, flags, rsp, ss; };
static void *(*lookup)(void *, const void *) = (void *)1;
static long (*read_kernel)(void *, u32, const void *) = (void *)113;
static long (*output)(void *, void *, u64, u64) = (void *)130;
struct { int (*type)[1]; u64 *key; u64 *value; int (*max_entries)[65536]; } objects SEC(".maps");
struct { int (*type)[27]; int (*max_entries)[1048576]; } events SEC(".maps");
char license_text[] SEC("license") = "GPL";
const volatile u64 page_offset, vmemmap;
static inline __attribute__((always_inline)) int check(u64 address, u64 size, u64 site)
{
	u64 page = vmemmap + ((address - page_offset) >> 12) * %(page)d, link = 0, cache = 0, base;
	u32 width = 0;
	read_kernel(&link, 8, (void *)(page + %(compound)d));
	if (link & 1)
		page = link - 1;
	read_kernel(&cache, 8, (void *)(page + %(slab_cache)d));
	read_kernel(&width, 4, (void *)(cache + %(size)d));
	if (!width)
		return 0;
	base = page_offset + ((page - vmemmap) / %(page)d << 12);
	base += (address - base) / width * width;
	u64 *known = lookup(&objects, &base);
	if (known && address + size <= base + *known)
		return 0;
	u64 event[3] = { site, address, size };
	output(&events, event, sizeof(event), 0);
	return 1;
}
"""


@dataclass(frozen=True)
class Run:
    """One whole process."""

    cpu: float
    wall: float
    peak: int  # MiB


def run(command: list[str]) -> Run:
    """Run a command; raises SystemExit when it fails."""
    start = time.perf_counter()
    process = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return Run(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss // 1024)


def stores(description: Description) -> list[tuple[str, Site]]:
    """The stores that need a check at run time whatever the compiler: through a register that is no stack pointer."""
    return [
        (function.name, site)
        for function in description.functions
        if not function.initial
        for site in function.sites
        if site.writes
        and site.operand is not None
        and site.operand.is_memory
        and site.operand.base not in (None, "rsp")
        and site.operand.segment is None
        and site.frame_offset is None
        and site.probe.offset is not None
    ]


def c_source(description: Description) -> str:
    """One program a site."""
    facts = description.kernel
    text = [
        _HEADER
        % {
            "page": facts.sizes["page"],
            "compound": facts.fields["page.compound_head"].offset,
            "slab_cache": facts.fields["slab.slab_cache"].offset,
            "size": facts.fields["kmem_cache.size"].offset,
        }
    ]
    for number, (function, site) in enumerate(stores(description)):
        operand = site.operand
        assert operand is not None
        address = f"ctx->{operand.base} + {operand.displacement}"
        if operand.index is not None:
            address += f" + ctx->{operand.index} * {operand.scale}"
        size = f"{max(1, site.size)}" + (" * ctx->rcx" if site.rep else "")
        text.append(
            f'SEC("kprobe/{function}+0x{site.probe.offset:x}") int site_{number}(struct pt_regs *ctx)\n'
            f"{{ return check({address}, {size}, {number}); }}\n"
        )
    return "\n".join(text)


def c_figures(path: Path) -> tuple[int, int]:
    """Programs and instructions of clang's object."""
    with path.open("rb") as file:
        sections = [s for s in ELFFile(file).iter_sections() if s.name.startswith("kprobe/")]
        return len(sections), sum(s["sh_size"] // 8 for s in sections)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clang", default="clang")
    parser.add_argument("--kernel", default=None)
    options = parser.parse_args()
    description = find_description("sctp", options.kernel, SourceFile("sctp.o2c", ""))
    policy = Path(__file__).resolve().parent.parent / "examples" / "sctp.o2c"
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / "sites.c").write_text(c_source(description))
        ours = [str(Path(sys.executable).parent / "o2cc"), str(policy), "--degrade", "report"]
        ours += [
            "-k",
            options.kernel or description.release,
            "-W",
            "no-O2C0521",
            "--stats",
            str(directory / "stats"),
        ]
        ours += ["-o", str(directory / "ours.o"), "--error-format", "concise"]
        theirs = [options.clang, "-O2", "-g", "-target", "bpf", "-w", "-c", str(directory / "sites.c")]
        theirs += ["-o", str(directory / "theirs.o")]
        pairs = [(run(ours), run(theirs)) for _ in range(options.runs)]
        stats = json.loads((directory / "stats").read_text())
        programs, instructions = c_figures(directory / "theirs.o")
        rows = [
            ("CPU seconds", *(statistics.median(r[i].cpu for r in pairs) for i in (0, 1))),
            ("wall seconds", *(statistics.median(r[i].wall for r in pairs) for i in (0, 1))),
            ("peak MiB", *(statistics.median(r[i].peak for r in pairs) for i in (0, 1))),
            ("object MB", *((directory / f"{n}.o").stat().st_size / 1e6 for n in ("ours", "theirs"))),
            ("programs", stats["programs"], programs),
            ("instructions a program", stats["instructions"] / stats["programs"], instructions / programs),
        ]
    print(f"sctp of {description.release}, {options.runs} runs in turns, medians")
    print(f"{'':24}{'o2cc':>12}{'clang':>12}{'clang/o2cc':>12}")
    for name, mine, other in rows:
        print(f"{name:24}{mine:12.2f}{other:12.2f}{other / mine:12.1f}")


if __name__ == "__main__":
    main()
