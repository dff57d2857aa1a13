# SPDX-License-Identifier: Apache-2.0
"""Fetch Debian kernels for the VM tests: image, headers and kbuild tools, unpacked, never installed.

``ensure("6.1")`` returns a :class:`Kernel` whose paths all lie in the cache directory
(``$O2C_CACHE``, else ``$XDG_CACHE_HOME/o2c``, else ``~/.cache/o2c``) under ``kernels/<release>/``.
A kernel that is in the cache costs no network; one that is missing or half unpacked is fetched again,
and if the archive no longer has the version that the local package lists name, the lists are
refreshed once and the next newest is taken.

The headers are made usable from where they lie: Debian's header Makefile includes
``/usr/src/linux-headers-*-common/Makefile`` by absolute path, and ``/lib/modules/*/build`` points to
``/usr/src``; both are rewritten. ``.kernelvariables`` names the compiler (gcc-12 for both series).

As a command it prints JSON: ``python scripts/fetch_kernels.py [--update] [6.1 6.12]``.
Raises :class:`FetchError` when a kernel cannot be had. No root needed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STAMP = "o2c-kernel.json"
LAYOUT = 1  # raise when what `_unpack` leaves in the cache changes

SERIES: dict[str, str] = {
    "6.1": r"6\.1\.\d+-\d+-amd64",
    "6.12": r"6\.12\.\d+\+deb12-amd64",
}
"""Kernel series -> pattern of its release names (plain amd64: not cloud, not rt)."""

DEBUG = "debug"
"""One more series, which is not fetched but built (scripts/build_debug_kernel.py) and used only when asked for."""


class FetchError(Exception):
    """A kernel could not be fetched; the message says which and why."""


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel; every path is absolute and in the cache."""

    series: str
    release: str
    """What ``uname -r`` prints in it, e.g. ``6.1.0-57-amd64``."""
    package_version: str
    vmlinuz: Path
    modules_dir: Path
    """``.../lib/modules/<release>``, with modules.dep."""
    build_dir: Path
    """What ``make -C`` takes to build an out-of-tree module."""
    system_map: Path
    """Debian ships a stub here: take symbols from the kallsyms inside ``vmlinuz``."""
    config: Path


def cache_dir() -> Path:
    """The project's cache directory (not created)."""
    if own := os.environ.get("O2C_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "o2c"


def version_key(release: str) -> tuple[int, ...]:
    """Order of releases of one series: by their numbers, left to right."""
    return tuple(int(number) for number in re.findall(r"\d+", release))


def releases(names: Iterable[str], series: str) -> list[str]:
    """Releases of ``series`` among package names, newest first.

    Takes ``linux-image-<release>`` and ``linux-image-<release>-unsigned``. Raises FetchError for a
    series that is not in :data:`SERIES`.
    """
    if series not in SERIES:
        raise FetchError(f"unknown kernel series `{series}`, known are {', '.join(SERIES)}")
    pattern = re.compile(rf"linux-image-({SERIES[series]})(?:-unsigned)?")
    found = {match[1] for name in names if (match := pattern.fullmatch(name.strip()))}
    return sorted(found, key=version_key, reverse=True)


def companions(depends: str) -> list[str]:
    """Names of the kbuild and common headers packages in a ``Depends:`` line of a headers package."""
    names = [alternative.split()[0] for alternative in re.split(r"[,|]", depends) if alternative.split()]
    return [name for name in names if re.fullmatch(r"linux-kbuild-\S+|linux-headers-\S+-common", name)]


def cached(series: str) -> Kernel | None:
    """The newest completely unpacked kernel of ``series`` in the cache, or None."""
    kernels = [
        kernel
        for stamp in (cache_dir() / "kernels").glob(f"*/{STAMP}")
        if (kernel := _read_stamp(stamp)) is not None and kernel.series == series
    ]
    return max(kernels, key=lambda kernel: version_key(kernel.release), default=None)


def ensure(series: str, *, update: bool = False) -> Kernel:
    """The cached kernel of ``series``, fetched first if there is none (or a newer one, on ``update``).

    The series :data:`DEBUG` is never fetched.
    """
    if series not in (*SERIES, DEBUG):
        releases([], series)
    if (kernel := cached(series)) and not update:
        return kernel
    if series == DEBUG:
        raise FetchError("the debug kernel is built, not fetched: python -m scripts.build_debug_kernel")
    with _lock():
        if (kernel := cached(series)) and not update:  # another process was faster
            return kernel
        if update:
            _apt_update()
        try:
            return _fetch_newest(series)
        except FetchError:
            if update:
                raise
        _apt_update()
        return _fetch_newest(series)


def _read_stamp(stamp: Path) -> Kernel | None:
    try:
        data: dict[str, Any] = json.loads(stamp.read_text())
        if data.pop("layout") != LAYOUT:
            return None
        data |= {name: Path(data[name]) for name in _PATHS}
        kernel = Kernel(**data)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kernel if all(data[name].exists() for name in _PATHS) else None


_PATHS = ("vmlinuz", "modules_dir", "build_dir", "system_map", "config")


def _fetch_newest(series: str) -> Kernel:
    names = _run(["apt-cache", "pkgnames", "linux-image-"]).split()
    reasons = []
    for release in releases(names, series)[:4]:
        if (kernel := _read_stamp(cache_dir() / "kernels" / release / STAMP)) is not None:
            return kernel
        try:
            return _fetch(series, release)
        except FetchError as error:
            reasons.append(f"{release}: {error}")
    detail = "; ".join(reasons) or "the package lists name none"
    raise FetchError(f"no Debian kernel of series {series} can be fetched: {detail}")


def _fetch(series: str, release: str) -> Kernel:
    headers = f"linux-headers-{release}"
    depends = re.search(r"^Depends: (.*)$", _show(headers), re.MULTILINE)
    parts = companions(depends[1] if depends else "")
    if len(parts) != 2:
        raise FetchError(f"{headers} does not name its common headers and kbuild packages")
    image = f"linux-image-{release}"
    if not _show(image):
        image += "-unsigned"
    version = re.search(r"^Version: (.*)$", _show(image), re.MULTILINE)
    if version is None:
        raise FetchError(f"the archive does not offer {image}")

    final = cache_dir() / "kernels" / release
    final.parent.mkdir(parents=True, exist_ok=True)
    # In the cache itself, not in /tmp: the finished tree is renamed into its place.
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetch-") as scratch:
        debs = Path(scratch) / "debs"
        debs.mkdir()
        _run(["apt-get", "download", "-q", image, headers, *parts], cwd=debs)
        tree = Path(scratch) / "tree"
        for deb in sorted(debs.glob("*.deb")):
            _run(["dpkg", "-x", str(deb), str(tree)])
        kernel = _relocate(series, release, version[1], tree, final)
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)
    stamp = {name: str(value) for name, value in asdict(kernel).items()}
    (final / STAMP).write_text(json.dumps(stamp | {"layout": LAYOUT}, indent=1) + "\n")
    return kernel


