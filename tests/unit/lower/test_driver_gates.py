# SPDX-License-Identifier: Apache-2.0
"""What the standard library asks of the arguments of functions that network drivers call."""

from __future__ import annotations

import pytest

from tests.unit.lower.confined import FOREIGN_FREE, OWN, REQUIREMENT, Confined, call_through_pointer, confined

FUNCTIONS = (
    "build_skb, slab_build_skb, netdev_rss_key_fill, ethtool_sprintf, dma_free_attrs, dma_alloc_attrs, "
    "pci_read_config_word, xp_alloc_batch, virtqueue_get_buf_ctx, eth_prepare_mac_addr_change, iounmap"
)


@pytest.fixture
def kernel() -> Confined:
    return confined(before="use std.netdev\n", targets=f"icall self, {{ {FUNCTIONS} }}")


def test_a_packet_is_built_in_own_buffers_only(kernel: Confined) -> None:
    """Catches build_skb() around foreign memory, which gives the right to write it."""
    own, foreign = kernel.object(512, OWN), kernel.object(512)
    assert call_through_pointer(kernel, "build_skb", own, 512) == []
    assert call_through_pointer(kernel, "build_skb", own, 513) == [REQUIREMENT]
    assert call_through_pointer(kernel, "build_skb", foreign, 512) == [REQUIREMENT]
    assert call_through_pointer(kernel, "build_skb", own, 0) == []
    assert call_through_pointer(kernel, "build_skb", own + 8, 0) == [FOREIGN_FREE]
    assert call_through_pointer(kernel, "build_skb", foreign, 0) == [FOREIGN_FREE]
    assert call_through_pointer(kernel, "slab_build_skb", own) == []
    assert call_through_pointer(kernel, "slab_build_skb", foreign) == [FOREIGN_FREE]


def test_what_is_filled_must_be_own(kernel: Confined) -> None:
    """Catches lengths that are not those that the function writes."""
    own, foreign = kernel.object(64, OWN), kernel.object(64)
    device = kernel.object(64)
    for function, arguments, size in (
        ("netdev_rss_key_fill", lambda place: (place, 64), 64),
        ("pci_read_config_word", lambda place: (device, 4, place), 2),
        ("xp_alloc_batch", lambda place: (device, place, 8), 64),
        ("virtqueue_get_buf_ctx", lambda place: (device, own, place), 8),
        ("dma_alloc_attrs", lambda place: (device, 64, place, 0, 0), 8),
    ):
        last = own + 64 - size
        assert call_through_pointer(kernel, function, *arguments(last)) == [], function
        assert call_through_pointer(kernel, function, *arguments(last + 1)) == [REQUIREMENT], function
        assert call_through_pointer(kernel, function, *arguments(foreign)) == [REQUIREMENT], function


def test_a_name_goes_to_where_its_pointer_leads(kernel: Confined) -> None:
    """Catches ethtool_sprintf() to an address that stands in own memory."""
    pointer, names, foreign = kernel.object(8, OWN), kernel.object(64, OWN), kernel.object(64)
    for target, expected in ((names + 32, []), (names + 33, [REQUIREMENT]), (foreign, [REQUIREMENT])):
        kernel.world.machine.memory.write_word(pointer, target)
        assert call_through_pointer(kernel, "ethtool_sprintf", pointer, names) == expected


def test_what_a_driver_gives_back_must_be_its_own(kernel: Confined) -> None:
    own, foreign, device = kernel.object(64, OWN), kernel.object(64), kernel.object(64)
    assert call_through_pointer(kernel, "dma_free_attrs", device, 64, own, 0, 0) == []
    assert call_through_pointer(kernel, "dma_free_attrs", device, 64, foreign, 0, 0) == [FOREIGN_FREE]
    assert call_through_pointer(kernel, "iounmap", foreign) == [FOREIGN_FREE]
