# SPDX-License-Identifier: Apache-2.0
"""The descriptions that travel with the package: they can be read, and what they say holds together."""

from pathlib import Path

import pytest

from o2cc.kernel import codec, store
from o2cc.kernel.description import Description, Site
from o2cc.kernel.summary import summarize
from o2cc.resources import resource_directory

FILES = sorted(resource_directory("descriptions").glob("*/*.o2k"))


@pytest.fixture(scope="module", params=FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def described(request: pytest.FixtureRequest) -> tuple[Path, Description]:
    return request.param, store.load(request.param)


def test_all_targets_are_there_for_both_series() -> None:
    for series in ("6.1.", "6.12."):
        names = {path.stem for path in FILES if path.parent.name.startswith(series)}
        assert names >= {"sctp", "nf_tables", "cls_route", "ip6_output"}


def test_lookup() -> None:
    found = store.bundled("sctp")
    assert [path.parent.name for path in found] == sorted(
        (path.parent.name for path in found), key=store.release_key, reverse=True
    )
    assert store.bundled("sctp", found[0].parent.name) == found[:1]
    assert store.bundled("no_such_target") == []


def test_names_and_bytes(described: tuple[Path, Description]) -> None:
    path, description = described
    assert (description.release, description.target.name) == (path.parent.name, path.stem)
    # The header has length and checksum of the text; the compressor's version may differ.
    assert codec.encode(description)[:14] == path.read_bytes()[:14]


def test_blocks_sites_and_probes(described: tuple[Path, Description]) -> None:
    _, description = described
    for function in description.functions:
        starts = {block.start for block in function.blocks}
        for block in function.blocks:
            assert 0 <= block.start < block.end <= function.size
            assert set(block.successors) <= starts
            for name, offset in block.jumps:
                assert 0 <= offset < description.function_by_name[name].size
        ends = [0, *(block.end for block in function.blocks)]
        assert all(end <= block.start for end, block in zip(ends, function.blocks, strict=False))
        assert [site.offset for site in function.sites] == sorted({site.offset for site in function.sites})
        for site in function.sites:
            block = next(item for item in function.blocks if item.start <= site.offset < item.end)
            for probe in (site.probe, site.earlier):
                if probe is not None and probe.offset is not None:
                    assert block.start <= probe.offset <= site.offset
                    assert 0 < probe.length <= 15
            if site.probe.offset is None:
                assert site.probe.reason


def test_values(described: tuple[Path, Description]) -> None:
    _, description = described
    for function in description.functions:
        owner = description.function_by_name[function.parent] if function.parent else function
        for site in function.sites:
            if site.value is not None:
                assert owner.values[site.value] == site.value_source
            for argument in site.arguments:
                assert argument is None or owner.values[argument.value] == argument.source
        for number, source in enumerate(owner.values):
            assert source.value is None or source.value < number


def test_frames(described: tuple[Path, Description]) -> None:
    _, description = described
    for function in description.functions:
        for site in function.sites:
            if site.frame_offset is not None and site.frame_range is not None:
                assert site.frame_range[0] == site.frame_offset
            if site.kind == "return" and not function.problems:
                assert site.stack_height == 0, (function.name, hex(site.offset))
        # Saved registers lie below the return address, each once.
        assert all(offset < 0 and offset % 8 == 0 for _, offset in function.saved)
        assert len({register for register, _ in function.saved}) == len(function.saved)


def test_types_and_kernel(described: tuple[Path, Description]) -> None:
    _, description = described
    kernel = description.kernel
    for name in (
        "page.compound_head",
        "slab.slab_cache",
        "kmem_cache.size",
        "task_struct.comm",
        "sk_buff.head",
    ):
        assert name in kernel.fields
    assert kernel.sizes["page"] == 64
    assert kernel.constants["thread_size"] == 16384
    assert {"page_offset_base", "vmemmap_base", "vmalloc_base"} <= kernel.symbols
    assert ("PG_slab" in kernel.enums) != ("PGTY_slab" in kernel.enums)
    for struct, path in (("sock", "sk_err"), ("net", "ipv4"), ("sk_buff", "data"), ("list_head", "next")):
        assert description.types.find_field(struct, path) is not None
    (iterators,) = (dict(enum.values) for enum in description.types.enums if enum.name == "iter_type")
    assert iterators["ITER_UBUF"] == (6 if description.release.startswith("6.1.") else 0)
    for item in description.types.structs:
        for member in item.members:
            assert (
                member.offset_bits + 8 * member.type.size <= 8 * item.size
                or member.bitfield_size
                or not item.size
            )


def test_sections_have_anchors_where_data_is_written(described: tuple[Path, Description]) -> None:
    _, description = described
    for function in description.functions:
        for site in function.sites:
            static = site.operand.static if site.writes and site.operand is not None else None
            if static is not None and static.section is not None:
                section = description.section_by_name[static.section]
                assert section.writable
                assert static.offset < section.size


def test_sctp_in_figures() -> None:
    """Near what was measured on another build of 6.1: 739 functions, 57,215 instructions, 177 indirect calls."""
    summary = summarize(store.load(store.bundled("sctp")[-1]))
    assert 700 < summary.functions + summary.cold_parts < 780
    assert 55_000 < summary.instructions < 61_000
    assert 170 < summary.kinds["indirect_call"] < 200
    assert 3_800 < summary.stores_by_place["pointer"] < 4_200
    assert summary.problems == 0
    pointer_writes = summary.stores_by_place["pointer"]
    assert 0.7 < summary.pointer_stores_optimizable / pointer_writes < 0.95


def test_every_write_has_an_operand() -> None:
    sites: list[Site] = [
        site for path in FILES for function in store.load(path).functions for site in function.sites
    ]
    assert all(site.operand is not None and site.operand.is_memory for site in sites if site.writes)
    assert all(site.size > 0 for site in sites if site.writes)
