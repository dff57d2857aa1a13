# SPDX-License-Identifier: Apache-2.0
"""Labels of samples, and the file that they are written to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from o2cc.profile.candidates import TypeFacts
from o2cc.profile.labels import Label, Labeller, TextSymbols, share
from o2cc.profile.samples import RECORD, Sample, decode
from o2cc.profile.site_types import Site, SiteTable, bundled_sites
from o2cc.profile.write import at_most_per_class, profile_rows, write_profile
from o2cc.trees.dataset import read_profiles
from o2cc.trees.features import Layout

SYMBOLS = """\
ffffffff81000100 T alloc_thing
ffffffff81000200 t load_msg.isra.0
ffffffff81000300 T helper
ffffffff81000400 D data
ffffffffc0000100 t sctp_add_bind_addr\t[sctp]
""".splitlines()

KMALLOC = Sample("free", 0xFFFFFFFF81000180, 64, 0xFF11000000001000, 0, "kmalloc-64", 64, 0, 1, (0,) * 8)
SIZES = {"thing": 64, "sctp_sockaddr_entry": 240, "vm_area_struct": 200, "sk_buff": 232}


class FakeTypes:
    """BTF of which the tests say what it tells."""

    def size(self, struct: str, module: str) -> int | None:
        return SIZES.get(struct)

    def result(self, function: str, module: str) -> str | None:
        return {"alloc_thing": "thing"}.get(function)


def label(sample: Sample) -> Label:
    return Labeller(TextSymbols(SYMBOLS), FakeTypes()).label(sample)


def test_the_result_of_the_allocating_function_is_the_type() -> None:
    assert label(KMALLOC) == Label("thing", "result")


def test_another_size_than_the_results_is_only_a_site() -> None:
    assert label(replace(KMALLOC, asked=56)) == Label("site:alloc_thing/64", "site")


def test_a_return_address_at_the_end_belongs_to_the_function_before_it() -> None:
    assert label(replace(KMALLOC, site=0xFFFFFFFF81000200)) == Label("thing", "result")


def test_messages_are_payload_whatever_suffix_the_compiler_gave() -> None:
    assert label(replace(KMALLOC, site=0xFFFFFFFF81000210)) == Label("payload", "payload")


@pytest.mark.parametrize(
    ("cache", "references", "expected"),
    [
        ("vm_area_struct", 1, Label("vm_area_struct", "cache")),
        ("vm_area_struct", 2, Label("site:helper/200", "site")),
        ("skbuff_head_cache", 1, Label("sk_buff", "cache")),
        ("names_cache", 1, Label("payload", "payload")),
        ("unheard_of", 1, Label("site:helper/200", "site")),
    ],
)
def test_an_unmerged_cache_of_its_own_tells_the_type(cache: str, references: int, expected: Label) -> None:
    sample = replace(KMALLOC, site=0xFFFFFFFF81000310, asked=0, cache=cache, size=200, references=references)
    assert label(sample) == expected


def test_an_allocator_of_the_table_in_a_merged_cache() -> None:
    sample = replace(KMALLOC, site=0xFFFFFFFFC0000180, asked=0, cache="anything", size=240, references=3)
    assert label(sample) == Label("sctp_sockaddr_entry", "table")
    assert label(replace(sample, size=256)).evidence == "site"


def _site(debug: list[TypeFacts], payload: str = "") -> Site:
    return Site("kmalloc_trace", None, False, payload, tuple(debug), (), (), ())


@pytest.mark.parametrize(
    ("site", "changes", "expected"),
    [
        (_site([TypeFacts("other", "struct", 64)]), {}, Label("other", "debug")),
        (_site([TypeFacts("other", "struct", 64)]), {"asked": 60}, Label("site:helper/64", "site")),
        (
            _site([TypeFacts("one", "struct", 64), TypeFacts("two", "struct", 64)]),
            {},
            Label("site:helper/64", "conflict"),
        ),
        (_site([TypeFacts("other", "struct", 64)], "_copy_from_user"), {}, Label("payload", "payload")),
        # a cache of its own, or one that others share and that has a little larger objects
        (
            _site([TypeFacts("other", "struct", 60)]),
            {"asked": 0, "cache": "x"},
            Label("site:helper/64", "site"),
        ),
        (
            _site([TypeFacts("other", "struct", 60)]),
            {"asked": 0, "cache": "x", "references": 2},
            Label("other", "debug"),
        ),
        (
            _site([TypeFacts("other", "struct", 200)]),
            {"asked": 0, "cache": "vm_area_struct", "size": 200},
            Label("vm_area_struct", "cache"),
        ),
    ],
)
def test_what_the_table_of_sites_says(site: Site, changes: dict[str, Any], expected: Label) -> None:
    table = SiteTable("6.1.0", "", {"helper+0x10": site})
    sample = replace(KMALLOC, site=0xFFFFFFFF81000310, **changes)
    labeller = Labeller(TextSymbols(SYMBOLS), FakeTypes(), table)
    found = labeller.label(sample)
    assert found == expected
    assert found.is_type == (not found.name.startswith("site:"))


def test_what_a_cache_was_created_for_counts_not_the_size_in_a_cache_that_is_shared() -> None:
    site = replace(_site([TypeFacts("other", "struct", 232)]), asked=232)
    labeller = Labeller(TextSymbols(SYMBOLS), FakeTypes(), SiteTable("", "", {"helper+0x10": site}))
    shared = replace(KMALLOC, site=0xFFFFFFFF81000310, asked=0, cache="maple_node", size=256, references=6)
    assert labeller.label(shared) == Label("other", "debug")


def test_sites_of_a_module_have_its_name() -> None:
    table = SiteTable(
        "6.1.0", "", {"sctp:sctp_add_bind_addr+0x80": _site([TypeFacts("other", "struct", 64)])}
    )
    labeller = Labeller(TextSymbols(SYMBOLS), FakeTypes(), table)
    assert labeller.label(replace(KMALLOC, site=0xFFFFFFFFC0000180)) == Label("other", "debug")


def test_the_head_of_a_packet_is_no_payload_but_its_data_are() -> None:
    symbols = TextSymbols(["ffffffff81000100 T __alloc_skb"])
    labeller = Labeller(symbols, FakeTypes())
    assert labeller.label(KMALLOC) == Label("payload", "payload")
    head = replace(KMALLOC, asked=0, cache="skbuff_fclone_cache", references=2)
    assert labeller.label(head).evidence == "site"


@pytest.mark.parametrize("release", ["6.1.0-57-amd64", "6.12.117+deb12-amd64"])
def test_the_tables_that_come_with_the_package_know_sctp(release: str) -> None:
    assert bundled_sites(release, "another build") is None
    directory = Path(__file__).parents[3] / "descriptions" / release
    table = SiteTable.from_bytes((directory / "allocations.json.xz").read_bytes())
    assert bundled_sites(release, table.build_id) == table
    sites = {name.partition("+")[0]: site for name, site in table.sites.items()}
    for name, size, expected in (
        ("sctp:sctp_association_new", 2112, "sctp_association"),
        ("sctp:sctp_chunkify", 256, "sctp_chunk"),
        ("sctp:sctp_stream_init_ext", 88, "sctp_stream_out_ext"),
    ):
        assert sites[name].choose(size, 0)[0].name == expected
    assert sites["sctp:sctp_make_abort_user"].payload
    assert "sctp:sctp_setsockopt" not in sites, "its copy of user memory has its caller for a site"


def test_an_unknown_site_has_a_label_too() -> None:
    assert label(replace(KMALLOC, site=5)) == Label("site:unknown/64", "site")


def test_records_without_a_size_are_no_samples() -> None:
    assert decode(RECORD.pack(*([0] * 43))) is None
    assert decode(RECORD.pack(2, 1, 0, 8, 8, 0, *([0] * 37))) is None
    sample = decode(RECORD.pack(2, 1, 0, 8, 8, 20, *([0] * 37)))
    assert sample is not None
    assert sample.words == (0, 0), "only whole words of the object"


def test_a_class_has_at_most_its_limit_at_each_moment() -> None:
    samples = [KMALLOC] * 5 + [replace(KMALLOC, moment="access")] * 2
    labels = [Label("thing", "result")] * 7
    kept, kept_labels = at_most_per_class(samples, labels, 3)
    assert [sample.moment for sample in kept] == ["free"] * 3 + ["access"] * 2
    assert len(kept_labels) == 5


def test_the_share_of_what_has_a_type() -> None:
    samples = [KMALLOC, KMALLOC, replace(KMALLOC, site=1)]
    result = share(samples, [Label("thing", "result")] * 2 + [Label("site:x/64", "site")])
    assert (result.typed_sites, result.sites, result.typed_samples, result.samples) == (1, 2, 2, 3)


def test_a_profile_is_what_training_reads(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    layout = Layout(*range(17))
    samples = [replace(KMALLOC, words=tuple(range(8))), replace(KMALLOC, moment="access")]
    rows = profile_rows(
        samples,
        [Label("thing", "result")] * 2,
        kernel="6.1.0",
        boot="b",
        workload="w",
        layout=layout,
    )
    write_profile(path, rows)
    profile = read_profiles([path])
    assert list(profile.label) == ["thing", "thing"]
    assert list(profile.evidence) == ["result", "result"]
    assert list(profile.moment) == ["free", "access"]
    assert profile.objects.words[0].tolist() == list(range(8))
    assert profile.objects.layout[0].tolist() == list(range(17))
