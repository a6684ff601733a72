"""Comparison of generated cells with held-out real ones, by the whole fidelity protocol.

The real cells are the held-out ones of the store that the model was trained on, or those of files; the
baselines learn from the training cells of the store. If some phenotypes were requested of the generated
cells, only real cells that have them count. One or several phenotypes, by default the cell type, make the
classes of cells.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.reading import open_source
from core.cells.sources import CellSource
from core.cells.spelling import suggest
from core.cells.store import Store
from core.encoding.values import ValueTable, fit_value_encoder
from core.errors import ConfigurationError, DataError
from core.evaluation.fidelity.class_baselines import compare_rebalancing, condition_likelihood
from core.evaluation.fidelity.measures import Codes, LabelledCells
from core.evaluation.fidelity.protocol import Draw, run_protocol
from core.evaluation.fidelity.report import fidelity_pictures, mark_methods, verdict
from core.evaluation.fidelity.scvi_baseline import check_scvi, fit_scvi
from core.evaluation.method_comparison import KnownCells
from core.evaluation.report.records import FidelityFacts, FidelityReport
from core.generation.cell_generator import BIN_NUMBERS, COUNTS, GENERATION_KEY
from core.generation.cell_sizes import log_values
from core.generation.request import resolve_phenotypes
from core.inference.evaluate_files import Reading, join_files, read_labelled, trained_on
from core.inference.query_cells import read_hint
from core.model.folder import CellModel
from core.presets.schema import EncodingSettings
from core.progress import Listener, ignore_progress

#: The baselines' bins: not expressed, and nine of equal counts per gene.
_BASELINE_BINS = 10
#: Generated, training, and held-out cells, read at most: an even sample.
_MOST_CELLS = 20_000
_BLOCK = 4_096
#: Genes scored at most: the copula needs the square of their number.
_MOST_GENES = 2_000

Requests = Sequence[dict[int, int]]


def evaluate_generated(
    model: CellModel,
    files: Sequence[str],
    *,
    store: Store | None,
    real_files: Sequence[str] = (),
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    trained_where: CellFilter | None = None,
    classes: Sequence[str] = (),
    max_cells: int = 1_000,
    n_seeds: int = 3,
    n_trees: int = 300,
    n_resamples: int = 100,
    with_scvi: bool = False,
    on_progress: Listener = ignore_progress,
) -> tuple[FidelityReport, dict[str, bytes]]:
    """Score generated cells beside real cells, independent genes and the Gaussian copula.

    Several ``files`` of `tfx generate` are scored as one set of cells. Without the ``store`` that the model
    was trained on there are no baselines, and ``real_files`` are needed, which replace its held-out cells
    (`read_labelled` reads them). ``with_scvi`` trains scVI on the same cells; it needs counts and scvi-tools.
    `run_protocol` explains the numbers of cells, seeds, trees and resamples.

    Returns the report, and its pictures by heading. Raises a DataError for unfit files and too few matching
    cells, a ConfigurationError for an unknown phenotype, a MachineError without scvi-tools.
    """
    if with_scvi:
        check_scvi()
    config, provenance = model.config, model.provenance
    generated = read_generated(model, files)
    notes = list(generated.notes)
    sides = {"generated": KnownCells(generated.expression, generated.codes)}
    missing = np.zeros(len(model.panel), dtype=bool)
    if real_files:
        source = f"cells of {', '.join(Path(one).name for one in real_files)}"
        read = [
            read_labelled(
                model, file, phenotypes=config.phenotypes,
                choose=lambda codes: np.arange(0, len(codes), max(1, -(-len(codes) // _MOST_CELLS))),
                reading=reading,
            )
            for file in real_files
        ]  # fmt: skip
        sides["real"], _ = join_files(read)
        missing = np.any([one.missing for one in read], axis=0)
        notes += [
            f"the model was trained on {file}, so these real cells are not held out"
            for file in trained_on(model, real_files)
        ]
    elif store is not None:
        sides["real"] = _held_out_cells(model, store, trained_where)
        has_donors = sides["real"].donors is not None
        source = "held-out cells" + (" of held-out donors" if has_donors else "")
    else:
        raise DataError(
            f"the store that the model was trained on ({provenance.get('store')}) is gone or "
            f"changed: prepare it again, or name files of real cells before --generated"
        )
    slots = _class_slots(model, generated.codes, classes)
    requested = _describe(model, generated.requests)
    meets = _meets(sides["real"].codes, generated.requests)
    if not meets.any():
        raise DataError(
            f"none of the {len(meets):,} {source} has the phenotypes that were requested "
            f"({requested}); name files of such cells before --generated"
        )
    real = sides["real"] = sides["real"].take(np.flatnonzero(meets))
    if store is not None:
        sides["training"] = _sample_of(model, store, store.rows("train"), trained_where)
    genes = _scored_genes(model, real.expression, missing, notes)
    class_names, codes = _classes(model, slots, sides)
    of_classes = " and ".join(config.phenotype_names[slot] for slot in slots)
    for side in ("generated", "real"):
        n_without = int((codes[side] < 0).sum())
        if n_without:
            notes.append(f"{n_without:,} {side} cells have no {of_classes}; not scored")

    def model_values(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values as 0 and 1 for a binary model, as those of its generated cells."""
        if config.kind != "binary":
            return values
        edges = model.values.edges[..., 0]
        edge = edges if edges.ndim == 0 else edges[genes]
        return (values >= np.minimum(edge, 1)).astype(np.float32)

    def label(side: str) -> LabelledCells:
        known = codes[side] >= 0
        values = sides[side].expression[known][:, genes].toarray().astype(np.float32)
        return LabelledCells(model_values(values), codes[side][known])

    labelled = {side: label(side) for side in sides}
    training = labelled.get("training")
    learnt = matching = None
    if training is not None:
        known = np.flatnonzero(codes["training"] >= 0)
        matching = _meets(sides["training"].codes[known], generated.requests)
        learnt = known[matching]
        if not len(learnt):
            notes.append(
                "no training cell has the requested phenotypes, so there is no copula and there are no "
                "independent genes: these draw from training cells alone"
            )
    else:
        notes.append(
            "the cells that the model was trained on are gone or changed: no baselines, and no measures "
            "of copies or of the requested class"
        )
    # The baselines' bins, and the training values in each.
    settings = EncodingSettings(
        kind="binary" if config.kind == "binary" else "binned",
        bins=_BASELINE_BINS,
        edges="gene_quantile",
        threshold=0.0,
    )
    panel = model.panel.take(genes)
    fitted = sparse.csr_matrix(labelled["real" if training is None else "training"].values)
    encoder = fit_value_encoder(settings, fitted, panel)
    table = ValueTable.fit(encoder, fitted)
    others: dict[str, Draw] = {}
    rows = sides["training"].take(learnt).rows if learnt is not None and len(learnt) else None
    if with_scvi and rows is not None and store is not None and store.value_kind == "counts":
        draw = fit_scvi(
            sparse.csr_matrix(store.read_counts(rows, model.panel)[:, genes]),
            store.totals[rows].astype(np.float64),
            codes["training"][learnt],
            on_progress=on_progress,
        )
        others["scvi"] = lambda wanted, rng: model_values(draw(wanted, rng))
    elif with_scvi:
        notes.append("scVI is left out: it learns from counts of training cells, and has none")
    result = run_protocol(
        labelled["real"],
        labelled["generated"],
        training,
        encoder,
        table,
        len(class_names),
        donors=None if real.donors is None else real.donors[codes["real"] >= 0].astype(np.int64),
        matching=matching,
        others=others,
        max_cells=max_cells,
        n_seeds=n_seeds,
        n_trees=n_trees,
        n_resamples=n_resamples,
        on_progress=on_progress,
    )
    rebalanced, likelihood = {}, None
    if training is not None:
        rebalanced = compare_rebalancing(
            training, labelled["real"], labelled["generated"], encoder, table, len(class_names)
        )
        likelihood = condition_likelihood(
            model,
            real,
            codes["real"],
            sides["training"],
            codes["training"],
            slots=slots,
            genes=genes,
        )
    if provenance.get("simulated"):
        notes.append(
            "the model was trained on simulated cells: the scores mean nothing for real biology"
        )
    marks = mark_methods(result.scores, result.limits)
    sentences = verdict(result.scores, marks, min(result.n_cells))
    report = FidelityReport(
        title=f"Cells generated by {provenance.get('name', 'the model')}",
        facts=FidelityFacts(
            files=", ".join(files),
            n_cells_generated=generated.n_cells,
            requested=requested,
            model=provenance.get("name"),
            step=provenance.get("step"),
            simulated=bool(provenance.get("simulated")),
            real_cells=f"{len(labelled['real']):,} {source}",
            training_cells="gone" if training is None else str(len(sides["training"])),
            classes=of_classes or "one: the model has no phenotypes",
            matched_cells_per_side=", ".join(f"{n:,}" for n in result.n_cells),
            n_genes=len(genes),
            n_seeds=n_seeds,
            n_trees=n_trees,
        ),
        verdict=(*sentences, *([] if likelihood is None else [likelihood.sentence()])),
        scores=result.scores,
        marks=marks,
        limits=result.limits,
        class_cells={class_names[code]: n for code, n in result.class_cells.items()},
        likelihood=likelihood,
        rebalancing=rebalanced,
        notes=tuple(notes),
    )
    return report, fidelity_pictures(result.shown, panel.symbols, class_names)


