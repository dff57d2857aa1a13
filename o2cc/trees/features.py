# SPDX-License-Identifier: Apache-2.0
"""What a tree may look at: features of an object that mean the same after a reboot.

The class of a word is decided by the first of these that holds (w is the unsigned word, all comparisons
unsigned); the compiled program decides by the same list in the same order:

    MISSING       the word does not lie wholly inside the object: 8 * index + 8 > size
    ZERO          w == 0
    SMALL         w < 2**16
    ERROR         w >= 2**64 - 4095: an error number as pointer (MAX_ERRNO, include/linux/err.h, 6.1)
    POISON        w is LIST_POISON1 or LIST_POISON2: taken off a list (include/linux/poison.h, 6.1, x86-64)
    SELF          address <= w < address + size: points into the object itself
    KERNEL_TEXT   layout.kernel_text  <= w < layout.kernel_text_end
    KERNEL_DATA   layout.kernel_text_end <= w < layout.kernel_end: constants, variables, operation tables
    OWN_TEXT      layout.own_text      <= w < layout.own_text_end: code of the compartment's module
    OWN_CONSTANT  layout.own_constants <= w < layout.own_constants_end: its constants
    OWN_DATA      layout.own_data      <= w < layout.own_data_end: its variables
    MODULE        layout.modules      <= w < layout.modules_end: code and data of other modules
    DIRECT_MAP    layout.direct_map   <= w < layout.direct_map_end
    VMALLOC       layout.vmalloc      <= w < layout.vmalloc_end
    VMEMMAP       layout.vmemmap      <= w < layout.vmemmap_end
    ASCII         no byte of w is above 127 and its four lowest bytes are each at least 32
    OTHER         none of these

Further features of a word, 0 where it is missing:

    self-offset   1 + w - address when w - address < size (modulo 2**64), else 0: 8 * index + 1 is an empty list's head
    low, high     its lower and upper 32 bits, at most 2**16: counters, types, lengths and flags, never an address

Areas move with every boot (KASLR) and with the paging depth, so that their bounds are inputs: a `Layout` is
read from the running kernel (Documentation/arch/x86/x86_64/mm.rst, 6.12, lists the areas).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING

from o2cc.trees.thresholds import WORD_MAX
from o2cc.trees.tree import MISSING_WORD, Feature, FeatureKind, Words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALL_END = 2**16
ERROR_START = 2**64 - 4095
ASCII_HIGH_BITS = 0x8080_8080_8080_8080
ASCII_LOW_BYTES = 0xFFFF_FFFF
ASCII_CARRY = 0x6060_6060
ASCII_PRINTABLE = 0x8080_8080

LIST_POISONS = (0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122)
HALF_CAP = 2**16

MODULES_START = 0xFFFF_FFFF_C000_0000
MODULES_END = 0xFFFF_FFFF_FF00_0000
"""Where modules are, with a kernel image of up to 1 GiB as every kernel with KASLR has it
(arch/x86/include/asm/pgtable_64_types.h, 6.1)."""

PAGE_BYTES = 4096
STRUCT_PAGE_BYTES = 64


class WordClass(IntEnum):
    """Class of a word; the number is the feature's value.

    Pointers into memory have neighbouring numbers, so that one comparison tells pointer from data.
    """

    MISSING = 0
    ZERO = 1
    SMALL = 2
    ASCII = 3
    OTHER = 4
    SELF = 5
    DIRECT_MAP = 6
    VMALLOC = 7
    VMEMMAP = 8
    MODULE = 9
    KERNEL_DATA = 10
    KERNEL_TEXT = 11
    ERROR = 12
    POISON = 13
    OWN_TEXT = 14
    OWN_CONSTANT = 15
    OWN_DATA = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """Bounds of the kernel's address areas in one boot; each area is half open, an empty one is allowed."""

    kernel_text: int
    kernel_text_end: int
    kernel_end: int
    modules: int
    modules_end: int
    direct_map: int
    direct_map_end: int
    vmalloc: int
    vmalloc_end: int
    vmemmap: int
    vmemmap_end: int
    own_text: int = 0
    own_text_end: int = 0
    own_constants: int = 0
    own_constants_end: int = 0
    own_data: int = 0
    own_data_end: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= bound <= WORD_MAX for bound in astuple(self)):
            raise ValueError("a bound of the layout is not a 64-bit address")

    @classmethod
    def of_kernel(
        cls, *, stext: int, etext: int, end: int, page_offset: int, vmalloc: int, vmemmap: int, max_pfn: int
    ) -> Layout:
        """From the addresses of `_stext`, `_etext`, `_end` and the values of `page_offset_base`, `vmalloc_base`,
        `vmemmap_base` and `max_pfn`.

        vmalloc is taken to reach to the next area, whose start is known; between them lies a hole.
        """
        return cls(
            kernel_text=stext,
            kernel_text_end=etext,
            kernel_end=end,
            modules=MODULES_START,
            modules_end=MODULES_END,
            direct_map=page_offset,
            direct_map_end=page_offset + max_pfn * PAGE_BYTES,
            vmalloc=vmalloc,
            vmalloc_end=vmemmap,
            vmemmap=vmemmap,
            vmemmap_end=vmemmap + max_pfn * STRUCT_PAGE_BYTES,
        )


LAYOUT_FIELDS = tuple(field.name for field in fields(Layout))
OWN_FIELDS = tuple(name for name in LAYOUT_FIELDS if name.startswith("own_"))
"""Bounds of the compartment's module; all zero, so that nothing lies there, when it is not a module or not loaded."""


