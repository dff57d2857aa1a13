# SPDX-License-Identifier: Apache-2.0
"""The counts by which frees of unknown memory are told: never below what is known, and back at zero with the last of it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.simulation.world import PAGE, PAGE_OFFSET, USER, VMALLOC, VMEMMAP
from tests.unit.lower.confined import HELD, LENT, OWN, TRANSITION, TYPED, Confined, confined, sctp

_OBJECTS, _PAGES = "known_objects", "known_pages"
_STRUCT_PAGE = sctp().kernel.sizes["page"]
_FIRST_FRAME = 4096  # of the memory outside slabs, away from the world's objects


def _kernel() -> Confined:
    kernel = confined()
    kernel.store(USER)  # reads where the direct map begins, as the first check of all does
    return kernel


def _page(kernel: Confined, frame: int) -> int:
    """A page that is no slab; its address."""
    memory, fields = kernel.world.machine.memory, sctp().kernel.fields
    head = VMEMMAP + frame * _STRUCT_PAGE
    memory.write(head, bytes(_STRUCT_PAGE))
    memory.write_word(head + fields["page._mapcount"].offset, 0xFFFFFFFF, 4)
    return PAGE_OFFSET + frame * PAGE


def _counts(kernel: Confined, table: str) -> Counter[int]:
    rows = kernel.world.machine.tables[table].rows
    return Counter({row: count for row, (count,) in rows.items() if count})


def _entries(kernel: Confined) -> tuple[Counter[int], Counter[int]]:
    """How many entries each row of the two tables stands for."""
    maps = kernel.world.machine.maps
    objects, pages = Counter[int](), Counter[int]()
    for name in ("objects", "auditions"):
        objects.update(kernel.call("object_row", *key) for key in maps[name].entries)
    pages.update(kernel.call("page_row", *key) for key in maps["ranges"].entries)
    for (base,), entry in maps["untracked"].snapshot().items():
        if entry["cache"]:
            objects[kernel.call("object_row", base)] += 1
        else:
            pages[kernel.call("page_row", base >> 12)] += 1
    return objects, pages


def _agree(kernel: Confined) -> None:
    objects, pages = _entries(kernel)
    assert _counts(kernel, _OBJECTS) == objects
    assert _counts(kernel, _PAGES) == pages


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["own", "hold", "type", "lend", "lose", "touch", "kfree", "cache_free", "bulk", "page", "pages"]
        ),
        st.integers(0, 5),
        st.integers(0, 2),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(_STEPS)
def test_counts_are_those_of_the_entries_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    """Catches a count that goes down twice, or not up: a free of known memory would pass unseen then, and the next owner's
    memory stay the compartment's."""
    kernel = _kernel()
    kernel.phase(TRANSITION)
    slabs = [kernel.object(size) for size in (64, 256, 4096)]
    places = [
        *slabs,
        *(_page(kernel, frame) for frame in (2, 6, _FIRST_FRAME)),
    ]  # 2 and 6: in one block with the objects
    flags = {"own": OWN, "hold": HELD, "type": TYPED, "lend": HELD | LENT}
    for step, which, extra in steps:
        place = places[which]
        head = VMEMMAP + (place - PAGE_OFFSET) // PAGE * _STRUCT_PAGE
        if step in flags:
            kernel.call("gain", place + 8 * extra * (step == "lend"), (24, 64, 5000)[extra], flags[step], 0)
        elif step == "lose":
            kernel.call("lose", place)
        elif step == "touch":
            kernel.store(place + 8 * extra)
        elif step == "kfree":
            kernel.hook("o2c_kfree", 0, place)
        elif step == "cache_free":
            kernel.hook("o2c_cache_free", 0, place, 0)
        elif step == "bulk":
            listed = kernel.world.user_memory(16)
            kernel.world.machine.memory.write_word(listed, place)
            kernel.hook("o2c_bulk_free", registers={"rsi": 1, "rdx": listed})
        elif step == "page":
            kernel.hook("o2c_page_free", head, 0)
        else:
            kernel.hook("o2c_page_free", head, 2 + extra)
        _agree(kernel)
    for place in places:
        kernel.hook("o2c_kfree", 0, place)
        kernel.hook("o2c_page_free", VMEMMAP + (place - PAGE_OFFSET) // PAGE * _STRUCT_PAGE, 4)
    _agree(kernel)
    for place in places:
        assert (place,) not in kernel.world.machine.maps["objects"].entries
        assert (place >> 12,) not in kernel.world.machine.maps["ranges"].entries


def test_a_full_map_counts_nothing() -> None:
    """Catches a count that rises with each attempt when there is no room, until frees cost again what they did."""
    kernel = _kernel()
    objects = kernel.world.machine.maps["objects"]
    for number in range(objects.definition.capacity):
        objects.update((number,), (0,) * len(objects.definition.fields))
    assert kernel.call("gain", kernel.world.slab_object(64), 64, OWN, 0) == 0
    assert _counts(kernel, _OBJECTS) == Counter()


@pytest.mark.parametrize("order", range(11))
def test_freed_blocks_of_every_order_are_forgotten_to_their_last_page(order: int) -> None:
    """Catches lent parts of large blocks, where nothing else is known of the block: they can be somebody else's next."""
    kernel = _kernel()
    head = VMEMMAP + _FIRST_FRAME * _STRUCT_PAGE
    behind = _page(kernel, _FIRST_FRAME + (1 << order)) + 64
    for number in sorted({0, (1 << order) // 2, (1 << order) - 1}):
        part = _page(kernel, _FIRST_FRAME + number) + 64
        assert kernel.call("gain", part, 128, OWN, 0) == 1
        assert kernel.store(part) == "allow"
        kernel.hook("o2c_page_free", head, order)
        assert kernel.store(part) == "deny"
    assert kernel.call("gain", behind, 128, OWN, 0) == 1
    kernel.hook("o2c_page_free", head, order)
    assert kernel.store(behind) == "allow"


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("o2c_kfree", (0, PAGE_OFFSET + 64)),
        ("o2c_cache_free", (0, PAGE_OFFSET + 64, 0)),
        ("o2c_page_free", (VMEMMAP + _FIRST_FRAME * _STRUCT_PAGE, 3)),
    ],
)
def test_a_free_of_what_nobody_knows_asks_no_map(
    hook: str, arguments: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches hooks that cost the whole system more than a load."""
    kernel = _kernel()
    asked: list[str] = []

    class Watched(dict[str, object]):
        def __getitem__(self, name: str) -> object:
            asked.append(name)
            return super().__getitem__(name)

    assert kernel.call("gain", kernel.world.slab_object(64), 64, OWN, 0) == 1
    monkeypatch.setattr(kernel.world.machine, "maps", Watched(kernel.world.machine.maps))
    kernel.hook(hook, *arguments)
    assert asked == []


def test_ranges_outside_the_direct_map_are_counted_as_long_as_they_are_there() -> None:
    """Catches a count by what `page_offset` was before it was known."""
    kernel = _kernel()
    assert kernel.call("gain", VMALLOC + 3 * PAGE, 256, OWN, 0) == 1
    _agree(kernel)
    kernel.call("forget", VMALLOC + 3 * PAGE)
    _agree(kernel)
