"""Prepare a store: from the files of a preset to a folder that training reads.

Everything that can be refused from tables (files, matrices, genes, phenotypes, split) is refused
before a byte is written. Then the expression is read twice, one chunk in memory: once to check it
and count values per cell, once to write each cell to its place in the seeded order.
"""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_labels import CellLabels, read_cell_labels
from core.cells.gene_join import GeneJoin, join_genes
from core.cells.inputs import StoreInput, common_value_kind, open_inputs, store_key
from core.cells.manifest import MANIFEST_NAME
from core.cells.matrix_state import MatrixState, check_chunk, constant_sum, row_sums
from core.cells.store import TARGET_SUM, Store
from core.cells.store_report import describe_store, joint_truth, make_manifest
from core.cells.store_writer import ArrayWriter, publish, write_array, write_manifest
from core.cells.variable_genes import GeneRanking, rank_genes, resolve_method
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["default_store_path", "ensure_store", "prepare_store"]

logger = logging.getLogger(__name__)

#: Values of a chunk if it were dense: 64 MB of float32.
_CHUNK_VALUES = 2**24
#: Training cells that rank the genes; more change the order of none but the nearly tied.
RANKING_CELLS = 50_000


@dataclass(frozen=True)
class _Scan:
    """Result of the first pass, cells in the order of the sources.

    Attributes
    ----------
    values_per_cell
        (cells,), values in the store's genes.
    totals
        (cells,), sum over all genes of the source: counts, or expm1 of log values.
    """

    values_per_cell: NDArray[np.int64]
    totals: NDArray[np.float64]


def prepare_store(
    data: DataSettings,
    destination: Path,
    *,
    overwrite: bool = False,
    on_progress: Listener = ignore_progress,
) -> Store:
    """Read the cells of a preset and write a store.

    Parameters
    ----------
    data
        The preset's data section.
    destination
        Folder of the store. A store of the same cells and settings that is there already is
        opened and returned.
    overwrite
        Replace a store of other cells or settings.
    on_progress
        Hears "checking files", "checking cells", "writing cells", "ranking genes".

    Raises
    ------
    ConfigurationError, DataError, MachineError
        Nothing is left behind.
    KeyboardInterrupt
        Ctrl-C, or SIGTERM where nobody else handles it. Nothing is left behind.
    """
    destination = Path(destination)
    key = store_key(data)
    if (existing := _open_matching(destination, key)) is not None:
        return existing
    with _interrupted_by_sigterm(), ExitStack() as stack:
        inputs = open_inputs(data, stack, on_progress)
        value_kind = common_value_kind(inputs)
        resolve_method(data.hvg, value_kind)
        join = join_genes(
            [one.table for one in inputs], [one.source.name for one in inputs], data.join
        )
        labels = read_cell_labels(
            data,
            [one.source.name for one in inputs],
            [one.source.obs for one in inputs],
            [one.role for one in inputs],
        )
        with publish(destination, overwrite=overwrite) as folder:
            scan = _scan(inputs, join, on_progress)
            notices = list(labels.notices)
            scales, scale_notices = _log_scales(inputs, scan, value_kind)
            notices += scale_notices
            order = np.random.default_rng([data.split.seed, 1]).permutation(len(scan.totals))
            writer = ArrayWriter(
                folder, scan.values_per_cell[order], len(join.panel), value_kind=value_kind
            )
            _write_cells(writer, inputs, join, order, scales, on_progress)
            totals = scan.totals * scales if value_kind == "log1p" else scan.totals
            _write_cell_arrays(folder, inputs, labels, order, totals)
            truth, truth_notices = joint_truth(inputs)
            notices += truth_notices
            # The ranking reads the store it belongs to: first written in the order of the files.
            write_array(folder, "gene_order", np.arange(len(join.panel), dtype=np.int32))
            report = describe_store(inputs, join, labels, scan.totals)
            manifest = make_manifest(
                data, key, inputs, join, labels, value_kind, int(writer.indptr[-1]), report
            )
            write_manifest(folder, manifest, truth)
            ranking = _rank(Store.open(folder), data, notices, on_progress)
            write_array(folder, "gene_order", ranking.order)
            report |= {"gene_ranking": ranking.method, "notices": notices + ranking.notices}
            write_manifest(folder, manifest.model_copy(update={"report": report}), truth)
    for notice in report["notices"]:
        logger.info("%s", notice)
    return Store.open(destination)


