# SPDX-License-Identifier: Apache-2.0
"""The quality report of a trained tree: held-out boots, workloads and kernels, baselines, other families."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2cc.trees.dataset import MOMENTS
from o2cc.trees.evaluate import Quality, evaluate
from o2cc.trees.families import FamilyResult, run_forest, run_linear, run_network, run_tree
from o2cc.trees.features import extract, feature_set
from o2cc.trees.importer import import_estimator
from o2cc.trees.lower import estimated_instructions
from o2cc.trees.train import AXES, Samples, Trained, balanced_part, fit_with_bounds, fold_masks

MOST_FOLDS = 5
FAMILY_FOLDS = 3
FAMILY_ROWS = 3000
"""Held-out parts and most training samples of the other families: they need far more time than a tree."""


@dataclass(frozen=True)
class Entry:
    """One line of the report: a model, what was held out, which samples, how it did."""

    model: str
    held_out: str
    samples: str
    quality: Quality
    instructions: int


@dataclass(frozen=True)
class Study:
    """All lines, and what could not be studied, in words.  ``least``: fewest samples of a class that counts in macro figures;
    ``left_out``: samples that the profiles hold and that were not used, by why."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    gaps: tuple[str, ...]
    least: int
    left_out: tuple[tuple[str, int], ...]

    def entry(self, model: str, held_out: str, samples: str = "all") -> Entry:
        """The line of this model; KeyError when there is none."""
        for entry in self.entries:
            if (entry.model, entry.held_out, entry.samples) == (model, held_out, samples):
                return entry
        raise KeyError((model, held_out, samples))

    def as_json(self) -> dict[str, object]:
        """In JSON types."""
        return {
            "classes": list(self.classes),
            "gaps": list(self.gaps),
            "macro_least": self.least,
            "left_out": dict(self.left_out),
            "entries": [
                {
                    **asdict(entry),
                    "per_class": [
                        {"class": c.name, "precision": c.precision, "recall": c.recall, "f1": c.f1}
                        for c in entry.quality.classes
                    ],
                }
                for entry in self.entries
            ],
        }


def with_feature_set(samples: Samples, name: str) -> Samples:
    """The same samples seen through another set of features."""
    features = feature_set(name, samples.profile.words_known)
    return replace(samples, features=features, vectors=extract(features, samples.profile.objects))


def study(trained: Trained, *, own: frozenset[str], least: int, seed: int, families: bool) -> Study:
    """Every model on every axis that has two groups or more; other families on held-out boots only."""
    entries: list[Entry] = []
    gaps: list[str] = []
    models: list[tuple[str, Samples]] = [("tree", trained.samples)]
    for baseline in ("raw", "size"):
        if baseline == "raw" and not trained.samples.profile.words_known:
            gaps.append("no baseline on raw words: the profiles hold none")
        else:
            models.append((f"tree on {baseline} features", with_feature_set(trained.samples, baseline)))
    for axis in AXES:
        masks = fold_masks(getattr(trained.samples.profile, axis), MOST_FOLDS)
        if len(masks) < 2:
            gaps.append(f"nothing held out by {axis}: all samples are of one {axis}")
            continue
        for name, samples in models:
            result = _held_out(samples, masks, lambda train, test: _run_tree(train, test, trained, seed))
            entries += _entries(name, axis, samples, result, own, least, seed)
        if families and axis == "boot":
            if len(trained.samples.target) > FAMILY_ROWS:
                gaps.append(
                    f"other families trained on more than {FAMILY_ROWS:,} samples, which takes too long"
                )
            family_masks = fold_masks(trained.samples.profile.boot, FAMILY_FOLDS)
            for name, run in _family_runs(trained, seed):
                result = _held_out(trained.samples, family_masks, run)
                entries += _entries(name, axis, trained.samples, result, own, least, seed)
    return Study(tuple(entries), trained.samples.classes, tuple(gaps), least, trained.samples.left_out)


def _run_tree(train: Samples, test: Samples, trained: Trained, seed: int) -> FamilyResult:
    """As `train` makes its tree: some of the boots only give the leaves their bounds."""
    tree = fit_with_bounds(train, trained.shape, seed)
    return run_tree(tree, test.vectors, estimated_instructions(tree))


def _family_runs(trained: Trained, seed: int) -> Iterator[tuple[str, Any]]:
    def cost_of_tree(tree: Any) -> int:
        return estimated_instructions(import_estimator(tree, "forest", trained.samples.features).tree)

    def forest(train: Samples, test: Samples) -> FamilyResult:
        part = balanced_part(train, FAMILY_ROWS, seed)
        return run_forest(part.vectors, part.target, test.vectors, cost_of_tree, trained.shape.depth, seed)

    def linear(train: Samples, test: Samples) -> FamilyResult:
        part = balanced_part(train, FAMILY_ROWS, seed)
        return run_linear(part.features, part.vectors, part.target, test.vectors, seed)

    def network(train: Samples, test: Samples) -> FamilyResult:
        part = balanced_part(train, FAMILY_ROWS, seed)
        return run_network(part.features, part.vectors, part.target, test.vectors, seed)

    yield from (("random forest", forest), ("linear", linear), ("neural net", network))


def _held_out(samples: Samples, masks: list[NDArray[np.bool_]], run: Any) -> FamilyResult:
    """Predictions for every row, each made by a model that has not seen its group."""
    predicted = np.zeros(len(samples.target), dtype=np.int64)
    confidence, trust = np.zeros(len(samples.target)), np.zeros(len(samples.target))
    cost = 0
    for mask in masks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # models that did not converge are judged by their quality
            part = run(samples.take(~mask), samples.take(mask))
        predicted[mask], confidence[mask], trust[mask] = part.predicted, part.confidence, part.trust
        cost = max(cost, part.instructions)
    return FamilyResult(predicted, confidence, trust, cost)


def _entries(
    model: str, axis: str, samples: Samples, result: FamilyResult, own: frozenset[str], least: int, seed: int
) -> Iterator[Entry]:
    profile = samples.profile
    slices: list[tuple[str, NDArray[np.bool_]]] = [("all", np.ones(len(profile), dtype=np.bool_))]
    general = profile.in_general_cache
    slices += [("general caches", general), ("dedicated caches", ~general)]
    for moment in MOMENTS:
        at = profile.moment == moment
        slices += [(f"at {moment}", at), (f"at {moment}, general caches", at & general)]
    for name, rows in slices:
        if not rows.any() or (name != "all" and rows.all()):
            continue
        quality = evaluate(
            samples.target[rows],
            result.predicted[rows],
            result.confidence[rows],
            result.trust[rows],
            profile.boot[rows],
            samples.classes,
            own=own,
            least=least,
            seed=seed,
        )
        yield Entry(model, axis, name, quality, result.instructions)
