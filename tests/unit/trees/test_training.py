# SPDX-License-Identifier: Apache-2.0
"""Training on made-up profiles: it learns, it holds out whole groups, and it refuses what teaches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from o2cc.diagnostics import DiagnosticError
from o2cc.trees.compile import compile_tree
from o2cc.trees.dataset import Profile, read_profiles, without_near_duplicates
from o2cc.trees.evaluate import evaluate, precision_lower_bound
from o2cc.trees.features import extract
from o2cc.trees.report import report_as_text, write_plots
from o2cc.trees.study import Study, study
from o2cc.trees.train import Options, Trained, fold_masks, quick_options, train
from o2cc.trees.tree import Leaf
from tests.unit.trees.synthetic_profiles import rows, write

QUICK = quick_options(Options())


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return read_profiles([write(tmp_path_factory.mktemp("profile") / "p.parquet", rows(4, 30))])


@pytest.fixture(scope="module")
def trained(profile: Profile) -> Trained:
    return train(profile, QUICK, ["p.parquet"])


def refusal(content: list[dict[str, Any]], tmp_path: Path, options: Options = QUICK) -> str:
    with pytest.raises(DiagnosticError) as problem:
        train(read_profiles([write(tmp_path / "p.parquet", content)]), options)
    return problem.value.diagnostics[0].code


def test_the_tree_knows_objects_of_a_boot_that_it_has_not_seen(trained: Trained, tmp_path: Path) -> None:
    fresh = read_profiles([write(tmp_path / "fresh.parquet", rows(1, 50, seed=99))])
    predicted = trained.tree.predict(extract(trained.tree.features, fresh.objects))
    names = np.array(trained.tree.classes)[predicted]
    assert (names == fresh.label).mean() > 0.9


def test_the_tree_keeps_the_budget_and_says_where_it_comes_from(trained: Trained) -> None:
    told: Mapping[str, Any] = trained.tree.provenance
    assert compile_tree(trained.tree).instruction_count < told["instructions"] <= QUICK.budget
    assert not set(told["boots_trained"]) & set(told["boots_held_out"])
    bounds = [node.bound for node in trained.tree.nodes if isinstance(node, Leaf)]
    assert all(bound is not None and 0 <= bound < 1 for bound in bounds)


@pytest.fixture(scope="module")
def report(trained: Trained) -> Study:
    return study(trained, own=frozenset({"sctp_chunk"}), least=1, seed=0, families=False)


def test_the_report_has_every_axis_and_the_baselines(trained: Trained, report: Study, tmp_path: Path) -> None:
    result = report
    for axis in ("boot", "workload", "kernel"):
        ours = result.entry("tree", axis).quality
        assert ours.macro_f1.low <= ours.macro_f1.value <= ours.macro_f1.high
        assert ours.macro_f1.value > result.entry("tree on size features", axis).quality.macro_f1.value
    text = "\n".join(report_as_text(trained, result))
    assert "sctp_chunk" in text
    assert "unsafe accepts" in text
    assert all(path.stat().st_size > 1000 for path in write_plots(result, tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_more_coverage_never_means_fewer_unsafe_accepts(trained: Trained) -> None:
    quality = (
        study(trained, own=frozenset({"inode"}), least=1, seed=0, families=False)
        .entry("tree", "boot")
        .quality
    )
    rates = [(point.coverage, point.unsafe_accepts, point.false_rejects) for point in quality.operating]
    assert rates == sorted(rates, reverse=True)


def test_folds_hold_out_whole_groups() -> None:
    groups = np.array([f"g{k % 7}" for k in range(100)], dtype=object)
    masks = fold_masks(groups, 3)
    assert (np.sum(masks, axis=0) == 1).all()
    for mask in masks:
        assert not set(groups[mask]) & set(groups[~mask])


def test_near_duplicates_count_once(profile: Profile) -> None:
    doubled = profile.take(np.concatenate([np.arange(len(profile)), np.arange(len(profile))]))
    once = without_near_duplicates(profile)
    assert len(without_near_duplicates(doubled)) == len(once)
    moved = profile.take(np.arange(len(profile)))
    moved.objects.words[moved.objects.words > 2**63] ^= np.uint64(
        8
    )  # pointers to other places of the same areas
    assert len(without_near_duplicates(moved)) == pytest.approx(len(once), rel=0.02)


def test_no_samples(tmp_path: Path) -> None:
    assert refusal([], tmp_path) == "O2C0721"


@pytest.mark.parametrize("label", ["", "\x1b[2Jinode"])
def test_a_label_that_cannot_be_printed(label: str, tmp_path: Path) -> None:
    """It would become a class of a tree that no reader takes."""
    content = [{**row, "label": label} for row in rows(2, 20)]
    assert refusal(content, tmp_path) == "O2C0720"


def test_one_class(tmp_path: Path) -> None:
    assert refusal(rows(3, 30, labels=("inode",)), tmp_path) == "O2C0722"


def test_classes_that_are_too_rare(tmp_path: Path) -> None:
    assert refusal(rows(2, 2), tmp_path) == "O2C0722"


def test_one_boot(tmp_path: Path) -> None:
    assert refusal(rows(1, 40), tmp_path) == "O2C0723"


def test_a_budget_that_nothing_fits(tmp_path: Path) -> None:
    tight = quick_options(Options(budget=3))
    assert refusal(rows(2, 40), tmp_path, tight) == "O2C0724"


def test_a_moment_that_was_not_sampled(tmp_path: Path) -> None:
    assert refusal(rows(2, 40), tmp_path, quick_options(Options(moment="alloc"))) == "O2C0721"


def test_a_rare_class_is_left_out_with_a_warning(tmp_path: Path) -> None:
    content = rows(2, 40, labels=("inode", "payload")) + rows(2, 1, labels=("socket",))
    outcome = train(read_profiles([write(tmp_path / "p.parquet", content)]), QUICK)
    assert "socket" not in outcome.tree.classes
    assert [d.code for d in outcome.warnings] == ["O2C0725"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row.update(moment="later"),
        lambda row: row.update(size=0),
        lambda row: row.update(words=[1] * 100),
        lambda row: row.update(label=None),
    ],
    ids=["moment", "no bytes", "more words than bytes", "no label"],
)
def test_values_that_make_no_sense(spoil: Any, tmp_path: Path) -> None:
    content = rows(2, 5)
    spoil(content[3])
    assert refusal(content, tmp_path) == "O2C0720"


def test_a_file_that_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"junk")
    pq.write_table(pa.table({"label": ["x"]}), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet", "none.parquet"):
        with pytest.raises(DiagnosticError, match="O2C0720"):
            read_profiles([tmp_path / name])


def test_words_that_were_not_read_are_no_features(tmp_path: Path) -> None:
    content = rows(2, 5)
    content[0]["words"] = content[0]["words"][:3]
    assert read_profiles([write(tmp_path / "p.parquet", content)]).words_known == 3


def test_macro_figures_are_over_classes_not_over_samples() -> None:
    true = np.array([0] * 98 + [1, 1])
    predicted = np.zeros(100, dtype=np.int64)
    ones = np.ones(100)
    quality = evaluate(true, predicted, ones, ones, np.array(["b"] * 100, dtype=object), ["common", "rare"])
    assert quality.accuracy == pytest.approx(0.98)
    assert quality.macro_recall.value == pytest.approx(0.5)
    assert quality.confusion == ((98, 0), (2, 0))


def test_the_lower_bound_of_precision() -> None:
    bounds = precision_lower_bound(np.array([0, 10, 100, 1000]), np.array([10, 10, 100, 1000]))
    assert bounds.tolist() == pytest.approx([0.0, 0.6915, 0.9638, 0.99632], abs=1e-4)
