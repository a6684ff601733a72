"""Cells of a file as a model reads them: its genes in its order, its normalisation, its phenotypes' codes.

Genes are joined by `core.cells.gene_join.match_genes`. Genes that the file lacks are listed, so that they are
masked, not taken for unexpressed. Memory is that of a block of cells.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.ages import column_unit, is_age_name
from core.cells.gene_join import LEAST_FOUND, GeneMatch, match_genes
from core.cells.gene_names import ENSEMBL
from core.cells.genes import GenePanel, GeneTable, choose_gene_ids, describe_ids
from core.cells.matrix_choice import Values, choose_matrix
from core.cells.matrix_state import MatrixChoice, MatrixState, gene_columns, genes_of, read_cells
from core.cells.ontology import install_hint
from core.cells.phenotypes import NO_COLUMNS, PhenotypeColumn, join_labels, read_labels
from core.cells.reading import open_source
from core.cells.sources import AnnDataSource, CellSource
from core.cells.spelling import is_missing, match_ages, match_labels, nearest, suggest
from core.cells.value_scale import recover_library_sizes
from core.errors import ConfigurationError, DataError
from core.model.folder import CellModel
from core.presets.phenotype_names import STANDARD_PHENOTYPES
from core.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

#: Missing genes that a message names.
_FEW = 8
_COST = (
    "; with fewer than half of its genes the model is often wrong and too sure of it: score it on labelled "
    "cells of this kind first ('tfx eval RUN FILE --few-genes')"
)


@dataclass(frozen=True)
class QueryCells:
    """An open file of cells and how its genes map onto a model's."""

    source: CellSource
    #: The matrix that is read, and what its values are.
    choice: MatrixChoice
    genes: GeneMatch

    @property
    def n_cells(self) -> int:
        """Cells of the file."""
        return self.source.n_cells

    @property
    def column_of(self) -> NDArray[np.int64]:
        """(model's genes,), place of each among the genes of the matrix, -1 where the file lacks it."""
        return self.genes.column_of

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(model's genes,), those that the file lacks."""
        return self.column_of < 0

    @property
    def file_columns(self) -> NDArray[np.int64]:
        """(model's genes,), column of each in the matrix of the file, -1 where the file lacks it."""
        columns = gene_columns(self.source, self.choice.matrix)
        if columns is None:
            return self.column_of
        return np.where(self.missing, -1, columns[self.column_of])

    def blocks(
        self, n_cells: int, *, sized: bool = False
    ) -> Iterator[tuple[int, sparse.csr_matrix, NDArray[np.float32]]]:
        """Give the cells in the order of the file, ``n_cells`` at a time, each time the first one's number.

        Cells are (cells, model's genes) log1p counts per 10,000 by the total of all the file's genes. With
        ``sized`` that total follows, (cells,), their library size: 0 where the matrix gives no counts, nor
        values behind which counts are found, and without it. A value that contradicts the first cells, of
        whole counts say, is a DataError.
        """
        present = np.flatnonzero(~self.missing)
        columns = self.column_of[present]
        # (columns of the file, genes of the model), a one where they are the same gene.
        onto = sparse.csr_matrix(
            (np.ones(len(present), np.float32), (columns, present)),
            shape=(self.choice.n_genes, len(self.column_of)),
        )
        n_unknown = 0
        for cells in read_cells(self.source, self.choice, n_cells):
            sizes = np.zeros(cells.values.shape[0], dtype=np.float32)
            if sized and cells.state == MatrixState.COUNTS:
                sizes = cells.library_sizes.astype(np.float32)
            elif sized:
                found = recover_library_sizes(cells.values.data, cells.values.indptr)
                sizes = np.nan_to_num(found).astype(np.float32)
            n_unknown += int((sizes == 0).sum())
            yield cells.first_row, sparse.csr_matrix(cells.log1p() @ onto), sizes
        if sized and n_unknown:
            text = (
                "%s: %s gives no library size of %d of its %d cells; the model reads these without "
                "it, less well"
            )
            logger.warning(text, self.source.name, self.choice.matrix, n_unknown, self.n_cells)


@contextmanager
def open_query_cells(
    spec: "str | Path | AnnData",
    panel: GenePanel,
    *,
    matrix: str = "auto",
    gene_ids: str = "auto",
    values: Values = "auto",
    few_genes: bool = False,
) -> Iterator[QueryCells]:
    """Open cells for a model of these genes while the block runs.

    ``spec`` is an .h5ad file, "builtin:NAME", or an AnnData object, in memory or backed; ``matrix``,
    ``gene_ids`` and ``values`` are as in a preset. Unreadable cells, values that are not recognised, or
    fewer than half of the model's genes: DataError. With ``few_genes`` one gene is enough, and a warning
    is logged.
    """
    source: CellSource = (
        open_source(spec) if isinstance(spec, str | Path) else AnnDataSource(spec, "the AnnData")
    )

    def table_of(matrix: str) -> GeneTable:
        where = f"{source.name} ({matrix})"
        return choose_gene_ids(genes_of(source, matrix), gene_ids, where)

    def count_genes(matrix: str) -> int:
        return match_genes(panel, table_of(matrix)).n_found

    try:
        choice = choose_matrix(source, matrix, values=values, count_genes=count_genes)
        for note in choice.notes:
            logger.info("%s: %s", source.name, note)
        for warning in choice.warnings:
            logger.warning("%s: %s", source.name, warning)
        table = table_of(choice.matrix)
        genes = match_genes(panel, table)
        _report_join(source.name, table, panel, genes, few_genes=few_genes)
        yield QueryCells(source, choice, genes)
    finally:
        source.close()


def _ensembl_prefix(ids: tuple[str, ...]) -> str:
    """Return the prefix of most of the ids, if they are Ensembl's: ENSG, ENSMUSG, ...; else ""."""
    found = Counter(match[1] for name in ids if (match := ENSEMBL.match(name)))
    prefix, n = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * n > len(ids) else ""


def _report_join(
    name: str, table: GeneTable, panel: GenePanel, genes: GeneMatch, *, few_genes: bool
) -> None:
    """Log how the genes were joined and which are missing; too few are a DataError."""
    if table.note:
        logger.warning("%s: %s", name, table.note)
    if genes.translation:
        logger.info("%s: %s", name, genes.translation)
    if genes.doubts:
        logger.warning("%s: %s", name, genes.doubts)
    lost = np.flatnonzero(genes.column_of < 0)
    is_enough = genes.n_found >= LEAST_FOUND * len(panel)
    if is_enough or (few_genes and genes.n_found):
        if len(lost):
            named = listed([panel.symbols[gene] for gene in lost], most=_FEW)
            cost = "" if is_enough else _COST
            text = "%s lacks %d of the model's %d genes, which are masked: %s%s"
            logger.warning(text, name, len(lost), len(panel), named, cost)
        return
    folded = {known.casefold() for known in (*panel.ids, *panel.symbols)}
    same = sum(symbol.casefold() in folded for symbol in table.symbols)
    found, known = describe_ids(table.ids), describe_ids(panel.ids)
    kind, known_kind = (text.partition(" (")[0] for text in (found, known))
    known = known if kind != known_kind else known.replace(kind, "others")
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
        remedy = "use a model of these genes"
        if kind != known_kind:
            remedy += ", or name the var column that holds the model's kind of ids by --gene-ids"
        if genes.n_found:
            remedy += ", or go on without the others: add --few-genes to tfx predict, embed or eval"
    raise DataError(
        f"{name}: only {genes.n_found:,} of the model's {len(panel):,} genes are in the file, which has "
        f"{found} where the model knows {known}; {remedy}"
    )


# ------------------------------------------------------------------------------------------- labels
@dataclass(frozen=True)
class Hint:
    """Known labels of one phenotype, read from an obs column.

    ``codes`` are (cells,), the model's, -1 where the label is missing or unknown to the model;
    ``unknown`` maps labels that the model does not know to numbers of cells.
    """

    name: str
    slot: int
    column: str
    codes: NDArray[np.int32]
    unknown: dict[str, int]


def label_columns(model: CellModel, name: str) -> list[str]:
    """Return the obs columns that may hold the labels of a phenotype, the likeliest first.

    They are the column that the model was trained on (older folders do not name it), that of the CELLxGENE
    schema, one of the phenotype's name, and that of the ids of ontology terms.
    """
    trained = model.provenance.get("columns", {}).get(name)
    usual = STANDARD_PHENOTYPES.get(name, name)
    columns = [trained, usual, name, f"{usual}_ontology_term_id"]
    return list(dict.fromkeys(column for column in columns if column))


def columns_by_phenotype(labels: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """Read ``--label NAME=COLUMN`` options: NAME -> "NAME=COLUMN"; ConfigurationError for an unknown NAME."""
    names = list(known)
    wanted: dict[str, str] = {}
    for label in labels:
        name, equals, column = label.partition("=")
        if not (name and equals and column):
            raise ConfigurationError(f"--label {label}: must be NAME=COLUMN, as in tissue=organ")
        if name not in names:
            raise ConfigurationError(
                f"--label {label}: the model does not know a phenotype '{name}'; {suggest(name, names)}"
            )
        if wanted.setdefault(name, label) != label:
            raise ConfigurationError(
                f"--label {label}: {name} has a column already ({wanted[name]})"
            )
    return wanted


def read_hint(source: CellSource, model: CellModel, wanted: str) -> Hint:
    """Read the labels of one phenotype.

    ``wanted``: "tissue", or "tissue=my_column"; the default is the first of `label_columns` that the cells
    have. A phenotype that the model lacks is a ConfigurationError; no such column, or a column without known
    labels, a DataError.
    """
    config = model.config
    name, _, column = wanted.partition("=")
    if name not in config.phenotypes:
        raise ConfigurationError(
            f"--label {wanted}: the model has no phenotype '{name}'; {suggest(name, config.phenotypes)}"
        )
    if config.classified is not None and name not in (config.classified, *config.given):
        known = ", ".join(config.given) or "it knows none"
        raise ConfigurationError(
            f"--label {wanted}: this classifier of {config.classified} was not trained with {name} "
            f"given ({known})"
        )
    slot = config.phenotype_names.index(name)
    present = source.obs_columns([]).attrs["columns"]
    if not present:
        raise DataError(f"{source.name}: --label {wanted}: {NO_COLUMNS}")
    candidates = [column] if column else label_columns(model, name)
    column = next((one for one in candidates if one in present), "")
    if not column:
        raise DataError(
            f"{source.name}: --label {wanted} needs the obs column '{candidates[0]}', which does not exist; "
            f"{suggest(candidates[0], present)}, or name the column, as in --label {name}=COLUMN"
        )
    wanted_column = PhenotypeColumn(name, column, explicit=True)
    labels = read_labels(source.obs_columns([column]), wanted_column, where=source.name)
    assert labels is not None, "the column exists"
    values = config.phenotypes[name]
    is_one_vs_rest = config.positive is not None and name == config.classified
    if is_one_vs_rest:  # any label but the one is the rest, a rare "none" is none
        labels = join_labels([labels], wanted_column)[0] or labels
    match = match_labels(labels.values, values)
    if is_age_name(name):
        match = match_ages(labels.values, values, unit=column_unit(column))
    place = {value: code for code, value in enumerate(values)}
    found = np.array([place.get(match.get(label, ""), -1) for label in labels.values], np.int64)
    if is_one_vs_rest:
        found[found < 0] = 1  # any other label is "not" the one
    if not all(map(is_missing, labels.values)) and (found < 0).all():
        near = nearest(labels.values[0], values)
        raise DataError(
            f"{source.name}: the model knows none of the labels of '{column}' as {name} "
            f"({_first(labels.values)}); it knows {_first(values)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + install_hint((*labels.values, *values))
        )
    codes = np.append(found, -1).astype(np.int32)[labels.codes]
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.values))
    unknown = {
        label: int(n)
        for label, code, n in zip(labels.values, found, counts, strict=True)
        if code < 0 and not is_missing(label)
    }
    return Hint(name, slot, column, codes, unknown)


def _first(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:4])) + (", ..." if len(values) > 4 else "")