def _sample_of(model: CellModel, store: Store, rows: Codes, where: CellFilter | None) -> KnownCells:
    """Read at most 20,000: a store is in random order, so an even sample is a random one."""
    rows = rows[store.where(where)[rows]] if where else rows
    places = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_CELLS)).astype(np.int64)
    return KnownCells.of_store(model, store, rows[places])


def _held_out_cells(model: CellModel, store: Store, where: CellFilter | None) -> KnownCells:
    rows = np.sort(np.concatenate([store.rows("validation"), store.rows("test")]))
    if len(rows) == 0:
        raise DataError(
            f"{store.path}: no cell was held out of training; set data.split.test above 0 and "
            f"train again, or name files of real cells before --generated"
        )
    cells = _sample_of(model, store, rows, where)
    is_by_donor = store.report.get("split", {}).get("method") != "cells"
    return cells if is_by_donor else replace(cells, donors=None)


def _class_slots(
    model: CellModel, generated: NDArray[np.int32], wanted: Sequence[str]
) -> list[int]:
    """Return the phenotypes that make the classes: by default the cell type, else the first with labels."""
    names = model.config.phenotype_names
    for name in wanted:
        if name not in names:
            raise ConfigurationError(
                f"--classes {name}: the model has no such phenotype; {suggest(name, names)}"
            )
    if not wanted:
        labelled = [
            name for name, codes in zip(names, generated.T, strict=True) if (codes >= 0).any()
        ]
        wanted = ["cell_type"] if "cell_type" in labelled else labelled[:1]
    return [names.index(name) for name in dict.fromkeys(wanted)]


