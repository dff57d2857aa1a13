# SPDX-License-Identifier: Apache-2.0
"""Training: from profiles to an exact integer tree whose size, depth and features fit a budget.

Samples are split by groups only (boots, workloads, kernels), never at random: objects of one boot share
addresses, and a random split would ask the tree about what it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2cc import __version__
from o2cc.diagnostics import Diagnostic, DiagnosticError, error, warning
from o2cc.trees.dataset import Profile, without_near_duplicates
from o2cc.trees.decoys import decoys, misfits
from o2cc.trees.evaluate import precision_lower_bound
from o2cc.trees.features import extract, feature_set
from o2cc.trees.importer import Imported, import_estimator, tree_from_arrays
from o2cc.trees.lower import estimated_instructions
from o2cc.trees.tree import Feature, IntegerTree, Leaf, Test, Words

AXES = ("boot", "workload", "kernel")
"""What is left out in turn to see how a tree does on what it has not seen."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to train.

    `budget` is the most BPF instructions of the tree in a policy, features included; `least` the fewest samples of a class that is
    trained at all; `moment` one of alloc, access, free or all; `features` a set of `feature_set`; `search_rows` the
    most samples that a shape is tried on, the final tree is fitted on all.  `guarded` names types, the
    compartment's own above all, of which no single feature shall convince the tree (`o2cc.trees.decoys`); those that are no
    class are passed over.
    """

    features: str = "classes"
    moment: str = "all"
    budget: int = 4096
    least: int = 10
    seed: int = 0
    depths: tuple[int, ...] = (6, 10, 16, 24)
    leaves: tuple[int, ...] = (32, 128, 512)
    feature_counts: tuple[int, ...] = (16, 64)
    pruning: tuple[float, ...] = (0.0, 1e-4)
    folds: int = 5
    search_rows: int = 8000
    guarded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """One choice of the search: limits that scikit-learn's tree is fitted with."""

    depth: int
    leaves: int
    features: int
    pruning: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shape with its cross-validated macro F1 and the largest cost over the folds, in BPF instructions."""

    shape: Shape
    macro_f1: float
    instructions: int


@dataclass(frozen=True)
class Samples:
    """A profile ready for training: vectors of `features`, `target` counts in `classes`; `guarded` as in `Options`.

    ``left_out``: samples that are no part of it, by why: near duplicates, and those of classes with too few.
    """

    profile: Profile
    features: tuple[Feature, ...]
    vectors: Words
    classes: tuple[str, ...]
    target: NDArray[np.int64]
    guarded: frozenset[str] = frozenset()
    left_out: tuple[tuple[str, int], ...] = ()

    def take(self, rows: NDArray[Any]) -> Samples:
        """The chosen rows."""
        return replace(
            self, profile=self.profile.take(rows), vectors=self.vectors[rows], target=self.target[rows]
        )


@dataclass(frozen=True)
class Trained:
    """The outcome: the tree, how it was chosen, and what the user should know."""

    tree: IntegerTree
    shape: Shape
    candidates: tuple[Candidate, ...]
    samples: Samples
    warnings: tuple[Diagnostic, ...]


def prepare(profile: Profile, options: Options) -> tuple[Samples, tuple[Diagnostic, ...]]:
    """Choose the moment, drop near duplicates and rare classes; DiagnosticError when too little is left."""
    notes = []
    if options.moment != "all":
        profile = profile.take(profile.moment == options.moment)
        if not len(profile):
            raise DiagnosticError(
                error("O2C0721", f"the profiles hold no samples of the moment `{options.moment}`")
            )
    read = len(profile)
    profile = without_near_duplicates(profile)
    duplicates = read - len(profile)
    names, counts = np.unique(profile.label.astype(str), return_counts=True)
    rare = names[counts < options.least]
    if len(rare) and len(rare) < len(names):
        shown = ", ".join(f"`{name}`" for name in rare[:5].tolist())
        notes.append(
            warning(
                "O2C0725",
                f"{len(rare)} classes with fewer than {options.least} samples are left out: {shown}"
                + (" and others" if len(rare) > 5 else ""),
                help="the tree will call such objects something else; profile longer to learn them",
            )
        )
    profile = profile.take(~np.isin(profile.label.astype(str), rare))
    classes = tuple(np.unique(profile.label.astype(str)).tolist())
    if len(classes) < 2:
        what = "no class" if not classes else f"only the class `{classes[0]}`"
        raise DiagnosticError(
            error(
                "O2C0722",
                f"the profiles hold {what} with at least {options.least} different samples",
                help="profile objects of two types or more, for longer; `--least` accepts fewer samples",
            )
        )
    if options.features == "raw" and not profile.words_known:
        raise DiagnosticError(
            error("O2C0721", "the profiles hold no words of objects, so there are no raw features")
        )
    features = feature_set(options.features, profile.words_known)
    target = np.searchsorted(np.array(classes), profile.label.astype(str)).astype(np.int64)
    vectors = extract(features, profile.objects)
    left_out = (("near duplicates", duplicates), ("of rare classes", read - duplicates - len(profile)))
    return Samples(profile, features, vectors, classes, target, options.guarded, left_out), tuple(notes)


def fold_masks(groups: NDArray[np.object_], folds: int) -> list[NDArray[np.bool_]]:
    """Masks of the held-out rows of at most `folds` folds of whole groups, largest groups spread first."""
    names, inverse, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    number = min(folds, len(names))
    load = np.zeros(number, dtype=np.int64)
    fold_of = np.zeros(len(names), dtype=np.int64)
    for group in np.argsort(-counts, kind="stable"):
        fold_of[group] = int(np.argmin(load))
        load[fold_of[group]] += counts[group]
    return [fold_of[inverse] == fold for fold in range(number)]


def balanced_part(samples: Samples, most: int, seed: int) -> Samples:
    """At most `most` samples, drawn so that rare classes keep theirs and frequent ones give way."""
    if len(samples.target) <= most:
        return samples
    random = np.random.default_rng(seed)
    order = random.permutation(len(samples.target))
    # The number of each sample within its class, in the drawn order: the smallest numbers stay.
    by_class = order[np.argsort(samples.target[order], kind="stable")]
    _, starts = np.unique(samples.target[by_class], return_index=True)
    rank = np.arange(len(by_class)) - np.repeat(starts, np.diff(np.append(starts, len(by_class))))
    return samples.take(np.sort(by_class[np.argsort(rank, kind="stable")[:most]]))


def new_classifier(shape: Shape, seed: int) -> Any:
    """An unfitted scikit-learn tree of this shape."""
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(
        max_depth=shape.depth,
        max_leaf_nodes=shape.leaves,
        ccp_alpha=shape.pruning,
        random_state=seed,
    )


def fitted_on(samples: Samples, seed: int) -> tuple[Words, NDArray[np.int64], NDArray[np.float64]]:
    """Vectors, classes and weights that a tree is fitted on: the samples, their classes weighted as if all were equally
    frequent, decoys and misfits, which weigh as much as one class each."""
    guarded = np.array([name in samples.guarded for name in samples.classes])
    about = samples.features, samples.vectors, samples.target, guarded
    general = samples.profile.in_general_cache
    made = [decoys(*about, seed), misfits(*about, general, seed + 1)]
    counts = np.bincount(samples.target, minlength=len(samples.classes))
    weights = [
        1.0 / counts[samples.target],
        *(np.full(len(rows), 1.0 / max(len(rows), 1)) for rows, _ in made),
    ]
    return (
        np.concatenate([samples.vectors, *(rows for rows, _ in made)]),
        np.concatenate([samples.target, *(target for _, target in made)]),
        np.concatenate(weights) * counts.mean(),
    )


def rank_features(samples: Samples, seed: int) -> NDArray[np.int64]:
    """Columns by falling importance in one unlimited tree; unused ones last, in their order."""
    from sklearn.tree import DecisionTreeClassifier

    vectors, target, weight = fitted_on(samples, seed)
    model = DecisionTreeClassifier(random_state=seed).fit(vectors, target, weight)
    return np.argsort(-model.feature_importances_, kind="stable").astype(np.int64)


def search(samples: Samples, options: Options) -> tuple[Candidate, ...]:
    """Every shape with its grouped cross-validated quality and its cost; DiagnosticError without two boots."""
    masks = fold_masks(samples.profile.boot, options.folds)
    if len(masks) < 2:
        raise DiagnosticError(
            error(
                "O2C0723",
                "all samples come from one boot, so that nothing can be held out",
                help="profile at least two boots: a tree must mean the same after a reboot",
            )
        )
    folds = []
    for mask in masks:
        train = balanced_part(samples.take(~mask), options.search_rows, options.seed)
        folds.append((train, samples.take(mask), rank_features(train, options.seed)))
    width = samples.vectors.shape[1]
    counts = sorted({min(count, width) for count in options.feature_counts})
    candidates = []
    for depth in options.depths:
        for leaves in options.leaves:
            if leaves > 2**depth and leaves > min(options.leaves):
                continue
            for count in counts:
                for pruning in options.pruning:
                    shape = Shape(depth, leaves, count, pruning)
                    candidates.append(_cross_validate(shape, folds, samples, options))
    return tuple(candidates)


def _cross_validate(
    shape: Shape,
    folds: Sequence[tuple[Samples, Samples, NDArray[np.int64]]],
    samples: Samples,
    options: Options,
) -> Candidate:
    """Quality over all held-out folds together."""
    true, predicted, cost = [], [], 0
    for train, held_out, ranking in folds:
        imported = fit(train, shape, ranking, options.seed)
        true.append(held_out.target)
        predicted.append(imported.tree.predict(held_out.vectors))
        cost = max(cost, estimated_instructions(imported.tree))
    return Candidate(
        shape, macro_f1(np.concatenate(true), np.concatenate(predicted), len(samples.classes)), cost
    )


def macro_f1(true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Mean F1 over the classes that occur in `true`."""
    samples = np.bincount(true, minlength=classes)
    called = np.bincount(predicted, minlength=classes)
    correct = np.bincount(true[true == predicted], minlength=classes)
    scores = 2 * correct / np.maximum(samples + called, 1)
    return float(scores[samples > 0].mean())


