# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of allocation sites, descriptions/RELEASE/allocations.json.xz, that `o2c profile` labels objects with.

    .venv/bin/python -m scripts.site_types 6.1 6.12

Debian's package with a kernel's debug information (0.9 to 1.0 GB, 5 GB unpacked) is streamed: of it the kernel and the
modules in `MODULES` are read, each in memory, and nothing is kept.  --debug DIRECTORY takes these files from a
directory instead.  Two to four minutes for each kernel, 3 GB of memory.
"""

from __future__ import annotations

import argparse
import lzma
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, cast

from o2cc.files import write_atomic
from o2cc.kernel.collection import without_collection
from o2cc.kernel.elf import read_elf
from o2cc.kernel.kernels import Kernel as KernelImage
from o2cc.kernel.kernels import module_name, open_kernel, read_module
from o2cc.profile.allocations import kernel_code, module_code
from o2cc.profile.dwarf import read_debug_info
from o2cc.profile.site_types import FILE_NAME, Site, SiteTable, site_types, with_module
from scripts.fetch_kernels import SERIES, Kernel, ensure

PROJECT = Path(__file__).resolve().parents[1]

MODULES = (
    "sctp", "nf_tables", "nfnetlink", "cls_route", "9p", "9pnet*", "netfs", "fscache", "overlay", "virtio*", "ext4",
    "jbd2", "mbcache", "udp_tunnel", "ip6_udp_tunnel", "fuse", "loop", "failover", "net_failover", "veth", "tun",
)  # fmt: skip
"""What policies are about, and what the VM's workloads load."""

_CHUNK = 1 << 20


class Stream:
    """The bytes of a compressed member of an `ar` archive that is read from the network."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._unpacker = lzma.LZMADecompressor()
        self._ready = b""

    def read(self, size: int) -> bytes:
        while len(self._ready) < size and not self._unpacker.eof:
            data = self._source.read(_CHUNK)
            if not data:
                break
            self._ready += self._unpacker.decompress(data)
        result, self._ready = self._ready[:size], self._ready[size:]
        return result


def package_files(release: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the wanted files of a kernel's package with debug information, as it is downloaded."""
    command = ["apt-get", "download", "--print-uris", f"linux-image-{release}-dbg"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with urllib.request.urlopen(shown.split()[0].strip("'")) as source:
        if source.read(8) != b"!<arch>\n":
            raise SystemExit(f"the package of {release} is no archive")
        while True:
            header = source.read(60)
            name, size = header[:16].decode().strip(), int(header[48:58])
            if name.startswith("data.tar.xz"):
                break
            source.read(size + size % 2)
        with tarfile.open(fileobj=cast(IO[bytes], Stream(source)), mode="r|", bufsize=_CHUNK) as archive:
            for member in archive:
                base = member.name.rpartition("/")[2]
                if member.isfile() and wanted(base, release) and (content := archive.extractfile(member)):
                    yield base, content.read()


def directory_files(directory: Path, release: str) -> Iterator[tuple[str, bytes]]:
    """The same, of a directory."""
    for path in sorted(directory.iterdir()):
        if wanted(path.name, release):
            yield path.name, path.read_bytes()


def wanted(name: str, release: str) -> bool:
    """Whether a file is the kernel, or one of the modules."""
    if name == f"vmlinux-{release}":
        return True
    module = re.fullmatch(r"(.*)\.ko(\.debug)?", name)
    return module is not None and any(fnmatch(module_name(Path(name)), pattern) for pattern in MODULES)


def sites_of(kernel: KernelImage, name: str, data: bytes) -> dict[str, Site]:
    """The sites in one file of the package."""
    debug = read_elf(data, name)
    if name.startswith("vmlinux-"):
        if debug.build_id != kernel.build_id:
            raise SystemExit(f"{name} is of another build than {kernel.path}")
        return site_types(kernel_code(kernel), read_debug_info(debug))
    module = module_name(Path(name))
    path = kernel.find_module(module)
    elf = read_elf(read_module(path), str(path))
    if debug.build_id != elf.build_id:
        raise SystemExit(f"{name} is of another build than the module")
    code = module_code(elf, kernel.btf)
    bases = {section.name: section.start for section in code.layout.sections}
    return dict(with_module(module, site_types(code, read_debug_info(debug, bases))))


def make(kernel: Kernel, directory: Path | None) -> SiteTable:
    """The table of one kernel."""
    image = open_kernel(str(kernel.vmlinuz), kernel.release)
    release = kernel.release
    files = directory_files(directory, release) if directory is not None else package_files(release)
    sites: dict[str, Site] = {}
    started = time.monotonic()
    for name, data in files:
        with without_collection():
            found = sites_of(image, name, data)
        sites.update(found)
        print(f"{time.monotonic() - started:6.0f} s {name}: {len(found)} sites", flush=True)
    return SiteTable(release, image.build_id, sites)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("series", nargs="*", default=list(SERIES))
    parser.add_argument("--debug", type=Path, help="directory with SERIES/vmlinux-RELEASE and SERIES/*.ko")
    arguments = parser.parse_args()
    for series in arguments.series:
        kernel = ensure(series)
        table = make(kernel, arguments.debug / series if arguments.debug else None)
        if not table.sites:
            sys.exit(f"no sites found for {kernel.release}")
        path = PROJECT / "descriptions" / kernel.release / FILE_NAME
        data = table.to_bytes()
        write_atomic(path, data)
        print(f"{path.relative_to(PROJECT)}: {len(table.sites)} sites, {len(data)} bytes")


if __name__ == "__main__":
    main()
