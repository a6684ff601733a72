"""What a preset's files are, settled before any expression is read: sources, matrices, genes, key."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.cells.file_patterns import expand_files, refuse_overlap
from core.cells.genes import GeneTable
from core.cells.manifest import FORMAT_VERSION
from core.cells.matrix_state import MatrixChoice, MatrixState
from core.cells.reading import CellSource, fingerprint
from core.cells.vocabulary import load_vocabulary
from core.errors import DataError
from core.presets.schema import DataSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Role",
    "StoreInput",
    "StoredMatrix",
    "common_value_kind",
    "store_key",
    "store_settings",
]

Role = Literal["all", "train", "validation", "test"]
#: Settings that a store does not depend on: it holds all genes, wherever it lies.
_NOT_OF_THE_STORE = {"genes", "include_genes", "store", "where"}


@dataclass(frozen=True)
class StoredMatrix:
    """How a matrix is stored.

    Attributes
    ----------
    n_values
        Stored values; of a dense matrix with its zeros.
    is_sparse
        Whether only the non-zero ones are stored.
    by_columns, in_pieces
        Whether it is stored by genes, and whether in pieces.
    """

    n_values: int
    is_sparse: bool
    by_columns: bool
    in_pieces: bool

    @classmethod
    def of(cls, source: CellSource, matrix: str) -> "StoredMatrix":
        """Look how a source stores a matrix."""
        return cls(
            source.stored_values(matrix),
            source.is_sparse(matrix),
            source.is_by_columns(matrix),
            source.is_in_pieces(matrix),
        )


@dataclass(frozen=True)
class StoreInput:
    """One source with what was decided about it; the source itself is closed again.

    Attributes
    ----------
    name, fingerprint
        As the preset names it, and the state it was seen in.
    role
        The split the preset gave it to, or "all".
    n_cells, first_cell
        Its cells, and its first among those of all sources.
    obs
        (cells, columns), those that phenotypes and split need among them.
    choice, stored, table
        Matrix, how it is stored, and its genes.
    truth
        Known truth of simulated cells, a JSON string.
    """

    name: str
    fingerprint: str
    role: Role
    n_cells: int
    first_cell: int
    obs: "pd.DataFrame"
    choice: MatrixChoice
    stored: StoredMatrix
    table: GeneTable
    truth: str | None


def store_key(data: DataSettings) -> str:
    """Hash of the settings and sources a store depends on: files changed, key changed."""
    settings = store_settings(data)
    files = [file for key in ("files", "validation_files", "test_files") for file in settings[key]]
    record: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "settings": settings,
        "sources": [fingerprint(file) for file in files],
        # What the preset names must exist; what is a default need not.
        "explicit": sorted(data.split.model_fields_set & {"by"}),
    }
    if data.vocabulary is not None:
        record["vocabulary"] = load_vocabulary(Path(data.vocabulary))
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def store_settings(data: DataSettings) -> dict[str, Any]:
    """Return the settings that make the store, file patterns expanded.

    Raises
    ------
    ConfigurationError, DataError
        A pattern matches nothing, or a file stands in two places.
    """
    settings = data.model_dump(mode="json", exclude=_NOT_OF_THE_STORE)
    lists = {
        key: expand_files(settings[key]) for key in ("files", "validation_files", "test_files")
    }
    refuse_overlap({f"data.{key}": files for key, files in lists.items()})
    return settings | lists


def common_value_kind(inputs: Sequence[StoreInput]) -> Literal["counts", "log1p"]:
    """Say what all files hold; files that disagree are refused."""
    by_state: dict[MatrixState, StoreInput] = {}
    for one in inputs:
        by_state.setdefault(one.choice.state, one)
    if len(by_state) > 1:
        listed = " but ".join(
            f"{one.name} ({one.choice.matrix}) holds {state}" for state, one in by_state.items()
        )
        message = (
            f"{listed}; all files must hold the same kind of values, set data.matrix to a matrix "
            f"that does"
        )
        raise DataError(message)
    return "counts" if MatrixState.COUNTS in by_state else "log1p"
