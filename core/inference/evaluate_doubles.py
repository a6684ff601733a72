"""Pairs of perturbations that a model was not trained on, generated and compared with real cells.

Two phenotypes hold the perturbations of a cell; a cell of a single one has the control's value in the other. The order
of the two means nothing. A change is the difference of mean log values from control cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_filter import CellFilter
from core.cells.spelling import suggest
from core.cells.store import Store
from core.errors import ConfigurationError, DataError
from core.evaluation.fidelity.measures import gene_means, pearson
from core.evaluation.method_comparison import KnownCells, baseline_cells
from core.evaluation.metrics import interval_of
from core.generation.cell_generator import CellGenerator
from core.generation.request import FEW_CELLS, GenerationRequest
from core.inference.evaluate_files import Reading, join_files, read_labelled
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator
from core.wording import listed

FloatArray = NDArray[np.float64]
#: Names of cells that were not perturbed, in the spellings of published screens.
CONTROLS = ("control", "ctrl", "non-targeting", "non_targeting", "nontargeting", "nt", "ntc", "neg")
#: The predictions of a double, beside the ceiling: one half of its real cells as the prediction of the other.
METHODS = {
    "model": "the model",
    "additive": "sum of both single effects",
    "others": "mean of other perturbations",
    "none": "no change",
    "ceiling": "half of the real cells",
}
#: Cells generated for a double; cells that are scored at most; draws of an interval.
_GENERATED, _MOST_CELLS, _DRAWS = 200, 100_000, 1_000

#: The perturbations of a cell in alphabetic order; empty for a control cell, None where a label is missing.
Perturbations = tuple[str, ...]


@dataclass(frozen=True)
class DoubleScores:
    """One double: the real cells that are scored, and method -> how its predicted change fits theirs."""

    double: str
    cells: int
    #: Pearson over genes; NaN where a prediction is constant.
    correlation: dict[str, float]
    #: Squared error over that of no change.
    error: dict[str, float]


@dataclass(frozen=True)
class DoublesReport:
    """All doubles; method -> mean over them, with 95 % intervals if there are two or more."""

    phenotypes: tuple[str, str]
    control: str
    genes: int
    control_cells: int
    doubles: tuple[DoubleScores, ...]
    correlation: dict[str, float]
    error: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    #: Mean difference in correlation from the sum of both single effects, and its interval.
    minus_additive: float
    minus_additive_interval: tuple[float, float]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """A sentence on the model beside the sum of the single effects."""
        ours, additive = (self.correlation[name] for name in ("model", "additive"))
        compared = f"mean correlation {ours:.3f} against {additive:.3f}"
        low, high = self.minus_additive_interval
        if len(self.doubles) > 1 and low > 0:
            return f"the model is ahead of the sum of both single effects ({compared})"
        if len(self.doubles) > 1 and high < 0:
            return f"the sum of both single effects is ahead of the model ({compared}): use it"
        side = "ahead of" if ours > additive else "behind"
        if len(self.doubles) == 1:
            return f"the model is {side} the sum of both single effects ({compared}), in one double alone"
        return (
            f"the model is {side} the sum of both single effects ({compared}), by no more than chance makes: use the "
            f"sum, which is simpler"
        )


def evaluate_doubles(
    model: CellModel,
    names: Sequence[str],
    *,
    store: Store | None,
    files: Sequence[str] = (),
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    trained_where: CellFilter | None = None,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> DoublesReport:
    """Score a model on the doubles of files, or of cells of its store that it was not trained on.

    ``names`` are the two phenotypes that hold the perturbations. Scored are doubles without a training cell whose single
    perturbations have `FEW_CELLS` training cells each.

    Raises
    ------
    ConfigurationError
        The names are not two phenotypes of the model with a value for control cells, or it has no values to compare.
    DataError
        The training cells are gone, or there is no such double.

    Notes
    -----
    The sum of both single effects is the baseline of Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6.
    """
    slots, control = _checked_guides(model, names)
    if store is None:
        raise DataError(
            "the cells that the model was trained on are gone or changed, and the single effects come from them; "
            "prepare them again, or name their folder by --store"
        )
    perturbations = _reader(model, slots, control)
    training = baseline_cells(model, store, trained_where, generator(seed, Stream.EVALUATED_CELLS))
    scored, missing, notes = _scored_cells(
        model, store, files, reading, trained_where, perturbations
    )
    means, counts = _means(training, perturbations)
    if counts.get((), 0) < FEW_CELLS:
        raise DataError(
            f"{counts.get((), 0):,} training cells have {names[0]} = {names[1]} = {control}, and the effects need "
            f"{FEW_CELLS} such cells"
        )
    effects = {
        one: mean - means[()] for one, mean in means.items() if one and counts[one] >= FEW_CELLS
    }
    trained = _trained(model, perturbations)
    of_cell = perturbations(scored.codes)
    every: list[Perturbations] = sorted(
        {one for one in of_cell if one is not None and len(one) == 2}
    )
    left_out: dict[str, list[str]] = {}
    chosen: list[tuple[Perturbations, NDArray[np.int64], list[tuple[str, str]]]] = []
    for double in every:
        cells = np.array([at for at, one in enumerate(of_cell) if one == double], dtype=np.int64)
        orders = _known_orders(model, slots, double[0], double[1])
        reason = ""
        if double in trained:
            reason = "training cells have it"
        elif len(cells) < FEW_CELLS:
            reason = f"fewer than {FEW_CELLS} cells"
        elif any((one,) not in effects for one in double):
            reason = f"one of its perturbations has fewer than {FEW_CELLS} training cells by itself"
        elif not orders:
            reason = "training cells have both perturbations in the same column alone"
        if reason:
            left_out.setdefault(reason, []).append(" + ".join(double))
        else:
            chosen.append((double, cells, orders))
    notes += [f"not scored ({reason}): {listed(one)}" for reason, one in left_out.items()]
    if not chosen:
        why = "; ".join(notes) or f"no cell has two perturbations in {names[0]} and {names[1]}"
        raise DataError(f"there is no double to score: {why}")
    present = ~missing
    rng = generator(seed, Stream.FIDELITY_HALVES)
    halves_of_control = _halves(training, perturbations, rng)
    base = _generated_means(model, slots, [(control, control)], control, seed)[0]
    found = []
    for done, (double, cells, orders) in enumerate(chosen):
        first, second = double[0], double[1]
        made = np.mean(_generated_means(model, slots, orders, control, seed), axis=0)
        others = [one for pair, one in effects.items() if pair not in ((first,), (second,))]
        values = scored.expression[cells]
        order = rng.permutation(len(cells))
        sides = [gene_means(values[order[side::2]]) - halves_of_control[side] for side in (0, 1)]
        real = gene_means(values) - means[()]
        predicted = {
            "model": made - base,
            "additive": effects[first,] + effects[second,],
            "others": np.mean(others, axis=0) if others else np.zeros(len(real)),
            "none": np.zeros(len(real)),
        }
        pairs = {name: (one[present], real[present]) for name, one in predicted.items()}
        pairs["ceiling"] = sides[0][present], sides[1][present]
        found.append(
            DoubleScores(
                " + ".join(double),
                len(cells),
                {name: pearson(*pair) for name, pair in pairs.items()},
                {
                    name: float(((one - truth) ** 2).sum() / max((truth**2).sum(), 1e-12))
                    for name, (one, truth) in pairs.items()
                },
            )
        )
        on_progress(ProgressEvent("generating doubles", done + 1, len(chosen)))
    return _report(model, slots, control, int(present.sum()), counts[()], found, notes, seed)


def _checked_guides(model: CellModel, names: Sequence[str]) -> tuple[tuple[int, int], str]:
    """Return the two slots, and the value of control cells."""
    known, text = model.config.phenotypes, f"--doubles {','.join(names)}"
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"{text}: the model has no phenotype '{name}'; {suggest(name, known)}"
            )
    if len(set(names)) != 2 or len(names) != 2:
        raise ConfigurationError(
            f"{text}: give the two phenotypes that hold the perturbations, as in guide_1,guide_2; 'tfx docs perturb' "
            f"shows how to make them of joined names"
        )
    if model.config.kind == "binary":
        raise ConfigurationError(
            f"{text}: changes are those of mean values, and this model predicts only which genes are expressed; train "
            f"one of encoding.kind = 'binned'"
        )
    shared = [value for value in known[names[0]] if value in known[names[1]]]
    controls = [value for value in shared if value.casefold() in CONTROLS]
    if len(controls) != 1:
        raise ConfigurationError(
            f"{text}: one value of both must mean control cells; write it as one of {', '.join(CONTROLS)}"
        )
    first, second = (list(known).index(name) for name in names)
    return (first, second), controls[0]


def _reader(
    model: CellModel, slots: tuple[int, int], control: str
) -> Callable[[NDArray[np.integer]], list[Perturbations | None]]:
    """Return a function from (cells, phenotypes) codes to the perturbations of each cell."""
    values = list(model.config.phenotypes.values())

    def read(codes: NDArray[np.integer]) -> list[Perturbations | None]:
        pairs, of_cell = np.unique(codes[:, list(slots)], axis=0, return_inverse=True)
        found: list[Perturbations | None] = []
        for pair in pairs.tolist():
            if min(pair) < 0:
                found.append(None)
                continue
            both = [values[slot][code] for slot, code in zip(slots, pair, strict=True)]
            found.append(tuple(sorted({one for one in both if one != control})))
        return [found[at] for at in of_cell.ravel().tolist()]

    return read


def _scored_cells(
    model: CellModel,
    store: Store,
    files: Sequence[str],
    reading: Reading,
    trained_where: CellFilter | None,
    perturbations: Callable[[NDArray[np.integer]], list[Perturbations | None]],
) -> tuple[KnownCells, NDArray[np.bool_], list[str]]:
    """Read cells of doubles, which genes they lack, and notes."""

    def doubles(codes: NDArray[np.integer]) -> NDArray[np.int64]:
        rows = np.flatnonzero([one is not None and len(one) == 2 for one in perturbations(codes)])
        places = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_CELLS)).astype(np.int64)
        return rows[places].astype(np.int64)

    if files:
        read = [
            read_labelled(
                model, file, phenotypes=model.config.phenotypes, choose=doubles, reading=reading
            )
            for file in files
        ]
        missing = np.any([one.missing for one in read], axis=0)
        return join_files(read)[0], missing, [note for one in read for note in one.notes]
    seen = np.zeros(store.n_cells, dtype=bool)
    for split in ("train", "validation"):
        seen[store.select(trained_where, split=split) if trained_where else store.rows(split)] = (
            True
        )
    rows = np.flatnonzero(~seen)
    stored, slot_of = np.asarray(store.phenotype_codes), list(store.phenotypes)
    codes = np.full((len(rows), len(model.config.phenotypes)), -1, dtype=np.int64)
    for slot, (name, values) in enumerate(model.config.phenotypes.items()):
        place = {value: code for code, value in enumerate(values)}
        to_model = np.array([*(place.get(one, -1) for one in store.phenotypes[name]), -1])
        codes[:, slot] = to_model[stored[rows, slot_of.index(name)]]
    rows = rows[doubles(codes)]
    return KnownCells.of_store(model, store, rows), np.zeros(len(model.panel), dtype=bool), []


def _means(
    cells: KnownCells, perturbations: Callable[[NDArray[np.integer]], list[Perturbations | None]]
) -> tuple[dict[Perturbations, FloatArray], dict[Perturbations, int]]:
    """Return the mean (genes,) and the number of cells of each combination of perturbations."""
    rows: dict[Perturbations, list[int]] = {}
    for at, one in enumerate(perturbations(cells.codes)):
        if one is not None:
            rows.setdefault(one, []).append(at)
    means = {one: gene_means(cells.expression[at]) for one, at in rows.items()}
    return means, {one: len(at) for one, at in rows.items()}


def _halves(
    training: KnownCells,
    perturbations: Callable[[NDArray[np.integer]], list[Perturbations | None]],
    rng: np.random.Generator,
) -> list[FloatArray]:
    """Means of two halves of the control cells, so that the halves of a double share no cell."""
    control = np.flatnonzero([one == () for one in perturbations(training.codes)])
    order = rng.permutation(control)
    return [gene_means(training.expression[np.sort(order[side::2])]) for side in (0, 1)]


def _trained(
    model: CellModel, perturbations: Callable[[NDArray[np.integer]], list[Perturbations | None]]
) -> set[Perturbations]:
    """Return every combination of perturbations that has a training cell."""
    return {one for one in perturbations(model.reference.combinations) if one is not None}


def _known_orders(
    model: CellModel, slots: tuple[int, int], first: str, second: str
) -> list[tuple[str, str]]:
    """Return the orders of a double in which each column has a value that its training cells have."""
    reference, values = model.reference, list(model.config.phenotypes.values())
    return [
        pair
        for pair in ((first, second), (second, first))
        if all(
            one in values[slot] and reference.n_cells({slot: values[slot].index(one)})
            for slot, one in zip(slots, pair, strict=True)
        )
    ]


def _generated_means(
    model: CellModel,
    slots: tuple[int, int],
    orders: Sequence[tuple[str, str]],
    control: str,
    seed: int,
) -> list[FloatArray]:
    """(genes,) means of generated control cells that are set to each pair of values."""
    names = [list(model.config.phenotypes)[slot] for slot in slots]
    before = dict.fromkeys(names, control)
    means = []
    for pair in orders:
        changes: Mapping[str, str] = dict(zip(names, pair, strict=True))
        request = GenerationRequest(
            before, _GENERATED, settings=model.generate, seed=seed, changes=changes
        )
        blocks = CellGenerator(model, request).blocks()
        sums = [np.asarray(block.expression.sum(axis=0), dtype=float).ravel() for block in blocks]
        means.append(np.sum(sums, axis=0) / _GENERATED)
    return means


def _report(
    model: CellModel,
    slots: tuple[int, int],
    control: str,
    n_genes: int,
    n_control: int,
    found: Sequence[DoubleScores],
    notes: Sequence[str],
    seed: int,
) -> DoublesReport:
    names = [list(model.config.phenotypes)[slot] for slot in slots]
    table = {name: np.array([one.correlation[name] for one in found]) for name in METHODS}
    draws = generator(seed, Stream.BOOTSTRAP).integers(len(found), size=(_DRAWS, len(found)))

    def interval(values: FloatArray) -> tuple[float, float]:
        if len(values) < 2 or np.isnan(values).any():
            return float("nan"), float("nan")
        return interval_of(values[draws].mean(axis=1))

    difference = table["model"] - table["additive"]
    return DoublesReport(
        phenotypes=(names[0], names[1]),
        control=control,
        genes=n_genes,
        control_cells=n_control,
        doubles=tuple(found),
        correlation={name: float(values.mean()) for name, values in table.items()},
        error={name: float(np.mean([one.error[name] for one in found])) for name in METHODS},
        intervals={name: interval(values) for name, values in table.items()},
        minus_additive=float(difference.mean()),
        minus_additive_interval=interval(difference),
        notes=tuple(notes),
    )
