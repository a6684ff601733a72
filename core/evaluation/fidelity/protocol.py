"""The protocol for generated cells: matched classes, several seeds, every baseline on the same cells.

Held-out real cells are halved, by donor where donors are known: all methods are compared with one half; the
other is the reference, what real cells score. Every method has the same number of cells of each class. A
seed is another division, other draws of the baselines and other forests; the generated cells are one set,
from which each seed takes others if there are more than enough.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder, ValueTable
from core.errors import DataError
from core.evaluation.fidelity.class_baselines import ClassBaselines
from core.evaluation.fidelity.judge import FidelityJudge, LabelledCells
from core.evaluation.report.records import Difference, Measured
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

#: With fewer matched cells on a side nothing is scored.
LEAST_CELLS = 40
#: Divisions of donors that are tried for halves of similar composition.
_DIVISIONS = 50
#: Training cells that the baselines are fitted on at most.
_MOST_TRAINING = 20_000

#: Generated cells first, then what they are compared with.
METHODS = ("generated", "real", "copula", "independent", "scvi", "training")

FloatArray = NDArray[np.float64]
Codes = NDArray[np.int64]
#: (cells,) classes and a random generator -> (cells, genes) values.
Draw = Callable[[Codes, np.random.Generator], NDArray[np.float32]]
#: Seed -> (1 + resamples,): the estimate, then bootstrap draws.
_Draws = Mapping[int, FloatArray]


@dataclass(frozen=True)
class MatchedCells:
    """Rows of equal class counts: of real cells twice, and of generated ones."""

    #: (cells,), rows of the real cells that all methods are compared with.
    target: Codes
    #: (cells,), rows of other real cells.
    reference: Codes
    #: (cells,), rows of generated cells.
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
    donors
        (real cells,) codes: the real halves have no donor in common, unless there is one donor only.
    most
        Cells of a side at most; classes then keep their fractions.

    Raises
    ------
    DataError
        Fewer than `LEAST_CELLS` on a side.
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
        message = (
            f"only {int(counts.sum())} cells of a side can be matched by class "
            f"({int(available.sum()):,} generated, {len(real):,} real), and fewer than {LEAST_CELLS} "
            f"cannot be scored; generate more cells of the classes that real cells have"
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
        Held-out cells.
    training
        Cells that the model learnt from; None: no baselines, and no measures of copies and classes.
    encoder, table
        The baselines' bins, and the training values in each.
    donors
        (real cells,) codes, or None.
    matching
        (training cells,), those of the requested phenotypes, from which the baselines learn; None: all.
        If no training cell matches, there are no baselines.
    others
        Method of `METHODS` -> draws values of cells of some classes: more generators, which know the
        same classes as the baselines.
    max_cells
        Of a side.
    n_seeds, n_trees, n_resamples
        Divisions, trees of a forest, bootstrap draws of each seed.

    Raises
    ------
    DataError
        Too few cells can be matched.
    """
    learnt = training
    if training is not None and matching is not None:
        learnt = training.take(np.flatnonzero(matching)) if matching.any() else None
    if learnt is not None:
        chosen = np.random.default_rng(0).permutation(len(learnt))[:_MOST_TRAINING]
        bins = encoder.encode(learnt.values[chosen])
        baselines = ClassBaselines(
            bins, learnt.classes[chosen], encoder.n_bins, np.random.default_rng(1)
        )
        # The baselines cannot draw classes without training cells: all methods leave them out.
        known = np.array(sorted(baselines.n_cells))
        of_real, of_generated = np.isin(real.classes, known), np.isin(generated.classes, known)
        real, generated = real.take(of_real), generated.take(of_generated)
        donors = None if donors is None else donors[of_real]
    draws: dict[str, dict[str, dict[int, FloatArray]]] = {}
    limits: dict[str, list[float]] = {"mmd2": [], "genes_mean": [], "genes_sd": []}
    n_cells, class_cells, shown = [], {}, {}
    for seed in range(n_seeds):
        rng = generator(seed, Stream.FIDELITY_CELLS)
        rows = match_cells(real.classes, generated.classes, rng, donors=donors, most=max_cells)
        target = real.take(rows.target)
        sets = {"generated": generated.take(rows.generated), "real": real.take(rows.reference)}
        if learnt is not None:
            wanted = target.classes
            # Both are drawn before either is decoded: the order of the random numbers is fixed.
            bins_of = {
                "copula": baselines.copula(wanted, rng),
                "independent": baselines.independent(wanted, rng),
            }
            for name, drawn in bins_of.items():
                sets[name] = LabelledCells(table.decode(drawn, how="sample", rng=rng), wanted)
            for name, draw in others.items():
                sets[name] = LabelledCells(draw(wanted, rng), wanted)
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
        {
            method: {
                measure: _measured(of_seeds, draws.get("copula", {}).get(measure), method)
                for measure, of_seeds in measures.items()
            }
            for method, measures in draws.items()
        },
        {name: float(np.mean(values)) for name, values in limits.items()},
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
    low, high = np.percentile(np.concatenate(moved), (2.5, 97.5))
    return Measured(float(points.mean()), float(points.std()), (float(low), float(high)))
