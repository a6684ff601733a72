"""What a preset's files are, settled before any expression is read: sources, matrices, genes, key."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.cells.file_patterns import expand_files, refuse_overlap
from core.cells.genes import GeneTable, choose_gene_ids
from core.cells.manifest import FORMAT_VERSION
from core.cells.matrix_state import MatrixChoice, MatrixState, choose_matrix
from core.cells.phenotypes import requested_phenotypes
from core.cells.reading import CellSource, fingerprint, open_source
from core.cells.vocabulary import load_vocabulary
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Role",
    "StoreInput",
    "common_value_kind",
    "look_at_inputs",
    "store_key",
    "store_settings",
]

Role = Literal["all", "train", "validation", "test"]
#: Settings that a store does not depend on: it holds all genes, wherever it lies.
_NOT_OF_THE_STORE = {"genes", "include_genes", "store", "where"}


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
        (cells, columns that phenotypes and split need).
    choice, table
        Matrix and genes.
    n_values, is_sparse, by_columns, in_pieces
        Of the matrix: stored values, whether these are the non-zero ones, whether it is stored by
        genes, and whether in pieces.
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
    table: GeneTable
    n_values: int
    is_sparse: bool
    by_columns: bool
    in_pieces: bool
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


def look_at_inputs(data: DataSettings, on_progress: Listener) -> list[StoreInput]:
    """Open the files of a preset one after another and decide on the matrix and gene ids of each.

    Parameters
    ----------
    data
        The preset's data section.
    on_progress
        Hears "checking files".

    Raises
    ------
    DataError
        A file is missing, damaged or empty, or has no matrix or genes that can be taken.
    """
    settings = store_settings(data)
    given_elsewhere = bool(settings["validation_files"] and settings["test_files"])
    roles: list[tuple[Role, str]] = [
        ("train" if given_elsewhere else "all", file) for file in settings["files"]
    ]
    roles += [("validation", file) for file in settings["validation_files"]]
    roles += [("test", file) for file in settings["test_files"]]
    columns = {phenotype.column for phenotype in requested_phenotypes(data)} | {data.split.by}
    inputs: list[StoreInput] = []
    first_cell = 0
    for done, (role, file) in enumerate(roles):
        on_progress(ProgressEvent("checking files", done, len(roles)))
        with closing(open_source(file)) as source:
            one = _look_at(source, role, first_cell, columns, data)
        inputs.append(one)
        first_cell += one.n_cells
    on_progress(ProgressEvent("checking files", len(roles), len(roles)))
    return inputs


def _look_at(
    source: CellSource,
    role: Role,
    first_cell: int,
    columns: set[str],
    data: DataSettings,
) -> StoreInput:
    name = source.name
    if source.n_cells == 0:
        message = f"{name}: holds no cells; leave the file out or check how it was written"
        raise DataError(message)
    matrices = source.matrices()
    if matrices and not any(len(source.var(matrix)) for matrix in matrices):
        message = f"{name}: holds no genes; leave the file out or check how it was written"
        raise DataError(message)
    choice = choose_matrix(source, data.matrix)
    return StoreInput(
        name=name,
        fingerprint=fingerprint(name),
        role=role,
        n_cells=source.n_cells,
        first_cell=first_cell,
        obs=source.obs_columns(columns),
        choice=choice,
        table=choose_gene_ids(
            source.var(choice.matrix), data.gene_ids, f"{name} ({choice.matrix})"
        ),
        n_values=source.stored_values(choice.matrix),
        is_sparse=source.is_sparse(choice.matrix),
        by_columns=source.is_by_columns(choice.matrix),
        in_pieces=source.is_in_pieces(choice.matrix),
        truth=source.truth,
    )


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