def fit(samples: Samples, shape: Shape, ranking: NDArray[np.int64], seed: int) -> Imported:
    """Fit one tree on its best features; the result counts features and classes as `samples` does."""
    columns = np.sort(ranking[: shape.features])
    vectors, target, weight = fitted_on(samples, seed)
    model = new_classifier(shape, seed).fit(vectors[:, columns], target, weight)
    fitted = import_estimator(model, "training")
    reference = fitted.reference
    feature = np.where(reference.children_left == -1, -2, columns[np.maximum(reference.feature, 0)])
    label = model.classes_[reference.label].astype(np.int64)
    full = type(reference)(
        reference.children_left,
        reference.children_right,
        feature,
        reference.threshold,
        label,
        samples.vectors.shape[1],
    )
    confidence, counts = _leaf_shares(fitted.tree, samples, columns, label)
    tree = tree_from_arrays(
        full, samples.classes, features=samples.features, confidences=confidence, samples=counts
    )
    return Imported(tree, full)


def _leaf_shares(
    tree: IntegerTree, samples: Samples, columns: NDArray[np.int64], label: NDArray[np.int64]
) -> tuple[list[float], list[int]]:
    """By node: the share of the leaf's class among the training samples that reach it, unweighted, and their number.

    scikit-learn's own shares are weighted by class, so they do not say how often a leaf is right.
    """
    reached = tree.apply(np.ascontiguousarray(samples.vectors[:, columns]))
    total = np.bincount(reached, minlength=len(tree.nodes))
    right = np.bincount(reached[label[reached] == samples.target], minlength=len(tree.nodes))
    return (right / np.maximum(total, 1)).tolist(), total.tolist()


