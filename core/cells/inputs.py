"""The files of a preset, settled before any expression is read: sources, matrices, genes, key."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.cells.file_patterns import check_overlap, expand_files
from core.cells.genes import GeneTable
from core.cells.manifest import FORMAT_VERSION
from core.cells.matrix_state import MatrixChoice, MatrixState
from core.cells.phenotypes import load_vocabulary
from core.cells.reading import StoredMatrix, fingerprint
from core.errors import DataError
from core.presets.schema import DataSettings

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["all", "train", "validation", "test"]
#: Settings that a store does not depend on: it holds all genes, wherever it is.
_NOT_OF_THE_STORE = {"genes", "include_genes", "store", "where"}
_FILE_LISTS = ("files", "validation_files", "test_files")


@dataclass(frozen=True)
class StoreInput:
    """One source with the decisions about it; the source itself is closed again."""

    #: As the preset names it, and the state it was seen in.
    name: str
    fingerprint: str
    #: The split that the preset gave it to, or "all".
    role: Role
    #: Its cells, and its first among those of all sources.
    n_cells: int
    first_cell: int
    #: (cells, columns), with those that phenotypes and split need.
    obs: "pd.DataFrame"
    choice: MatrixChoice
    stored: StoredMatrix
    table: GeneTable
    #: Known truth of simulated cells, a JSON string.
    truth: str | None


def store_key(data: DataSettings) -> str:
    """Hash of the settings and sources a store depends on: files changed, key changed."""
    settings = store_settings(data)
    record: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "settings": settings,
        "sources": [fingerprint(file) for key in _FILE_LISTS for file in settings[key]],
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
        A pattern matches nothing, or a file is listed twice.
    """
    settings = data.model_dump(mode="json", exclude=_NOT_OF_THE_STORE)
    lists = {key: expand_files(settings[key]) for key in _FILE_LISTS}
    check_overlap({f"data.{key}": files for key, files in lists.items()})
    return settings | lists


def common_value_kind(inputs: Sequence[StoreInput]) -> Literal["counts", "log1p"]:
    """Return the kind of values that all files hold; DataError if they differ."""
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
