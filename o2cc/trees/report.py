# SPDX-License-Identifier: Apache-2.0
"""The quality report as text and as plots.  `Study.as_json` is the third form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from o2cc.trees.evaluate import Quality
from o2cc.trees.study import Entry, Study
from o2cc.trees.train import Trained

CONFUSIONS_SHOWN = 10


def report_as_text(trained: Trained, study: Study) -> Iterator[str]:
    """Lines of the report."""
    tree, shape = trained.tree, trained.shape
    yield (
        f"tree: {len(tree.nodes)} nodes, depth {tree.depth}, {len(tree.used_features)} features, "
        f"{tree.provenance['instructions']} BPF instructions of {tree.provenance['budget']} allowed"
    )
    yield (
        f"chosen of {len(trained.candidates)} shapes: depth {shape.depth}, {shape.leaves} leaves, "
        f"{shape.features} features, pruning {shape.pruning:g}"
    )
    used = len(trained.samples.target)
    left_out = " and ".join(f"{count:,} {why}" for why, count in study.left_out)
    yield f"{used:,} samples of {used + sum(count for _, count in study.left_out):,}; left out: {left_out}"
    counts = np.bincount(trained.samples.target, minlength=len(study.classes))
    many = int((counts >= study.least).sum())
    yield (
        f"macro figures are means over classes of at least {study.least} samples in their line ({many} of the "
        f"{len(study.classes)} in all); accuracy counts every sample"
    )
    for gap in study.gaps:
        yield f"not studied: {gap}"
    yield ""
    yield f"{'model':<24}{'held out':<10}{'samples':<28}{'n':>7}  {'macro F1 (95% by boot)':<26}{'accuracy':>8}{'BPF':>8}"
    for entry in study.entries:
        f1 = entry.quality.macro_f1
        counted = any(c.samples >= study.least for c in entry.quality.classes)
        interval = f"{f1.value:.4f} ({f1.low:.4f} to {f1.high:.4f})" if counted else "no class counts"
        yield (
            f"{entry.model:<24}{entry.held_out:<10}{entry.samples:<28}{entry.quality.samples:>7}  {interval:<26}"
            f"{entry.quality.accuracy:>8.4f}{entry.instructions:>8}"
        )
    for entry in study.entries:
        if entry.model == "tree" and entry.samples == "all":
            yield ""
            yield f"the tree with each {entry.held_out} held out"
            yield from _details(entry.quality)


def _details(quality: Quality) -> Iterator[str]:
    yield f"  {'class':<40}{'samples':>8}{'precision':>11}{'recall':>9}{'F1':>9}"
    for c in quality.classes:
        yield f"  {c.name[:39]:<40}{c.samples:>8}{c.precision:>11.4f}{c.recall:>9.4f}{c.f1:>9.4f}"
    for name, points in (("bound", quality.operating), ("confidence", quality.by_confidence)):
        yield f"  {f'{name} at least':<22}{'coverage':>10}{'unsafe accepts':>16}{'false rejects':>15}"
        for point in points:
            yield (
                f"  {point.limit:<22}{point.coverage:>10.4f}{point.unsafe_accepts:>16.6f}"
                f"{point.false_rejects:>15.6f}"
            )
    yield f"  {'leaf confidence':<22}{'samples':>10}{'mean':>9}{'accuracy':>10}"
    for b in quality.calibration:
        yield f"  {f'{b.low:.1f} to {b.high:.1f}':<22}{b.samples:>10}{b.confidence:>9.4f}{b.accuracy:>10.4f}"
    confusions = worst_confusions(quality)
    if confusions:
        yield "  most frequent confusions"
        for count, true, called in confusions:
            yield f"  {count:>8}  {true} called {called}"


def worst_confusions(quality: Quality) -> list[tuple[int, str, str]]:
    """Most frequent errors as (count, true class, predicted class), most frequent first."""
    names = [c.name for c in quality.classes]
    errors = [
        (count, names[i], names[j])
        for i, row in enumerate(quality.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(errors, key=lambda e: (-e[0], e[1], e[2]))[:CONFUSIONS_SHOWN]


def write_plots(study: Study, directory: Path) -> tuple[Path, ...]:
    """Write one picture for each axis into an existing directory; returns their paths.

    A picture holds the confusion matrix, the calibration, and the rates of wrong decisions over coverage.
    """
    paths = []
    for entry in study.entries:
        if entry.model == "tree" and entry.samples == "all":
            path = directory / f"held-out-{entry.held_out}.svg"
            _plot(entry, path)
            paths.append(path)
    return tuple(paths)


def _plot(entry: Entry, path: Path) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    quality = entry.quality
    figure = Figure(figsize=(16, 5), layout="constrained")
    FigureCanvasSVG(figure)
    confusion, calibration, coverage = figure.subplots(1, 3)
    matrix = np.array(quality.confusion, dtype=np.float64)
    confusion.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    names = [c.name for c in quality.classes]
    if len(names) <= 40:
        confusion.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        confusion.set_yticks(range(len(names)), names, fontsize=6)
    confusion.set(xlabel="called", ylabel="true", title=f"confusion, each {entry.held_out} held out")
    calibration.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    calibration.plot(
        [b.confidence for b in quality.calibration], [b.accuracy for b in quality.calibration], "o-"
    )
    calibration.set(xlabel="confidence of the leaf", ylabel="share that is right", title="calibration")
    points = quality.operating
    coverage.plot(
        [p.coverage for p in points], [p.unsafe_accepts for p in points], "o-", label="unsafe accepts"
    )
    coverage.plot(
        [p.coverage for p in points], [p.false_rejects for p in points], "s-", label="false rejects"
    )
    coverage.set(xlabel="coverage", ylabel="rate", title="wrong decisions")
    coverage.legend()
    figure.savefig(path)
