"""Third stage of preparing: the ranking of the genes of a store, over its training cells."""

import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.cells.hvg_ranking import ClipLimits, GeneMoments, GeneRanking, MomentsPass, rank_in_passes
from core.cells.prepare.folder import Preparation
from core.cells.prepare.runners import TaskRunner
from core.cells.store import SPLITS, Store
from core.progress import ProgressEvent

#: Values of the chunks in which training cells are summed.
_SUMMED_CHUNK = 2**22


def rank_store(job: Preparation, runner: TaskRunner, known: GeneMoments | None) -> GeneRanking:
    """Rank the store's genes; sums of the training cells' counts that are `known` need no pass."""
    store = Store.open(job.folder.store)
    # Chunks of equally many training cells: log values are summed in these chunks.
    training = store.rows("train")
    at_once = max(_SUMMED_CHUNK * store.n_cells // store.manifest.n_values, 1)
    borders = [*training[::at_once].tolist(), int(training[-1]) + 1]
    del training  # 8 bytes a cell

    def sum_over_cells(one_pass: MomentsPass | ClipLimits) -> Any:  # noqa: ANN401 (sums of the pass)
        if known is not None and one_pass == MomentsPass("stored"):
            return known
        tasks = [(store.path, one_pass, *ends) for ends in itertools.pairwise(borders)]
        job.on_progress(ProgressEvent("ranking genes", 0, store.n_cells))
        merged: Any = None
        for task, sums in zip(tasks, runner.in_order(_sum_chunk, tasks), strict=True):
            merged = sums if merged is None else merged + sums
            job.on_progress(ProgressEvent("ranking genes", task[-1], store.n_cells))
        job.on_progress(ProgressEvent("ranking genes", store.n_cells, store.n_cells))
        return merged

    try:
        return rank_in_passes(
            sum_over_cells,
            wanted=job.data.hvg,
            value_kind=store.value_kind,
            n_genes=len(store.genes),
        )
    finally:
        _opened_store.cache_clear()  # if this process is the worker


@lru_cache(maxsize=1)
def _opened_store(path: Path) -> Store:
    return Store.open(path)


def _sum_chunk(task: tuple[Path, MomentsPass | ClipLimits, int, int]) -> Any:  # noqa: ANN401
    """Sum the training cells among the cells [first, last) of a store."""
    path, one_pass, first, last = task
    store = _opened_store(path)
    # Not `Store.rows`: every worker would hold the numbers of all training cells.
    is_training = store.split_codes[first:last] == SPLITS.index("train")
    cells = store.read_stored(first + np.flatnonzero(is_training))
    return one_pass.sum_chunk(cells, store.value_kind, len(store.genes))
