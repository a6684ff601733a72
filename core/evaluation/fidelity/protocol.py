"""The protocol for generated cells: matched classes, several seeds, every baseline on the same cells.

Held-out real cells are halved, by donor where donors are known: all methods (generated cells, other real
cells, the baselines) are compared with one half, on the same number of cells of each class and with the same
resamples of that half; the other half is the reference, what real cells score. A seed is another division,
other draws of the baselines and other forests; the generated cells are one set, from which each seed takes
others if there are more than enough.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder, ValueTable
from core.errors import DataError
from core.evaluation.fidelity import measures
from core.evaluation.fidelity.class_baselines import ClassBaselines
from core.evaluation.fidelity.measures import (
    ClassClassifier,
    Codes,
    FloatArray,
    LabelledCells,
    squared_distances,
)
from core.evaluation.metrics import interval_of
from core.evaluation.report.records import Difference, Measured
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator, sample_rows

#: With fewer matched cells on a side nothing is scored.
LEAST_CELLS = 40
#: Divisions of donors that are tried for halves of similar composition.
_DIVISIONS = 50
#: Training cells that the baselines, and that the classifier and the components, are fitted on at most.
_MOST_TRAINING, _MOST_FITTED = 20_000, 5_000
#: Training cells among which the nearest is sought at most; copies are sought among all.
_MOST_NEIGHBOURS = 20_000

#: Generated cells first, then what they are compared with.
METHODS = ("generated", "real", "copula", "independent", "scvi", "training")

#: (cells,) classes and a random generator -> (cells, genes) values.
Draw = Callable[[Codes, np.random.Generator], NDArray[np.float32]]
#: Seed -> (1 + resamples,): the estimate, then bootstrap draws.
_Draws = Mapping[int, FloatArray]


@dataclass(frozen=True)
class MatchedCells:
    """(cells,), rows of equal class counts: of real cells twice, and of generated ones."""

    #: The real cells that all methods are compared with.
    target: Codes
    reference: Codes
    generated: Codes


@dataclass(frozen=True)
class ProtocolResult:
    """What the protocol measured."""

    #: Method -> measure -> numbers.
    scores: dict[str, dict[str, Measured]]
    #: "mmd2": 95th percentile of real splits; "genes_mean", "genes_sd": of the real cells. Means over seeds.
    limits: dict[str, float]
    #: Matched cells on each side, of each seed.
    n_cells: list[int]
    #: Class code -> matched cells of the first seed.
    class_cells: dict[int, int]
    #: Method -> cells of the first seed, for pictures; "target": the real cells compared with.
    shown: dict[str, LabelledCells]


# ------------------------------------------------------------------------------------- matched cells
def match_cells(
    real: Codes,
    generated: Codes,
    rng: np.random.Generator,
    *,
    donors: Codes | None = None,
    most: int = 1_000,
) -> MatchedCells:
    """Choose equal numbers of cells of each class, by the (cells,) classes of both sides.

    The real halves have no donor in common, unless there is one donor only. Of more than ``most`` cells on a
    side classes keep their fractions; fewer than `LEAST_CELLS` are a DataError.
    """
    n_classes = int(max(real.max(initial=0), generated.max(initial=0))) + 1
    available = np.bincount(generated, minlength=n_classes)
    left = _halve(real, donors, available, rng)
    counts = _matched_counts(real, left, available)
    if counts.sum() > most:
        exact = counts * (most / counts.sum())
        counts = np.floor(exact).astype(np.int64)
        n_left = most - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:n_left]] += 1
    if counts.sum() < LEAST_CELLS:
        unlimited = _matched_counts(real, left, np.full(n_classes, len(real)))
        remedy = "generate more cells of the classes that real cells have"
        if unlimited[available > 0].sum() < LEAST_CELLS:  # more generated cells would not help
            remedy = "the real cells are too few: name files with more of them, or choose fewer and larger --classes"
        raise DataError(
            f"only {int(counts.sum())} cells of each side can be matched by class "
            f"({int(available.sum()):,} generated; {len(real):,} real, in two halves), and fewer than "
            f"{LEAST_CELLS} cannot be scored; {remedy}"
        )

    def draw(classes: Codes, allowed: NDArray[np.bool_]) -> Codes:
        rows = [
            rng.permutation(np.flatnonzero((classes == code) & allowed))[: counts[code]]
            for code in range(n_classes)
        ]
        return np.sort(np.concatenate(rows)).astype(np.int64)

    everything = np.ones(len(generated), dtype=bool)
    return MatchedCells(draw(real, left), draw(real, ~left), draw(generated, everything))


def _matched_counts(classes: Codes, left: NDArray[np.bool_], available: Codes) -> Codes:
    """(classes,), cells that both halves and the generated cells have."""
    sides = [np.bincount(classes[half], minlength=len(available)) for half in (left, ~left)]
    return np.minimum(np.minimum(*sides), available)


def _halve(
    classes: Codes, donors: Codes | None, available: Codes, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(cells,), those of the first half: whole donors, or cells class by class."""
    names = np.unique(donors) if donors is not None else np.zeros(0)
    if donors is not None and len(names) > 1:
        divisions = (
            np.isin(donors, rng.permutation(names)[: len(names) // 2]) for _ in range(_DIVISIONS)
        )
        return max(divisions, key=lambda left: int(_matched_counts(classes, left, available).sum()))
    left = np.zeros(len(classes), dtype=bool)
    for code in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == code))
        left[rows[: len(rows) // 2]] = True
    return left


# -------------------------------------------------------------------------------------- one judgement
class _TrainingCells:
    """What the measures of copying and of classes need of the training cells."""

    def __init__(
        self, cells: LabelledCells, real: LabelledCells, encoder: ValueEncoder, seed: int
    ) -> None:
        def sample(most: int) -> LabelledCells:
            if len(cells) <= most:
                return cells
            rng = generator(seed, Stream.FIDELITY_SAMPLE)
            return cells.take(sample_rows(np.arange(len(cells)), most, rng))

        fitted = sample(_MOST_FITTED)
        self._classifier = ClassClassifier(fitted.values, fitted.classes)
        # Of training cells: in their own components the real cells are too far from all others.
        self._components = measures.fit_components(fitted.values)
        self._points = self._components.transform(sample(_MOST_NEIGHBOURS).values)
        self._encoder, self._bins = encoder, encoder.encode(cells.values)
        self._real_distances = self._distances(real)

    def _distances(self, cells: LabelledCells) -> FloatArray:
        """(cells,), distance to the nearest training cell."""
        return measures.nearest_distances(self._components.transform(cells.values), self._points)

    def score(
        self, cells: LabelledCells, weights: FloatArray, real_weights: FloatArray
    ) -> dict[str, FloatArray]:
        """Measure copying, and whether cells are of the class that they are meant to be."""
        right = self._classifier.predict(cells.values) == cells.classes
        near, real_near = self._distances(cells), self._real_distances
        ratios = [
            np.median(near[_rows(w)]) / max(np.median(real_near[_rows(v)]), 1e-12)
            for w, v in zip(weights, real_weights, strict=True)
        ]
        copies = measures.find_copies(self._encoder.encode(cells.values), self._bins)
        return {
            "condition_accuracy": _mean(right, weights),
            "nn_ratio": np.array(ratios),
            "copies": weights @ copies,
        }


class _Judge:
    """Every measure of cells beside the same real cells; those of training cells are NaN without these."""

    def __init__(
        self,
        real: LabelledCells,
        training: LabelledCells | None,
        encoder: ValueEncoder,
        n_classes: int,
        *,
        seed: int,
        n_resamples: int,
        n_trees: int,
    ) -> None:
        self._real, self._n_classes = real, n_classes
        self._seed, self._n_trees, self._n_resamples = seed, n_trees, n_resamples
        self._rng = generator(seed, Stream.FIDELITY_RESAMPLES)
        self._weights = self._resamples(len(real))
        self._components = measures.fit_components(real.values)
        self._points = self._components.transform(real.values)
        self._median = measures.median_squared_distance(self._points)
        self._squares = squared_distances(self._points, self._points)
        self._genes = measures.correlation_genes(real.values)
        self._correlations = [
            measures.within_class_correlations(
                real.values[rows][:, self._genes], real.classes[rows]
            )
            for rows in map(_rows, self._weights)
        ]
        self._training = None
        self._training_changes = np.full((n_classes, real.values.shape[1]), math.nan)
        if training is not None:
            self._training = _TrainingCells(training, real, encoder, seed)
            self._training_changes = self._changes(training)

    def limits(self, other_real: LabelledCells) -> dict[str, float]:
        """Return the 95th percentile of MMD^2 between random real halves, and the real genes per cell."""
        both = np.concatenate([self._points, self._components.transform(other_real.values)])
        rng = generator(self._seed, Stream.FIDELITY_HALVES)
        n_genes = measures.detected_genes(self._real.values)
        return {
            "mmd2": float(np.percentile(measures.mmd2_of_splits(both, self._median, rng), 95)),
            "genes_mean": float(n_genes.mean()),
            "genes_sd": float(n_genes.std()),
        }

    def score(self, cells: LabelledCells) -> dict[str, FloatArray]:
        """Measure -> (1 + resamples,): the estimate, then bootstrap draws; NaN where undefined."""
        real, real_weights, weights = self._real, self._weights, self._resamples(len(cells))
        points = self._components.transform(cells.values)
        between = squared_distances(self._points, points)
        among = squared_distances(points, points)
        probabilities = measures.probability_generated(
            real.values, cells.values, seed=self._seed, n_trees=self._n_trees
        )
        n_genes = measures.detected_genes(cells.values)
        mean = _mean(n_genes, weights)
        within_real, within, across = (
            measures.gaussian_kernel(x, self._median) for x in (self._squares, among, between)
        )
        learnt = ClassClassifier(cells.values, cells.classes).predict(real.values)
        scores = {
            "rf_auc": measures.weighted_auc(*probabilities, real_weights, weights),
            "mmd2": measures.mmd2(within_real, within, across, real_weights, weights),
            "recall": _mean(measures.recalled(among, between), real_weights),
            "coverage": _mean(measures.covered(self._squares, between), real_weights),
            "genes_mean": mean,
            "genes_sd": np.sqrt(np.maximum(_mean(n_genes**2, weights) - mean**2, 0)),
            "tstr_f1": measures.macro_f1(real.classes, learnt, self._n_classes, real_weights),
        }
        if self._training is None:
            nothing = np.full(len(weights), math.nan)
            scores |= dict.fromkeys(("condition_accuracy", "nn_ratio", "copies"), nothing)
        else:
            scores |= self._training.score(cells, weights, real_weights)
        drawn = [
            self._gene_measures(real.take(_rows(v)), cells.take(_rows(w)), correlations)
            for v, w, correlations in zip(real_weights, weights, self._correlations, strict=True)
        ]
        return scores | {name: np.array([one[name] for one in drawn]) for name in drawn[0]}

    def _gene_measures(
        self, real: LabelledCells, other: LabelledCells, real_correlations: FloatArray
    ) -> dict[str, float]:
        """Measures that need the resampled cells themselves."""
        mean_r, dropout = measures.marginal_agreement(real.values, other.values)
        correlations = measures.within_class_correlations(
            other.values[:, self._genes], other.classes
        )
        r, slope = measures.correlation_agreement(real_correlations, correlations)
        change, overlap = measures.fold_change_agreement(
            self._training_changes, self._changes(real), self._changes(other)
        )
        return {
            "gene_mean_r": mean_r, "dropout_mae": dropout, "within_r": r, "within_slope": slope,
            "fold_change_slope": change, "fold_change_overlap": overlap,
        }  # fmt: skip

    def _changes(self, cells: LabelledCells) -> FloatArray:
        return measures.fold_changes(cells.values, cells.classes, self._n_classes)

    def _resamples(self, n_cells: int) -> FloatArray:
        """(1 + resamples, cells), times each cell is taken; once in the first row."""
        drawn = self._rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), self._n_resamples)
        return np.concatenate([np.ones((1, n_cells)), drawn])


