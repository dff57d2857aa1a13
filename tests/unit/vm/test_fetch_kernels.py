# SPDX-License-Identifier: Apache-2.0
"""Choosing kernels among what an archive offers, and finding them in the cache. No network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts import fetch_kernels
from scripts.fetch_kernels import FetchError, Kernel, cache_dir, cached, companions, ensure, releases

OFFERED = [
    "linux-image-6.1.0-9-amd64",
    "linux-image-6.1.0-57-amd64",
    "linux-image-6.1.0-57-amd64-dbg",
    "linux-image-6.1.0-58-cloud-amd64",
    "linux-image-6.1.0-58-rt-amd64",
    "linux-image-6.1.0-60-amd64-unsigned",
    "linux-image-6.1.0-60-arm64",
    "linux-image-amd64",
    "linux-image-6.12-amd64",
    "linux-image-6.12.9+deb12-amd64",
    "linux-image-6.12.115+deb12-amd64",
    "linux-image-6.12.115+deb12-amd64-unsigned",
    "linux-image-6.12.117+deb12-cloud-amd64",
    "linux-image-6.12.200-amd64",
]


def test_newest_plain_release_comes_first() -> None:
    assert releases(OFFERED, "6.1") == ["6.1.0-60-amd64", "6.1.0-57-amd64", "6.1.0-9-amd64"]
    assert releases(OFFERED, "6.12") == ["6.12.115+deb12-amd64", "6.12.9+deb12-amd64"]


def test_unknown_series_is_an_error_that_names_the_known() -> None:
    with pytest.raises(FetchError, match=r"`5\.10`.* 6\.1, 6\.12"):
        releases(OFFERED, "5.10")
    with pytest.raises(FetchError, match=r"`5\.10`"):
        ensure("5.10")


@pytest.mark.parametrize(
    ("depends", "expected"),
    [
        (
            "linux-headers-6.1.0-57-common (= 6.1.192-3), linux-kbuild-6.1 (>= 6.1.192-3), "
            "linux-compiler-gcc-12-x86",
            ["linux-headers-6.1.0-57-common", "linux-kbuild-6.1"],
        ),
        (
            "linux-base (>= 4.12~), linux-headers-6.12.117+deb12-common (= 6.12.117-1~deb12u1), "
            "linux-image-6.12.117+deb12-amd64 (= 1) | linux-image-6.12.117+deb12-amd64-unsigned (= 1), "
            "linux-kbuild-6.12.117+deb12, gcc-12",
            ["linux-headers-6.12.117+deb12-common", "linux-kbuild-6.12.117+deb12"],
        ),
        ("", []),
    ],
)
def test_header_packages_name_their_companions(depends: str, expected: list[str]) -> None:
    assert companions(depends) == expected


def put(series: str, release: str) -> Kernel:
    """A kernel in the cache, as far as the cache looks at it."""
    base = cache_dir() / "kernels" / release
    paths = {name: base / name for name in ("vmlinuz", "modules_dir", "build_dir", "system_map", "config")}
    base.mkdir(parents=True)
    for path in paths.values():
        path.touch()
    kernel = Kernel(series=series, release=release, package_version="1", **paths)
    stamp = {name: str(value) for name, value in asdict(kernel).items()} | {"layout": fetch_kernels.LAYOUT}
    (base / fetch_kernels.STAMP).write_text(json.dumps(stamp))
    return kernel


@pytest.fixture(autouse=True)
def _own_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")


def test_cached_kernel_is_used_without_any_program() -> None:
    put("6.12", "6.12.200+deb12-amd64")
    put("6.1", "6.1.0-9-amd64")
    newest = put("6.1", "6.1.0-10-amd64")
    assert ensure("6.1") == newest


def test_incomplete_kernel_is_not_used() -> None:
    kernel = put("6.1", "6.1.0-9-amd64")
    kernel.vmlinuz.unlink()
    assert cached("6.1") is None
    with pytest.raises(FetchError, match="apt-cache"):
        ensure("6.1")


@pytest.mark.parametrize("stamp", ["", "{}", "[]", '{"layout": 0}', '{"layout": 1, "vmlinuz": 3}'])
def test_broken_stamp_is_no_kernel(stamp: str) -> None:
    kernel = put("6.1", "6.1.0-9-amd64")
    (kernel.vmlinuz.parent / fetch_kernels.STAMP).write_text(stamp)
    assert cached("6.1") is None


def test_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("O2C_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/o2c")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/o2c")


def test_the_debug_kernel_is_never_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="build_debug_kernel"):
        ensure("debug")
