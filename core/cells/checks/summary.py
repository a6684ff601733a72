"""What is known of each file once it has been read, small enough to keep for all files at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.checks.report import CheckRow
from core.cells.genes import GeneTable
from core.cells.inputs import Role, StoredMatrix, StoreInput
from core.cells.matrix_state import Inspection, MatrixChoice
from core.cells.phenotypes import Labels

__all__ = ["Expression", "FileSummary"]


@dataclass(frozen=True)
class Expression:
    """The values of a file's matrix, summed up.

    Attributes
    ----------
    rows
        (cells read,), row of each in the file, ascending.
    totals
        (cells read,), float32, sum over all genes: counts, or expm1 of log values.
    genes_per_cell
        (cells read,), int32, genes that are not zero.
    cells_per_gene
        (genes of the file,), int64, cells read that have the gene.
    largest
        Largest value.
    """

    rows: NDArray[np.int64]
    totals: NDArray[np.float32]
    genes_per_cell: NDArray[np.int32]
    cells_per_gene: NDArray[np.int64]
    largest: float

    @property
    def n_values(self) -> int:
        """Values that are not zero, in the cells read."""
        return int(self.genes_per_cell.sum(dtype=np.int64))


@dataclass(frozen=True)
class FileSummary:
    """One file.

    Attributes
    ----------
    name, role
        As the preset names it, and the split it was given to ("all" to be dealt).
    faults
        What `tfx prepare` would refuse about this file alone.
    n_cells
        0 if the file cannot be read.
    obs
        (cells, columns), those that labels, donors and batches are read from.
    labels
        Phenotype -> labels; None where the file lacks the column.
    donors
        Labels of ``data.split.by``; None without such a column.
    batches
        Names of batch columns that the file has -> labels.
    choice, stored, others
        The matrix taken, how it is stored (None: none is fit), and what the other matrices hold.
    table
        Its genes; None if they cannot be named.
    n_versioned
        Gene ids that carried an Ensembl version.
    truth
        Known truth of simulated cells, a JSON string.
    fingerprint
        State of the file when it was read; "" if it cannot be.
    expression
        None where no value has been read.
    """

    name: str
    role: Role
    faults: tuple[CheckRow, ...] = ()
    n_cells: int = 0
    obs: pd.DataFrame = field(default_factory=pd.DataFrame)
    labels: Mapping[str, Labels | None] = field(default_factory=dict)
    donors: Labels | None = None
    batches: Mapping[str, Labels] = field(default_factory=dict)
    choice: MatrixChoice | None = None
    others: Mapping[str, Inspection] = field(default_factory=dict)
    stored: StoredMatrix | None = None
    table: GeneTable | None = None
    n_versioned: int = 0
    truth: str | None = None
    fingerprint: str = ""
    expression: Expression | None = None

    @property
    def is_readable(self) -> bool:
        """Whether its tables could be read."""
        return self.n_cells > 0

    @property
    def stored_values(self) -> int:
        """Of the matrix taken, zeros of a dense one included."""
        return 0 if self.stored is None else self.stored.n_values

    @property
    def columns(self) -> list[str]:
        """Names of all obs columns."""
        return list(self.obs.attrs.get("columns", map(str, self.obs.columns)))

    @property
    def is_complete(self) -> bool:
        """Whether every cell has been read."""
        return self.expression is not None and len(self.expression.rows) == self.n_cells

    def as_input(self, first_cell: int) -> StoreInput:
        """Of a file without faults, what a store is made of; its first cell among those of all."""
        assert self.choice is not None, f"{self.name} has faults"
        assert self.stored is not None, f"{self.name} has faults"
        assert self.table is not None, f"{self.name} has faults"
        return StoreInput(
            name=self.name,
            fingerprint=self.fingerprint,
            role=self.role,
            n_cells=self.n_cells,
            first_cell=first_cell,
            obs=self.obs,
            choice=self.choice,
            stored=self.stored,
            table=self.table,
            truth=self.truth,
        )
