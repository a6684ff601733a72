"""Prepare a store: from the files of a preset to a folder that training reads.

Tables (files, matrices, genes, phenotypes, split) are checked before a cell is read. Then, for any
number of cells, in bounded memory:

1. `parts` reads ranges of rows and writes each as a part, its cells in random order;
2. `buckets` takes one range of the random order from all parts and writes it into the store;
3. `ranking` ranks the genes over the training cells, and the files get their checksums.

Every stage is a list of tasks for a `TaskRunner`. Finished tasks are not repeated, unless their bytes have
changed: after a kill at any moment the same call continues, and the store is the same, byte for byte.
"""

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_copies import CellCopies, are_secondary, find_copies, without_copies
from core.cells.cell_labels import CellLabels, read_cell_labels
from core.cells.checks.check import check_data
from core.cells.checks.copy_rows import check_copies
from core.cells.checks.survey import StoreInput
from core.cells.file_patterns import BUILTIN_PREFIX
from core.cells.gene_join import GeneJoin
from core.cells.hvg_ranking import GeneMoments, resolve_method
from core.cells.integrity import BLOCK_VALUES, BLOCKED, BLOCKS_NAME, block_checksums
from core.cells.manifest import MANIFEST_NAME, MANIFEST_SUM_NAME
from core.cells.matrix_state import MatrixState
from core.cells.prepare.buckets import (
    BucketTask,
    MergePlan,
    PartRecord,
    fences_of,
    large_counts,
    new_array,
    sums_of_training_cells,
    write_bucket,
)
from core.cells.prepare.folder import (
    Preparation,
    PreparationFolder,
    check_destination,
    open_preparation,
    write_array,
)
from core.cells.prepare.parts import (
    BUCKETS,
    ShardTask,
    close_source,
    is_whole,
    read_array,
    write_shard,
)
from core.cells.prepare.ranking import rank_store
from core.cells.prepare.report import (
    describe_store,
    joint_truth,
    make_manifest,
    open_matching,
    store_key,
)
from core.cells.prepare.runners import (
    TaskRunner,
    default_workers,
    interrupted_by_sigterm,
    open_runner,
)
from core.cells.sources import BY_COLUMNS_VALUES
from core.cells.store import TRUTH_NAME, Store, gene_index_type
from core.errors import DataError, MachineError
from core.files import sha256_of
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent, ignore_progress
from core.wording import size

logger = logging.getLogger(__name__)

#: Stored values of a part and of a bucket, at least; see `_piece_values`.
PART_VALUES = 2**23
#: Pieces of more than this many grow first, up to four times.
_MANY_PIECES = 128
#: Fewer stored values than this are done before a second process has started.
_ALONE_VALUES = 2**26
#: Values of the chunks that are read at once. Small ones stay in the processor's cache, and their memory
#: is used again. Where zeros are stored most of them go at once; pieces that begin in one chunk and end
#: in another are decompressed twice.
_CHUNK = 2**18
_DENSE_CHUNK = 2**24
_PIECES_CHUNK = 2**21
#: Blocks of values whose checksums are one task.
_SUMMED_BLOCKS = 1_024
#: Types of the store's labels; before, they are as small as their values allow.
_LABEL_TYPES = {"phenotypes": np.int32, "donors": np.int32, "splits": np.int8}


def prepare_store(
    data: DataSettings,
    destination: Path,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    dask: str | None = None,
    on_progress: Listener = ignore_progress,
) -> Store:
    """Read the cells of a preset's data section and write a store.

    A store of the same cells and settings at `destination` is opened and returned; one of others is
    replaced if `overwrite`. `workers` is a number of processes (by default as the machine and the size
    of the data suggest), `dask` the address of a scheduler whose workers do the work instead. After an
    error, Ctrl-C or SIGTERM no store appears; pieces that a second attempt can use stay in
    ``STORE.preparing``.
    """
    destination = Path(destination)
    key = store_key(data)
    if (existing := open_matching(destination, key, overwrite=overwrite)) is not None:
        return existing
    check_destination(destination, overwrite=overwrite)
    with interrupted_by_sigterm(), open_preparation(destination, key, on_progress) as folder:
        # Another process may have made it while this one waited.
        if (existing := open_matching(destination, key, overwrite=overwrite)) is not None:
            return existing
        check_destination(destination, overwrite=overwrite)
        try:
            report = _prepare(Preparation(data, key, folder, on_progress), workers, dask)
        except KeyboardInterrupt:
            if folder.keep:
                logger.warning(
                    "stopped; finished work stays in %s, and the same command continues from there",
                    folder.root,
                )
            raise
        folder.publish(destination)
    for notice in report["notices"]:
        logger.info("%s", notice)
    return Store.open(destination)


