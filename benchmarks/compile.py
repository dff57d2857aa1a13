# SPDX-License-Identifier: Apache-2.0
"""Compiling the SCTP policy, beside the way of the O2C paper's prototype: one C program a site, by clang -O2.

    python benchmarks/compile.py [--runs 3] [--clang clang] [--kernel RELEASE|FILE] [--module sctp.ko]

Whole processes in turns (A B C A B C ...): seconds of CPU and wall time, peak memory, size of the object, instructions
a program.  Prints medians and their ratios, and the load of the machine; decides nothing.  Processes that a command
starts count with it.  One run of each before the first that counts fills the caches of files, of compiled Python (which
PYTHONDONTWRITEBYTECODE would forbid: it is taken out of the environment) and of the parser's tables; memory is measured
in that one, since looking takes time: the largest sum of what the processes have, pages that they share counted once,
every 10 ms, or what the largest of them had at any time.

`o2cc` begins with the description of the module, `.ko` with the module's file: it unpacks the kernel, reads its types
and symbols, scans the module and compiles, in one process that finds nothing kept.  `again` is the same a second time,
when the description has been kept.  Their objects must be that of the description, byte for byte; else this ends.  They
are left out where the kernel's files are not there.  The peers begin with a list of sites that somebody else has found,
in their favour: theirs is only what clang takes.

The peers are what the paper describes (arXiv 2401.05641, section 5) written for a stock kernel.  Both are one C file
with one program a store through a register other than the stack pointer, as the prototype's generator makes them, and
both hold the check inline in every program, since its templates do.  Kernel structures are reached by offsets, without
headers of the kernel or of libbpf and without relocations of fields, all of which would only make them slower.

`shortest`: the least that decides a store into a slab object by the paper's rules
    address from the registers         what the site writes
    struct page through vmemmap,       the prototype asks helpers of a patched kernel (`bpf_get_slab_cache`,
    its head, its slab cache           `bpf_get_slab_start`); a stock kernel has none, so the program reads
    lookup of the cache in a hash      the compartment's own caches: the owner (template `mov_slab`)
    size of the cache, object's base   where the object begins
    lookup of the object in a hash,    tracked objects, with their range
    comparison of the range
    event                              what the paper reports (the prototype leaves this branch empty)

`general`: the template `mov_general`, for sites that may write any kind of memory
    all of the above, and              the direct map or not; slab or other pages (PG_slab)
    lookup of pages, of vmalloc areas  `buddy_objs`, `vmalloc` of the template
    record of an unknown object        `ml_record`, while objects from before loading are judged

Neither checks capabilities, stack frames, gates or indirect calls, which o2cc does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.driver import find_description
from o2cc.kernel.description import Description, Site
from o2cc.kernel.kernels import open_kernel
from o2cc.resources import cache_directory

_HEADER = """\
typedef unsigned long long u64; typedef unsigned int u32;
#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
struct pt_regs { u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, flags, rsp, ss; };
static void *(*lookup)(void *, const void *) = (void *)1;
static long (*update)(void *, const void *, const void *, u64) = (void *)2;
static long (*read_kernel)(void *, u32, const void *) = (void *)113;
static long (*output)(void *, void *, u64, u64) = (void *)130;
#define HASH(name) struct { int (*type)[1]; u64 *key; u64 *value; int (*max_entries)[65536]; } name SEC(".maps")
HASH(caches);
HASH(objects);
struct { int (*type)[27]; int (*max_entries)[1048576]; } events SEC(".maps");
char license_text[] SEC("license") = "GPL";
const volatile u64 page_offset, vmemmap, vmalloc_start, vmalloc_end;
INLINE int violation(u64 address, u64 size, u64 site)
{
	u64 event[3] = { site, address, size };
	output(&events, event, sizeof(event), 0);
	return 1;
}
INLINE int held(void *map, u64 base, u64 address, u64 size)
{
	u64 *length = lookup(map, &base);
	return length && address + size <= base + *length;
}
INLINE u64 head_of(u64 address)
{
	u64 page = vmemmap + ((address - page_offset) >> 12) * %(page)d, link = 0;
	read_kernel(&link, 8, (void *)(page + %(compound)d));
	return link & 1 ? link - 1 : page;
}
INLINE u64 start_of(u64 page)
{
	return page_offset + ((page - vmemmap) / %(page)d << 12);
}
"""

_SHORTEST = """\
INLINE int check(u64 address, u64 size, u64 site)
{
	u64 page = head_of(address), cache = 0, base = start_of(page);
	u32 width = 0;
	read_kernel(&cache, 8, (void *)(page + %(slab_cache)d));
	if (lookup(&caches, &cache))
		return 0;
	read_kernel(&width, 4, (void *)(cache + %(size)d));
	if (!width)
		return 0;
	base += (address - base) / width * width;
	if (held(&objects, base, address, size))
		return 0;
	return violation(address, size, site);
}
"""

_GENERAL = """\
HASH(pages);
HASH(areas);
HASH(auditions);
volatile u32 learning;
INLINE int check(u64 address, u64 size, u64 site)
{
	if (address >= page_offset && address < vmalloc_start) {
		u64 page = head_of(address), cache = 0, flags = 0, base = start_of(page);
		u32 width = 0;
		read_kernel(&flags, 8, (void *)page);
		if (!(flags & 1 << 9)) /* PG_slab, 6.1 */
			return held(&pages, base, address, size) ? 0 : violation(address, size, site);
		read_kernel(&cache, 8, (void *)(page + %(slab_cache)d));
		if (lookup(&caches, &cache))
			return 0;
		read_kernel(&width, 4, (void *)(cache + %(size)d));
		if (!width)
			return violation(address, size, site);
		base += (address - base) / width * width;
		if (held(&objects, base, address, size))
			return 0;
		if (!learning)
			return violation(address, size, site);
		update(&auditions, &base, &site, 0);
		return 0;
	}
	if (address >= vmalloc_start && address < vmalloc_end && held(&areas, address & ~4095ull, address, size))
		return 0;
	return violation(address, size, site);
}
"""

PEERS = {"shortest": _SHORTEST, "general": _GENERAL}


@dataclass(frozen=True)
class Run:
    """One whole process, with those that it started.  ``peak`` in KiB, of the largest one where nobody looked on."""

    cpu: float
    wall: float
    peak: int


def run(name: str, command: list[str], *, watched: bool = False) -> Run:
    """Run a command; raises SystemExit when it fails."""
    if name == ".ko":
        shutil.rmtree(cache_directory() / "scans", ignore_errors=True)
    start = time.perf_counter()
    process = os.posix_spawnp(command[0], command, os.environ)
    peak = _watch(process) if watched else 0
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return Run(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, max(peak, usage.ru_maxrss))


def _watch(process: int) -> int:
    """The most KiB that a process and its descendants have together until it ends."""
    peak = 0
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak = max(peak, sum(map(_memory, _family(process))))
        time.sleep(0.01)
    return peak


def _family(process: int) -> list[int]:
    """A process and its descendants (of its first thread)."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    except OSError:
        return [process]
    return [process, *(other for child in children for other in _family(int(child)))]


