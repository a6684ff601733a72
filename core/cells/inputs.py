"""What a preset's files are, settled before any expression is read: sources, matrices, genes, key."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.cells.file_patterns import expand_files, refuse_overlap
from core.cells.genes import GeneTable, choose_gene_ids
from core.cells.manifest import FORMAT_VERSION
from core.cells.matrix_state import MatrixChoice, MatrixState, choose_matrix
from core.cells.reading import CellSource, fingerprint, open_source
from core.cells.vocabulary import load_vocabulary
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent

__all__ = [
    "Role",
    "StoreInput",
    "common_value_kind",
    "open_inputs",
    "store_key",
    "store_settings",
]

Role = Literal["all", "train", "validation", "test"]
#: Settings that a store does not depend on: it holds all genes, wherever it lies.
_NOT_OF_THE_STORE = {"genes", "include_genes", "store"}


@dataclass(frozen=True)
class StoreInput:
    """One source with what was decided about it."""

    source: CellSource
    role: Role
    choice: MatrixChoice
    table: GeneTable
    first_cell: int


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


def open_inputs(data: DataSettings, stack: ExitStack, on_progress: Listener) -> list[StoreInput]:
    """Open all files of a preset and decide on the matrix and gene ids of each.

    Parameters
    ----------
    data
        The preset's data section.
    stack
        Closes the sources.
    on_progress
        Hears "checking files".
    """
    settings = store_settings(data)
    given_elsewhere = bool(settings["validation_files"] and settings["test_files"])
    roles: list[tuple[Role, str]] = [
        ("train" if given_elsewhere else "all", file) for file in settings["files"]
    ]
    roles += [("validation", file) for file in settings["validation_files"]]
    roles += [("test", file) for file in settings["test_files"]]
    inputs: list[StoreInput] = []
    first_cell = 0
    for done, (role, file) in enumerate(roles):
        on_progress(ProgressEvent("checking files", done, len(roles)))
        source = open_source(file)
        stack.callback(source.close)
        if source.n_cells == 0:
            message = f"{file}: holds no cells; leave the file out or check how it was written"
            raise DataError(message)
        matrices = source.matrices()
        if matrices and not any(len(source.var(matrix)) for matrix in matrices):
            message = f"{file}: holds no genes; leave the file out or check how it was written"
            raise DataError(message)
        choice = choose_matrix(source, data.matrix)
        var = source.var(choice.matrix)
        table = choose_gene_ids(var, data.gene_ids, f"{file} ({choice.matrix})")
        inputs.append(StoreInput(source, role, choice, table, first_cell))
        first_cell += source.n_cells
    on_progress(ProgressEvent("checking files", len(roles), len(roles)))
    return inputs


def common_value_kind(inputs: Sequence[StoreInput]) -> Literal["counts", "log1p"]:
    """Say what all files hold; files that disagree are refused."""
    by_state: dict[MatrixState, StoreInput] = {}
    for one in inputs:
        by_state.setdefault(one.choice.state, one)
    if len(by_state) > 1:
        listed = " but ".join(
            f"{one.source.name} ({one.choice.matrix}) holds {state}"
            for state, one in by_state.items()
        )
        message = (
            f"{listed}; all files must hold the same kind of values, set data.matrix to a matrix "
            f"that does"
        )
        raise DataError(message)
    return "counts" if MatrixState.COUNTS in by_state else "log1p"
