# SPDX-License-Identifier: Apache-2.0
"""Classes of words, by their written definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2cc.trees.features import Layout, Objects, WordClass, classify_words, extract, feature_set
from o2cc.trees.tree import Feature, FeatureKind

LAYOUT = Layout(
    kernel_text=0xFFFF_FFFF_8100_0000,
    kernel_text_end=0xFFFF_FFFF_8200_0000,
    kernel_end=0xFFFF_FFFF_8400_0000,
    modules=0xFFFF_FFFF_C000_0000,
    modules_end=0xFFFF_FFFF_FF00_0000,
    direct_map=0xFF11_0000_0000_0000,
    direct_map_end=0xFF11_0004_0000_0000,
    vmalloc=0xFFA0_0000_0000_0000,
    vmalloc_end=0xFFD2_0000_0000_0000,
    vmemmap=0xFFD4_0000_0000_0000,
    vmemmap_end=0xFFD4_0000_1000_0000,
    own_text=0xFFFF_FFFF_C010_0000,
    own_text_end=0xFFFF_FFFF_C012_0000,
    own_constants=0xFFFF_FFFF_C012_0000,
    own_constants_end=0xFFFF_FFFF_C013_0000,
    own_data=0xFFFF_FFFF_C014_0000,
    own_data_end=0xFFFF_FFFF_C015_0000,
)
ADDRESS, SIZE = 0xFF11_0000_0000_1000, 64


def definition(word: int, present: bool) -> WordClass:
    """The list of the module's docstring, word by word."""
    b = LAYOUT
    if not present:
        return WordClass.MISSING
    if word == 0:
        return WordClass.ZERO
    if word < 2**16:
        return WordClass.SMALL
    if word >= 2**64 - 4095:
        return WordClass.ERROR
    if word in (0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122):
        return WordClass.POISON
    if ADDRESS <= word < ADDRESS + SIZE:
        return WordClass.SELF
    areas = [
        (b.kernel_text, b.kernel_text_end, WordClass.KERNEL_TEXT),
        (b.kernel_text_end, b.kernel_end, WordClass.KERNEL_DATA),
        (b.own_text, b.own_text_end, WordClass.OWN_TEXT),
        (b.own_constants, b.own_constants_end, WordClass.OWN_CONSTANT),
        (b.own_data, b.own_data_end, WordClass.OWN_DATA),
        (b.modules, b.modules_end, WordClass.MODULE),
        (b.direct_map, b.direct_map_end, WordClass.DIRECT_MAP),
        (b.vmalloc, b.vmalloc_end, WordClass.VMALLOC),
        (b.vmemmap, b.vmemmap_end, WordClass.VMEMMAP),
    ]
    for low, high, kind in areas:
        if low <= word < high:
            return kind
    text = word.to_bytes(8, "little")
    if all(byte < 128 for byte in text) and all(byte >= 32 for byte in text[:4]):
        return WordClass.ASCII
    return WordClass.OTHER


def classify(word: int, present: bool = True) -> WordClass:
    bounds = np.array([dataclasses.astuple(LAYOUT)], dtype=np.uint64)
    found = classify_words(
        np.array([word], dtype=np.uint64),
        np.array([present]),
        np.array([ADDRESS], dtype=np.uint64),
        np.array([SIZE], dtype=np.uint64),
        bounds,
    )
    return WordClass(int(found[0]))


EDGES = sorted(
    {
        e + d
        for e in (*dataclasses.astuple(LAYOUT), ADDRESS, ADDRESS + SIZE, 2**16, 2**64 - 4095)
        for d in (-1, 0, 1)
    }
)


@pytest.mark.parametrize("word", [0, 1, 2**64 - 1, *EDGES])
def test_edges_of_the_areas(word: int) -> None:
    assert classify(word) is definition(word, True)


@given(
    st.integers(0, 2**64 - 1) | st.binary(min_size=8, max_size=8).map(lambda b: int.from_bytes(b, "little")),
    st.booleans(),
)
def test_any_word(word: int, present: bool) -> None:
    assert classify(word, present) is definition(word, present)


@given(st.lists(st.integers(0, 255), min_size=8, max_size=8))
def test_ascii_is_decided_byte_by_byte(content: list[int]) -> None:
    word = int.from_bytes(bytes(byte & 0x7F for byte in content), "little")
    assert classify(word) is definition(word, True)


def test_every_class_occurs() -> None:
    words = [
        0,
        5,
        int.from_bytes(b"abcdef\0\0", "little"),
        2**40,
        ADDRESS + 8,
        ADDRESS + 4096,
        LAYOUT.vmalloc,
    ]
    words += [LAYOUT.vmemmap, LAYOUT.modules, LAYOUT.kernel_text_end, LAYOUT.kernel_text, 2**64 - 2]
    words += [0xDEAD_0000_0000_0100, LAYOUT.own_text, LAYOUT.own_constants, LAYOUT.own_data]
    assert [classify(0, False), *map(classify, words)] == list(WordClass)


def test_extraction_pads_past_the_end() -> None:
    objects = Objects(
        np.array([[7, 9]], dtype=np.uint64),
        np.array([[True, False]]),
        np.array([ADDRESS], dtype=np.uint64),
        np.array([8], dtype=np.uint64),
        np.array([3], dtype=np.uint64),
        np.array([dataclasses.astuple(LAYOUT)], dtype=np.uint64),
    )
    wanted = (
        *feature_set("size", 2),
        *feature_set("raw", 3),
        *(Feature(FeatureKind.WORD_CLASS, index) for index in range(3)),
    )
    assert extract(wanted, objects).tolist() == [
        [8, 3, 7, 0, 0, WordClass.SMALL, WordClass.MISSING, WordClass.MISSING]
    ]


def test_where_a_word_points_to_in_its_object_and_its_halves() -> None:
    """An empty list's head at word 0, a counter with flags, an address."""
    objects = Objects(
        np.array([[ADDRESS, 5 << 32 | 70_000, ADDRESS + 4096, 9]], dtype=np.uint64),
        np.array([[True, True, True, False]]),
        np.array([ADDRESS], dtype=np.uint64),
        np.array([24], dtype=np.uint64),
        np.array([0], dtype=np.uint64),
        np.array([dataclasses.astuple(LAYOUT)], dtype=np.uint64),
    )

    def of(kind: FeatureKind) -> list[int]:
        return list(extract(tuple(Feature(kind, index) for index in range(5)), objects)[0].tolist())

    assert of(FeatureKind.SELF_OFFSET) == [1, 0, 0, 0, 0]
    assert of(FeatureKind.LOW) == [0x1000, 65_536, 0x2000, 0, 0]
    assert of(FeatureKind.HIGH) == [65_536, 5, 65_536, 0, 0]


def test_a_layout_outside_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="64-bit"):
        dataclasses.replace(LAYOUT, modules=2**64)
