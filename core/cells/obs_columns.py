"""Which obs columns are phenotypes, and which one names donors, found by their names and labels.

For a first preset, where the user sees what is found. Nothing here decides what a run does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.cells.checks.phenotype_rows import likely_column
from core.cells.phenotypes import PhenotypeColumn, code_phenotype, count_codes, read_labels
from core.errors import DataError
from core.presets.schema import STANDARD_PHENOTYPES

#: Names that experiments give to treatments and to traits of donors.
_WORTH_HAVING = re.compile(
    r"treatment|treated|perturbation|drug|compound|stimulation|stim|genotype|time_?point|dose"
    r"|knock_?(?:down|out)|gene_target|response|severity|smoking_status|strain|condition"
    r"|self_reported_ethnicity|ethnicity",
    re.IGNORECASE,
)
#: Names of ids, of quality metrics and of groupings that a program made of the same expression.
_OF_NO_USE = re.compile(
    r".*ontology_term_id|.*_id|id|.*barcode.*|.*joinid|.*(?:score|confidence|quality).*"
    r"|n_?(?:genes|counts|umi|feature).*|(?:pct|percent|total|log1p)_.*|.*doublet.*|is_primary_data"
    r"|suspension_type|tissue_type|organism|.*cluster.*|leiden.*|louvain.*|seurat.*|phase|index"
    r"|orig\.?ident|batch|library|lane|plate|well",
    re.IGNORECASE,
)
#: A phenotype of more labels is rarely meant as one, unless its name suggests it.
_MOST_LABELS = 50
#: Fraction of cells that must have a label.
_COVERED = 0.5
#: Cells per label, on average, below which labels name single things.
_CELLS_PER_LABEL = 5
#: Donors: at least one for each split, of at least this many cells on average.
_LEAST_DONORS = 3
_CELLS_PER_DONOR = 5


@dataclass(frozen=True)
class FoundColumn:
    """An obs column that every file has, and the phenotype it is."""

    name: str
    column: str
    #: Its labels but the missing ones, most frequent first.
    values: tuple[str, ...]
    #: Cells that have a label.
    n_known: int


@dataclass(frozen=True)
class ObsColumns:
    """The columns found in the obs tables."""

    #: Of two labels or more: the standard five, and others by name.
    phenotypes: tuple[FoundColumn, ...]
    #: Standard phenotypes of which all cells have the same label, or none.
    single: tuple[FoundColumn, ...]
    #: Standard phenotypes whose column some files lack.
    partial: tuple[str, ...]
    #: Columns that could be phenotypes by their labels.
    further: tuple[FoundColumn, ...]
    #: The column that names donors, or None.
    donors: FoundColumn | None


def find_columns(tables: Sequence[pd.DataFrame]) -> ObsColumns:
    """Find phenotypes and donors in the (cells, columns) obs tables of the files."""
    everywhere = [
        str(name) for name in tables[0].columns if all(name in table.columns for table in tables)
    ]
    anywhere = list(dict.fromkeys(str(name) for table in tables for name in table.columns))
    read = _Columns(tables)
    donors = _find_donors(everywhere, read)
    phenotypes: dict[str, FoundColumn] = {}
    single: list[FoundColumn] = []
    partial: list[str] = []
    free = [name for name in everywhere if donors is None or name != donors.column]
    for name, usual in STANDARD_PHENOTYPES.items():
        candidates = [one for one in free if one == usual or not _is_worth_having(one)]
        column = likely_column(
            usual, name, [one for one in candidates if one not in _taken(phenotypes)]
        )
        found = None if column is None else read.labels(name, column)
        if found is None:
            if likely_column(usual, name, anywhere) is not None and column is None:
                partial.append(name)
            continue
        if len(found.values) < 2:
            single.append(found)
        elif found.n_known >= _CELLS_PER_LABEL * len(found.values):
            phenotypes[name] = found
    further: list[FoundColumn] = []
    known = [] if donors is None else [donors]
    used = {*_taken(phenotypes), *(one.column for one in single)}
    for column in free:
        if column in used or (_OF_NO_USE.fullmatch(column) and not _is_worth_having(column)):
            continue
        found = read.labels(_phenotype_name(column, phenotypes), column)
        if found is None or not _could_be_phenotype(found, read.n_cells):
            continue
        if _is_worth_having(column):
            phenotypes[found.name] = found
        elif not any(read.are_alike(found, one) for one in [*known, *phenotypes.values()]):
            further.append(found)
    return ObsColumns(
        tuple(phenotypes.values()), tuple(single), tuple(partial), tuple(further), donors
    )


class _Columns:
    """Reads labels of all files together, each column once."""

    def __init__(self, tables: Sequence[pd.DataFrame]) -> None:
        self._tables = tables
        self._codes: dict[str, np.ndarray] = {}
        self.n_cells = sum(len(table) for table in tables)

    def labels(self, name: str, column: str) -> FoundColumn | None:
        """Labels of a column; None if it holds a measurement."""
        wanted = PhenotypeColumn(name, column, explicit=False)
        try:
            files = [read_labels(table, wanted, where="obs") for table in self._tables]
        except DataError:
            return None
        coded = code_phenotype(files, [len(table) for table in self._tables], None)
        self._codes[column] = coded.codes
        values, counts = coded.values, count_codes(coded.codes, len(coded.values))
        order = np.argsort(-counts, kind="stable")
        return FoundColumn(name, column, tuple(values[index] for index in order), int(counts.sum()))

    def are_alike(self, first: FoundColumn, second: FoundColumn) -> bool:
        """Whether the labels of one column are those of another under other names."""
        if len(first.values) != len(second.values):
            return False
        pairs = np.column_stack([self._codes[first.column], self._codes[second.column]])
        pairs = pairs[(pairs >= 0).all(axis=1)]
        return len(np.unique(pairs, axis=0)) == len(first.values)


def _find_donors(columns: Sequence[str], read: _Columns) -> FoundColumn | None:
    """Find the column of donors: of enough of them, with enough cells each."""
    rest = list(columns)
    while (column := likely_column("donor_id", "donor_id", rest)) is not None:
        found = read.labels("donor_id", column)
        if (
            found is not None
            and len(found.values) >= _LEAST_DONORS
            and found.n_known >= _CELLS_PER_DONOR * len(found.values)
        ):
            return found
        rest.remove(column)
    return None


def _taken(phenotypes: Mapping[str, FoundColumn]) -> set[str]:
    return {one.column for one in phenotypes.values()}


def _is_worth_having(column: str) -> bool:
    return _WORTH_HAVING.fullmatch(column) is not None


def _could_be_phenotype(found: FoundColumn, n_cells: int) -> bool:
    return (
        2 <= len(found.values) <= _MOST_LABELS
        and found.n_known >= _COVERED * n_cells
        and found.n_known >= _CELLS_PER_LABEL * len(found.values)
    )


def _phenotype_name(column: str, phenotypes: Mapping[str, FoundColumn]) -> str:
    """Return a name that becomes a control token, ``[NO_NAME]``: letters, digits and '_'."""
    name = re.sub(r"\W+", "_", column).strip("_").lower() or "phenotype"
    return f"{name}_2" if name in phenotypes or name in STANDARD_PHENOTYPES else name