def _rows(weights: FloatArray) -> Codes:
    return np.repeat(np.arange(len(weights)), weights.astype(np.int64))


def _mean(values: NDArray[Any], weights: FloatArray) -> FloatArray:
    """(weightings,), weighted mean over cells."""
    found: FloatArray = (weights @ values) / weights.sum(axis=1)
    return found


# --------------------------------------------------------------------------------------- all methods
def run_protocol(
    real: LabelledCells,
    generated: LabelledCells,
    training: LabelledCells | None,
    encoder: ValueEncoder,
    table: ValueTable,
    n_classes: int,
    *,
    donors: Codes | None = None,
    matching: NDArray[np.bool_] | None = None,
    others: Mapping[str, Draw] = MappingProxyType({}),
    max_cells: int = 1_000,
    n_seeds: int = 3,
    n_trees: int = 300,
    n_resamples: int = 100,
    on_progress: Listener = ignore_progress,
) -> ProtocolResult:
    """Score generated cells, real ones and the baselines alike; a DataError if too few can be matched.

    Without ``training`` cells there are no baselines, and no measures of copies and classes. ``encoder`` and
    ``table`` are the baselines' bins and the training values in each; ``donors`` are codes of the real cells.
    The baselines learn from the ``matching`` training cells, those of the requested phenotypes (None: all);
    if none matches, there are none. ``others``, more methods, know the same classes as the baselines. A seed
    is a division, with its own forests of ``n_trees`` and its own ``n_resamples`` bootstrap draws.
    """
    learnt = training
    if training is not None and matching is not None:
        learnt = training.take(np.flatnonzero(matching)) if matching.any() else None
    if learnt is not None:
        chosen = np.random.default_rng(0).permutation(len(learnt))[:_MOST_TRAINING]
        baselines = ClassBaselines(
            encoder.encode(learnt.values[chosen]), learnt.classes[chosen], encoder.n_bins,
            np.random.default_rng(1),
        )  # fmt: skip
        # The baselines cannot draw classes without training cells: all methods leave them out.
        known = np.array(sorted(baselines.n_cells))
        of_real, of_generated = np.isin(real.classes, known), np.isin(generated.classes, known)
        real, generated = real.take(of_real), generated.take(of_generated)
        donors = None if donors is None else donors[of_real]
    draws: dict[str, dict[str, dict[int, FloatArray]]] = {}
    limits: list[dict[str, float]] = []
    n_cells, class_cells, shown = [], {}, {}
    for seed in range(n_seeds):
        rng = generator(seed, Stream.FIDELITY_CELLS)
        rows = match_cells(real.classes, generated.classes, rng, donors=donors, most=max_cells)
        target = real.take(rows.target)
        sets = {"generated": generated.take(rows.generated), "real": real.take(rows.reference)}
        if learnt is not None:
            wanted = target.classes
            # Both are drawn before either is decoded: the order of the random numbers is fixed.
            bins = (baselines.copula(wanted, rng), baselines.independent(wanted, rng))
            for name, drawn in zip(("copula", "independent"), bins, strict=True):
                sets[name] = LabelledCells(table.decode(drawn, how="sample", rng=rng), wanted)
            for name, draw in others.items():
                sets[name] = LabelledCells(draw(wanted, rng), wanted)
            sets["training"] = learnt.take(_like(learnt.classes, wanted, rng))
        settings = {"seed": seed, "n_resamples": n_resamples, "n_trees": n_trees}
        judge = _Judge(target, training, encoder, n_classes, **settings)
        limits.append(judge.limits(sets["real"]))
        n_cells.append(len(target))
        total = n_seeds * len(sets)
        for number, (name, cells) in enumerate(sets.items(), start=seed * len(sets)):
            on_progress(ProgressEvent("judging cells", number, total))
            for measure, values in judge.score(cells).items():
                draws.setdefault(name, {}).setdefault(measure, {})[seed] = values
        if seed == 0:
            codes, counts = np.unique(target.classes, return_counts=True)
            class_cells = dict(zip(codes.tolist(), counts.tolist(), strict=True))
            shown = {"target": target, **sets}
    on_progress(ProgressEvent("judging cells", total, total))
    return ProtocolResult(
        {
            method: {
                measure: _measured(of_seeds, draws.get("copula", {}).get(measure), method)
                for measure, of_seeds in of_method.items()
            }
            for method, of_method in draws.items()
        },
        {name: float(np.mean([one[name] for one in limits])) for name in limits[0]},
        n_cells,
        class_cells,
        shown,
    )


def _like(classes: Codes, wanted: Codes, rng: np.random.Generator) -> Codes:
    """Rows of cells of the wanted classes, each once if there are enough."""
    rows = np.empty(len(wanted), dtype=np.int64)
    for code in np.unique(wanted):
        places, of_class = np.flatnonzero(wanted == code), np.flatnonzero(classes == code)
        rows[places] = rng.choice(of_class, len(places), replace=len(of_class) < len(places))
    return rows


def _measured(seeds: _Draws, copula: _Draws | None, method: str) -> Measured:
    measured = _summary(seeds)
    if copula is None or method == "copula":
        return measured
    difference = _summary({seed: one - copula[seed] for seed, one in seeds.items()})
    return replace(measured, minus_copula=Difference(difference.value, difference.interval))


def _summary(seeds: _Draws) -> Measured:
    """Summarise the seeds.

    Draws are moved so that they centre on the estimate of their seed: cells that are taken twice make
    correlations noisier, which would shift the whole interval.
    """
    points = np.array([one[0] for one in seeds.values()])
    moved = [one[1:] - one[1:].mean() + one[0] for one in seeds.values()]
    interval = interval_of(np.concatenate(moved))
    return Measured(float(points.mean()), float(points.std()), interval)
