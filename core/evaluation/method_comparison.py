"""The model and the baselines on the same cells and genes, and what a reviewer would ask about the scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.checks.donor_rows import confounded_values
from core.cells.one_vs_rest import OneVsRest
from core.cells.store import Store
from core.evaluation.baselines import predict_by_baseline, score_two_genes
from core.evaluation.calibration import score_confidence
from core.evaluation.metrics import score_methods
from core.evaluation.predict import Probabilities
from core.evaluation.report.records import EvaluationReport, PhenotypeScores, Scores, TwoGeneScores
from core.model.calibration import PhenotypeCalibration, temper, unsure_rules
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import sample_rows
from core.wording import listed

#: Training cells that baselines are fitted on at most; a seeded sample beyond.
MAX_BASELINE_CELLS = 50_000
#: A value, or a split, of fewer donors is confounded with them.
_FEW_DONORS = 3
#: Two genes whose accuracy is this near to the model's show that it needed no more.
_NEAR = 0.01
#: Two genes of a lower balanced accuracy are not worth a note.
_LEAST_BALANCED = 0.75
#: Scores in which a baseline may be better.
_COMPARED = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class KnownCells:
    """Cells of a store or of files."""

    #: (cells, genes), log1p counts per 10,000.
    expression: sparse.csr_matrix
    #: (cells, phenotypes), the model's codes, -1 where a label is missing or unknown to the model.
    codes: NDArray[np.integer[Any]]
    #: (cells,), codes, -1 where not known; None without donors.
    donors: NDArray[np.integer[Any]] | None = None
    #: (cells,), rows of the store; None for cells of files.
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.codes)

    @classmethod
    def of_store(cls, model: CellModel, store: Store, rows: NDArray[np.int64]) -> "KnownCells":
        """Read cells of a store; labels that the model does not know count as missing."""
        stored, names = np.asarray(store.phenotype_codes[rows]), list(store.phenotypes)
        codes = np.full((len(rows), len(model.config.phenotypes)), -1, dtype=np.int32)
        for slot, (name, values) in enumerate(model.config.phenotypes.items()):
            if name in names:
                place = {value: code for code, value in enumerate(values)}
                to_model = [place.get(value, -1) for value in store.phenotypes[name]]
                codes[:, slot] = np.array([*to_model, -1])[stored[:, names.index(name)]]
        donors = None if store.donors is None else np.asarray(store.donors[rows])
        return cls(store.read(rows, model.panel), codes, donors, rows)

    def take(self, cells: NDArray[Any]) -> "KnownCells":
        """Return some of the cells."""
        donors, rows = (None if one is None else one[cells] for one in (self.donors, self.rows))
        return KnownCells(self.expression[cells], self.codes[cells], donors, rows)

    def of_genes(self, genes: NDArray[np.bool_]) -> "KnownCells":
        """Return the same cells with some of their genes."""
        return replace(self, expression=self.expression[:, genes])


def store_of_task(model: CellModel, store: Store) -> Store:
    """Return the store as a one-vs-rest classifier sees it; as it is for any other model."""
    config = model.config
    if config.classified is None or config.positive is None:
        return store
    return OneVsRest(store, config.classified, config.positive)


def baseline_cells(
    model: CellModel, store: Store, trained_where: CellFilter | None, rng: np.random.Generator
) -> KnownCells:
    """Read the cells that the model was trained on, a sample of at most `MAX_BASELINE_CELLS`."""
    rows = store.select(trained_where, split="train") if trained_where else store.rows("train")
    return KnownCells.of_store(model, store, sample_rows(rows, MAX_BASELINE_CELLS, rng))


def predict_by_baselines(
    baselines: Sequence[str],
    training: KnownCells,
    scored: KnownCells,
    slot: int,
    n_values: int,
    *,
    seed: int,
) -> dict[str, NDArray[np.floating[Any]]]:
    """Predict a phenotype: method -> (scored cells, values) probabilities; empty without a training label."""
    known = training.codes[:, slot]
    if not (known >= 0).any():
        return {}
    return {
        method: predict_by_baseline(
            method, training.expression, known, scored.expression, n_values, seed=seed
        )
        for method in baselines
    }


def with_joint_donors(
    cells: KnownCells, own_names: Sequence[str], names: Sequence[str]
) -> tuple[KnownCells, list[str]]:
    """Recode donors of ``own_names`` so that they continue ``names``; return all names too."""
    if cells.donors is None:
        return cells, list(names)
    place = {name: code for code, name in enumerate(names)}
    for name in own_names:
        place.setdefault(name, len(place))
    to_joint = np.array([*(place[name] for name in own_names), -1])
    return replace(cells, donors=to_joint[cells.donors]), list(place)


# ------------------------------------------------------------------------------------- comparison
def baseline_names(baselines: Sequence[str]) -> str:
    """List the baselines of a report."""
    return ", ".join(method.replace("_", " ") for method in baselines) or "none"


def compare_methods(
    config: TfxConfig,
    probabilities: Probabilities,
    scored: KnownCells,
    training: KnownCells | None,
    *,
    baselines: Sequence[str],
    donor_names: Sequence[str],
    symbols: Sequence[str],
    seed: int,
    calibration: Mapping[str, PhenotypeCalibration] = MappingProxyType({}),
    unsure_at: float | None = None,
    on_progress: Listener = ignore_progress,
) -> EvaluationReport:
    """Report the scores of the model and the baselines for every phenotype with a scored label, and notes.

    ``probabilities`` is phenotype -> (scored cells, values) of the model. The ``training`` cells, from which the
    baselines learn, have the genes of ``scored``, called ``symbols``; None: there are no baselines.
    ``donor_names`` are those of both sides; ``calibration`` and ``unsure_at`` are as in `unsure_rules`.
    """
    rules = unsure_rules(calibration, calibration, at=unsure_at)
    phenotypes: Scores = {}
    two_genes: dict[str, TwoGeneScores] = {}
    notes: list[str] = []
    predicted = config.predicted
    for number, (name, slot) in enumerate(predicted.items()):
        truth, values = scored.codes[:, slot], config.phenotypes[name]
        if not (truth >= 0).any():
            continue
        on_progress(ProgressEvent("fitting baselines", number, len(predicted)))
        methods: dict[str, NDArray[np.floating[Any]]] = {"model": probabilities[name]}
        if training is not None:
            methods |= predict_by_baselines(
                baselines, training, scored, slot, len(values), seed=seed
            )
        phenotypes[name] = score_methods(
            name, values, truth, methods, donors=scored.donors, donor_names=donor_names, seed=seed
        )
        notes += review_scores(name, phenotypes[name])
        if name in calibration:
            own, rule = probabilities[name], rules[name]
            temperature = calibration[name].temperature
            confidence = score_confidence(
                truth,
                own,
                temper(own, 1 / temperature),
                own.max(axis=1) >= rule.below,
                temperature=temperature,
                rule=rule,
            )
            phenotypes[name]["model"] = replace(phenotypes[name]["model"], confidence=confidence)
            notes += [rule.reason] if rule.reason else []
        if training is None:
            continue
        known = training.codes[:, slot]
        notes += review_labels(name, values, truth, known)
        found = score_two_genes(training.expression, known, scored.expression, truth, symbols)
        if found is not None:
            two_genes[name] = found
            notes += review_two_genes(name, phenotypes[name]["model"], found)
    on_progress(ProgressEvent("fitting baselines", len(predicted), len(predicted)))
    values_of = {name: config.phenotypes[name] for name in phenotypes}
    notes += review_donors(training, scored, len(donor_names), values_of, predicted)
    return EvaluationReport(phenotypes=phenotypes, two_genes=two_genes, notes=tuple(notes))


# ------------------------------------------------------------------------------------------ notes
def review_scores(name: str, methods: Mapping[str, PhenotypeScores]) -> Iterator[str]:
    """Name the baselines that score higher than the model, to the three digits of the report."""
    model = methods["model"]
    for method, baseline in methods.items():
        if method in ("model", "majority"):
            continue
        pairs = {
            label: (round(getattr(model, score), 3), round(getattr(baseline, score), 3))
            for score, label in _COMPARED.items()
        }
        lower = [label for label, (ours, theirs) in pairs.items() if ours < theirs]
        if lower:
            scores = ", ".join(
                f"{label} {ours:.3f} against {theirs:.3f}"
                for label, (ours, theirs) in pairs.items()
            )
            yield (
                f"{name}: the model scores lower than {method.replace('_', ' ')} in "
                f"{' and '.join(lower)} ({scores}){_chance(baseline)}"
            )
    if "majority" in methods and model.accuracy <= methods["majority"].accuracy:
        yield f"{name}: the model is no better than always predicting the most common value"


def _chance(baseline: PhenotypeScores) -> str:
    """Note a difference that may be chance: zero is in the intervals of both scores."""
    intervals = baseline.intervals
    difference = None if intervals is None else intervals.model_minus_method
    if intervals is None or difference is None:
        return ""
    bounds = [getattr(difference, score) for score in _COMPARED]
    within = all(low <= 0 <= high for low, high in bounds)
    return f"; within chance (95 %, over {intervals.resampled})" if within else ""


def review_labels(
    name: str, values: Sequence[str], truth: Integers, training: Integers
) -> Iterator[str]:
    """Note scored labels that could not be learnt, and a phenotype with a single scored value.

    ``truth`` and ``training`` are (cells,) codes of the scored and of the training cells, -1 where missing.
    """
    n_scored = np.bincount(truth[truth >= 0], minlength=len(values))
    n_training = np.bincount(training[training >= 0], minlength=len(values))
    absent = np.flatnonzero((n_scored > 0) & (n_training == 0))
    if len(absent):
        n_cells = int(n_scored[absent].sum())
        yield (
            f"{name}: {_named(values, absent)} {_is(absent)} absent from training, so {n_cells:,} of "
            f"{int(n_scored.sum()):,} scored cells cannot be predicted rightly"
        )
    if (n_scored > 0).sum() == 1:
        yield f"{name}: all scored cells have one value, so its accuracy means little"


def review_donors(
    training: KnownCells | None,
    scored: KnownCells,
    n_donors: int,
    phenotypes: Mapping[str, Sequence[str]],
    slots: Mapping[str, int],
) -> Iterator[str]:
    """Note what the scores owe to donors; ``phenotypes``: name -> values, of those with a scored label."""
    sides = [scored] if training is None else [scored, training]
    donors = [cells.donors for cells in sides if cells.donors is not None]
    if len(donors) < len(sides):
        yield (
            "donors are not known: training and scored cells may come from the same ones, so the "
            "scores may be too high"
        )
        return
    has_cells = [np.isin(np.arange(n_donors), of_cells) for of_cells in donors]
    n_scored = int(has_cells[0].sum())
    n_both = 0 if training is None else int((has_cells[0] & has_cells[1]).sum())
    if n_both:
        yield (
            f"of {n_scored:,} scored donor{_s(n_scored)} {n_both:,} "
            f"{'has' if n_both == 1 else 'have'} cells in training, so the scores may be too high"
        )
    if 0 < n_scored < _FEW_DONORS:
        yield (
            f"the scores are those of {n_scored} donor{_s(n_scored)}; other donors may differ by more "
            "than the intervals"
        )
    of_donors = []
    for name, values in phenotypes.items():
        crosses = [_cross(cells, slots[name], len(values), n_donors) for cells in sides]
        donors_per_value = confounded_values(np.sum(crosses, axis=0))
        if donors_per_value is not None:
            of_donors.append(name)
            few = np.flatnonzero((donors_per_value > 0) & (donors_per_value < _FEW_DONORS))
            if len(few):
                yield (
                    f"{name}: every donor has one value, and {_named(values, few)} {_is(few)} of fewer "
                    f"than {_FEW_DONORS} donors, training and scored: any other difference between "
                    f"these donors and the rest looks like {name}"
                )
        per_value = (crosses[0] > 0).sum(axis=1)
        few = np.flatnonzero((per_value > 0) & (per_value < _FEW_DONORS))
        if len(few) and n_scored >= _FEW_DONORS:
            yield (
                f"{name}: {_named(values, few)} {_is(few)} scored on fewer than {_FEW_DONORS} donors"
            )
    if of_donors and n_scored:
        yield (
            f"{', '.join(of_donors)}: every donor has one value, so the sample is "
            f"{n_scored:,} donor{_s(n_scored)}, not {len(scored):,} cells"
        )


def review_two_genes(name: str, model: PhenotypeScores, two_genes: TwoGeneScores) -> Iterator[str]:
    """Note that two genes alone do as well as the model."""
    is_good = two_genes.balanced_accuracy >= _LEAST_BALANCED
    if is_good and two_genes.accuracy >= model.accuracy - _NEAR:
        yield (
            f"{name}: {' and '.join(two_genes.genes)} alone reach accuracy "
            f"{two_genes.accuracy:.3f} (model {model.accuracy:.3f}), so the score means "
            f"little about the other genes"
        )


def _named(values: Sequence[str], codes: NDArray[np.int64]) -> str:
    return listed([f"'{values[code]}'" for code in codes.tolist()])


def _is(codes: NDArray[np.int64]) -> str:
    return "is" if len(codes) == 1 else "are"


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _cross(cells: KnownCells, slot: int, n_values: int, n_donors: int) -> NDArray[np.int64]:
    """(values, donors), cells."""
    assert cells.donors is not None
    counts = np.zeros((n_values, n_donors), dtype=np.int64)
    codes = cells.codes[:, slot]
    known = (codes >= 0) & (cells.donors >= 0)
    np.add.at(counts, (codes[known], cells.donors[known]), 1)
    return counts