def _relocate(series: str, release: str, version: str, tree: Path, final: Path) -> Kernel:
    """Make ``tree``, which is about to become ``final``, work without being installed."""
    sources = tree / "usr/src"
    for makefile in sources.glob("linux-headers-*/Makefile"):
        if not makefile.parent.name.endswith("-common"):
            text = makefile.read_text()
            makefile.write_text(re.sub(r"(?<!\S)/usr/src/", f"{final}/usr/src/", text))
    modules = tree / "lib/modules" / release
    if not modules.is_dir():
        modules = tree / "usr/lib/modules" / release
    for link in (modules / "build", modules / "source"):
        if link.is_symlink():
            target = os.readlink(link)
            link.unlink()
            link.symlink_to(os.path.relpath(sources / Path(target).name, modules))
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod is None:
        raise FetchError("`depmod` is missing (package kmod)")
    base = tree if modules.parts[-4] != "usr" else tree / "usr"
    _run([depmod, "-b", str(base), release])

    def moved(path: Path) -> Path:
        if not path.exists():
            raise FetchError(f"the packages of {release} have no {path.relative_to(tree)}")
        return final / path.relative_to(tree)

    return Kernel(
        series=series,
        release=release,
        package_version=version,
        vmlinuz=moved(tree / f"boot/vmlinuz-{release}"),
        modules_dir=moved(modules),
        build_dir=moved(sources / f"linux-headers-{release}"),
        system_map=moved(tree / f"boot/System.map-{release}"),
        config=moved(tree / f"boot/config-{release}"),
    )


@contextmanager
def _lock() -> Iterator[None]:
    """Two processes must not fetch the same kernel at once."""
    directory = cache_dir() / "kernels"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _apt_update() -> None:
    """Refresh the package lists; needs root, so a failure only leaves the lists as they were."""
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False, timeout=300)


def _show(package: str) -> str:
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", package],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return shown.stdout


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"`{command[0]}` failed: {error}") from error
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise FetchError(f"`{' '.join(command[:2])}` failed: {tail[0]}")
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="fetch Debian kernels for the VM tests; prints JSON")
    parser.add_argument("series", nargs="*", default=list(SERIES), help="kernel series (default: all)")
    parser.add_argument("--update", action="store_true", help="look for newer versions in the archive")
    options = parser.parse_args(arguments)
    try:
        kernels = [ensure(series, update=options.update) for series in options.series]
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps([{k: str(v) for k, v in asdict(kernel).items()} for kernel in kernels], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
