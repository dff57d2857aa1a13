# SPDX-License-Identifier: Apache-2.0
"""Which type an object of a size has, among those that its allocation's result is used as."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2cc.kernel.btf import read_btf
from o2cc.profile.candidates import BtfTypes, Choice, TypeFacts, choose
from tests.unit.kernel.build import BtfWriter

ENTRY = TypeFacts("entry", "struct", 64, first=("list_head",))
LINK = TypeFacts("list_head", "struct", 16)
OTHER = TypeFacts("other", "struct", 64)
STRING = TypeFacts("string", "struct", 8, flexible=True)
WORD = TypeFacts("int64", "scalar", 8)
BYTE = TypeFacts("char", "scalar", 1)
PAGES = TypeFacts("struct page *", "pointer", 8)


@pytest.mark.parametrize(
    ("candidates", "size", "array", "expected"),
    [
        ([ENTRY, LINK], 64, False, Choice("entry")),
        ([LINK], 64, False, Choice(None)),  # a part of something larger
        ([LINK], 64, True, Choice("list_head[]")),
        ([LINK], 72, True, Choice(None)),
        ([LINK], 16, True, Choice("list_head")),
        ([ENTRY, OTHER], 64, False, Choice(None, ("entry", "other"))),
        ([ENTRY], 96, False, Choice(None)),  # room behind the struct, of which nothing is known
        ([STRING], 29, False, Choice("string")),
        ([STRING, BYTE], 29, False, Choice("string")),
        ([STRING, ENTRY], 96, False, Choice(None)),  # room behind the larger of two
        ([STRING], 32, True, Choice("string")),  # there are no arrays of what has no fixed size
        ([STRING, ENTRY], 64, False, Choice("entry")),
        ([ENTRY], 32, False, Choice(None)),  # smaller than the struct
        ([PAGES], 80, False, Choice("struct page *[]")),
        ([PAGES], 81, False, Choice(None)),
        ([PAGES, WORD], 80, False, Choice(None, ("int64[]", "struct page *[]"))),
        ([BYTE], 81, False, Choice("char[]")),
        ([LINK, BYTE], 81, False, Choice(None)),
        ([], 64, False, Choice(None)),
    ],
)
def test_the_size_decides(candidates: list[TypeFacts], size: int, array: bool, expected: Choice) -> None:
    assert choose(candidates, size, 0, array=array) == expected


def test_a_cache_that_is_shared_may_have_larger_objects() -> None:
    assert choose([ENTRY], 68, 0, array=False) == Choice(None)
    assert choose([ENTRY], 68, 7, array=False) == Choice("entry")
    assert choose([ENTRY], 72, 7, array=False) == Choice(None)


FACTS = st.builds(
    TypeFacts,
    name=st.sampled_from("abcdef"),
    kind=st.sampled_from(["struct", "union", "scalar", "pointer"]),
    size=st.sampled_from([0, 1, 4, 8, 16, 24, 64]),
    flexible=st.booleans(),
    first=st.lists(st.sampled_from("abcdef"), max_size=2).map(tuple),
)


@given(st.lists(FACTS, max_size=5), st.integers(1, 256), st.booleans())
def test_no_struct_is_accepted_for_an_object_of_another_size(
    candidates: list[TypeFacts], size: int, array: bool
) -> None:
    choice = choose(candidates, size, 0, array=array)
    if choice.name is None:
        return
    base = choice.name.removesuffix("[]")
    named = [item for item in candidates if item.name == base]
    if choice.name.endswith("[]"):
        assert any(item.size and size % item.size == 0 for item in named)
        assert array or all(
            item.kind in ("scalar", "pointer") for item in named if item.size and size % item.size == 0
        )
    else:
        assert any(item.size == size or (item.flexible and item.size <= size) for item in named)


@given(st.lists(FACTS, max_size=5), st.integers(1, 256), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(
    candidates: list[TypeFacts], size: int, array: bool, random: Random
) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)
    unique = {item.name for item in candidates}
    if len(unique) == len(candidates):  # one type has one name
        first, second = choose(candidates, size, 0, array=array), choose(shuffled, size, 0, array=array)
        assert first.conflict == second.conflict
        assert (first.name is None) == (second.name is None)


def test_what_btf_says_of_types() -> None:
    writer = BtfWriter()
    byte = writer.integer("char", 1)
    word = writer.integer("long", 8)
    link = writer.struct("list_head", 16, [("next", word, 0), ("prev", word, 64)])
    page = writer.struct("page", 64, [])
    pages = writer.pointer(writer.pointer(page))
    entry = writer.struct(
        "entry", 40, [("list", link, 0), ("owner", writer.pointer(page), 128), ("pages", pages, 192)]
    )
    tail = writer.struct("tail", 8, [("count", word, 0), ("data", writer.array(byte, 0), 64)])
    both = writer.struct(
        "either", 8, [("a", writer.pointer(page), 0), ("b", writer.pointer(link), 0)], union=True
    )
    same = writer.struct(
        "same", 8, [("a", writer.pointer(page), 0), ("b", writer.pointer(page), 0)], union=True
    )
    types = BtfTypes(read_btf(writer.bytes(), "made"), True)
    assert types.facts(entry) == TypeFacts("entry", "struct", 40, first=("list_head",))
    assert types.facts(tail) == TypeFacts("tail", "struct", 8, flexible=True)
    owner, unknown, inside = types.field(entry, 16), types.field(entry, 20), types.field(both, 0)
    assert owner is not None
    assert types.pointee_id(owner) == page
    assert unknown is None, "in the middle of a field"
    assert inside is None, "fields of two types at one place"
    agreed = types.field(same, 0)
    assert agreed is not None
    assert types.pointee_id(agreed) == page
    held = types.field(entry, 24)
    assert held is not None
    target = types.pointee_id(held)
    assert target is not None
    assert types.facts(target) == TypeFacts("struct page *", "pointer", 8)


def test_structs_by_value_do_not_shift_the_arguments_that_follow() -> None:
    writer = BtfWriter()
    pair = writer.struct("pair", 16, [])
    pointer = writer.pointer(pair)
    writer.function("by_value", writer.prototype(0, [("p", pair), ("q", pointer)]))
    writer.function("simple", writer.prototype(pointer, [("q", pointer)]))
    types = BtfTypes(read_btf(writer.bytes(), "made"), True)
    assert types.prototype("by_value") is None
    assert types.prototype("simple") == ((pointer,), pointer)
    assert types.prototype("simple.isra.0") is None, "the compiler changed its arguments"
    assert types.prototype("absent") is None