def ensure_store(
    data: DataSettings,
    name: str,
    *,
    root: Path = Path("stores"),
    on_progress: Listener = ignore_progress,
) -> Store:
    """Open the store of a preset called `name`, or prepare it at its `store_path`."""
    return prepare_store(data, store_path(data, name, root=root), on_progress=on_progress)


def find_store(data: DataSettings, name: str) -> Store | None:
    """Open the store of a preset if it exists and was made of these data; never prepare it."""
    return open_matching(store_path(data, name), store_key(data))


def store_path(data: DataSettings, name: str, *, root: Path = Path("stores")) -> Path:
    """Folder of a preset's store: ``data.store``, else its name and a hash of all it depends on."""
    return Path(data.store) if data.store else root / f"{name}-{store_key(data)[:10]}"


def _prepare(job: Preparation, workers: int | None, dask: str | None) -> dict[str, Any]:
    """Fill the folder's store; return its report."""
    data, store = job.data, job.folder.store
    inputs, join, labels, warnings = _check_first(job)
    is_counts = inputs[0].choice.state == MatrixState.COUNTS  # the checks ensure one kind
    value_kind: Literal["counts", "log1p"] = "counts" if is_counts else "log1p"
    tables = [one.obs for one in inputs]
    secondary = are_secondary(tables)
    if not data.drop_duplicates:
        tables.clear()
    inputs = [replace(one, obs=one.obs.iloc[:0]) for one in inputs]  # read, and large
    tasks_of_inputs = _plan_parts(job, inputs, join)
    tasks = [task for tasks in tasks_of_inputs for task in tasks]
    _check_disk(job.folder, inputs, value_kind, tasks)
    if workers is None:
        is_large = sum(one.stored.n_values for one in inputs) > _ALONE_VALUES
        workers = default_workers() if is_large else 1
    with open_runner(workers=min(workers, len(tasks)), dask=dask, shared=job.folder.root) as runner:
        try:
            _write_parts(job, runner, tasks)
        finally:
            close_source()
        totals = [  # of the cells of each source, over all genes
            np.concatenate([read_array(task.path, "totals") for task in tasks])
            for tasks in tasks_of_inputs
        ]
        hashed = (
            (
                one.first_cell + read_array(task.path, "rows"),
                read_array(task.path, "hashes"),
                read_array(task.path, "evidence"),
            )
            for one, tasks in zip(inputs, tasks_of_inputs, strict=True)
            for task in tasks
        )
        n_cells = sum(one.n_cells for one in inputs)
        copies = find_copies(hashed, n_cells, secondary=secondary)
        copy_notices = _report_copies(job, inputs, copies, labels)
        kept = None
        if data.drop_duplicates and len(copies.copies):
            tables = without_copies(tables, copies)
            names, roles = [one.name for one in inputs], [one.role for one in inputs]
            labels = read_cell_labels(data, names, tables, roles)
            kept = copies.are_kept(n_cells)
        tables.clear()
        report = describe_store(inputs, join, labels, [int(np.sum(one == 0)) for one in totals])
        del totals
        value_notices = [f"{one.name}: {note}" for one in inputs for note in one.choice.notes]
        job.folder.labels.mkdir(exist_ok=True)
        write_array(job.folder.labels, "phenotypes", labels.phenotype_codes)
        write_array(job.folder.labels, "splits", labels.split.codes)
        if labels.donors is not None:
            write_array(job.folder.labels, "donors", labels.donors)
        records = [
            PartRecord(str(task.path), number, one.first_cell)
            for number, (one, tasks) in enumerate(zip(inputs, tasks_of_inputs, strict=True))
            for task in tasks
        ]
        n_values, sums = _write_store(job, runner, records, len(join.panel), value_kind, kept)
        truth, truth_notices = joint_truth(inputs)
        if truth is not None:
            text = json.dumps(truth, indent=1, ensure_ascii=False) + "\n"
            (store / TRUTH_NAME).write_text(text, encoding="utf-8")
        # The ranking reads the store that it belongs to, with its genes still in the files' order.
        write_array(store, "gene_order", np.arange(len(join.panel), dtype=np.int32))
        manifest = make_manifest(data, job.key, inputs, join, labels, value_kind, n_values, report)
        manifest.write(store)
        ranking = rank_store(job, runner, sums)
        write_array(store, "gene_order", ranking.order)
        checksums = _checksums(job, runner)
    report |= {
        "gene_ranking": ranking.method,
        "notices": [
            *(labels.notices + copy_notices),
            *(value_notices + truth_notices + ranking.notices),
        ],
        "warnings": warnings,
    }
    manifest.model_copy(update={"report": report, "checksums": checksums}).write(store)
    return report


