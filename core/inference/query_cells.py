"""Cells of a file as a model reads them: its genes in its order, its normalisation, block by block.

Genes are joined by id, or by symbol where that finds more. Genes that the file lacks are listed, so that
they are masked, not taken for unexpressed. Memory is that of a block of cells.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import GenePanel, GeneTable, choose_gene_ids, describe_ids
from core.cells.matrix_state import (
    MatrixChoice,
    MatrixState,
    check_chunk,
    choose_matrix,
    constant_sum,
    row_sums,
)
from core.cells.normalisation import TARGET_SUM, count_scales, log_normalise, rescale_log
from core.cells.reading import AnnDataSource, CellSource, open_source
from core.errors import DataError
from core.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_ENSEMBL = re.compile(r"(ENS[A-Z]*G)\d{6,}")
#: Least fraction of the model's genes that a file must have.
LEAST_FOUND = 0.5
#: Cells from which the normalisation of a file is found, and its relative tolerance.
_LOOK, _ALIKE = 512, 0.02
#: Missing genes that a message names.
_FEW = 8


@dataclass(frozen=True)
class QueryCells:
    """An open file of cells and how its genes map onto a model's.

    Attributes
    ----------
    source
        The cells.
    choice
        The matrix that is read, and whether it holds counts.
    column_of
        (model's genes,), column of each gene in the matrix, -1 where the file lacks it.
    joined_by
        "ids" or "symbols".
    log_total
        Sum of each cell's values before the log, where that is one number and not the model's;
        None where values are counts, or are used as they are.
    """

    source: CellSource
    choice: MatrixChoice
    column_of: NDArray[np.int64]
    joined_by: str
    log_total: float | None

    @property
    def n_cells(self) -> int:
        """Cells of the file."""
        return self.source.n_cells

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(model's genes,), those that the file lacks."""
        return self.column_of < 0

    def blocks(self, n_cells: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Give the cells in the order of the file, ``n_cells`` at a time.

        Yields
        ------
        The first cell's number, and (cells, model's genes) log1p counts per 10,000 by the total of
        all the file's genes.

        Raises
        ------
        DataError
            A value contradicts the first cells, of whole counts say.
        """
        present = np.flatnonzero(~self.missing)
        columns = self.column_of[present]
        # (columns of the file, genes of the model), a one where they are the same gene.
        onto = sparse.csr_matrix(
            (np.ones(len(present), np.float32), (columns, present)),
            shape=(len(self.source.var(self.choice.matrix)), len(self.column_of)),
        )
        first = 0
        for chunk in self.source.chunks(self.choice.matrix, n_cells):
            check_chunk(chunk, self.choice, self.source, first)
            yield first, sparse.csr_matrix(self._normalised(chunk) @ onto)
            first += chunk.shape[0]

    def _normalised(self, chunk: sparse.csr_matrix) -> sparse.csr_matrix:
        if self.choice.state != MatrixState.COUNTS:
            if self.log_total is None:
                return chunk
            values = rescale_log(chunk.data, TARGET_SUM / self.log_total)
        else:
            scales = count_scales(row_sums(chunk, chunk.data)).astype(np.float32)
            values = log_normalise(chunk.data, np.repeat(scales, np.diff(chunk.indptr)))
        return sparse.csr_matrix((values, chunk.indices, chunk.indptr), shape=chunk.shape)


@contextmanager
def open_query_cells(
    spec: "str | Path | AnnData", panel: GenePanel, *, matrix: str = "auto", gene_ids: str = "auto"
) -> Iterator[QueryCells]:
    """Open cells for a model of these genes while the block runs.

    Parameters
    ----------
    spec
        An .h5ad file, "builtin:NAME", or an AnnData object, in memory or backed.
    matrix, gene_ids
        As ``data.matrix`` and ``data.gene_ids`` of a preset.

    Raises
    ------
    DataError
        The file cannot be read, holds no counts or log values, or has too few of the genes.
    """
    source: CellSource = (
        open_source(spec) if isinstance(spec, str | Path) else AnnDataSource(spec, "the AnnData")
    )
    try:
        choice = choose_matrix(source, matrix)
        table = choose_gene_ids(
            source.var(choice.matrix), gene_ids, f"{source.name} ({choice.matrix})"
        )
        column_of, joined_by = _join(table, panel)
        _check_genes_found(source.name, table, panel, column_of)
        yield QueryCells(source, choice, column_of, joined_by, _log_total(source, choice))
    finally:
        source.close()


def _join(table: GeneTable, panel: GenePanel) -> tuple[NDArray[np.int64], str]:
    """Find the column of each gene of the panel, by whichever name finds more."""
    found = max(
        (_columns(table.ids, panel), _columns(table.symbols, panel)),
        key=lambda columns: int((columns >= 0).sum()),
    )
    names = [table.ids[column] for column in found[found >= 0]]
    is_by_ids = 2 * len(set(names).intersection(panel.ids)) >= len(names)
    return found, "ids" if is_by_ids else "symbols"


def _log_total(source: CellSource, choice: MatrixChoice) -> float | None:
    """Find the total that log values were normalised to, from the first cells, if not the model's.

    Cells with a part of their genes have different sums: their values are used as they are.
    """
    if choice.state == MatrixState.COUNTS:
        return None
    chunk = next(source.chunks(choice.matrix, _LOOK), None)
    total = None if chunk is None else constant_sum(row_sums(chunk, np.expm1(chunk.data)))
    if total is None or abs(total / TARGET_SUM - 1) < _ALIKE:
        return None
    logger.warning(
        "%s: %s was normalised to %.4g per cell; it is rescaled to %.4g, as the model's cells",
        source.name,
        choice.matrix,
        total,
        TARGET_SUM,
    )
    return total


def _columns(names: tuple[str, ...], panel: GenePanel) -> NDArray[np.int64]:
    column_of = np.full(len(panel), -1, dtype=np.int64)
    for column, name in enumerate(names):
        gene = panel.index_of(name)
        if gene is not None and column_of[gene] < 0:  # a symbol of two columns: the first
            column_of[gene] = column
    return column_of


def _ensembl_prefix(ids: tuple[str, ...]) -> str:
    """Return the prefix of most of the ids, if they are Ensembl's: ENSG, ENSMUSG, ...; else ""."""
    found = Counter(match[1] for name in ids if (match := _ENSEMBL.match(name)))
    prefix, n = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * n > len(ids) else ""


def _check_genes_found(
    name: str, table: GeneTable, panel: GenePanel, column_of: NDArray[np.int64]
) -> None:
    lost = np.flatnonzero(column_of < 0)
    n_found = len(panel) - len(lost)
    if n_found >= LEAST_FOUND * len(panel):
        if len(lost):
            named = listed([panel.symbols[gene] for gene in lost], most=_FEW)
            logger.warning(
                "%s lacks %d of the model's %d genes, which are masked: %s",
                name,
                len(lost),
                len(panel),
                named,
            )
        return
    folded = {known.casefold() for known in (*panel.ids, *panel.symbols)}
    same = sum(symbol.casefold() in folded for symbol in table.symbols)
    species, known_species = _ensembl_prefix(table.ids), _ensembl_prefix(panel.ids)
    if species and known_species and species != known_species:
        remedy = (
            f"{species}... and {known_species}... are of two species: use a model of the same one, "
            f"or map the ids to their orthologues first"
        )
    elif same >= LEAST_FOUND * len(panel):
        remedy = (
            "their names differ only in capitals, as between human and mouse: use a model of the "
            "same species"
        )
    else:
        remedy = (
            "use a model of these genes, or name the var column that holds the model's kind of ids "
            "by --gene-ids"
        )
    message = (
        f"{name}: only {n_found:,} of the model's {len(panel):,} genes are in the file, which has "
        f"{describe_ids(table.ids)} where the model knows {describe_ids(panel.ids)}; {remedy}"
    )
    raise DataError(message)