def _classes(
    model: CellModel, slots: Sequence[int], sides: Mapping[str, KnownCells]
) -> tuple[list[str], dict[str, Codes]]:
    """Code -> name of each class, and (cells,) codes of every side; -1 where a label is missing."""
    if not slots:
        return ["all cells"], {side: np.zeros(len(one), np.int64) for side, one in sides.items()}
    chosen = np.concatenate([one.codes[:, slots] for one in sides.values()])
    known = (chosen >= 0).all(axis=1)
    combinations, inverse = np.unique(chosen[known], axis=0, return_inverse=True)
    codes = np.full(len(chosen), -1, dtype=np.int64)
    codes[known] = inverse.ravel()
    values = list(model.config.phenotypes.values())
    names = [
        ", ".join(values[slot][code] for slot, code in zip(slots, row, strict=True))
        for row in combinations
    ]
    parts = np.split(codes, np.cumsum([len(one) for one in sides.values()])[:-1])
    return names, dict(zip(sides, parts, strict=True))


def _meets(codes: NDArray[np.integer], requests: Requests) -> NDArray[np.bool_]:
    """(cells,), which have the phenotypes that at least one file requests."""
    met = np.zeros(len(codes), dtype=bool)
    for request in requests:
        met |= np.all([codes[:, slot] == code for slot, code in request.items()], axis=0)
    return met


def _describe(model: CellModel, requests: Requests) -> str:
    phenotypes = list(model.config.phenotypes.items())
    texts = [
        ", ".join(
            f"{phenotypes[slot][0]} {phenotypes[slot][1][code]}" for slot, code in one.items()
        )
        for one in requests
    ]
    return "; ".join(dict.fromkeys(text or "all cells" for text in texts))


def _scored_genes(
    model: CellModel, real: sparse.csr_matrix, missing: NDArray[np.bool_], notes: list[str]
) -> Codes:
    """Columns of the panel that are scored, in panel order; ``notes`` gets sentences on the others."""
    from sklearn.utils.sparsefuncs import mean_variance_axis  # 500 ms

    genes = np.flatnonzero(~missing)
    if missing.any():
        notes.append(f"{int(missing.sum()):,} genes of the model are not in the files; not scored")
    if len(genes) > _MOST_GENES:
        wide = sparse.csr_matrix(real[:, genes], dtype=np.float64)
        _, variance = mean_variance_axis(wide, axis=0)
        genes = np.sort(genes[np.argsort(-variance, kind="stable")[:_MOST_GENES]])
        notes.append(f"the {_MOST_GENES:,} most variable of {len(model.panel):,} genes are scored")
    return genes.astype(np.int64)


