"""Which obs columns are phenotypes, and which one names donors, found by their names and labels.

For a first preset, where the user sees what is found. Nothing here decides what a run does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
    #: (cells of all files,), of the sorted labels.
    codes: NDArray[np.signedinteger] = field(repr=False, compare=False)


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
    n_cells = sum(map(len, tables))
    anywhere = list(dict.fromkeys(str(name) for table in tables for name in table.columns))
    free = [name for name in anywhere if all(name in table.columns for table in tables)]
    donors = _find_donors(free, tables)
    if donors is not None:
        free.remove(donors.column)
    phenotypes: dict[str, FoundColumn] = {}
    single: list[FoundColumn] = []
    partial: list[str] = []
    for name, usual in STANDARD_PHENOTYPES.items():
        taken = {one.column for one in phenotypes.values()}
        column = likely_column(
            usual,
            name,
            [one for one in free if one not in taken and (one == usual or not _is_wanted(one))],
        )
        if column is None:
            if likely_column(usual, name, anywhere) is not None:
                partial.append(name)
        elif found := _read(tables, name, column):
            if len(found.values) < 2:
                single.append(found)
            elif found.n_known >= _CELLS_PER_LABEL * len(found.values):
                phenotypes[name] = found
    further: list[FoundColumn] = []
    used = {one.column for one in [*phenotypes.values(), *single]}
    for column in free:
        if column in used or (_OF_NO_USE.fullmatch(column) and not _is_wanted(column)):
            continue
        # A name that becomes a control token, ``[NO_NAME]``: letters, digits and '_'.
        name = re.sub(r"\W+", "_", column).strip("_").lower() or "phenotype"
        name += "_2" if name in phenotypes or name in STANDARD_PHENOTYPES else ""
        found = _read(tables, name, column)
        if (
            found is None
            or not 2 <= len(found.values) <= _MOST_LABELS
            or found.n_known < max(_COVERED * n_cells, _CELLS_PER_LABEL * len(found.values))
        ):
            continue
        if _is_wanted(column):
            phenotypes[name] = found
        elif not any(_are_alike(found, one) for one in [donors, *phenotypes.values()] if one):
            further.append(found)
    return ObsColumns(
        tuple(phenotypes.values()), tuple(single), tuple(partial), tuple(further), donors
    )


def _read(tables: Sequence[pd.DataFrame], name: str, column: str) -> FoundColumn | None:
    """Labels of a column in all files; None if it holds a measurement."""
    wanted = PhenotypeColumn(name, column, explicit=False)
    try:
        files = [read_labels(table, wanted, where="obs") for table in tables]
    except DataError:
        return None
    coded = code_phenotype(files, [len(table) for table in tables], None)
    counts = count_codes(coded.codes, len(coded.values))
    order = np.argsort(-counts, kind="stable")
    values = tuple(coded.values[index] for index in order)
    return FoundColumn(name, column, values, int(counts.sum()), coded.codes)


def _find_donors(columns: Sequence[str], tables: Sequence[pd.DataFrame]) -> FoundColumn | None:
    """Find the column of donors: of enough of them, with enough cells each."""
    rest = list(columns)
    while (column := likely_column("donor_id", "donor_id", rest)) is not None:
        found = _read(tables, "donor_id", column)
        n_donors = len(found.values) if found else 0
        if found and n_donors >= _LEAST_DONORS and found.n_known >= _CELLS_PER_DONOR * n_donors:
            return found
        rest.remove(column)
    return None


def _are_alike(first: FoundColumn, second: FoundColumn) -> bool:
    """Whether the labels of one column are those of another under other names."""
    if len(first.values) != len(second.values):
        return False
    pairs = np.column_stack([first.codes, second.codes])
    pairs = pairs[(pairs >= 0).all(axis=1)]
    return len(np.unique(pairs, axis=0)) == len(first.values)


def _is_wanted(column: str) -> bool:
    return _WORTH_HAVING.fullmatch(column) is not None
