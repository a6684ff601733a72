"""Cross-validation of a run over donors: one model per donor, which has never seen the cells of this donor.

Each model is a run of its own in RUN/folds, with the preset of the run and one condition more (``data.where`` leaves the
donor out), on the same store. Runs that are finished are kept, so that a repeated command continues. Every
cell is predicted once, by the model without its donor; these predictions are scored together, beside baselines
that learn from the same training cells. They also calibrate the model of the run, which is trained on all donors.

The genes of the panel are those of the run: they are ranked without labels, over all its training cells.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter, Condition
from core.cells.store import Store
from core.errors import ConfigurationError, TrainingInterrupted
from core.evaluation.calibration import fit_calibration, score_confidence
from core.evaluation.masked_evaluation import evaluate_masked
from core.evaluation.method_comparison import (
    KnownCells,
    baseline_cells,
    baseline_names,
    predict_by_baselines,
    review_donors,
    review_scores,
    store_of_task,
)
from core.evaluation.metrics import score_methods
from core.evaluation.predict import predict_phenotypes
from core.evaluation.report.records import EvaluationFacts, EvaluationReport, MaskedGenes, Scores
from core.files import file_text
from core.model.calibration import temper, unsure_rules
from core.model.folder import CellModel
from core.presets.loading import ResolvedPreset
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator
from core.runlog.ownership import owned_run
from core.runlog.reader import RunReader
from core.runlog.schema import CONFIG_FILE, MODEL_FOLDER, RUN_FILE
from core.training.checkpoints import preset_differences
from core.training.engine import train
from core.training.start_weights import ConvertWeights
from core.wording import listed

FOLDS_FOLDER = "folds"
_NO_GENES = sparse.csr_matrix((0, 0))
Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Fold:
    """A donor that is left out, the run without it, and the rows of its cells."""

    donor: str
    code: int
    folder: Path
    preset: ResolvedPreset
    rows: NDArray[np.int64]

    @property
    def trained_where(self) -> CellFilter:
        """The cells that the run trains on."""
        return CellFilter.parse(self.preset.preset.data.where, where="data.where")

    @property
    def is_finished(self) -> bool:
        """Whether the run ended under this preset."""
        config = self.folder / CONFIG_FILE
        files = (self.folder / RUN_FILE, config, self.folder / MODEL_FOLDER / "tfx.json")
        if not all(path.is_file() for path in files):
            return False
        before = ResolvedPreset.from_toml(file_text(config), where=str(config))
        differs = preset_differences(before.preset, self.preset.preset)
        state = RunReader(self.folder).status.get("state")
        return state == "finished" and not differs.keys() - {"train.virtual_ranks"}


def plan_folds(run: Path, preset: ResolvedPreset, store: Store) -> list[Fold]:
    """Return a fold per donor with training cells of the run; ConfigurationError for fewer than two."""
    data = preset.preset.data
    if store.donors is None or "donor" in store.phenotypes:
        reason = (
            f"its store has no donors: name their obs column as data.split.by (it is '{data.split.by}') and train "
            "again"
            if store.donors is None
            else "a phenotype of its store is called 'donor'; give it another name in data.phenotypes and train again"
        )
        raise ConfigurationError(f"{run} cannot be cross-validated over donors: {reason}")
    where = CellFilter.parse(data.where, where="data.where")
    rows = store.select(where, split="train") if where else store.rows("train")
    donors, names = np.asarray(store.donors[rows]), store.donor_names or ()
    codes = np.unique(donors[donors >= 0]).tolist()
    if len(codes) < 2:
        raise ConfigurationError(
            f"{run} cannot be cross-validated over donors: its training cells are of {len(codes)} "
            f"donor{'s' * (len(codes) != 1)}; two are needed"
        )
    folds = []
    for code in codes:
        condition = str(Condition("donor", (names[code],), excluded=True))
        slug = re.sub(r"\W+", "_", names[code], flags=re.ASCII).strip("_")[:40]
        fold = Fold(
            names[code],
            code,
            run / FOLDS_FOLDER / f"{code + 1:03d}-{slug}".rstrip("-"),
            preset.changed(options={"data.where": [*data.where, condition]}),
            rows[donors == code],
        )
        trained = store.select(fold.trained_where, split="train")
        if not np.array_equal(trained, rows[donors != code]):
            raise ConfigurationError(
                f"{run} cannot be cross-validated over donors: no condition leaves out the donor {names[code]!r} alone; "
                f"give it a plainer name and train again"
            )
        folds.append(fold)
    return folds


def cross_validate(
    run: Path,
    preset: ResolvedPreset,
    model: CellModel,
    store: Store,
    *,
    baselines: Sequence[str],
    unsure_at: float | None = None,
    convert_weights: ConvertWeights | None = None,
    should_stop: Callable[[], object] = lambda: False,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> EvaluationReport:
    """Train one model without each donor, score their predictions, and calibrate the run's model with them.

    ``preset``, ``model`` and ``store`` are those of the run; the model folder in ``run`` is written anew with the
    calibration. ``should_stop`` is as for `core.training.engine.train`: TrainingInterrupted, after which the same call
    continues. ConfigurationError if there are no donors to leave out, MachineError if the run is being trained.
    """
    folds = plan_folds(run, preset, store)
    for number, fold in enumerate(folds):
        _train_fold(fold, number, folds, store, convert_weights, should_stop, on_progress)
    parts = []
    for number, fold in enumerate(folds):
        if should_stop():
            raise TrainingInterrupted("stopped; the same command scores the models again")
        on_progress(ProgressEvent("scoring left-out donors", number, len(folds)))
        parts.append(_score_fold(fold, model, store, baselines, seed=seed))
    on_progress(ProgressEvent("scoring left-out donors", len(folds), len(folds)))
    donors = np.repeat([fold.code for fold in folds], [len(fold.rows) for fold in folds])
    predictions = _Predictions.join(parts)
    names = model.config.predicted
    truth = {name: predictions.codes[:, slot] for name, slot in names.items()}
    model.calibration = fit_calibration(truth, predictions.of("model"), donors, seed=seed)
    with owned_run(run):  # which may have been trained further meanwhile
        newest = CellModel.load(run / MODEL_FOLDER)
        replace(newest, calibration=model.calibration).save(run / MODEL_FOLDER)
    scores, notes = _score(
        model, predictions, truth, donors, store.donor_names or (), unsure_at=unsure_at, seed=seed
    )
    pooled = KnownCells(_NO_GENES, predictions.codes, donors)
    values = {name: model.config.phenotypes[name] for name in scores}
    notes += review_donors(None, pooled, len(store.donor_names or ()), values, names)
    return EvaluationReport(
        title=f"{model.provenance.get('name', 'model')} cross-validated over {len(folds)} donors",
        facts=EvaluationFacts(
            model=model.provenance.get("name"),
            step=model.provenance.get("step"),
            data=", ".join(source.name for source in store.manifest.sources),
            simulated=store.truth is not None,
            split="cross-validation",
            split_by="donor",
            trained_where=", ".join(preset.preset.data.where) or None,
            n_cells=len(donors),
            baselines=baseline_names(baselines),
            n_genes=len(model.panel),
            seed=seed,
        ),
        phenotypes=scores,
        genes=_joined_genes(predictions.genes),
        notes=(*_notes_on_folds(preset, model, store), *notes),
    )


def _train_fold(
    fold: Fold,
    number: int,
    folds: Sequence[Fold],
    store: Store,
    convert_weights: ConvertWeights | None,
    should_stop: Callable[[], object],
    on_progress: Listener,
) -> None:
    """Train the run of a fold, or what is missing of it; its steps count among those of all folds."""
    if fold.is_finished:
        return
    which = f"model {number + 1} of {len(folds)}, without donor {fold.donor}"
    on_progress(ProgressEvent("cross-validation", message=f"cross-validation: {which}"))

    def listen(event: ProgressEvent) -> None:
        # Other stages are left out, so that the time left has their time in it.
        if event.stage == "training" and event.total:
            message = f"{which}: {event.message}" if event.message else ""
            done, total = number * event.total + event.done, len(folds) * event.total
            on_progress(ProgressEvent("cross-validation", done, total, message))

    try:
        train(
            fold.preset,
            store,
            fold.folder,
            convert_weights=convert_weights,
            should_stop=should_stop,
            on_progress=listen,
        )
    except (TrainingInterrupted, KeyboardInterrupt):
        if not should_stop():  # a second Ctrl-C
            raise
        raise TrainingInterrupted(
            f"stopped in {which}; what is done is kept, and the same command continues"
        ) from None


@dataclass(frozen=True)
class _Predictions:
    """Cells with their true codes (cells, phenotypes), and the probabilities of every method."""

    codes: Integers
    #: Phenotype -> method -> (cells, values).
    probabilities: dict[str, dict[str, Floats]]
    #: Of each fold; empty for a classifier.
    genes: list[MaskedGenes]

    @classmethod
    def join(cls, parts: Sequence["_Predictions"]) -> "_Predictions":
        joined = {
            name: {
                method: np.concatenate([part.probabilities[name][method] for part in parts])
                for method in methods
            }
            for name, methods in parts[0].probabilities.items()
        }
        codes = np.concatenate([part.codes for part in parts])
        return cls(codes, joined, [genes for part in parts for genes in part.genes])

    def of(self, method: str) -> dict[str, Floats]:
        return {name: methods[method] for name, methods in self.probabilities.items()}


def _score_fold(
    fold: Fold, model: CellModel, store: Store, baselines: Sequence[str], *, seed: int
) -> _Predictions:
    """Predict the cells of the left-out donor, at temperature 1, and by baselines."""
    own = replace(CellModel.load(fold.folder / MODEL_FOLDER), calibration={})
    own.network.to(next(model.network.parameters()).device)
    task = store_of_task(own, store)
    cells = KnownCells.of_store(own, task, fold.rows)
    rng = generator(seed, Stream.EVALUATED_CELLS)
    training = baseline_cells(own, task, fold.trained_where, rng)
    probabilities: dict[str, dict[str, Floats]] = {}
    for name, found in predict_phenotypes(own, task, fold.rows, seed=seed).items():
        n_values, slot = found.shape[1], own.config.predicted[name]
        # Without a training label all values are as likely.
        probabilities[name] = {
            "model": found,
            **dict.fromkeys(baselines, np.full(found.shape, 1 / n_values)),
            **predict_by_baselines(baselines, training, cells, slot, n_values, seed=seed),
        }
    genes = []
    if own.config.classified is None:
        genes = [evaluate_masked(own, task, fold.rows, fold.preset.preset.loss, seed=seed).genes]
    return _Predictions(cells.codes, probabilities, genes)


def _score(
    model: CellModel,
    predictions: _Predictions,
    truth: Mapping[str, Integers],
    donors: Integers,
    donor_names: Sequence[str],
    *,
    unsure_at: float | None,
    seed: int,
) -> tuple[Scores, list[str]]:
    """Score every phenotype with a label; each donor's probabilities are calibrated on the other donors."""
    scores: Scores = {}
    notes = []
    rules = unsure_rules(model.calibration, truth, at=unsure_at)
    for name, true in truth.items():
        if not (true >= 0).any():
            notes.append(f"{name}: no cell has a label; not scored")
            continue
        plain = predictions.probabilities[name]["model"]
        tempered, is_sure = np.empty_like(plain), np.zeros(len(true), dtype=bool)
        for donor in np.unique(donors):
            others, own = donors != donor, donors == donor
            known = fit_calibration(
                {name: true[others]}, {name: plain[others]}, donors[others], seed=seed
            )
            tempered[own] = temper(plain[own], known[name].temperature)
            below = unsure_rules(known, [name], at=unsure_at)[name].below
            is_sure[own] = tempered[own].max(axis=1) >= below
        values = model.config.phenotypes[name]
        methods = predictions.probabilities[name] | {"model": tempered}
        scores[name] = score_methods(
            name, values, true, methods, donors=donors, donor_names=donor_names, seed=seed
        )
        rule = rules[name]
        confidence = score_confidence(
            true,
            tempered,
            plain,
            is_sure,
            temperature=model.calibration[name].temperature,
            rule=rule,
        )
        scores[name]["model"] = replace(scores[name]["model"], confidence=confidence)
        notes += review_scores(name, scores[name])
        notes += [rule.reason] if rule.reason else []
        notes += _values_of_one_donor(name, values, true, donors)
    return scores, notes