# ------------------------------------------------------------------------------------ generated files
@dataclass(frozen=True)
class GeneratedCells:
    """Cells of one or several files; ``notes`` are sentences that the user should read."""

    #: (cells, the model's genes), and (cells, phenotypes), the model's codes, -1 where not specified.
    expression: sparse.csr_matrix
    codes: NDArray[np.int32]
    #: Of each file: slot -> requested code.
    requests: list[dict[int, int]]
    #: Cells of the files, including those that were not read.
    n_cells: int
    notes: list[str]


def read_generated(model: CellModel, files: Sequence[str]) -> GeneratedCells:
    """Read files of `tfx generate`, which must have the genes and labels of the model.

    They are of this release or an older one. Other files, and bin numbers, are a DataError.
    """
    parts, codes, requests, notes = [], [], [], []
    n_cells = 0
    for file in files:
        with closing(open_source(file)) as source:
            record = _provenance(source)
            if record.get("values") == BIN_NUMBERS:
                raise DataError(
                    f"{file} holds bin numbers, which do not compare with real cells; generate again "
                    f"without --decode bins"
                )
            requests.append(_request(model, file, record))
            trained_by, step = record.get("model_name"), record.get("model_step")
            own = model.provenance
            if (trained_by, step) != (str(own.get("name", "")), int(own.get("step", 0))):
                notes.append(
                    f"{file} was generated by {trained_by or 'a model without a name'} at step {step}, "
                    f"not by this model: it may have had other training cells"
                )
            if list(source.var("X").index) != list(model.panel.ids):
                raise DataError(
                    f"{file}: its {len(source.var('X')):,} genes are not the {len(model.panel):,} of "
                    f"the model; name the run that generated it, or generate again with this one"
                )
            n_cells += source.n_cells
            step_rows = max(1, -(-source.n_cells * len(files) // _MOST_CELLS))
            kept = np.arange(0, source.n_cells, step_rows)
            of_file = np.full((source.n_cells, len(model.config.phenotypes)), -1, dtype=np.int32)
            for slot, name in enumerate(model.config.phenotypes):
                if name in source.obs_columns([name]).columns:
                    of_file[:, slot] = read_hint(source, model, f"{name}={name}").codes
            codes.append(of_file[kept])
            first = 0
            sizes = _library_sizes(source, file) if record.get("values") == COUNTS else None
            for block in source.chunks("X", _BLOCK):
                inside = kept[(kept >= first) & (kept < first + block.shape[0])]
                cells = sparse.csr_matrix(block[inside - first])
                parts.append(cells if sizes is None else log_values(cells, sizes[inside]))
                first += block.shape[0]
    expression = sparse.csr_matrix(sparse.vstack(parts))
    if not np.isfinite(expression.data).all() or (expression.data < 0).any():
        raise DataError(
            f"{', '.join(files)}: values below zero or not finite; generate the cells again"
        )
    return GeneratedCells(expression, np.concatenate(codes), requests, n_cells, notes)


def _provenance(source: CellSource) -> dict[str, Any]:
    """Read ``uns["tfx_generation"]``."""
    record = source.uns(GENERATION_KEY)
    if not isinstance(record, dict):
        raise DataError(
            f"{source.name} has no provenance (no uns['{GENERATION_KEY}']), so it is not from "
            f"tfx generate; name files of real cells without --generated"
        )
    return record


def _library_sizes(source: CellSource, file: str) -> NDArray[np.float64]:
    """(cells,), the totals that normalise the counts."""
    column = source.obs_columns(["library_size"])
    sizes = column.to_numpy(dtype=np.float64, na_value=np.nan).ravel()
    if not len(column.columns) or not (sizes > 0).all():
        raise DataError(
            f"{file} holds counts, but lacks the obs['library_size'] that normalises them; "
            f"generate the cells again"
        )
    return sizes


def _request(model: CellModel, file: str, record: dict[str, Any]) -> dict[int, int]:
    request = record.get("request", {})
    request = {str(k): str(v) for k, v in request.items()} if isinstance(request, dict) else {}
    changes = (
        record.get("set") if "request" in record else None
    )  # else real cells that were changed
    request |= {str(k): str(v) for k, v in changes.items()} if isinstance(changes, dict) else {}
    unknown = [name for name in request if name not in model.config.phenotypes]
    if unknown:
        raise DataError(
            f"{file} was generated for a phenotype '{unknown[0]}', which this model does not have; "
            f"name the run that generated it"
        )
    codes = resolve_phenotypes(model.config, request)
    return {slot: code for slot, code in codes.items() if code >= 0}
