"""One comparison of cells with real ones: every measure of the protocol, with bootstrap draws.

All methods (generated cells, other real cells, the baselines) are judged against the same real cells, on
the same number of cells of each class, with the same resamples of the real side.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder
from core.evaluation.fidelity import measures
from core.evaluation.fidelity.measures import ClassClassifier, FloatArray, squared_distances
from core.random_streams import Stream, generator

#: Training cells that the classifier and the components are fitted to at most.
_MOST_FITTED = 5_000
#: Training cells among which the nearest is sought at most; copies are sought among all.
_MOST_NEIGHBOURS = 20_000


@dataclass(frozen=True)
class LabelledCells:
    """Cells and the class of each."""

    #: (cells, genes), float32, log1p counts per 10,000; 0 and 1 of binary models.
    values: NDArray[np.float32]
    #: (cells,), int64 codes.
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.classes)

    def take(self, rows: NDArray[Any]) -> "LabelledCells":
        """Return some of the cells."""
        return LabelledCells(self.values[rows], self.classes[rows])


class _TrainingCells:
    """What the measures of copying and of classes need of the training cells."""

    def __init__(
        self, cells: LabelledCells, real: LabelledCells, encoder: ValueEncoder, seed: int
    ) -> None:
        fitted = cells.take(_sample(len(cells), _MOST_FITTED, seed))
        self.classifier = ClassClassifier(fitted.values, fitted.classes)
        # Of training cells: in their own components the real cells are too far from all others.
        self._components = measures.fit_components(fitted.values)
        near = cells.values[_sample(len(cells), _MOST_NEIGHBOURS, seed)]
        self._points = self._components.transform(near)
        self._encoder, self._bins = encoder, encoder.encode(cells.values)
        self.real_distances = self.distances(real)

    def distances(self, cells: LabelledCells) -> FloatArray:
        """(cells,), distance to the nearest training cell."""
        return measures.nearest_distances(self._components.transform(cells.values), self._points)

    def copies(self, cells: LabelledCells) -> NDArray[np.bool_]:
        """(cells,), which equal a training cell."""
        return measures.find_copies(self._encoder.encode(cells.values), self._bins)


class FidelityJudge:
    """Holds the real cells and everything about them that all methods need.

    Parameters
    ----------
    real
        The cells that all methods are compared with.
    training
        Cells that the model was trained on, for the measures of copying and of classes; without
        them (None) these measures are NaN.
    encoder
        Bins in which cells count as equal.
    n_classes
        Number of class codes.
    seed
        Of forests and resamples.
    n_resamples
        Bootstrap draws.
    n_trees
        Of each forest.
    """

    def __init__(
        self,
        real: LabelledCells,
        training: LabelledCells | None,
        encoder: ValueEncoder,
        n_classes: int,
        *,
        seed: int,
        n_resamples: int = 100,
        n_trees: int = 300,
    ) -> None:
        self.real = real
        self._n_classes, self._seed, self._n_trees = n_classes, seed, n_trees
        self._n_resamples = n_resamples
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
            self._training_changes = measures.fold_changes(
                training.values, training.classes, n_classes
            )
        n_genes = measures.detected_genes(real.values)
        #: Genes per cell of the real side.
        self.genes_mean, self.genes_sd = float(n_genes.mean()), float(n_genes.std())

    def mmd2_limit(self, other_real: LabelledCells) -> float:
        """95th percentile of MMD^2 between random halves of both real sides."""
        both = np.concatenate([self._points, self._components.transform(other_real.values)])
        rng = generator(self._seed, Stream.FIDELITY_HALVES)
        return float(np.percentile(measures.mmd2_of_splits(both, self._median, rng), 95))

    def score(self, cells: LabelledCells) -> dict[str, FloatArray]:
        """Judge cells.

        Returns
        -------
        Measure -> (1 + resamples,): the estimate, then bootstrap draws. NaN where undefined.
        """
        weights = self._resamples(len(cells))
        points = self._components.transform(cells.values)
        between = squared_distances(self._points, points)
        among = squared_distances(points, points)
        probabilities = measures.probability_generated(
            self.real.values, cells.values, seed=self._seed, n_trees=self._n_trees
        )
        n_genes = measures.detected_genes(cells.values)
        mean = _mean(n_genes, weights)
        kernels = [
            measures.gaussian_kernel(x, self._median) for x in (self._squares, among, between)
        ]
        learnt = ClassClassifier(cells.values, cells.classes).predict(self.real.values)
        scores = {
            "rf_auc": measures.weighted_auc(*probabilities, self._weights, weights),
            "mmd2": measures.mmd2(kernels[0], kernels[1], kernels[2], self._weights, weights),
            "recall": _mean(measures.recalled(among, between), self._weights),
            "coverage": _mean(measures.covered(self._squares, between), self._weights),
            "genes_mean": mean,
            "genes_sd": np.sqrt(np.maximum(_mean(n_genes**2, weights) - mean**2, 0)),
            "tstr_f1": measures.macro_f1(self.real.classes, learnt, self._n_classes, self._weights),
        }
        scores |= self._against_training(cells, weights)
        drawn = [self._gene_measures(cells, number, weights) for number in range(len(weights))]
        return scores | {name: np.array([one[name] for one in drawn]) for name in drawn[0]}

    def _gene_measures(
        self, cells: LabelledCells, number: int, weights: FloatArray
    ) -> dict[str, float]:
        """Measures that need the resampled cells themselves."""
        real = self.real.take(_rows(self._weights[number]))
        other = cells.take(_rows(weights[number]))
        mean_r, dropout = measures.marginal_agreement(real.values, other.values)
        r, slope = measures.correlation_agreement(
            self._correlations[number],
            measures.within_class_correlations(other.values[:, self._genes], other.classes),
        )
        change, overlap = measures.fold_change_agreement(
            self._training_changes,
            measures.fold_changes(real.values, real.classes, self._n_classes),
            measures.fold_changes(other.values, other.classes, self._n_classes),
        )
        return {
            "gene_mean_r": mean_r, "dropout_mae": dropout, "within_r": r, "within_slope": slope,
            "fold_change_slope": change, "fold_change_overlap": overlap,
        }  # fmt: skip

    def _against_training(self, cells: LabelledCells, weights: FloatArray) -> dict[str, FloatArray]:
        """Measures of copying, and whether cells are of the class that they are meant to be."""
        training = self._training
        if training is None:
            nothing = np.full(len(weights), math.nan)
            return dict.fromkeys(("condition_accuracy", "nn_ratio", "copies"), nothing)
        right = training.classifier.predict(cells.values) == cells.classes
        near, real_near = training.distances(cells), training.real_distances
        ratios = [
            np.median(near[_rows(w)]) / max(np.median(real_near[_rows(v)]), 1e-12)
            for w, v in zip(weights, self._weights, strict=True)
        ]
        return {
            "condition_accuracy": _mean(right, weights),
            "nn_ratio": np.array(ratios),
            "copies": weights @ training.copies(cells),
        }

    def _resamples(self, n_cells: int) -> FloatArray:
        """(1 + resamples, cells), times each cell is taken; once in the first row."""
        drawn = self._rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), self._n_resamples)
        return np.concatenate([np.ones((1, n_cells)), drawn])


def _rows(weights: FloatArray) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(weights)), weights.astype(np.int64))


def _mean(values: NDArray[Any], weights: FloatArray) -> FloatArray:
    """(weightings,), weighted mean over cells."""
    found: FloatArray = (weights @ values) / weights.sum(axis=1)
    return found


def _sample(n: int, most: int, seed: int) -> NDArray[np.int64]:
    if n <= most:
        return np.arange(n)
    return np.sort(generator(seed, Stream.FIDELITY_SAMPLE).choice(n, most, replace=False))
