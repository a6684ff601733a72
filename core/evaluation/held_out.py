"""The evaluation of a model: held-out cells, every phenotype, baselines on the same cells and genes.

In the headline condition all genes are visible and all phenotypes masked. Other conditions cost as much
as the headline, so they are scored on a seeded sample, with the headline's condition on the same cells.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_filter import CellFilter
from core.cells.store import Split, Store
from core.errors import DataError
from core.evaluation.baselines import QUICK_BASELINES
from core.evaluation.masked_evaluation import (
    MASK_RATES,
    evaluate_at_rate,
    evaluate_masked,
    report_genes,
)
from core.evaluation.method_comparison import (
    KnownCells,
    baseline_cells,
    baseline_names,
    compare_methods,
    store_of_task,
)
from core.evaluation.metrics import score_methods
from core.evaluation.parts import evaluate_parts
from core.evaluation.predict import Probabilities, predict_phenotypes
from core.evaluation.report.records import (
    Conditions,
    EvaluationFacts,
    EvaluationReport,
    GeneRates,
    GeneRow,
    Scores,
)
from core.model.folder import CellModel
from core.presets.schema import LossSettings
from core.progress import Listener, ignore_progress
from core.random_streams import Stream, generator, sample_rows

MAX_CONDITION_CELLS = 2_000


def evaluate_held_out(
    model: CellModel,
    store: Store,
    split: Split,
    *,
    loss: LossSettings,
    where: CellFilter | None = None,
    trained_where: CellFilter | None = None,
    max_cells: int | None = None,
    baselines: Sequence[str] = QUICK_BASELINES,
    unsure_at: float | None = None,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> tuple[EvaluationReport, list[GeneRow]]:
    """Score a model on a split that it was not trained on.

    The store must be the one that the model was trained on, so that the split is held out. Of the cells that match
    ``where`` a seeded sample of ``max_cells`` is scored. The ``baselines`` (of `ALL_BASELINES`) learn from the cells
    that match ``trained_where``, the model's own ``data.where``. ``loss`` is reported on masked genes;
    ``unsure_at`` is as in `unsure_rules`. Returns the report, and a row per gene and mask rate; DataError if the
    split has no cells, or none that match.
    """
    store = store_of_task(model, store)
    rng = generator(seed, Stream.EVALUATED_CELLS)
    rows = _chosen_rows(store, split, where, max_cells, rng)
    training = baseline_cells(model, store, trained_where, rng)
    probabilities = predict_phenotypes(model, store, rows, seed=seed, on_progress=on_progress)
    scored = KnownCells.of_store(model, store, rows)
    compared = compare_methods(
        model.config, probabilities, scored, training,
        baselines=baselines, donor_names=store.donor_names or (), symbols=model.panel.symbols,
        seed=seed, calibration=model.calibration, unsure_at=unsure_at, on_progress=on_progress,
    )  # fmt: skip
    conditions, gene_rates, gene_rows = evaluate_conditions(
        model, store, rows, probabilities, seed=seed, on_progress=on_progress
    )
    genes = None
    if model.config.classified is None:  # a classifier predicts no gene
        genes = evaluate_masked(model, store, rows, loss, seed=seed, on_progress=on_progress).genes
    parts = evaluate_parts(model, store, rows, seed=seed, on_progress=on_progress)
    unlabelled = [
        f"{name}: no {split} cell has a label; not scored"
        for name in model.config.predicted
        if name not in compared.phenotypes
    ]
    name = model.provenance.get("name", "model")
    report = replace(
        compared,
        title=f"{name} on {split} cells" + (f" where {where}" if where else ""),
        facts=EvaluationFacts(
            model=model.provenance.get("name"),
            step=model.provenance.get("step"),
            data=", ".join(source.name for source in store.manifest.sources),
            simulated=store.truth is not None,
            split=split,
            split_by=store.report.get("split", {}).get("method"),
            where=str(where) if where else None,
            trained_where=str(trained_where) if trained_where else None,
            n_cells=len(rows),
            baselines=baseline_names(baselines),
            n_cells_of_baselines=len(training),
            n_genes=len(model.panel),
            seed=seed,
        ),
        conditions=conditions,
        genes=genes,
        gene_rates=gene_rates,
        parts=parts,
        notes=(*unlabelled, *compared.notes),
    )
    return report, gene_rows


def _chosen_rows(
    store: Store,
    split: Split,
    where: CellFilter | None,
    max_cells: int | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    rows = store.rows(split)
    if len(rows) == 0:
        raise DataError(
            f"{store.path}: the {split} split has no cells; set data.split.{split} above 0 or give "
            f"data.{split}_files, and prepare again, or add '--cross-validate donors' to tfx eval"
        )
    if where:
        of_split, rows = rows, store.select(where, split=split)
        if len(rows) == 0:
            raise DataError(
                f"{store.path}: no {split} cell matches {where.where} {where} "
                f"({where.describe_no_match(store.labels, of_split)}); choose other cells"
            )
    return sample_rows(rows, max_cells, rng)


def evaluate_conditions(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    headline: Probabilities,
    *,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> tuple[Conditions, GeneRates | None, list[GeneRow]]:
    """Score a model with other phenotypes given, and with genes masked, on a sample of the headline's cells.

    ``headline`` is phenotype -> (cells of ``rows``, values) probabilities with all genes visible. Returns
    scores by condition; masked genes by rate (None for a classifier); a row per gene and rate.
    """
    rng = generator(seed, Stream.CONDITION_CELLS)
    chosen = sample_rows(np.arange(len(rows)), MAX_CONDITION_CELLS, rng)
    some = rows[chosen]
    predicted = {"hidden": {name: of_name[chosen] for name, of_name in headline.items()}}
    config = model.config
    if len(config.phenotypes) > 1 and (config.classified is None or config.given):
        predicted["given"] = predict_phenotypes(
            model, store, some, given_others=True, seed=seed, on_progress=on_progress
        )
    of_genes = []
    for rate in MASK_RATES:
        predicted[f"masked_{rate}"], genes = evaluate_at_rate(
            model, store, some, rate, seed=seed, on_progress=on_progress
        )
        of_genes.append(genes)
    codes = np.asarray(store.phenotype_codes[some])
    donors = None if store.donors is None else np.asarray(store.donors[some])
    phenotypes: Scores = {}
    for name, slot in config.predicted.items():
        if (codes[:, slot] >= 0).any():
            scores = score_methods(
                name,
                store.phenotypes[name],
                codes[:, slot],
                {condition: of_all[name] for condition, of_all in predicted.items()},
                donors=donors,
                donor_names=store.donor_names or (),
                seed=seed,
            )
            phenotypes[name] = {
                # The report has the rest for the headline alone.
                condition: replace(one, values=None, confusion=None, calibration=None, donors=None)
                for condition, one in scores.items()
            }
    conditions = Conditions(len(some), phenotypes)
    if config.classified is not None:
        return conditions, None, []
    return conditions, *report_genes(of_genes, model.panel, len(some))
