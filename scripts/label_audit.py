# SPDX-License-Identifier: Apache-2.0
"""How much of recorded objects carries a type, by evidence, and a random sample of labelled sites to check against source.

    .venv/bin/python -m scripts.label_audit RECORDINGS --boots 6.1-0 6.12-0 --count 100 --seed 12
        [--debug DIRECTORY --source DIRECTORY]

RECORDINGS is what scripts/train_sctp.py leaves.  The population are the pairs of site and label of the boots named that
carry a type, in order of kernel, site and label.  --debug has KERNEL/vmlinux-RELEASE and KERNEL/MODULE.ko of Debian's
packages with debug information, --source has KERNEL/, the kernel's source (KERNEL as in scripts/fetch_kernels.py): then
the source lines of each site are printed, found by binutils' addr2line, and not by what made the label.
docs/label-audit.md has the verdicts.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

from o2cc.kernel.elf import read_elf
from o2cc.kernel.kernels import open_kernel
from o2cc.profile.site_types import SiteNames
from scripts.fetch_kernels import SERIES
from scripts.recordings import Boot, boots_in

Row = dict[str, str | int]
UNTYPED = ("site", "conflict")
_ALLOCATORS = ("include/linux/slab.h", "include/linux/fortify-string.h")
_BUILD = re.compile(r"^.*?debian/build/[^/]+/")


def rows_of(boot: Boot) -> list[Row]:
    """What the labels of a boot's objects depend on, with the labels."""
    return boot.labeller().rows([sample for name in boot.workloads for sample in boot.samples(name)[0]])


def share_as_text(name: str, rows: list[Row]) -> list[str]:
    """Sites and objects by evidence; a site counts by the evidence of most of its objects."""
    objects: Counter[str] = Counter()
    by_site: dict[str, Counter[str]] = {}
    for row in rows:
        evidence, samples = str(row["evidence"]), int(row["samples"])
        objects[evidence] += samples
        by_site.setdefault(str(row["site"]), Counter())[evidence] += samples
    sites = Counter(counts.most_common(1)[0][0] for counts in by_site.values())
    lines = [f"{name}: {len(by_site)} sites, {objects.total()} samples"]
    for evidence, count in objects.most_common():
        lines.append(
            f"  {evidence:9} {sites[evidence]:4} sites {sites[evidence] / len(by_site):6.1%}"
            f"  {count:6} samples {count / objects.total():6.1%}"
        )
    typed = sum(count for evidence, count in sites.items() if evidence not in UNTYPED)
    typed_objects = sum(count for evidence, count in objects.items() if evidence not in UNTYPED)
    lines.append(
        f"  typed     {typed:4} sites {typed / len(by_site):6.1%}"
        f"  {typed_objects:6} samples {typed_objects / objects.total():6.1%}"
    )
    return lines


@cache
def _code(release: str) -> tuple[list[tuple[int, str]], SiteNames]:
    """The kernel's symbols of code, and the names of sites."""
    symbols = open_kernel(release).symbols
    code = [
        (int(symbols.addresses[index]), text)
        for index, text in enumerate(symbols.names)
        if chr(symbols.types[index]) in "tTwW"
    ]
    return code, SiteNames(code)


def source_of(series: str, release: str, site: str, debug: Path, source: Path) -> list[str]:
    """The source around a site: of the innermost function that is no allocator of a header."""
    module, _, place = site.rpartition(":")
    name, _, offset = place.rpartition("+")
    if module:
        path, section = debug / series / f"{module}.ko", ""
        elf = read_elf(path.read_bytes(), str(path))
        symbol = next(item for item in elf.symbols if item.name == name and item.type == 2)
        address, section = symbol.value, elf.sections[symbol.section].name
    else:
        path, section = debug / series / f"vmlinux-{release}", ""
        code, names = _code(release)
        base = name.partition("#")[0]
        address = next(
            start for start, text in code if text == base and names.name(start + 1) == f"{name}+0x1"
        )
    command = ["addr2line", "-i", "-f", "-e", str(path), *(["-j", section] if section else [])]
    shown = subprocess.run(
        [*command, hex(address + int(offset, 16) - 1)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for function, where in zip(shown[::2], shown[1::2], strict=True):
        file, _, line = _BUILD.sub("", where.partition(" ")[0]).rpartition(":")
        if file in _ALLOCATORS or function == "alloc_inode_sb" or not line.isdigit():
            continue
        text = (source / series / file).read_text(errors="replace").splitlines()
        number = int(line)
        shown_lines = range(max(0, number - 4), min(len(text), number + 2))
        return [f"   {function} {file}:{line}", *(f"   {at + 1:6} {text[at]}" for at in shown_lines)]
    return ["   no line"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--boots", nargs="+", help="names of directories in it; all by default")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--debug", type=Path)
    parser.add_argument("--source", type=Path)
    arguments = parser.parse_args()
    population: set[tuple[str, str, str, str]] = set()
    for boot in boots_in(arguments.recordings):
        if arguments.boots and boot.directory.name not in arguments.boots:
            continue
        rows = rows_of(boot)
        print("\n".join(share_as_text(f"{boot.directory.name} ({boot.kernel})", rows)))
        population |= {
            (boot.kernel, str(row["site"]), str(row["label"]), str(row["evidence"]))
            for row in rows
            if row["evidence"] not in UNTYPED and row["site"]
        }
    chosen = random.Random(arguments.seed).sample(sorted(population), min(arguments.count, len(population)))
    print(f"{len(population)} labelled pairs of site and label; {len(chosen)} with seed {arguments.seed}:")
    for number, (release, site, label, evidence) in enumerate(chosen, 1):
        print(f"{number} {release} {site} {label} {evidence}")
        if arguments.debug and arguments.source:
            series = next(name for name, pattern in SERIES.items() if re.fullmatch(pattern, release))
            print("\n".join(source_of(series, release, site, arguments.debug, arguments.source)))


if __name__ == "__main__":
    main()