@dataclass(frozen=True)
class Objects:
    """Objects to classify, one a row.

    `words` is uint64 of shape (n, w), `present` tells of shape (n, w) which words were read; `address`,
    `size`, `cache_flags` are uint64 of shape (n,); `layout` is uint64 of shape (n, fields of `Layout`).
    """

    words: Words
    present: NDArray[np.bool_]
    address: Words
    size: Words
    cache_flags: Words
    layout: Words

    def __len__(self) -> int:
        return len(self.words)


def classify_words(
    words: Words, present: NDArray[np.bool_], address: Words, size: Words, layout: Words
) -> NDArray[np.uint64]:
    """Class of every word; all arguments broadcast to the shape of `words`, `layout` has a last axis of bounds."""
    import numpy as np  # late: a compilation has no use for it

    bound = {name: layout[..., number] for number, name in enumerate(LAYOUT_FIELDS)}

    def within(low: str, high: str) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (words >= bound[low]) & (words < bound[high])
        return inside

    low_bytes = (words & np.uint64(ASCII_LOW_BYTES)) + np.uint64(ASCII_CARRY)
    is_ascii = ((words & np.uint64(ASCII_HIGH_BITS)) == 0) & (
        (low_bytes & np.uint64(ASCII_PRINTABLE)) == np.uint64(ASCII_PRINTABLE)
    )
    decisions = (
        (~present, WordClass.MISSING),
        (words == 0, WordClass.ZERO),
        (words < np.uint64(SMALL_END), WordClass.SMALL),
        (words >= np.uint64(ERROR_START), WordClass.ERROR),
        (np.isin(words, np.array(LIST_POISONS, dtype=np.uint64)), WordClass.POISON),
        ((words >= address) & (words - address < size), WordClass.SELF),
        (within("kernel_text", "kernel_text_end"), WordClass.KERNEL_TEXT),
        (within("kernel_text_end", "kernel_end"), WordClass.KERNEL_DATA),
        (within("own_text", "own_text_end"), WordClass.OWN_TEXT),
        (within("own_constants", "own_constants_end"), WordClass.OWN_CONSTANT),
        (within("own_data", "own_data_end"), WordClass.OWN_DATA),
        (within("modules", "modules_end"), WordClass.MODULE),
        (within("direct_map", "direct_map_end"), WordClass.DIRECT_MAP),
        (within("vmalloc", "vmalloc_end"), WordClass.VMALLOC),
        (within("vmemmap", "vmemmap_end"), WordClass.VMEMMAP),
        (is_ascii, WordClass.ASCII),
    )
    return np.select(
        [np.broadcast_to(condition, words.shape) for condition, _ in decisions],
        [np.uint64(number) for _, number in decisions],
        default=np.uint64(WordClass.OTHER),
    )


def extract(features: Sequence[Feature], objects: Objects) -> Words:
    """Vectors of these features, uint64 of shape (n, len(features)).

    A word that the object does not have is `MISSING_WORD` as raw word and MISSING as class.
    """
    import numpy as np  # late: a compilation has no use for it

    vectors = np.zeros((len(objects), len(features)), dtype=np.uint64)
    for column, feature in enumerate(features):
        if feature.kind is FeatureKind.SIZE:
            vectors[:, column] = objects.size
        elif feature.kind is FeatureKind.CACHE_FLAGS:
            vectors[:, column] = objects.cache_flags
        else:
            if feature.index < objects.words.shape[1]:
                words, present = objects.words[:, feature.index], objects.present[:, feature.index]
            else:
                words = np.zeros(len(objects), dtype=np.uint64)
                present = np.zeros(len(objects), dtype=np.bool_)
            vectors[:, column] = _of_word(feature.kind, words, present, objects)
    return vectors


def _of_word(kind: FeatureKind, words: Words, present: NDArray[np.bool_], objects: Objects) -> Words:
    """A feature of one word of every object."""
    import numpy as np  # late: a compilation has no use for it

    if kind is FeatureKind.WORD_CLASS:
        return classify_words(words, present, objects.address, objects.size, objects.layout)
    if kind is FeatureKind.SELF_OFFSET:
        distance = words - objects.address
        return np.where(present & (distance < objects.size), distance + np.uint64(1), np.uint64(0))
    known = np.where(present, words, np.uint64(MISSING_WORD))
    if kind is FeatureKind.WORD:
        return known
    half = known & np.uint64(2**32 - 1) if kind is FeatureKind.LOW else known >> np.uint64(32)
    capped: Words = np.minimum(half, np.uint64(HALF_CAP))
    return capped


def feature_set(name: str, words: int) -> tuple[Feature, ...]:
    """The features of a named set over the first `words` words of an object.

    `classes`: classes, offsets and halves of words, and size.  `raw`: raw words only, what the O2C paper uses.  `size`:
    size and cache flags only.  Raises KeyError for another name.

    `classes` leaves the cache's flags out: their numbers are those of one kernel version (include/linux/slab.h: macros in
    6.1, an enum whose order depends on the configuration in 6.12), and a tree that tests them is lost on another.
    """
    about = (Feature(FeatureKind.SIZE), Feature(FeatureKind.CACHE_FLAGS))
    kinds = (FeatureKind.WORD_CLASS, FeatureKind.SELF_OFFSET, FeatureKind.LOW, FeatureKind.HIGH)
    return {
        "classes": (about[0], *(Feature(kind, index) for kind in kinds for index in range(words))),
        "raw": tuple(Feature(FeatureKind.WORD, index) for index in range(words)),
        "size": about,
    }[name]