def choose(candidates: Sequence[Candidate], budget: int) -> Candidate:
    """The best candidate within the budget; of those within 0.002 of it, the cheapest.

    DiagnosticError when none fits.
    """
    affordable = [candidate for candidate in candidates if candidate.instructions <= budget]
    if not affordable:
        least = min(candidate.instructions for candidate in candidates)
        raise DiagnosticError(
            error(
                "O2C0724",
                f"no tree fits the budget of {budget:,} BPF instructions, the smallest one takes {least:,}",
                help=f"pass --budget {least} or more",
            )
        )
    best = max(candidate.macro_f1 for candidate in affordable)
    return min(
        (candidate for candidate in affordable if candidate.macro_f1 >= best - 0.002),
        key=lambda c: (
            c.instructions,
            -c.macro_f1,
            c.shape.depth,
            c.shape.leaves,
            c.shape.features,
            c.shape.pruning,
        ),
    )


def with_held_out_bounds(tree: IntegerTree, held_out: Samples) -> IntegerTree:
    """The tree whose leaves carry the 95% lower bound of their precision on samples not trained on."""
    reached = tree.apply(held_out.vectors)
    labels = tree.arrays.label[reached]
    total = np.bincount(reached, minlength=len(tree.nodes))
    correct = np.bincount(reached[labels == held_out.target], minlength=len(tree.nodes))
    bounds = precision_lower_bound(correct, total).tolist()
    nodes = tuple(
        node if isinstance(node, Test) else Leaf(node.label, node.confidence, bounds[number], node.samples)
        for number, node in enumerate(tree.nodes)
    )
    return IntegerTree(nodes, tree.classes, tree.features, tree.provenance)