def _values_of_one_donor(
    name: str, values: Sequence[str], truth: Integers, donors: Integers
) -> Iterator[str]:
    """Note values that no model without their donor can predict."""
    alone = [
        code for code in np.unique(truth[truth >= 0]) if len(np.unique(donors[truth == code])) == 1
    ]
    if alone:
        named = listed([f"'{values[code]}'" for code in alone])
        n_cells = int(np.isin(truth, alone).sum())
        yield (
            f"{name}: {named} {'is' if len(alone) == 1 else 'are'} of one donor, so the model without this donor "
            f"cannot predict {n_cells:,} of {int((truth >= 0).sum()):,} cells rightly"
        )


def _notes_on_folds(preset: ResolvedPreset, model: CellModel, store: Store) -> Iterator[str]:
    n_held_out = store.n_cells - len(store.rows("train"))
    if n_held_out:
        yield (
            f"the {n_held_out:,} cells of validation and test donors are in no fold: each model leaves out one donor "
            f"of the training split"
        )
    if len(model.panel) < len(store.genes):
        yield (
            f"the {len(model.panel):,} genes of the panel were ranked, without labels, on the cells of all donors of "
            f"the training split"
        )
    if preset.preset.model.start_from is not None:
        yield (
            f"every model starts from {preset.preset.model.start_from}: if that has seen these donors, the scores are "
            f"too high"
        )


def _joined_genes(genes: Sequence[MaskedGenes]) -> MaskedGenes | None:
    """Return the means over the masked genes of all folds."""
    if not genes:
        return None
    weights = [one.n_masked for one in genes]

    def mean(name: str) -> float:
        return float(np.average([getattr(one, name) for one in genes], weights=weights))

    names = ("accuracy", "baseline_accuracy", "loss")
    return MaskedGenes(n_masked=sum(weights), **{name: mean(name) for name in names})