def _memory(process: int) -> int:
    """Its proportional set size in KiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


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


def c_source(description: Description, check: str) -> str:
    """One program a site."""
    facts = description.kernel
    text = [
        (_HEADER + check)
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


def find_module(release: str) -> Path | None:
    """The file of sctp for a release, of a fetched or installed kernel."""
    try:
        return open_kernel(release).find_module("sctp")
    except DiagnosticError:
        return None


def find_clang() -> str:
    """The first clang that is there.  Raises SystemExit."""
    for name in ("clang", *(f"clang-{version}" for version in range(25, 13, -1))):
        if shutil.which(name):
            return name
    sys.exit("there is no clang to compare with; install one, or name it with --clang")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clang", default=None)
    parser.add_argument("--kernel", default=None)
    parser.add_argument("--module", type=Path, default=None)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    clang = options.clang or find_clang()
    description = find_description("sctp", options.kernel, SourceFile("sctp.o2c", ""))
    policy = Path(__file__).resolve().parent.parent / "examples" / "sctp.o2c"
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        kernel = options.kernel or description.release
        figures = directory / "figures"
        ours = [str(Path(sys.executable).parent / "o2cc"), str(policy), "--degrade", "report"]
        ours += ["-W", "no-O2C0521", "-W", "no-O2C0242", "--stats", str(figures), "--error-format", "concise"]
        commands = {"o2cc": [*ours, "-k", kernel, "-o", str(directory / "o2cc.o")]}
        module = options.module or find_module(description.release)
        if module is not None:
            for name in (".ko", "again"):
                commands[name] = [*ours, "-k", str(module), "-o", str(directory / f"{name}.o")]
        mine = tuple(commands)
        for name, check in PEERS.items():
            source = directory / f"{name}.c"
            source.write_text(c_source(description, check))
            flags = ["-O2", "-g", "-target", "bpf", "-w", "-c"]
            commands[name] = [clang, *flags, str(source), "-o", str(directory / f"{name}.o")]
        # What is kept of scans is then this program's own.
        os.environ["O2C_CACHE"] = str(directory / "cache")
        peaks = {name: run(name, command, watched=True).peak / 1024 for name, command in commands.items()}
        if len({(directory / f"{name}.o").read_bytes() for name in mine}) > 1:
            sys.exit("the object made from the module differs from that made from its description")
        runs = [{name: run(name, command) for name, command in commands.items()} for _ in range(options.runs)]
        stats = json.loads(figures.read_text())
        programs = dict.fromkeys(mine, (stats["programs"], stats["instructions"]))
        programs |= {name: c_figures(directory / f"{name}.o") for name in PEERS}
        sizes = {name: (directory / f"{name}.o").stat().st_size / 1e6 for name in commands}
    rows = {
        "CPU seconds": {name: statistics.median(r[name].cpu for r in runs) for name in commands},
        "wall seconds": {name: statistics.median(r[name].wall for r in runs) for name in commands},
        "peak MiB": peaks,
        "object MB": sizes,
        "programs": {name: float(found[0]) for name, found in programs.items()},
        "instructions a program": {name: found[1] / found[0] for name, found in programs.items()},
    }
    print(f"sctp of {description.release}, {options.runs} runs in turns, medians; {clang}")
    print("load average before and after: " + ", ".join(f"{a[0]:.1f}" for a in (before, os.getloadavg())))
    print(
        f"{'':24}"
        + "".join(f"{name:>12}" for name in commands)
        + "".join(f"{f'{peer}/{name}':>16}" for peer in PEERS for name in mine)
    )
    for title, row in rows.items():
        ratios = "".join(f"{row[peer] / row[name]:16.1f}" for peer in PEERS for name in mine)
        print(f"{title:24}" + "".join(f"{row[column]:12.2f}" for column in commands) + ratios)


if __name__ == "__main__":
    main()