def split_for_bounds(samples: Samples) -> NDArray[np.bool_]:
    """Mask of the samples that are held out for the leaves' bounds: those of a quarter of the boots, at least one.

    Of a single boot nothing is held out, and the mask is all False.
    """
    masks = fold_masks(samples.profile.boot, 4)
    return masks[-1] if len(masks) > 1 else np.zeros(len(samples.target), dtype=np.bool_)


def fit_with_bounds(samples: Samples, shape: Shape, seed: int) -> IntegerTree:
    """Fit on most boots and take the bounds of the leaves from the others."""
    held_out = split_for_bounds(samples)
    fitting = samples.take(~held_out)
    tree = fit(fitting, shape, rank_features(fitting, seed), seed).tree
    return with_held_out_bounds(tree, samples.take(held_out)) if held_out.any() else tree


def train(profile: Profile, options: Options, sources: Sequence[str] = ()) -> Trained:
    """Search, choose, fit.  `sources` are names of the profiles, for the provenance."""
    samples, notes = prepare(profile, options)
    candidates = search(samples, options)
    chosen = choose(candidates, options.budget)
    tree = fit_with_bounds(samples, chosen.shape, options.seed)
    cost = estimated_instructions(tree)
    if cost > options.budget:
        raise DiagnosticError(
            error(
                "O2C0724",
                f"the chosen tree takes {cost:,} BPF instructions on all boots, the budget is {options.budget:,}",
                help=f"pass --budget {cost} or more",
            )
        )
    held_out = split_for_bounds(samples)
    provenance = _provenance(
        samples, options, chosen, cost, samples.take(~held_out), samples.take(held_out), sources
    )
    return Trained(
        IntegerTree(tree.nodes, tree.classes, tree.features, provenance),
        chosen.shape,
        candidates,
        samples,
        notes,
    )


def _provenance(
    samples: Samples,
    options: Options,
    chosen: Candidate,
    cost: int,
    fitting: Samples,
    held_out: Samples,
    sources: Sequence[str],
) -> dict[str, object]:
    import sklearn

    def distinct(column: NDArray[np.object_]) -> list[str]:
        return sorted(set(column.astype(str).tolist()))

    return {
        "trained_by": f"o2c {__version__}, scikit-learn {sklearn.__version__}",
        "profiles": list(sources),
        "kernels": distinct(samples.profile.kernel),
        "workloads": distinct(samples.profile.workload),
        "boots_trained": distinct(fitting.profile.boot),
        "boots_held_out": distinct(held_out.profile.boot),
        "samples_trained": len(fitting.target),
        "samples_held_out": len(held_out.target),
        "moment": options.moment,
        "features": options.features,
        "seed": options.seed,
        "shape": {
            "depth": chosen.shape.depth,
            "leaves": chosen.shape.leaves,
            "features": chosen.shape.features,
            "pruning": chosen.shape.pruning,
        },
        "budget": options.budget,
        "instructions": cost,
        "cross_validated_macro_f1": chosen.macro_f1,
        "bound": "lower end of the exact 95% interval of the leaf's precision on the boots held out",
    }


def quick_options(options: Options) -> Options:
    """The same with a small search."""
    return replace(options, depths=(6, 12), leaves=(64,), feature_counts=(16,), pruning=(0.0,), folds=3)
