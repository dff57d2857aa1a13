# SPDX-License-Identifier: Apache-2.0
"""A few objects of a real kernel: sample.parquet has up to three of each type and moment, recorded
in one boot of Debian's 6.1 under SCTP traffic (scripts/profile_guest.py)."""

from __future__ import annotations

from pathlib import Path

from o2cc.trees.dataset import Profile, read_profiles
from o2cc.trees.features import WordClass, extract
from o2cc.trees.tree import Feature, FeatureKind


def _sample() -> Profile:
    return read_profiles([Path(__file__).with_name("sample.parquet")])


def _classes(profile: Profile, label: str, word: int) -> set[int]:
    chosen = profile.take(profile.label == label)
    return set(map(int, extract((Feature(FeatureKind.WORD_CLASS, word),), chosen.objects)[:, 0]))


def test_an_association_points_to_its_socket_and_its_namespace() -> None:
    profile = _sample()
    assert _classes(profile, "sctp_association", 2) == {int(WordClass.DIRECT_MAP)}
    assert _classes(profile, "sctp_association", 3) == {int(WordClass.KERNEL_DATA)}


def test_structs_have_one_size() -> None:
    profile = _sample()
    for name in ("sctp_chunk", "sctp_transport", "sk_buff", "task_struct"):
        assert len(set(profile.objects.size[profile.label == name])) == 1, name
