"""Evaluation of a model on labelled files that it has never seen.

Genes are joined and values normalised as for `tfx predict`; labels are translated to the model's values, and
those that it does not know are counted and left out. If the cells that the model was trained on still
exist, baselines learn from them, over the genes that all files have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.matrix_choice import Values
from core.cells.ontology import install_hint
from core.cells.phenotypes import NO_COLUMNS, PhenotypeColumn, join_labels, read_labels
from core.cells.sources import CellSource
from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.panel_cells import PanelCells
from core.errors import DataError
from core.evaluation.baselines import QUICK_BASELINES
from core.evaluation.method_comparison import (
    KnownCells,
    baseline_cells,
    baseline_names,
    compare_methods,
    store_of_task,
    with_joint_donors,
)
from core.evaluation.predict import (
    Probabilities,
    batch_cells,
    join_probabilities,
    phenotype_probabilities,
    predict,
)
from core.evaluation.report.records import EvaluationFacts, EvaluationReport
from core.inference.query_cells import (
    columns_by_phenotype,
    label_columns,
    open_query_cells,
    read_hint,
)
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator, sample_rows

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 4_096
_FEW = 5


@dataclass(frozen=True)
class Reading:
    """How the cells of labelled files are read."""

    #: As "tissue=organ": the obs columns of phenotypes; `label_columns` are the default.
    labels: Sequence[str] = ()
    donor_column: str = "donor_id"
    #: As in a preset.
    matrix: str = "auto"
    values: Values = "auto"
    gene_ids: str = "auto"
    #: As in `open_query_cells`.
    few_genes: bool = False


@dataclass(frozen=True)
class LabelledFile:
    """Chosen cells of a file."""

    #: (cells, the model's genes), log1p counts per 10,000.
    expression: sparse.csr_matrix
    #: (cells, phenotypes), the model's codes, -1 where a label is missing or unknown to the model.
    codes: NDArray[np.int32]
    #: (cells,), names; "" where not known.
    donors: NDArray[Any]
    #: (cells,), their places in the file, ascending, out of this number of cells.
    rows: NDArray[np.int64]
    n_cells: int
    #: (the model's genes,), which the file lacks.
    missing: NDArray[np.bool_]
    #: Which labels could not be read.
    notes: list[str]
    #: (cells,), 0 where not known.
    library_size: NDArray[np.float32]


def evaluate_files(
    model: CellModel,
    files: Sequence[str],
    *,
    reading: Reading = Reading(),
    store: Store | None = None,
    trained_where: CellFilter | None = None,
    baselines: Sequence[str] = QUICK_BASELINES,
    max_cells: int | None = None,
    unsure_at: float | None = None,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> EvaluationReport:
    """Score a model on labelled files, with all genes visible and all phenotypes masked.

    `read_labelled` reads the files. ``store`` and ``trained_where`` are the cells that the model was trained
    on, from which the ``baselines`` learn; of each file a seeded sample of ``max_cells`` is scored. ``unsure_at`` is as in `unsure_rules`. Raises a
    DataError if a file cannot be read, has too few of the model's genes, or no file has a label to score; a
    ConfigurationError for an unknown phenotype.
    """
    config, provenance = model.config, model.provenance

    def choose(codes: NDArray[np.int32]) -> NDArray[np.int64]:
        rows = np.flatnonzero((codes >= 0).any(axis=1))
        return sample_rows(rows, max_cells, generator(seed, Stream.EVALUATED_CELLS))

    read, parts = [], []
    for file in files:
        one = read_labelled(
            model, file, phenotypes=config.predicted, choose=choose, reading=reading
        )
        read.append(one)
        parts.append(_predict(model, one, seed=seed, on_progress=on_progress))
    cells, donor_names = join_files(read)
    if not len(cells):
        raise DataError(
            f"{', '.join(files)}: no cell has a label that the model knows, of any of "
            f"{', '.join(config.predicted)}; name the columns by --label NAME=COLUMN"
        )
    present = ~np.any([one.missing for one in read], axis=0)
    notes = [note for one in read for note in one.notes]
    notes += [
        f"the model was trained on {file}, so the scores are too high"
        for file in trained_on(model, files)
    ]
    is_simulated = all(file.startswith("builtin:atlas") for file in files)
    if provenance.get("simulated") and not is_simulated:
        notes.append(
            "the model was trained on simulated cells: its scores mean nothing for real biology"
        )
    training = None
    if store is not None:
        rng = generator(seed, Stream.EVALUATED_CELLS)
        training = baseline_cells(model, store_of_task(model, store), trained_where, rng)
        training, donor_names = with_joint_donors(
            training.of_genes(present), store.donor_names or (), donor_names
        )
    else:
        notes.append(
            "the cells that the model was trained on are gone or changed, so there are no baselines"
        )
    compared = compare_methods(
        config,
        join_probabilities(model, parts),
        cells.of_genes(present),
        training,
        baselines=baselines,
        donor_names=donor_names,
        symbols=[model.panel.symbols[gene] for gene in np.flatnonzero(present)],
        seed=seed,
        calibration=model.calibration,
        unsure_at=unsure_at,
        on_progress=on_progress,
    )
    return replace(
        compared,
        title=f"{provenance.get('name', 'model')} on {', '.join(Path(file).name for file in files)}",
        facts=EvaluationFacts(
            model=provenance.get("name"),
            step=provenance.get("step"),
            data=", ".join(files),
            simulated=is_simulated,
            n_cells=len(cells),
            baselines=baseline_names(baselines if store is not None else ()),
            n_cells_of_baselines=None if training is None else len(training),
            n_genes=len(model.panel),
            n_genes_missing=int((~present).sum()),
            seed=seed,
        ),
        notes=(*notes, *compared.notes),
    )


def _predict(
    model: CellModel, file: LabelledFile, *, seed: int, on_progress: Listener
) -> Probabilities:
    size = batch_cells(model)

    def batches() -> Iterator[CellBatch]:
        names = list(model.config.phenotypes)
        for first in range(0, file.n_cells, size):
            last = min(first + size, file.n_cells)
            places = slice(*np.searchsorted(file.rows, (first, last)).tolist())
            some = PanelCells.of(file.expression[places], file.library_size[places])
            if some.n_cells:
                # A code of 0 masks a phenotype whose label is missing; the model does not see it.
                masked = np.zeros((some.n_cells, len(names)), dtype=np.int32)
                rng = generator(seed, first, Stream.QUERY_GENES)
                yield model.batches.visible(some, masked, names, rng, missing=file.missing)
            on_progress(ProgressEvent("predicting phenotypes", last, file.n_cells))

    return join_probabilities(
        model, (phenotype_probabilities(model, one) for one in predict(model, batches()))
    )


# ------------------------------------------------------------------------------------ labelled files
def read_labelled(
    model: CellModel,
    file: "str | AnnData",
    *,
    phenotypes: Iterable[str],
    choose: Callable[[NDArray[np.int32]], NDArray[np.int64]],
    reading: Reading,
) -> LabelledFile:
    """Read real cells: a file, "builtin:NAME", or an AnnData object.

    ``choose`` takes (cells, phenotypes) codes of ``phenotypes``, and returns the rows to keep, ascending.
    """
    known = list(phenotypes)
    wanted = columns_by_phenotype(reading.labels, known)
    with open_query_cells(
        file,
        model.panel,
        matrix=reading.matrix,
        values=reading.values,
        gene_ids=reading.gene_ids,
        few_genes=reading.few_genes,
    ) as cells:
        if not cells.source.obs_columns([]).attrs["columns"]:
            raise DataError(f"{file}: {NO_COLUMNS}")
        codes, notes = _read_codes(model, cells.source, known, wanted)
        rows = choose(codes)
        donors = np.full(cells.n_cells, "", dtype=object)
        column = PhenotypeColumn("donor", reading.donor_column, explicit=False)
        obs = cells.source.obs_columns([reading.donor_column])
        read = read_labels(obs, column, where=cells.source.name)
        if (of_donors := join_labels([read], column)[0]) is not None:
            donors = np.array([*of_donors.values, ""], dtype=object)[of_donors.codes]
        parts = [sparse.csr_matrix(np.zeros((0, len(model.panel)), dtype=np.float32))]
        sizes = [np.zeros(0, dtype=np.float32)]
        for first, block, of_block in cells.blocks(_BLOCK, sized=model.config.library_size):
            inside = rows[(rows >= first) & (rows < first + block.shape[0])]
            parts.append(block[inside - first])
            sizes.append(of_block[inside - first])
        return LabelledFile(
            expression=sparse.csr_matrix(sparse.vstack(parts)),
            codes=codes[rows],
            donors=donors[rows],
            rows=rows,
            n_cells=cells.n_cells,
            missing=cells.missing,
            notes=notes,
            library_size=np.concatenate(sizes),
        )


def _read_codes(
    model: CellModel, source: CellSource, names: Sequence[str], wanted: Mapping[str, str]
) -> tuple[NDArray[np.int32], list[str]]:
    codes = np.full((source.n_cells, len(model.config.phenotypes)), -1, dtype=np.int32)
    notes = []
    for name in names:
        candidates = label_columns(model, name)
        if name not in wanted and not len(source.obs_columns(candidates).columns):
            notes.append(f"{name}: {source.name} has no column '{candidates[0]}'; not scored")
            continue
        try:
            hint = read_hint(source, model, wanted.get(name, name))
        except DataError as error:
            if name in wanted:  # an explicit request is met or refused
                raise
            notes.append(f"{name}: not scored ({error})")
            continue
        codes[:, hint.slot] = hint.codes
        if hint.unknown:
            first = ", ".join(f"'{x}' ({n:,})" for x, n in list(hint.unknown.items())[:_FEW])
            more = ", ..." if len(hint.unknown) > _FEW else ""
            notes.append(
                f"{name}: {sum(hint.unknown.values()):,} cells of {source.name} have labels that the "
                f"model does not know, and are not scored: {first}{more}"
                + install_hint((*hint.unknown, *model.config.phenotypes[name]))
            )
    return codes, notes


def join_files(read: Sequence[LabelledFile]) -> tuple[KnownCells, list[str]]:
    """Return the cells of all files, and the names of their donors; without these, no donor codes."""
    donors = np.concatenate([one.donors for one in read])
    names = sorted(set(donors.tolist()) - {""})
    place = {name: code for code, name in enumerate(names)} | {"": -1}
    cells = KnownCells(
        sparse.csr_matrix(sparse.vstack([one.expression for one in read])),
        np.concatenate([one.codes for one in read]),
        np.array([place[one] for one in donors.tolist()], dtype=np.int64) if names else None,
    )
    return cells, names


def trained_on(model: CellModel, files: Sequence[str]) -> list[str]:
    """Return the files that the model was trained on."""
    sources = {str(one) for one in model.provenance.get("sources", [])}
    resolved = {Path(one).resolve() for one in sources if not one.startswith("builtin:")}
    return [file for file in files if file in sources or Path(file).resolve() in resolved]