def ensure_store(
    data: DataSettings,
    name: str,
    *,
    root: Path = Path("stores"),
    overwrite: bool = False,
    on_progress: Listener = ignore_progress,
) -> Store:
    """Open the store of a preset, or prepare it if it is not there.

    Parameters
    ----------
    data
        The preset's data section; ``data.store`` names the folder, else `default_store_path`.
    name
        Of the preset or run, for the default path.
    root
        Folder of the stores without a path of their own.
    """
    path = Path(data.store) if data.store else default_store_path(data, name, root=root)
    return prepare_store(data, path, overwrite=overwrite, on_progress=on_progress)


def default_store_path(data: DataSettings, name: str, *, root: Path = Path("stores")) -> Path:
    """Folder of a preset's store: its name and a hash of all that the store depends on."""
    return root / f"{name}-{store_key(data)[:10]}"


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: unhandled, it would leave a half-written store."""
    unhandled = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not unhandled or threading.current_thread() is not threading.main_thread():
        yield  # another's handler stays, and only the main thread may set one
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _open_matching(destination: Path, key: str) -> Store | None:
    if not (destination / MANIFEST_NAME).exists():
        return None
    try:
        store = Store.open(destination)
    except DataError as error:
        logger.warning("%s; it is not reused", error)
        return None
    return store if store.manifest.key == key else None


def _chunks(one: StoreInput) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """First row and CSR of each chunk of a source; what it loaded whole is dropped at the end."""
    rows = int(np.clip(_CHUNK_VALUES // len(one.table.ids), 64, 8_192))
    start = 0
    for chunk in one.source.chunks(one.choice.matrix, rows):
        yield start, chunk
        start += chunk.shape[0]
    one.source.release()


def _scan(inputs: Sequence[StoreInput], join: GeneJoin, on_progress: Listener) -> _Scan:
    n_cells = inputs[-1].first_cell + inputs[-1].source.n_cells
    values_per_cell = np.zeros(n_cells, dtype=np.int64)
    totals = np.zeros(n_cells)
    for one, columns in zip(inputs, join.columns, strict=True):
        for start, chunk in _chunks(one):
            check_chunk(chunk, one.choice, one.source, start)
            cells = slice(one.first_cell + start, one.first_cell + start + chunk.shape[0])
            values = chunk.data.astype(np.float64)
            if one.choice.state == MatrixState.LOG1P:
                values = np.expm1(values)
            totals[cells] = row_sums(chunk, values)
            kept = columns[chunk.indices] >= 0
            values_per_cell[cells] = row_sums(chunk, kept.astype(np.float64)).astype(np.int64)
            on_progress(ProgressEvent("checking cells", int(cells.stop), n_cells))
    if not values_per_cell.any():
        message = (
            f"{inputs[0].source.name}: every value of the {len(join.panel)} genes the files share is "
            f"zero; check data.matrix and data.join"
        )
        raise DataError(message)
    return _Scan(values_per_cell, totals)


def _log_scales(
    inputs: Sequence[StoreInput], scan: _Scan, value_kind: str
) -> tuple[NDArray[np.float64], list[str]]:
    """(cells,) factor that brings log values to counts per 10,000, and what to say about it."""
    scales = np.ones(len(scan.totals))
    notices: list[str] = []
    if value_kind == "counts":
        return scales, notices
    for one in inputs:
        cells = slice(one.first_cell, one.first_cell + one.source.n_cells)
        where = f"{one.source.name} ({one.choice.matrix})"
        total = constant_sum(scan.totals[cells])
        if total is None:
            notices.append(
                f"{where}: log values whose cells do not add up to one total (genes were removed "
                f"after normalisation); they are taken as log1p of counts per 10,000"
            )
        elif abs(total / TARGET_SUM - 1) > 0.01:
            scales[cells] = TARGET_SUM / total
            notices.append(
                f"{where}: log values normalised to {total:,.6g} per cell, rescaled to "
                f"{TARGET_SUM:,.0f}"
            )
    return scales, notices


def _write_cells(
    writer: ArrayWriter,
    inputs: Sequence[StoreInput],
    join: GeneJoin,
    order: NDArray[np.int64],
    scales: NDArray[np.float64],
    on_progress: Listener,
) -> None:
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    for one, columns in zip(inputs, join.columns, strict=True):
        for start, chunk in _chunks(one):
            cells = slice(one.first_cell + start, one.first_cell + start + chunk.shape[0])
            per_value = np.repeat(scales[cells], np.diff(chunk.indptr))
            if (per_value != 1).any():
                logged = np.log1p(np.expm1(chunk.data.astype(np.float64)) * per_value)
                chunk.data = logged.astype(np.float32)
            writer.write(_take_columns(chunk, columns, len(join.panel)), place[cells])
            on_progress(ProgressEvent("writing cells", int(cells.stop), len(order)))
    writer.finish()


def _take_columns(
    chunk: sparse.csr_matrix, columns: NDArray[np.int32], n_genes: int
) -> sparse.csr_matrix:
    new = columns[chunk.indices]
    kept = new >= 0
    ends = np.concatenate(([0], np.cumsum(kept)))[chunk.indptr]
    taken = sparse.csr_matrix((chunk.data[kept], new[kept], ends), shape=(chunk.shape[0], n_genes))
    taken.sort_indices()
    return taken


def _write_cell_arrays(
    folder: Path,
    inputs: Sequence[StoreInput],
    labels: CellLabels,
    order: NDArray[np.int64],
    totals: NDArray[np.float64],
) -> None:
    origins = np.concatenate(
        [
            np.column_stack((np.full(one.source.n_cells, index), np.arange(one.source.n_cells)))
            for index, one in enumerate(inputs)
        ]
    )
    write_array(folder, "totals", totals[order].astype(np.float32))
    write_array(folder, "phenotypes", np.ascontiguousarray(labels.phenotype_codes[order]))
    write_array(folder, "splits", labels.split.codes[order])
    write_array(folder, "origins", origins[order].astype(np.int64))
    if labels.donors is not None:
        write_array(folder, "donors", labels.donors[order])


def _rank(
    store: Store, data: DataSettings, notices: list[str], on_progress: Listener
) -> GeneRanking:
    on_progress(ProgressEvent("ranking genes", 0, 1))
    rows = store.rows("train")
    if data.hvg == "none":
        rows = rows[:1]  # the order of the columns needs no cells
    if len(rows) > RANKING_CELLS:
        chosen = np.random.default_rng([data.split.seed, 2]).choice(
            len(rows), RANKING_CELLS, replace=False
        )
        notices.append(
            f"genes are ranked on {RANKING_CELLS:,} of {len(rows):,} training cells, drawn at random"
        )
        rows = rows[np.sort(chosen)]
    counts = None
    if store.value_kind == "counts":
        stored = store.read_stored(rows)
        counts = sparse.csr_matrix(
            (stored.values.astype(np.float32), stored.genes.astype(np.int32), stored.indptr),
            shape=(len(rows), len(store.genes)),
        )
    ranking = rank_genes(counts, lambda: store.read(rows, store.genes), wanted=data.hvg)
    on_progress(ProgressEvent("ranking genes", 1, 1))
    return ranking
