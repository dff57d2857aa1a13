# SPDX-License-Identifier: Apache-2.0
"""Recordings of kernel objects before they are labelled, so that better labels need no new boots.

A directory holds one boot: boot.json (kernel, its build, boot, sections of the compartment's module), kallsyms.gz, btf/NAME.gz (type
information of the kernel and of its modules), and NAME.parquet, the samples of one workload each.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel.btf import Btf, read_btf
from o2cc.profile.compartment import module_sections, own_bounds
from o2cc.profile.labels import Labeller, TextSymbols, Types
from o2cc.profile.samples import Sample
from o2cc.profile.site_types import bundled_sites
from o2cc.runtime import running_kernel
from o2cc.trees.features import Layout

_NUMBERS = ("site", "asked", "address", "cache_address", "size", "flags", "references")
_TEXTS = ("moment", "cache")
_BOOT = "boot.json"


@dataclass(frozen=True)
class Boot:
    """One boot: what names mean in it."""

    directory: Path
    kernel: str
    boot: str
    build_id: str
    sections: dict[str, int]
    """Sections of the compartment's module, by name: their addresses."""

    @property
    def workloads(self) -> tuple[str, ...]:
        """Names of the workloads that were recorded."""
        return tuple(sorted(path.stem for path in self.directory.glob("*.parquet")))

    def symbols(self) -> Iterator[str]:
        """Lines of /proc/kallsyms."""
        with gzip.open(self.directory / "kallsyms.gz", "rt", encoding="ascii", errors="replace") as lines:
            yield from lines

    def btf(self, name: str) -> bytes | None:
        """Type information of the kernel (`vmlinux`) or of a module, None when it was not loaded."""
        path = self.directory / "btf" / f"{name}.gz"
        return gzip.decompress(path.read_bytes()) if path.exists() else None

    def labeller(self) -> Labeller:
        """Labels this boot's samples as `o2c profile` would have."""
        content = self.btf("vmlinux")
        if content is None:
            raise FileNotFoundError(self.directory / "btf/vmlinux.gz")
        kernel = read_btf(content, "vmlinux")

        def module(name: str) -> Btf | None:
            of_module = self.btf(name)
            try:
                return read_btf(of_module, name, kernel) if of_module is not None else None
            except DiagnosticError:
                return None

        sites = bundled_sites(self.kernel, self.build_id)
        return Labeller(TextSymbols(self.symbols()), Types(kernel, module), sites)

    def own_addresses(self) -> range:
        """Where the code of the compartment's module is."""
        bounds = own_bounds(self.sections)
        return range(bounds["own_text"], bounds["own_text_end"] + 1)

    def samples(self, workload: str) -> tuple[tuple[Sample, ...], Layout]:
        """The samples of a workload and the layout of the boot."""
        table = pq.read_table(self.directory / f"{workload}.parquet")
        layout = replace(Layout(**json.loads(table.schema.metadata[b"layout"])), **own_bounds(self.sections))
        columns = {field.name: table.column(field.name).to_pylist() for field in fields(Sample)}
        columns["words"] = [tuple(words) for words in columns["words"]]
        rows = zip(*columns.values(), strict=True)
        return tuple(Sample(**dict(zip(columns, row, strict=True))) for row in rows), layout


def boots_in(directory: Path) -> list[Boot]:
    """All boots below a directory, by name."""
    boots = []
    for path in sorted(directory.glob(f"*/{_BOOT}")):
        about = json.loads(path.read_text())
        boots.append(Boot(path.parent, about["kernel"], about["boot"], about["build_id"], about["sections"]))
    return boots


def write_boot(directory: Path, module: str) -> None:
    """What names mean in the running kernel."""
    sections = module_sections(module)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (directory / "kallsyms.gz").write_bytes(gzip.compress(Path("/proc/kallsyms").read_bytes(), 1))
    (directory / "btf").mkdir(exist_ok=True)
    for path in Path("/sys/kernel/btf").iterdir():
        (directory / "btf" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    about = {
        "kernel": os.uname().release,
        "boot": boot,
        "build_id": running_kernel.kernel_build_id(),
        "sections": sections,
    }
    (directory / _BOOT).write_text(json.dumps(about, indent=1) + "\n")


def write_samples(directory: Path, workload: str, samples: tuple[Sample, ...], layout: Layout) -> None:
    """The samples of one workload."""
    schema = pa.schema(
        [
            *((name, pa.string()) for name in _TEXTS),
            *((name, pa.uint64()) for name in _NUMBERS),
            ("words", pa.list_(pa.uint64())),
        ],
        metadata={"layout": json.dumps(asdict(layout))},
    )
    columns = {name: [getattr(sample, name) for sample in samples] for name in schema.names}
    columns["words"] = [list(sample.words) for sample in samples]
    pq.write_table(pa.table(columns, schema=schema), directory / f"{workload}.parquet", compression="zstd")
