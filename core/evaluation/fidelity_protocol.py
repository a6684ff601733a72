"""The protocol for generated cells: matched classes, several seeds, every baseline beside them.

Real cells that training has not seen are halved, by donor where donors are known: one half is what all
methods are compared with, the other is the floor, what real cells score. Of each class every method has
the same number of cells. A seed is another division, other draws of the baselines and other forests; the
generated cells are one set, from which each seed takes others where there are more than enough.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder, ValueTable
from core.errors import DataError
from core.evaluation.class_baselines import ClassBaselines
from core.evaluation.fidelity_judge import FidelityJudge, LabelledCells
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = [
    "LEAST_CELLS",
    "METHODS",
    "MatchedCells",
    "Measured",
    "ProtocolResult",
    "match_cells",
    "run_protocol",
]

#: Matched cells on a side below which nothing is scored.
LEAST_CELLS = 40
#: Divisions of donors that are tried for halves of like composition.
_DIVISIONS = 50
#: Training cells that the baselines are fitted on at most.
_MOST_TRAINING = 20_000

#: Generated cells first, then what they are held against.
METHODS = ("generated", "real", "copula", "independent", "scvi", "training")

FloatArray = NDArray[np.float64]
Codes = NDArray[np.int64]
#: (cells,) classes and chance -> (cells, genes) values.
Draw = Callable[[Codes, np.random.Generator], NDArray[np.float32]]


@dataclass(frozen=True)
class Measured:
    """One measure of one method.

    Attributes
    ----------
    value, sd
        Mean and standard deviation over seeds.
    interval
        95 % bootstrap interval over cells and seeds.
    lead
        (difference from the copula, low, high) on the same resamples of real cells; None for the
        copula itself and where there is none.
    """

    value: float
    sd: float
    interval: tuple[float, float]
    lead: tuple[float, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        record: dict[str, Any] = {
            "value": self.value, "sd": self.sd, "interval": list(self.interval),
        }  # fmt: skip
        if self.lead is not None:
            record["minus_copula"] = {"value": self.lead[0], "interval": list(self.lead[1:])}
        return record


@dataclass(frozen=True)
class MatchedCells:
    """Rows of equal class counts: of real cells twice, and of generated ones.

    Attributes
    ----------
    target, floor
        (cells,), rows of real cells; all are compared with the first.
    generated
        (cells,), rows of generated cells.
    """

    target: Codes
    floor: Codes
    generated: Codes


@dataclass(frozen=True)
class ProtocolResult:
    """What the protocol found.

    Attributes
    ----------
    scores
        Method -> measure -> figures.
    limits
        "mmd2": 95th percentile of real splits; "genes_mean", "genes_sd": those of the real cells.
        Means over seeds.
    n_cells
        Matched cells on each side, of each seed.
    class_cells
        Class code -> matched cells of the first seed.
    shown
        Method -> cells of the first seed, for pictures; "target" are the real cells compared with.
    """

    scores: dict[str, dict[str, Measured]]
    limits: dict[str, float]
    n_cells: list[int]
    class_cells: dict[int, int]
    shown: dict[str, LabelledCells]


def match_cells(
    real: Codes,
    generated: Codes,
    rng: np.random.Generator,
    *,
    donors: Codes | None = None,
    most: int = 1_000,
) -> MatchedCells:
    """Choose equal numbers of cells of each class.

    Parameters
    ----------
    real, generated
        (cells,), classes.
    rng
        Makes the choice.
    donors
        (real cells,) codes: the real halves share no donor, unless there is one donor alone.
    most
        Cells of a side at most; classes then keep their shares.

    Raises
    ------
    DataError
        Fewer than `LEAST_CELLS` on a side.
    """
    n_classes = int(max(real.max(initial=0), generated.max(initial=0))) + 1
    available = np.bincount(generated, minlength=n_classes)
    left = _halve(real, donors, available, rng)
    sides = [np.bincount(real[half], minlength=n_classes) for half in (left, ~left)]
    counts = np.minimum(np.minimum(*sides), available)
    if counts.sum() > most:
        exact = counts * (most / counts.sum())
        counts = np.floor(exact).astype(np.int64)
        short = most - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    if counts.sum() < LEAST_CELLS:
        message = (
            f"only {int(counts.sum())} cells of a side can be matched by class "
            f"({int(available.sum()):,} generated, {len(real):,} real), and fewer than {LEAST_CELLS} "
            f"tell nothing; generate more cells of the classes that real cells have"
        )
        raise DataError(message)

    def draw(classes: Codes, allowed: NDArray[np.bool_]) -> Codes:
        rows = [
            rng.permutation(np.flatnonzero((classes == code) & allowed))[: counts[code]]
            for code in range(n_classes)
        ]
        return np.sort(np.concatenate(rows)).astype(np.int64)

    everything = np.ones(len(generated), dtype=bool)
    return MatchedCells(draw(real, left), draw(real, ~left), draw(generated, everything))


def _halve(
    classes: Codes, donors: Codes | None, available: Codes, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(cells,), which are of the first half: whole donors, or cells class by class."""
    n_classes = len(available)
    names = np.unique(donors) if donors is not None else np.zeros(0)
    if donors is not None and len(names) > 1:
        best, most = np.zeros(len(classes), dtype=bool), -1
        for _ in range(_DIVISIONS):
            chosen = rng.permutation(names)[: len(names) // 2]
            left = np.isin(donors, chosen)
            sides = [np.bincount(classes[half], minlength=n_classes) for half in (left, ~left)]
            matched = int(np.minimum(np.minimum(*sides), available).sum())
            if matched > most:
                best, most = left, matched
        return best
    left = np.zeros(len(classes), dtype=bool)
    for code in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == code))
        left[rows[: len(rows) // 2]] = True
    return left


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
    """Score generated cells, real ones and the baselines alike.

    Parameters
    ----------
    real
        Cells that training has not seen.
    generated
        The cells to judge.
    training
        Cells the model learnt from; None: no baselines, nothing on copies and conditions.
    encoder, table
        The baselines' bins, and the training values within each.
    n_classes
        Number of class codes.
    donors
        (real cells,) codes, or None.
    matching
        (training cells,), those of the phenotypes that were asked for, from which the baselines learn;
        None: all. Where there are none, there are no baselines.
    others
        Method of `METHODS` -> draws values of cells of some classes: generators beside the baselines,
        which know the same classes as these.
    max_cells
        Of a side.
    n_seeds, n_trees, n_resamples
        Divisions, trees of a forest, bootstrap draws of each seed.

    Raises
    ------
    DataError
        Too few cells can be matched.
    """
    baselines = None
    learnt = training
    if training is not None and matching is not None:
        learnt = training.take(np.flatnonzero(matching)) if matching.any() else None
    if learnt is not None:
        chosen = np.random.default_rng(0).permutation(len(learnt))[:_MOST_TRAINING]
        bins = encoder.encode(learnt.values[chosen])
        baselines = ClassBaselines(
            bins, learnt.classes[chosen], encoder.n_bins, np.random.default_rng(1)
        )
        # Classes without training cells have no baselines: they are left out for all methods.
        known = np.array(sorted(baselines.n_cells))
        of_real, of_generated = np.isin(real.classes, known), np.isin(generated.classes, known)
        real, generated = real.take(of_real), generated.take(of_generated)
        donors = None if donors is None else donors[of_real]
    draws: dict[str, dict[str, dict[int, FloatArray]]] = {}
    limits: dict[str, list[float]] = {"mmd2": [], "genes_mean": [], "genes_sd": []}
    n_cells, class_cells, shown = [], {}, {}
    for seed in range(n_seeds):
        rng = generator(seed, Stream.FIDELITY_CELLS)
        rows = match_cells(
            real.classes, generated.classes, rng, donors=donors, most=max_cells
        )  # fmt: skip
        target = real.take(rows.target)
        sets = {"generated": generated.take(rows.generated), "real": real.take(rows.floor)}
        if learnt is not None and baselines is not None:
            wanted = target.classes
            for name, drawn in (
                ("copula", baselines.copula(wanted, rng)),
                ("independent", baselines.independent(wanted, rng)),
            ):
                sets[name] = LabelledCells(table.decode(drawn, how="sample", rng=rng), wanted)
            sets |= {
                name: LabelledCells(draw(wanted, rng), wanted) for name, draw in others.items()
            }
            sets["training"] = learnt.take(_like(learnt.classes, wanted, rng))
        judge = FidelityJudge(
            target, training, encoder, n_classes, seed=seed, n_resamples=n_resamples,
            n_trees=n_trees,
        )  # fmt: skip
        limits["mmd2"].append(judge.mmd2_limit(sets["real"]))
        limits["genes_mean"].append(judge.genes_mean)
        limits["genes_sd"].append(judge.genes_sd)
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
        _summaries(draws),
        {name: float(np.mean(values)) for name, values in limits.items()},
        n_cells,
        class_cells,
        shown,
    )


def _like(classes: Codes, wanted: Codes, rng: np.random.Generator) -> Codes:
    """Rows of cells of the wanted classes, each once where there are enough."""
    rows = np.empty(len(wanted), dtype=np.int64)
    for code in np.unique(wanted):
        places, of_class = np.flatnonzero(wanted == code), np.flatnonzero(classes == code)
        rows[places] = rng.choice(of_class, len(places), replace=len(of_class) < len(places))
    return rows


def _summaries(
    draws: Mapping[str, Mapping[str, Mapping[int, FloatArray]]],
) -> dict[str, dict[str, Measured]]:
    found: dict[str, dict[str, Measured]] = {}
    copula = draws.get("copula")
    for method, measures in draws.items():
        found[method] = {}
        for measure, seeds in measures.items():
            value, sd, low, high = _summary(seeds)
            lead = None
            if copula is not None and method != "copula":
                of_copula = copula[measure]
                over = {seed: one - of_copula[seed] for seed, one in seeds.items()}
                difference, _, *bounds = _summary(over)
                lead = (difference, bounds[0], bounds[1])
            found[method][measure] = Measured(value, sd, (low, high), lead)
    return found


def _summary(seeds: Mapping[int, FloatArray]) -> tuple[float, float, float, float]:
    """Return mean over seeds, its spread, and the bounds of a 95 % interval.

    Draws are moved so that they centre on the estimate of their seed: cells taken twice make pairs of
    genes noisier, which would shift the whole interval.
    """
    points = np.array([one[0] for one in seeds.values()])
    moved = [one[1:] - one[1:].mean() + one[0] for one in seeds.values()]
    low, high = np.percentile(np.concatenate(moved), (2.5, 97.5))
    return float(points.mean()), float(points.std()), float(low), float(high)
