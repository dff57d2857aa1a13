# SPDX-License-Identifier: Apache-2.0
"""Made-up profiles: objects of a few types with typical words, at addresses that move with every boot."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from o2cc.trees.dataset import schema

TYPES = {
    # label: (size, cache, words as letters: z zero, s small, k kernel text, m module, d direct map, p self, a ASCII, x other)
    "sctp_chunk": (64, "kmalloc-64", "ppdszmkz"),
    "inode": (96, "inode_cache", "sdkpppzsssdz"),
    "payload": (64, "kmalloc-64", "xaxxaxzx"),
    "socket": (64, "kmalloc-64", "kdsspzzd"),
}


def layout(rng: random.Random) -> dict[str, int]:
    """Areas of one boot."""
    text = 0xFFFF_FFFF_8000_0000 + rng.randrange(256) * 0x20_0000
    direct = 0xFF11_0000_0000_0000 + rng.randrange(1 << 12) * (1 << 30)
    vmalloc, vmemmap = direct + (1 << 46), direct + (1 << 47)
    return {
        "kernel_text": text,
        "kernel_text_end": text + 0x100_0000,
        "kernel_end": text + 0x300_0000,
        "modules": 0xFFFF_FFFF_C000_0000,
        "modules_end": 0xFFFF_FFFF_FF00_0000,
        "direct_map": direct,
        "direct_map_end": direct + (1 << 35),
        "vmalloc": vmalloc,
        "vmalloc_end": vmalloc + (1 << 45),
        "vmemmap": vmemmap,
        "vmemmap_end": vmemmap + (1 << 40),
        "own_text": 0xFFFF_FFFF_C000_0000,
        "own_text_end": 0xFFFF_FFFF_C008_0000,
        "own_constants": 0xFFFF_FFFF_C008_0000,
        "own_constants_end": 0xFFFF_FFFF_C009_0000,
        "own_data": 0xFFFF_FFFF_C00A_0000,
        "own_data_end": 0xFFFF_FFFF_C00B_0000,
    }


def word(kind: str, area: dict[str, int], address: int, size: int, rng: random.Random) -> int:
    """One word of a kind."""
    made: Mapping[str, Callable[[], int]] = {
        "z": lambda: 0,
        "s": lambda: rng.randrange(1, 1 << 12),
        "k": lambda: area["kernel_text"] + rng.randrange(0x100_0000),
        "m": lambda: area["modules"] + rng.randrange(0x10_0000),
        "d": lambda: area["direct_map"] + rng.randrange(1 << 34) // 8 * 8,
        "p": lambda: address + rng.randrange(size // 8) * 8,
        "a": lambda: int.from_bytes(bytes(rng.randrange(97, 123) for _ in range(8)), "little"),
        "x": lambda: rng.randrange(1 << 20, 1 << 50) | 0x80,
    }
    return made[kind]()


def rows(
    boots: int, each: int, *, labels: tuple[str, ...] = tuple(TYPES), seed: int = 1
) -> list[dict[str, Any]]:
    """`each` objects of every type in each boot; every fifth word is another kind than usual."""
    rng = random.Random(seed)
    result = []
    for boot in range(boots):
        area = layout(rng)
        for label in labels:
            size, cache, kinds = TYPES[label]
            for _ in range(each):
                address = area["direct_map"] + rng.randrange(1 << 30) // 64 * 64
                words = [
                    word(kind if rng.random() < 0.8 else rng.choice("zsdx"), area, address, size, rng)
                    for kind in kinds
                ]
                result.append(
                    {
                        "kernel": f"6.{boot % 2}",
                        "boot": f"boot-{boot}",
                        "workload": rng.choice(["sctp", "files"]),
                        "label": label,
                        "evidence": "site",
                        "moment": rng.choice(["access", "free"]),
                        "cache": cache,
                        "address": address,
                        "size": size,
                        "cache_flags": 0x2000 if label == "inode" else 0,
                        "words": words,
                        "layout": area,
                    }
                )
    return result


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    """Rows as a profile."""
    pq.write_table(pa.Table.from_pylist(content, schema=schema()), path)
    return path
