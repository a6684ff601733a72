"""Cells of a SOMA experiment, on this machine or in a bucket, as CELLxGENE Census keeps them.

A preset names it ``soma://PATH?obs_filter=...&measurement=RNA``: PATH is that of the experiment, the filter an
expression of SOMA over obs columns. Labels are read by column, values a block of rows at a time, so an
experiment larger than the memory, or the disk, can be read.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.file_patterns import SOMA_PREFIX
from core.cells.sources import StoredMatrix, in_one_sentence, to_csr
from core.errors import ConfigurationError, DataError, MachineError
from core.wording import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

_OPTIONS = {"obs_filter": "", "measurement": "RNA"}
#: SOMA's own number of a cell or gene, by which its matrices refer to it.
_ID = "soma_joinid"
#: Columns with the names of cells and genes, the likeliest first: of an AnnData, of Census.
_NAMES = ("obs_id", "var_id", "feature_id")
#: The layer that is X of an AnnData, and the measurement that is raw.
_X, _RAW = "data", "raw"


class SomaSource:
    """Cells of a SOMA experiment, with the members of `CellSource`.

    Layer "data" is called "X", as in the AnnData that it was made from; the other layers are "layers/NAME".
    MachineError without the package tiledbsoma.
    """

    def __init__(self, spec: str) -> None:
        self.name = spec
        self._uri, options = _parse(spec)
        self._filter = options["obs_filter"] or None
        self._measurement = options["measurement"]
        try:
            import tiledbsoma
        except ImportError:
            raise MachineError(
                f"{spec}: SOMA experiments are read by the package tiledbsoma; install it by pip install "
                f"'transformerics[soma]'"
            ) from None
        what = f"{spec}: no SOMA experiment can be opened at {self._uri}"
        with in_one_sentence(what, "; check the path"):
            self._opened: Any = tiledbsoma.open(self._uri)
        opened = self._opened
        if opened.soma_type != "SOMAExperiment":
            self.close()
            raise DataError(
                f"{spec}: {self._uri} is a {opened.soma_type}, not an experiment; name the "
                f"experiment in it"
            )
        with self._readable("ms"):
            measurements = list(self._opened.ms)
        if self._measurement not in measurements:
            self.close()
            raise DataError(
                f"{spec}: the experiment has no measurement '{self._measurement}'; add "
                f"measurement=NAME, one of {', '.join(measurements)}"
            )

    @cached_property
    def obs(self) -> "pd.DataFrame":
        return self._obs_table(self._columns, with_names=True)

    @cached_property
    def obs_names(self) -> "pd.Index[str]":
        return self._obs_table([], with_names=True).index

    @property
    def n_cells(self) -> int:
        """Number of cells that match the filter."""
        return len(self._ids)

    def uns(self, key: str) -> Any:  # noqa: ANN401 (a plain value, or a dictionary of them)
        """Element of uns, or None; of a dictionary, its plain values."""
        with self._readable("uns"):
            measurement = self._opened.ms[self._measurement]
            if "uns" not in measurement:
                return None
            uns = measurement["uns"]
            if key in uns.metadata:
                return uns.metadata[key]
            if key not in uns or not hasattr(uns[key], "metadata"):
                return None
            values = uns[key].metadata.items()
            return {name: value for name, value in values if not name.startswith("soma_")}

    def matrices(self) -> list[str]:
        with self._readable("X"):
            layers = sorted(self._opened.ms[self._measurement].X)
            names = ["X"] if _X in layers else []
            names += [f"layers/{name}" for name in layers if name != _X]
            has_raw = _RAW in self._opened.ms and _X in self._opened.ms[_RAW].X
            return names + (["raw"] if has_raw else [])

    def var(self, matrix: str) -> "pd.DataFrame":
        return self._genes(self._place(matrix)[0])[1]

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        wanted = [name for name in self._columns if name in names]
        table = self._obs_table(wanted, with_names=False)
        table.attrs["columns"] = self._columns
        return table

    def stored(self, matrix: str) -> StoredMatrix:
        """How a matrix is stored; where a filter chooses cells, their values are estimated."""
        with self._readable(matrix):
            layer = self._layer(matrix)
            if not hasattr(layer, "nnz"):
                n_values = self.n_cells * len(self.var(matrix))
                return StoredMatrix(n_values, in_pieces=True)
            n_values = layer.nnz * self.n_cells // max(self._opened.obs.count, 1)
            return StoredMatrix(n_values, is_sparse=True, in_pieces=True)

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        end = self.n_cells if stop is None else min(stop, self.n_cells)
        for first in range(start, end, rows_per_chunk):
            with self._readable(matrix):
                ids = self._ids[first : min(first + rows_per_chunk, end)]
                genes, _ = self._genes(self._place(matrix)[0])
                layer = self._layer(matrix)
                read = _sparse_rows if hasattr(layer, "nnz") else _dense_rows
                chunk = to_csr(read(layer, ids, genes), own=True)
            yield chunk

    def state(self) -> str:
        """Numbers that differ after the experiment was changed: sizes, and time of change on this machine."""
        with self._readable("obs"):
            sizes = [self._opened.obs.count, self.n_cells]
            for matrix in self.matrices():
                layer = self._layer(matrix)
                sizes += [len(self.var(matrix)), getattr(layer, "nnz", 0)]
            folder = Path(self._uri)
            times = [one.stat().st_mtime_ns for one in folder.rglob("*")] if folder.is_dir() else []
        return "-".join(map(str, [*sizes, max(times, default=0)]))

    def release(self) -> None:
        """Nothing of the values stays in memory."""

    def close(self) -> None:
        """Close the experiment."""
        self._opened.close()

    @cached_property
    def _columns(self) -> list[str]:
        with self._readable("obs"):
            keys = [str(name) for name in self._opened.obs.keys()]  # noqa: SIM118 (no mapping)
        return [name for name in keys if name not in (_ID, *_NAMES)]

    @cached_property
    def _ids(self) -> NDArray[np.int64]:
        """(cells,) ascending numbers of the cells that match the filter."""
        with self._readable("obs"):
            found = self._opened.obs.read(column_names=[_ID], value_filter=self._filter).concat()
            return np.sort(found[_ID].to_numpy().astype(np.int64))

    def _obs_table(self, columns: list[str], *, with_names: bool) -> "pd.DataFrame":
        import pandas as pd

        with self._readable("obs"):
            frame = self._opened.obs
            named = [name for name in _NAMES if name in frame.keys()][:1] if with_names else []  # noqa: SIM118
            read = frame.read(column_names=[_ID, *named, *columns], value_filter=self._filter)
            table = read.concat().to_pandas().sort_values(_ID, ignore_index=True)
            if with_names:
                table.index = pd.Index(table[named[0] if named else _ID].astype(str), name=None)
            table = table[columns]
            for name in columns:
                if pd.api.types.is_object_dtype(table[name]):
                    table[name] = pd.Categorical(table[name])
        return table

    def _genes(self, measurement: str) -> "tuple[NDArray[np.int64], pd.DataFrame]":
        """Return (genes,) ascending numbers, and their table."""
        import pandas as pd

        if measurement not in self._vars:
            with self._readable("var"):
                table = self._opened.ms[measurement].var.read().concat().to_pandas()
                table = table.sort_values(_ID, ignore_index=True)
                ids = table[_ID].to_numpy().astype(np.int64)
                named = next((name for name in _NAMES if name in table), _ID)
                table.index = pd.Index(table[named].astype(str), name=None)
                table = table.drop(columns=list({_ID, named}))
            self._vars[measurement] = (ids, table)
        return self._vars[measurement]

    @cached_property
    def _vars(self) -> "dict[str, tuple[NDArray[np.int64], pd.DataFrame]]":
        return {}

    def _place(self, matrix: str) -> tuple[str, str]:
        """Measurement and layer of a matrix."""
        if matrix == "raw":
            return _RAW, _X
        return self._measurement, _X if matrix == "X" else matrix.removeprefix("layers/")

    def _layer(self, matrix: str) -> Any:  # noqa: ANN401 (a SparseNDArray or DenseNDArray)
        measurement, layer = self._place(matrix)
        return self._opened.ms[measurement].X[layer]

    def _readable(self, key: str) -> AbstractContextManager[None]:
        filtered = f"; check obs_filter ({self._filter})" if self._filter and key == "obs" else ""
        return in_one_sentence(f"{self.name}: '{key}' cannot be read", filtered)


def _parse(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``soma://PATH?name=value&name=value`` into the path and its options."""
    uri, _, query = spec.removeprefix(SOMA_PREFIX).partition("?")
    options = dict(_OPTIONS)
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals or name not in options:
            raise ConfigurationError(
                f"{spec}: unknown option {part!r}; "
                f"{did_you_mean(name, list(options)) or 'use obs_filter=... or measurement=NAME'}"
            )
        options[name] = unquote(value)
    if not uri:
        raise ConfigurationError(f"{spec}: give the path of an experiment, as in soma://PATH")
    return uri if "://" in uri else str(Path(uri).expanduser().absolute()), options


def _sparse_rows(layer: Any, ids: NDArray[np.int64], genes: NDArray[np.int64]) -> sparse.csr_matrix:  # noqa: ANN401
    is_range = len(ids) > 0 and int(ids[-1] - ids[0]) == len(ids) - 1
    rows = slice(int(ids[0]), int(ids[-1])) if is_range else ids  # SOMA's slices have their end
    table = layer.read((rows, slice(None))).tables().concat()
    row = np.searchsorted(ids, table["soma_dim_0"].to_numpy())
    number = table["soma_dim_1"].to_numpy()
    column = np.searchsorted(genes, number)
    if len(number) and (genes[np.minimum(column, len(genes) - 1)] != number).any():
        raise ValueError("values of a gene that var lacks")
    values = (table["soma_data"].to_numpy(), (row, column))
    return sparse.csr_matrix(values, shape=(len(ids), len(genes)))


def _dense_rows(layer: Any, ids: NDArray[np.int64], genes: NDArray[np.int64]) -> NDArray[Any]:  # noqa: ANN401
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    read = [
        layer.read((slice(int(run[0]), int(run[-1])), slice(None))).to_numpy()
        for run in runs
        if len(run)
    ]
    found: NDArray[Any] = np.concatenate(read)[:, genes]
    return found