def _check_first(job: Preparation) -> tuple[list[StoreInput], GeneJoin, CellLabels, list[str]]:
    """Check tables and first cells; return the files, their genes and labels, and warnings for the user."""
    report = check_data(job.data, scope="tables", on_progress=job.on_progress)
    # Space on the disk is checked below, where pieces of an earlier attempt count for it.
    report = report.without("cost")
    report.raise_failures()
    files = report.files
    are_built_in = all(one.name.startswith(BUILTIN_PREFIX) for one in files)
    warnings = [] if are_built_in else [row.sentence for row in report.of_level("warn")]
    for warning in warnings:
        logger.warning("%s", warning)
    cells_before = itertools.accumulate((one.n_cells for one in files), initial=0)
    inputs = [one.as_input(first) for one, first in zip(files, cells_before, strict=False)]
    assert report.join is not None, "the checks have passed"
    assert report.labels is not None, "the checks have passed"
    return inputs, report.join, report.labels, warnings


def _report_copies(
    job: Preparation, inputs: Sequence[StoreInput], copies: CellCopies, labels: CellLabels
) -> list[str]:
    """Return notices of copies; DataError if they cross the split."""
    names, n_cells = [one.name for one in inputs], [one.n_cells for one in inputs]
    drops = job.data.drop_duplicates
    (row,) = check_copies(names, n_cells, copies, labels.split.codes, drops=drops)
    if row.level == "fail":
        job.folder.keep = False  # with another preset the store has another folder
        raise DataError(row.sentence)
    return [row.sentence] if len(copies.copies) else []


def _write_kept(folder: PreparationFolder, kept: NDArray[np.bool_] | None) -> str:
    """Write the place of each cell among the kept ones, -1 for a copy; return the file's path."""
    if kept is None:
        return ""
    places = np.where(kept, np.cumsum(kept) - 1, -1)
    name = f"kept-{hashlib.sha256(np.packbits(kept).tobytes()).hexdigest()[:16]}"
    write_array(folder.of_store, name, places)
    return str(folder.of_store / f"{name}.npy")


