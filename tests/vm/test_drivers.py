# SPDX-License-Identifier: Apache-2.0
"""The standard library against network drivers of the real kernels: it knows every function that they call, and what it
says of them fits the types of each kernel.  No kernel is booted."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2cc.bpf.layout import Layout
from o2cc.compiler import Options, Stopwatch, compile_module, parse_policy
from o2cc.diagnostics import SourceFile
from o2cc.kernel.kernels import open_kernel
from o2cc.kernel.scan import scan_module
from o2cc.policy.library import FileResolver
from o2cc.policy.unknown import callees_of
from scripts.fetch_kernels import FetchError, ensure

ENTRIES = {
    "tun": "struct rtnl_link_ops",
    "veth": "struct rtnl_link_ops",
    "e1000e": "struct pci_driver",
    "virtio_net": "struct virtio_driver",
}


@pytest.mark.parametrize("driver", ENTRIES)
def test_the_library_knows_what_drivers_call(kernel: str, driver: str) -> None:
    """Catches a function that a driver calls and the library says nothing of, and a clause that is wrong for one of the
    kernels."""
    try:
        image = open_kernel(str(ensure(kernel).vmlinuz))
    except FetchError as error:
        pytest.fail(f"not run: {error}", pytrace=False)
    description = scan_module(image.find_module(driver), image)
    modules = [name for name in FileResolver().names() if name.startswith("std.")]
    callees = callees_of(description, modules, FileResolver())
    assert [gate.function for gate in callees.unknown] == []
    assert callees.total > 80
    text = (
        f'use std.linux\nuse std.net\nuse std.netdev\ncompartment driver {{\n    code modules "{driver}"\n    heap tracked\n'
        f"    entries of struct net_device_ops, struct ethtool_ops, {ENTRIES[driver]}\n"
        "    call imports except std.linux.dangerous\n    icall self\n    on violation report\n}\n"
    )
    parsed = parse_policy(SourceFile("driver.o2c", text))
    compiled = compile_module(
        parsed, description, FileResolver(Path()), Options(layout=Layout.SHAPE), Stopwatch()
    )
    assert [warning.code for warning in compiled.warnings if warning.code.startswith("O2C03")] == []
    assert "netif_carrier_off" in {gate.function for gate in compiled.policy.gates}
