"""Real cells of files with their labels and donors, in a model's genes and codes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.phenotypes import PhenotypeColumn, read_labels, suggest
from core.cells.reading import CellSource
from core.errors import ConfigurationError, DataError
from core.inference.hints import read_hint
from core.inference.query_cells import open_query_cells
from core.model.folder import CellModel
from core.presets.schema import STANDARD_PHENOTYPES

_BLOCK = 4_096
_FEW = 5


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


def read_labelled(
    model: CellModel,
    file: str,
    *,
    phenotypes: Iterable[str],
    choose: Callable[[NDArray[np.int32]], NDArray[np.int64]],
    labels: Sequence[str] = (),
    donor_column: str = "donor_id",
    matrix: str = "auto",
    gene_ids: str = "auto",
) -> LabelledFile:
    """Read a file of real cells: .h5ad, or "builtin:NAME".

    Parameters
    ----------
    phenotypes
        Those of the model whose labels are read.
    choose
        (cells, phenotypes) codes -> the rows that are kept, ascending.
    labels
        "tissue=organ": the obs column of a phenotype; default that of the CELLxGENE schema, else that
        of the phenotype's own name.
    donor_column
        The obs column that names donors, if the file has it.
    matrix, gene_ids
        As ``data.matrix`` and ``data.gene_ids`` of a preset.

    Raises
    ------
    DataError
        The file cannot be read, has too few of the model's genes, or lacks a column that is named.
    ConfigurationError
        The model has no phenotype that a label names.
    """
    wanted = {one.partition("=")[0]: one for one in labels}
    known = list(phenotypes)
    for name in wanted:
        if name not in known:
            message = (
                f"--label {wanted[name]}: the model does not know a phenotype '{name}'; "
                f"{suggest(name, known)}"
            )
            raise ConfigurationError(message)
    with open_query_cells(file, model.panel, matrix=matrix, gene_ids=gene_ids) as cells:
        codes, notes = _read_codes(model, cells.source, known, wanted)
        rows = choose(codes)
        donors = _read_donors(cells.source, donor_column)
        parts = [sparse.csr_matrix(np.zeros((0, len(model.panel)), dtype=np.float32))]
        for first, block in cells.blocks(_BLOCK):
            inside = rows[(rows >= first) & (rows < first + block.shape[0])]
            parts.append(block[inside - first])
        expression = sparse.csr_matrix(sparse.vstack(parts))
        return LabelledFile(
            expression, codes[rows], donors[rows], rows, cells.n_cells, cells.missing, notes
        )


def _read_codes(
    model: CellModel, source: CellSource, names: Sequence[str], wanted: dict[str, str]
) -> tuple[NDArray[np.int32], list[str]]:
    codes = np.full((source.n_cells, len(model.config.phenotypes)), -1, dtype=np.int32)
    notes = []
    for name in names:
        candidates = [STANDARD_PHENOTYPES.get(name, name), name]
        if name not in wanted and not len(source.obs_columns(candidates).columns):
            notes.append(f"{name}: {source.name} has no column '{candidates[0]}'; not scored")
            continue
        try:
            hint = read_hint(source, model.config, wanted.get(name, name))
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
            )
    return codes, notes


def _read_donors(source: CellSource, column: str) -> NDArray[Any]:
    labels = read_labels(
        source.obs_columns([column]),
        PhenotypeColumn("donor", column, explicit=False),
        where=source.name,
    )
    if labels is None:
        return np.full(source.n_cells, "", dtype=object)
    return np.array([*labels.values, ""], dtype=object)[labels.codes]


def trained_on(model: CellModel, files: Sequence[str]) -> list[str]:
    """Return the files that the model was trained on."""
    sources = {str(one) for one in model.provenance.get("sources", [])}
    resolved = {Path(one).resolve() for one in sources if not one.startswith("builtin:")}
    return [file for file in files if file in sources or Path(file).resolve() in resolved]