def _plan_parts(
    job: Preparation, inputs: Sequence[StoreInput], join: GeneJoin
) -> list[list[ShardTask]]:
    """Cut each source into ranges of rows."""
    part_values = _piece_values(sum(one.stored.n_values for one in inputs))
    planned = []
    for one, columns in zip(inputs, join.columns, strict=True):
        digest = hashlib.sha256(columns.tobytes()).hexdigest()[:24]
        path = job.folder.parts / f"{digest}.npy"
        write_array(job.folder.parts, digest, columns)  # anew: an older one may be damaged
        n_values = max(one.stored.n_values, 1)
        # To read some rows of a matrix stored by columns is to read it all: few large ranges.
        values = max(part_values, BY_COLUMNS_VALUES) if one.stored.by_columns else part_values
        n_parts = -(-one.n_cells // max(one.n_cells * values // n_values, 1))
        chunk_values = _PIECES_CHUNK if one.stored.in_pieces else _CHUNK
        chunk_values = chunk_values if one.stored.is_sparse else _DENSE_CHUNK
        rows_at_once = int(np.clip(one.n_cells * chunk_values // n_values, 64, 8_192))
        borders = [one.n_cells * number // n_parts for number in range(n_parts + 1)]
        planned.append(
            [
                ShardTask(
                    source=one.name,
                    fingerprint=one.fingerprint,
                    choice=one.choice,
                    start=start,
                    stop=stop,
                    columns=path,
                    n_genes=len(join.panel),
                    seed=job.data.split.seed,
                    folder=job.folder.parts,
                    rows_at_once=rows_at_once,
                )
                for start, stop in itertools.pairwise(borders)
            ]
        )
    return planned


def _piece_values(n_values: int) -> int:
    """Return the stored values of a part and of a bucket, in a store of `n_values`.

    Every bucket reads from every part: a few large ones would need memory, many small ones many short
    reads. As the store grows, first their number grows, then their size to four times, then their
    number up to `BUCKETS`, then their size again.
    """
    of_many = int(np.clip(n_values // _MANY_PIECES, PART_VALUES, 4 * PART_VALUES))
    return max(of_many, n_values // BUCKETS)


def _try_shard(task: ShardTask) -> DataError | None:
    """Write a part; return the error of a file that cannot be read."""
    try:
        write_shard(task)
    except DataError as error:
        return error
    return None


def _write_parts(job: Preparation, runner: TaskRunner, tasks: Sequence[ShardTask]) -> None:
    """Run the first stage; one error at its end names all files that cannot be read."""
    wanted = {task.path for task in tasks}
    for path in job.folder.parts.glob("*.part"):
        if path not in wanted:
            path.unlink()  # of a file that has changed, or of other settings
    existing = [task.path for task in tasks if task.path.exists()]
    for done, (number, whole) in enumerate(runner.run(is_whole, existing), start=1):
        job.on_progress(ProgressEvent("checking pieces", done, len(existing)))
        if not whole:
            existing[number].unlink()
            logger.warning("%s: damaged since it was written; it is made again", existing[number])
    missing = [task for task in tasks if not task.path.exists()]
    n_cells = sum(task.stop - task.start for task in tasks)
    done = n_cells - sum(task.stop - task.start for task in missing)
    message = ""
    if done:
        message = f"continuing: {len(tasks) - len(missing)} of {len(tasks)} pieces exist already"
    job.on_progress(ProgressEvent("reading cells", done, n_cells, message))
    failed: dict[str, DataError] = {}
    for number, error in runner.run(_try_shard, missing):
        task = missing[number]
        if error is None:
            job.folder.keep = len(tasks) > 1
        elif task.source not in failed:
            failed[task.source] = error
            logger.warning("%s; the other files are still read", error)
        done += task.stop - task.start
        job.on_progress(ProgressEvent("reading cells", done, n_cells))
    if not failed:
        return
    job.folder.keep = any(task.path.exists() for task in tasks if task.source not in failed)
    kept = " (the work on the other files is kept)" if job.folder.keep else ""
    raise DataError("; ".join(map(str, failed.values())) + kept)


def _write_store(
    job: Preparation,
    runner: TaskRunner,
    records: Sequence[PartRecord],
    n_genes: int,
    value_kind: str,
    kept: NDArray[np.bool_] | None,
) -> tuple[int, GeneMoments | None]:
    """Run the second stage; return the number of stored values, and sums of the training cells.

    ``kept`` (cells of all sources,) are the cells of the store; None: all.
    """
    cells_before = np.zeros(BUCKETS + 1, dtype=np.int64)
    values_before = np.zeros(BUCKETS + 1, dtype=np.int64)
    for record in records:
        of_part = fences_of(record, kept)
        cells_before += of_part[0]
        values_before += of_part[1]
    n_cells, n_values = int(cells_before[-1]), int(values_before[-1])
    if n_values == 0:
        raise DataError(
            f"{job.data.files[0]}: every value of the {n_genes} genes the files have in common is "
            f"zero; check data.matrix and data.join"
        )
    n_buckets, bucket_values = 1, _piece_values(n_values)
    while n_buckets < BUCKETS and n_values > n_buckets * bucket_values:
        n_buckets *= 2
    plan = MergePlan(
        folder=str(job.folder.store),
        labels=str(job.folder.labels),
        counts=value_kind == "counts",
        n_buckets=n_buckets,
        sum_genes=n_genes if resolve_method(job.data.hvg, value_kind) == "seurat_v3" else 0,
        parts=tuple(records),
        kept=_write_kept(job.folder, kept),
    )
    plan_text = json.dumps(asdict(plan))
    digest = hashlib.sha256(plan_text.encode()).hexdigest()[:16]
    notes = job.folder.of_store / f"buckets-{digest}"
    if not notes.exists():
        shutil.rmtree(job.folder.store, ignore_errors=True)
    _make_arrays(job.folder, n_cells, n_values, n_genes, value_kind)
    notes.mkdir(exist_ok=True)
    plan_path = job.folder.of_store / f"plan-{digest}.json"
    plan_path.write_text(plan_text, encoding="utf-8")
    step = BUCKETS // n_buckets
    first_cells, first_values = cells_before[::step].tolist(), values_before[::step].tolist()
    buckets = [
        BucketTask(plan_path, notes / f"{number:04d}.note", number, first_cell, first_value)
        for number, (first_cell, first_value) in enumerate(
            zip(first_cells[:-1], first_values[:-1], strict=True)
        )
    ]
    done = 0
    job.on_progress(ProgressEvent("writing cells", 0, n_cells))
    for number, _ in runner.run(write_bucket, buckets):
        done += first_cells[number + 1] - first_cells[number]
        job.on_progress(ProgressEvent("writing cells", done, n_cells))
    written = [bucket.note for bucket in buckets]
    large_at, large_values = large_counts(written)
    write_array(job.folder.store, "large_at", large_at)
    write_array(job.folder.store, "large_values", large_values)
    return n_values, sums_of_training_cells(written) if plan.sum_genes else None


def _make_arrays(
    work: PreparationFolder, n_cells: int, n_values: int, n_genes: int, value_kind: str
) -> None:
    folder = work.store
    folder.mkdir(exist_ok=True)
    value_type = np.uint16 if value_kind == "counts" else np.float32
    new_array(folder, "indptr", (n_cells + 1,), np.int64)
    new_array(folder, "genes", (n_values,), gene_index_type(n_genes))
    new_array(folder, "values", (n_values,), value_type)
    new_array(folder, "totals", (n_cells,), np.float32)
    new_array(folder, "origins", (n_cells, 2), np.int64)
    for path in work.labels.glob("*.npy"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        new_array(folder, path.stem, array.shape, _LABEL_TYPES[path.stem])


def _checksums(job: Preparation, runner: TaskRunner) -> dict[str, str]:
    """Write the checksums of the blocks; return those of all files but the manifest."""
    store = job.folder.store
    n_values = len(np.load(store / "genes.npy", mmap_mode="r"))
    borders = range(0, -(-n_values // BLOCK_VALUES), _SUMMED_BLOCKS)
    tasks = [
        (store / f"{name}.npy", first, min(first + _SUMMED_BLOCKS, -(-n_values // BLOCK_VALUES)))
        for name in BLOCKED
        for first in borders
    ]
    found = list(runner.in_order(block_checksums, tasks))
    of_files = np.split(np.concatenate(found), len(BLOCKED))
    np.save(store / BLOCKS_NAME, np.column_stack(of_files), allow_pickle=False)
    is_own = {MANIFEST_NAME, MANIFEST_SUM_NAME}
    paths = sorted(path for path in store.iterdir() if path.name not in is_own)
    sums = {}
    job.on_progress(ProgressEvent("checksums", 0, len(paths)))
    for done, (number, digest) in enumerate(runner.run(sha256_of, paths), start=1):
        sums[paths[number].name] = digest
        job.on_progress(ProgressEvent("checksums", done, len(paths)))
    return dict(sorted(sums.items()))


def _check_disk(
    folder: PreparationFolder,
    inputs: Sequence[StoreInput],
    value_kind: str,
    tasks: Sequence[ShardTask],
) -> None:
    """Check, before the first cell is read, that the disk has space for parts and store together."""
    value_bytes = 4 if value_kind == "counts" else 6
    known = sum(one.stored.n_values for one in inputs if one.stored.is_sparse)
    needed = 2 * known * value_bytes
    existing = sum(task.path.stat().st_size for task in tasks if task.path.exists())
    free = shutil.disk_usage(folder.root).free
    if free + existing < needed:
        raise MachineError(
            f"{folder.root.parent}: preparing needs {size(needed)} (half of it for pieces that are "
            f"removed at the end) but the disk has {size(free)} free; free some space or give "
            f"another folder"
        )
