# SPDX-License-Identifier: Apache-2.0
"""The draw of labelled sites for audits."""

from __future__ import annotations

from o2cc.profile.candidates import TypeFacts
from o2cc.profile.site_types import Site, SiteTable
from scripts.label_sample import Labelled, draw, of_table

THING = TypeFacts("thing", "struct", 40)


def _site(asked: int | None, payload: str = "") -> Site:
    return Site("kmalloc_trace", asked, False, payload, (THING,), (), (), ())


def test_a_table_gives_its_sites_of_known_type_and_payload_only() -> None:
    sites = {
        "a+0x1": _site(40),
        "b+0x1": _site(48),
        "c+0x1": _site(None),
        "d+0x1": _site(None, "memdup_user"),
    }
    assert list(of_table(SiteTable("6.1", "00", sites))) == [
        Labelled("6.1", "a+0x1", "thing", "debug", 40),
        Labelled("6.1", "d+0x1", "payload", "payload", 0),
    ]


def test_the_draw_depends_on_the_seed_alone_and_counts_a_site_once() -> None:
    population = [
        Labelled("6.1", f"f{n}+0x1", "thing", "debug", size) for n in range(50) for size in (40, 80)
    ]
    first = draw(population, 1, 10)
    assert first == draw(reversed(population), 1, 10)
    assert first != draw(population, 2, 10)
    everything = draw(population, 1, 1000)
    assert len(everything) == 50 == len({item.site for item in everything})
