"""Prepare a store: from the files of a preset to a folder that training reads.

Everything that can be refused from tables (files, matrices, genes, phenotypes, split) is refused
before a cell is read. Then, however many cells there are, in bounded memory:

1. `shard_stage` reads ranges of rows and leaves each as a part, its cells in random order;
2. `merge_stage` takes one range of the random order from all parts and writes it into the store;
3. `rank_stage` ranks the genes over the training cells, and the files get their checksums.

Every stage is a list of tasks for a `TaskRunner`. What is finished is not done again: after a kill at
any moment the same call goes on, and the store is the same, byte for byte.
"""

import hashlib
import itertools
import json
import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_labels import CellLabels, read_cell_labels
from core.cells.checks import preflight_with_files, refuse_failures
from core.cells.file_patterns import BUILTIN_PREFIX
from core.cells.gene_join import GeneJoin, join_genes
from core.cells.gene_moments import GeneMoments
from core.cells.inputs import StoredMatrix, StoreInput, common_value_kind, store_key
from core.cells.manifest import MANIFEST_NAME, checksum
from core.cells.matrix_state import constant_sum
from core.cells.merge_stage import (
    BucketTask,
    MergePlan,
    PartRecord,
    large_counts,
    new_array,
    sums_of_training_cells,
    write_bucket,
)
from core.cells.normalisation import TARGET_SUM
from core.cells.preparation_folder import (
    PreparationFolder,
    open_preparation,
    publish,
    refuse_destination,
)
from core.cells.random_order import BUCKETS
from core.cells.rank_stage import rank_genes
from core.cells.reading import BY_COLUMNS_VALUES
from core.cells.shard_stage import ShardTask, close_source, summarise_part, write_shard
from core.cells.store import TRUTH_NAME, Store, gene_index_type
from core.cells.store_parts import Part
from core.cells.store_report import describe_store, joint_truth, make_manifest
from core.cells.task_runners import TaskRunner, default_workers, open_runner
from core.cells.variable_genes import resolve_method
from core.errors import DataError, MachineError, TfxError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["default_store_path", "ensure_store", "find_store", "prepare_store"]

logger = logging.getLogger(__name__)

#: Stored values of a part and of a bucket, at least; see `_piece_values`.
PART_VALUES = 2**23
#: Pieces of more than this many grow first, up to four times.
_MANY_PIECES = 128
#: Fewer stored values than this are done before a second process has started.
ALONE_VALUES = 2**26
#: Values of the chunks that are read at once. Few stay in the processor's cache, and their memory is
#: used again. Where zeros are stored most of them go at once; pieces that begin in one chunk and end
#: in another are decompressed twice.
_CHUNK = 2**18
_DENSE_CHUNK = 2**24
_PIECES_CHUNK = 2**21


