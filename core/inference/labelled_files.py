"""Real cells of a file with the labels and donors that it knows, in a model's genes and words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.phenotypes import PhenotypeColumn, read_labels, suggest
from core.errors import ConfigurationError, DataError
from core.inference.hints import read_hint
from core.inference.query_cells import open_query_cells
from core.model.folder import CellModel
from core.presets.schema import STANDARD_PHENOTYPES

__all__ = ["LabelledFile", "read_labelled"]

_BLOCK = 4_096


@dataclass(frozen=True)
class LabelledFile:
    """Cells of a file.

    Attributes
    ----------
    expression
        (cells, the model's genes), log1p counts per 10,000.
    codes
        (cells, phenotypes), the model's codes, -1 where a label is missing or unknown.
    donors
        (cells,), names; "" where not known.
    missing
        (the model's genes,), which the file lacks.
    """

    expression: sparse.csr_matrix
    codes: NDArray[np.int32]
    donors: NDArray[Any]
    missing: NDArray[np.bool_]


def read_labelled(
    model: CellModel,
    file: str,
    *,
    labels: Sequence[str] = (),
    donor_column: str = "donor_id",
    most: int,
    matrix: str = "auto",
    gene_ids: str = "auto",
) -> LabelledFile:
    """Read a file of real cells.

    Parameters
    ----------
    file
        .h5ad, or "builtin:NAME".
    labels
        "tissue=organ": the obs column of a phenotype; default that of the CELLxGENE schema, else that
        of the phenotype's own name, if the file has it.
    donor_column
        The obs column that names donors, if the file has it.
    most
        Cells read at most, an even sample beyond.
    matrix, gene_ids
        As ``data.matrix`` and ``data.gene_ids`` of a preset.

    Raises
    ------
    DataError
        The file cannot be read, has too few of the model's genes, or not the column that is named.
    ConfigurationError
        The model has no phenotype that a label names.
    """
    config = model.config
    named = {one.partition("=")[0]: one for one in labels}
    for name, wanted in named.items():
        if name not in config.phenotypes:
            message = (
                f"--label {wanted}: the model has no phenotype '{name}'; "
                f"{suggest(name, config.phenotypes)}"
            )
            raise ConfigurationError(message)
    with open_query_cells(file, model.panel, matrix=matrix, gene_ids=gene_ids) as cells:
        source = cells.source
        kept = np.arange(0, cells.n_cells, max(1, -(-cells.n_cells // most)))
        codes = np.full((cells.n_cells, len(config.phenotypes)), -1, dtype=np.int32)
        for slot, name in enumerate(config.phenotypes):
            candidates = [STANDARD_PHENOTYPES.get(name, name), name]
            if name not in named and not len(source.obs_columns(candidates).columns):
                continue
            try:
                codes[:, slot] = read_hint(source, config, named.get(name, name)).codes
            except DataError:
                if name in named:  # an explicit request is met or refused
                    raise
        known = read_labels(
            source.obs_columns([donor_column]),
            PhenotypeColumn("donor", donor_column, explicit=False),
            where=source.name,
        )
        donors = np.full(cells.n_cells, "", dtype=object)
        if known is not None:
            donors = np.array([*known.values, ""], dtype=object)[known.codes]
        parts = [sparse.csr_matrix(np.zeros((0, len(model.panel)), dtype=np.float32))]
        for first, block in cells.blocks(_BLOCK):
            inside = kept[(kept >= first) & (kept < first + block.shape[0])]
            parts.append(block[inside - first])
        expression = sparse.csr_matrix(sparse.vstack(parts))
        return LabelledFile(expression, codes[kept], donors[kept], cells.missing)
