"""One comparison of cells with real ones: every measure of the protocol, with bootstrap draws.

All methods (generated cells, other real cells, the classical baselines) are judged against the same real
cells, on as many cells of each class, with the same resamples of the real side.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder
from core.evaluation.fidelity_classifiers import ClassTeller, macro_f1, tell_generated, weighted_auc
from core.evaluation.fidelity_distances import (
    PrincipalSpace,
    covered,
    find_copies,
    gaussian_kernel,
    median_squared_distance,
    mmd2,
    mmd2_of_splits,
    nearest_distances,
    recalled,
    squared_distances,
)
from core.evaluation.fidelity_genes import (
    correlation_agreement,
    correlation_genes,
    detected_genes,
    fold_change_agreement,
    fold_changes,
    marginal_agreement,
    within_class_correlations,
)
from core.random_streams import Stream, generator

__all__ = ["FidelityJudge", "LabelledCells"]

#: Training cells that the classifier of conditions learns from at most.
_MOST_TAUGHT = 5_000
#: Training cells among which the nearest is looked for at most; copies are sought among all.
_MOST_NEIGHBOURS = 20_000

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LabelledCells:
    """Cells and the class of each.

    Attributes
    ----------
    values
        (cells, genes), float32, log1p counts per 10,000; 0 and 1 of binary models.
    classes
        (cells,), int64 codes.
    """

    values: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.classes)

    def take(self, rows: NDArray[Any]) -> "LabelledCells":
        """Return some of the cells."""
        return LabelledCells(self.values[rows], self.classes[rows])


class FidelityJudge:
    """Holds the real cells and everything about them that all methods share.

    Parameters
    ----------
    real
        The cells that all are compared with.
    training
        Cells the model was trained on, for the measures of copying and of conditions; None where
        they are gone: these measures are then NaN.
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
        self.real, self._training, self._encoder = real, training, encoder
        self._n_classes, self._seed, self._n_trees = n_classes, seed, n_trees
        self._n_resamples = n_resamples
        self._rng = generator(seed, Stream.FIDELITY_RESAMPLES)
        self._weights = self._resamples(len(real))
        self._space = PrincipalSpace.fit(real.values)
        self._points = self._space.place(real.values)
        self._median = median_squared_distance(self._points)
        self._squares = squared_distances(self._points, self._points)
        self._genes = correlation_genes(real.values)
        real_n = detected_genes(real.values)
        #: Genes per cell of the real side: what those of the others are held against.
        self.genes_mean, self.genes_sd = float(real_n.mean()), float(real_n.std())

    def mmd2_limit(self, other_real: LabelledCells) -> float:
        """95th percentile of MMD^2 between random halves of both real sides."""
        both = np.concatenate([self._points, self._space.place(other_real.values)])
        drawn = mmd2_of_splits(both, self._median, generator(self._seed, Stream.FIDELITY_HALVES))
        return float(np.percentile(drawn, 95))

    def score(self, cells: LabelledCells) -> dict[str, FloatArray]:
        """Judge cells.

        Returns
        -------
        Measure -> (1 + resamples,): the estimate, then bootstrap draws. NaN where undefined.
        """
        weights = self._resamples(len(cells))
        points = self._space.place(cells.values)
        between = squared_distances(self._points, points)
        among = squared_distances(points, points)
        told = tell_generated(
            self.real.values, cells.values, seed=self._seed, n_trees=self._n_trees
        )
        n_genes = detected_genes(cells.values)
        mean = _mean(n_genes, weights)
        kernels = [gaussian_kernel(x, self._median) for x in (self._squares, among, between)]
        scores = {
            "rf_auc": weighted_auc(*told, self._weights, weights),
            "mmd2": mmd2(kernels[0], kernels[1], kernels[2], self._weights, weights),
            "recall": _mean(recalled(among, between), self._weights),
            "coverage": _mean(covered(self._squares, between), self._weights),
            "genes_mean": mean,
            "genes_sd": np.sqrt(np.maximum(_mean(n_genes**2, weights) - mean**2, 0)),
            "tstr_f1": macro_f1(
                self.real.classes,
                ClassTeller(cells.values, cells.classes).tell(self.real.values),
                self._n_classes,
                self._weights,
            ),
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
        mean_r, dropout = marginal_agreement(real.values, other.values)
        r, slope = correlation_agreement(
            self._real_correlations[number],
            within_class_correlations(other.values[:, self._genes], other.classes),
        )
        change, overlap = fold_change_agreement(
            self._marker_changes,
            fold_changes(real.values, real.classes, self._n_classes),
            fold_changes(other.values, other.classes, self._n_classes),
        )
        return {
            "gene_mean_r": mean_r, "dropout_mae": dropout, "within_r": r, "within_slope": slope,
            "fold_change_slope": change, "fold_change_overlap": overlap,
        }  # fmt: skip

    def _against_training(self, cells: LabelledCells, weights: FloatArray) -> dict[str, FloatArray]:
        """Judge copying, and whether cells are of the class that they are meant to be."""
        if self._teller is None or self._training_points is None:
            nothing = np.full(len(weights), math.nan)
            return dict.fromkeys(("condition_accuracy", "nn_ratio", "copies"), nothing)
        right = self._teller.tell(cells.values) == cells.classes
        copies = find_copies(self._encoder.encode(cells.values), self._training_bins)
        assert self._training_space is not None
        placed = self._training_space.place(cells.values)
        near = nearest_distances(placed, self._training_points)
        ratios = [
            np.median(near[_rows(w)]) / max(np.median(self._real_near[_rows(v)]), 1e-12)
            for w, v in zip(weights, self._weights, strict=True)
        ]
        return {
            "condition_accuracy": _mean(right, weights),
            "nn_ratio": np.array(ratios),
            "copies": weights @ copies,
        }

    @cached_property
    def _real_correlations(self) -> list[FloatArray]:
        chosen = self.real.values[:, self._genes]
        return [
            within_class_correlations(chosen[rows], self.real.classes[rows])
            for rows in map(_rows, self._weights)
        ]

    @cached_property
    def _marker_changes(self) -> FloatArray:
        if self._training is None:
            return np.full((self._n_classes, self.real.values.shape[1]), math.nan)
        return fold_changes(self._training.values, self._training.classes, self._n_classes)

    @cached_property
    def _teller(self) -> ClassTeller | None:
        if self._training is None:
            return None
        some = self._training.take(_sample(len(self._training), _MOST_TAUGHT, self._seed))
        return ClassTeller(some.values, some.classes)

    @cached_property
    def _training_space(self) -> PrincipalSpace | None:
        """Components of training cells: in their own ones the real cells lie too far from all others."""
        if self._training is None:
            return None
        some = _sample(len(self._training), _MOST_TAUGHT, self._seed)
        return PrincipalSpace.fit(self._training.values[some])

    @cached_property
    def _training_points(self) -> FloatArray | None:
        if self._training is None or self._training_space is None:
            return None
        some = _sample(len(self._training), _MOST_NEIGHBOURS, self._seed)
        return self._training_space.place(self._training.values[some])

    @cached_property
    def _training_bins(self) -> NDArray[np.uint8]:
        assert self._training is not None
        return self._encoder.encode(self._training.values)

    @cached_property
    def _real_near(self) -> FloatArray:
        assert self._training_points is not None
        assert self._training_space is not None
        placed = self._training_space.place(self.real.values)
        return nearest_distances(placed, self._training_points)

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