def prepare_store(
    data: DataSettings,
    destination: Path,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    dask: str | None = None,
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
    workers
        Processes; None for as many as the machine and the size of the data suggest.
    dask
        Address of a Dask scheduler whose workers do the work instead.
    on_progress
        Hears "checking files", "reading cells", "writing cells", "ranking genes", "checksums".

    Raises
    ------
    ConfigurationError, DataError, MachineError
        No store appears. Pieces that a second attempt can use stay in ``STORE.preparing``.
    KeyboardInterrupt
        Ctrl-C, or SIGTERM where nobody else handles it; likewise.
    """
    destination = Path(destination)
    key = store_key(data)
    if (existing := _open_matching(destination, key)) is not None:
        return existing
    refuse_destination(destination, overwrite=overwrite)
    with (
        _interrupted_by_sigterm(),
        open_preparation(destination, key, on_progress) as folder,
    ):
        # Another process may have made it while this one waited.
        if (existing := _open_matching(destination, key)) is not None:
            return existing
        refuse_destination(destination, overwrite=overwrite)
        try:
            report = _prepare(_Preparation(data, key, folder, on_progress), workers, dask)
        except KeyboardInterrupt:
            if folder.keep:
                logger.warning(
                    "stopped; what is done stays in %s, and the same command goes on from there",
                    folder.root,
                )
            raise
        publish(folder, destination)
    for notice in report["notices"]:
        logger.info("%s", notice)
    return Store.open(destination)


def ensure_store(
    data: DataSettings,
    name: str,
    *,
    root: Path = Path("stores"),
    overwrite: bool = False,
    workers: int | None = None,
    dask: str | None = None,
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
    overwrite, workers, dask, on_progress
        As in `prepare_store`.
    """
    path = Path(data.store) if data.store else default_store_path(data, name, root=root)
    return prepare_store(
        data, path, overwrite=overwrite, workers=workers, dask=dask, on_progress=on_progress
    )


def find_store(data: DataSettings, name: str, *, root: Path = Path("stores")) -> Store | None:
    """Open the store of a preset if it is there and was made of these data; never prepare it."""
    path = Path(data.store) if data.store else default_store_path(data, name, root=root)
    return _open_matching(path, store_key(data))


def default_store_path(data: DataSettings, name: str, *, root: Path = Path("stores")) -> Path:
    """Folder of a preset's store: its name and a hash of all that the store depends on."""
    return root / f"{name}-{store_key(data)[:10]}"


@dataclass(frozen=True)
class _Preparation:
    """What every stage needs."""

    data: DataSettings
    key: str
    folder: PreparationFolder
    on_progress: Listener


def _prepare(job: _Preparation, workers: int | None, dask: str | None) -> dict[str, Any]:
    """Fill the folder's store; return its report."""
    data = job.data
    inputs, warnings = _check_first(job)
    value_kind = common_value_kind(inputs)
    resolve_method(data.hvg, value_kind)
    names = [one.name for one in inputs]
    join = join_genes([one.table for one in inputs], names, data.join)
    labels = read_cell_labels(
        data, names, [one.obs for one in inputs], [one.role for one in inputs]
    )
    inputs = [replace(one, obs=one.obs.iloc[:0]) for one in inputs]  # read, and large
    of_inputs = _plan_parts(job, inputs, join)
    tasks = [task for tasks in of_inputs for task in tasks]
    _refuse_full_disk(job.folder, inputs, value_kind, tasks)
    if workers is None:
        large = sum(one.stored.n_values for one in inputs) > ALONE_VALUES
        workers = default_workers() if large else 1
    with open_runner(workers=min(workers, len(tasks)), dask=dask, shared=job.folder.root) as runner:
        try:
            _write_parts(job, runner, tasks)
        finally:
            close_source()
        notices = list(labels.notices)
        depths = [_read_depths(tasks) for tasks in of_inputs]
        scales, scale_notices = _log_scales(inputs, depths, value_kind)
        notices += scale_notices
        report = describe_store(inputs, join, labels, [depth.n_empty for depth in depths])
        _write_labels(job.folder, labels)
        n_values, sums = _write_store(
            job, runner, inputs, of_inputs, scales, len(join.panel), value_kind
        )
        truth, truth_notices = joint_truth(inputs)
        notices += truth_notices
        # The ranking reads the store it belongs to: first written in the order of the files.
        _write_array(job.folder.store, "gene_order", np.arange(len(join.panel), dtype=np.int32))
        manifest = make_manifest(data, job.key, inputs, join, labels, value_kind, n_values, report)
        manifest.write(job.folder.store)
        if truth is not None:
            text = json.dumps(truth, indent=1, ensure_ascii=False) + "\n"
            (job.folder.store / TRUTH_NAME).write_text(text, encoding="utf-8")
        ranking = rank_genes(Store.open(job.folder.store), runner, data.hvg, sums, job.on_progress)
        _write_array(job.folder.store, "gene_order", ranking.order)
        checksums = _checksums(job, runner)
    report |= {
        "gene_ranking": ranking.method,
        "notices": notices + ranking.notices,
        "warnings": warnings,
    }
    manifest = manifest.model_copy(update={"report": report, "checksums": checksums})
    manifest.write(job.folder.store)
    return report


def _check_first(job: _Preparation) -> tuple[list[StoreInput], list[str]]:
    """Refuse what tables and first cells tell; return the files, and what the user should know of."""
    files, report = preflight_with_files(job.data, on_progress=job.on_progress)
    # Room on the disk is counted below, where pieces of an earlier attempt count for it.
    report = report.without("cost")
    refuse_failures(report)
    warnings: list[str] = []
    if not all(one.name.startswith(BUILTIN_PREFIX) for one in files):
        warnings = [row.sentence for row in report.of_level("warn")]
    for warning in warnings:
        logger.warning("%s", warning)
    cells_before = itertools.accumulate((one.n_cells for one in files), initial=0)
    return [one.as_input(first) for one, first in zip(files, cells_before, strict=False)], warnings


def _plan_parts(
    job: _Preparation, inputs: Sequence[StoreInput], join: GeneJoin
) -> list[list[ShardTask]]:
    """Cut each source into ranges of rows."""
    part_values = _piece_values(sum(one.stored.n_values for one in inputs))
    planned = []
    for one, columns in zip(inputs, join.columns, strict=True):
        digest = hashlib.sha256(columns.tobytes()).hexdigest()[:24]
        path = job.folder.parts / f"{digest}.npy"
        if not path.exists():
            _write_array(job.folder.parts, digest, columns)
        # To read some rows of a matrix stored by columns is to read it all: few large ranges.
        values = max(part_values, BY_COLUMNS_VALUES) if one.stored.by_columns else part_values
        rows = max(one.n_cells * values // max(one.stored.n_values, 1), 1)
        n_parts = -(-one.n_cells // rows)
        chunk_values = _chunk_values(one.stored)
        rows_at_once = one.n_cells * chunk_values // max(one.stored.n_values, 1)
        rows_at_once = int(np.clip(rows_at_once, 64, 8_192))
        borders = [one.n_cells * number // n_parts for number in range(n_parts + 1)]
        planned.append(
            [
                ShardTask(
                    one.name, one.fingerprint, one.choice, start, stop, path, len(join.panel),
                    job.data.split.seed, job.folder.parts, rows_at_once,
                )
                for start, stop in itertools.pairwise(borders)
            ]
        )  # fmt: skip
    return planned


def _piece_values(n_values: int) -> int:
    """Say how many stored values a part and a bucket have, in a store of so many.

    Every bucket reads from every part: few large ones would need memory, many small ones many short
    reads. With the store grow first their number, then their size to four times, then their number
    up to `BUCKETS`, then their size again.
    """
    of_many = int(np.clip(n_values // _MANY_PIECES, PART_VALUES, 4 * PART_VALUES))
    return max(of_many, n_values // BUCKETS)


def _chunk_values(stored: StoredMatrix) -> int:
    if not stored.is_sparse:
        return _DENSE_CHUNK
    return _PIECES_CHUNK if stored.in_pieces else _CHUNK


def _write_parts(job: _Preparation, runner: TaskRunner, tasks: Sequence[ShardTask]) -> None:
    """Run the first stage; of files that cannot be read, all are named at the end."""
    wanted = {task.path for task in tasks}
    for path in job.folder.parts.glob("*.part"):
        if path not in wanted:
            path.unlink()  # of a file that has changed, or of other settings
    missing = [task for task in tasks if not task.path.exists()]
    n_cells = sum(task.stop - task.start for task in tasks)
    done = n_cells - sum(task.stop - task.start for task in missing)
    message = ""
    if done:
        message = f"going on: {len(tasks) - len(missing)} of {len(tasks)} pieces are there already"
    job.on_progress(ProgressEvent("reading cells", done, n_cells, message))
    failed: dict[str, TfxError] = {}
    for number, error in runner.try_all(write_shard, missing):
        task = missing[number]
        if error is None:
            job.folder.keep = len(tasks) > 1
        elif not isinstance(error, DataError):
            raise error
        elif task.source not in failed:
            failed[task.source] = error
            logger.warning("%s; the other files are still read", error)
        done += task.stop - task.start
        job.on_progress(ProgressEvent("reading cells", done, n_cells))
    if not failed:
        return
    job.folder.keep = any(task.path.exists() for task in tasks if task.source not in failed)
    told = "; ".join(str(error) for error in failed.values())
    kept = " (the work on the other files is kept)" if job.folder.keep else ""
    raise DataError(told + kept)


@dataclass(frozen=True)
class _Depths:
    """Sums over all genes of a source's cells: their common value, and cells without any."""

    constant: float | None
    n_empty: int


def _read_depths(tasks: Sequence[ShardTask]) -> _Depths:
    totals = []
    for task in tasks:
        with Part(task.path) as part:
            totals.append(part.read("totals"))
    of_cells = np.concatenate(totals)
    return _Depths(constant_sum(of_cells), int(np.sum(of_cells == 0)))


def _log_scales(
    inputs: Sequence[StoreInput], depths: Sequence[_Depths], value_kind: str
) -> tuple[list[float], list[str]]:
    """Factor for each source that brings log values to counts per 10,000, and what to say."""
    scales = [1.0] * len(inputs)
    notices: list[str] = []
    if value_kind == "counts":
        return scales, notices
    for number, (one, depth) in enumerate(zip(inputs, depths, strict=True)):
        where = f"{one.name} ({one.choice.matrix})"
        total = depth.constant
        if total is None:
            notices.append(
                f"{where}: log values whose cells do not add up to one total (genes were removed "
                f"after normalisation); they are taken as log1p of counts per 10,000"
            )
        elif abs(total / TARGET_SUM - 1) > 0.01:
            scales[number] = TARGET_SUM / total
            notices.append(
                f"{where}: log values normalised to {total:,.6g} per cell, rescaled to "
                f"{TARGET_SUM:,.0f}"
            )
    return scales, notices


def _write_labels(folder: PreparationFolder, labels: CellLabels) -> None:
    labels_folder = folder.of_store / "labels"
    labels_folder.mkdir(exist_ok=True)
    _write_array(labels_folder, "phenotypes", labels.phenotype_codes)
    _write_array(labels_folder, "splits", labels.split.codes)
    if labels.donors is not None:
        _write_array(labels_folder, "donors", labels.donors)


#: Types of the store's labels; on the way they are as small as their values allow.
_LABEL_TYPES = {"phenotypes": np.int32, "donors": np.int32, "splits": np.int8}


def _write_store(
    job: _Preparation,
    runner: TaskRunner,
    inputs: Sequence[StoreInput],
    of_inputs: Sequence[Sequence[ShardTask]],
    scales: Sequence[float],
    n_genes: int,
    value_kind: str,
) -> tuple[int, GeneMoments | None]:
    """Run the second stage; return the number of stored values, and sums of the training cells."""
    cells_before = np.zeros(BUCKETS + 1, dtype=np.int64)
    values_before = np.zeros(BUCKETS + 1, dtype=np.int64)
    records = []
    for number, (one, tasks) in enumerate(zip(inputs, of_inputs, strict=True)):
        for task in tasks:
            summary = summarise_part(task.path)
            cells_before += summary.cells
            values_before += summary.values
            records.append(PartRecord(str(task.path), number, one.first_cell, scales[number]))
    n_cells, n_values = int(cells_before[-1]), int(values_before[-1])
    if n_values == 0:
        message = (
            f"{inputs[0].name}: every value of the {n_genes} genes the files share is zero; check "
            f"data.matrix and data.join"
        )
        raise DataError(message)
    n_buckets, bucket_values = 1, _piece_values(n_values)
    while n_buckets < BUCKETS and n_values > n_buckets * bucket_values:
        n_buckets *= 2
    labels = job.folder.of_store / "labels"
    plan = MergePlan(
        folder=str(job.folder.store),
        labels=str(labels),
        counts=value_kind == "counts",
        n_buckets=n_buckets,
        sum_genes=n_genes if resolve_method(job.data.hvg, value_kind) == "seurat_v3" else 0,
        parts=tuple(records),
    )
    digest = hashlib.sha256(json.dumps(asdict(plan)).encode()).hexdigest()[:16]
    notes = job.folder.of_store / f"buckets-{digest}"
    if not notes.exists():
        _make_arrays(job.folder.store, labels, n_cells, n_values, n_genes, value_kind)
        notes.mkdir()
    plan_path = job.folder.of_store / f"plan-{digest}.json"
    plan.write(plan_path)
    step = BUCKETS // n_buckets
    buckets = [
        BucketTask(
            plan_path,
            notes / f"{number:04d}.note",
            number,
            int(cells_before[number * step]),
            int(values_before[number * step]),
        )
        for number in range(n_buckets)
    ]
    done = 0
    job.on_progress(ProgressEvent("writing cells", 0, n_cells))
    for number, _ in runner.run(write_bucket, buckets):
        done += int(cells_before[(number + 1) * step] - cells_before[number * step])
        job.on_progress(ProgressEvent("writing cells", done, n_cells))
    written = [bucket.note for bucket in buckets]
    large_at, large_values = large_counts(written)
    _write_array(job.folder.store, "large_at", large_at)
    _write_array(job.folder.store, "large_values", large_values)
    return n_values, sums_of_training_cells(written) if plan.sum_genes else None


def _make_arrays(
    folder: Path, labels: Path, n_cells: int, n_values: int, n_genes: int, value_kind: str
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    value_type = np.uint16 if value_kind == "counts" else np.float32
    new_array(folder, "indptr", (n_cells + 1,), np.int64)
    new_array(folder, "genes", (n_values,), gene_index_type(n_genes))
    new_array(folder, "values", (n_values,), value_type)
    new_array(folder, "totals", (n_cells,), np.float32)
    new_array(folder, "origins", (n_cells, 2), np.int64)
    for path in labels.glob("*.npy"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        new_array(folder, path.stem, array.shape, _LABEL_TYPES[path.stem])


def _checksums(job: _Preparation, runner: TaskRunner) -> dict[str, str]:
    names = sorted(path.name for path in job.folder.store.iterdir() if path.name != MANIFEST_NAME)
    tasks = [job.folder.store / name for name in names]
    sums = {}
    job.on_progress(ProgressEvent("checksums", 0, len(names)))
    for done, (number, digest) in enumerate(runner.run(checksum, tasks), start=1):
        sums[names[number]] = digest
        job.on_progress(ProgressEvent("checksums", done, len(names)))
    return dict(sorted(sums.items()))


def _refuse_full_disk(
    folder: PreparationFolder,
    inputs: Sequence[StoreInput],
    value_kind: str,
    tasks: Sequence[ShardTask],
) -> None:
    """Say before the first cell is read that there is no room for parts and store together."""
    value_bytes = 4 if value_kind == "counts" else 6
    known = sum(one.stored.n_values for one in inputs if one.stored.is_sparse)
    needed = 2 * known * value_bytes
    there = sum(task.path.stat().st_size for task in tasks if task.path.exists())
    free = shutil.disk_usage(folder.root).free
    if free + there < needed:
        message = (
            f"{folder.root.parent}: preparing needs {needed / 1e9:.2f} GB (half of it for pieces "
            f"that are removed at the end) but the disk has {free / 1e9:.2f} GB free; free some "
            f"space or give another folder"
        )
        raise MachineError(message)


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


def _write_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
