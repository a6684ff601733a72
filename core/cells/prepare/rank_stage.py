"""Third stage of preparing: the genes of a store, ranked over its training cells."""

import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.cells.gene_moments import GeneMoments, GenePass, MomentsPass
from core.cells.hvg_ranking import GeneRanking, rank_in_passes
from core.cells.prepare.runners import TaskRunner
from core.cells.store import SPLITS, Store
from core.progress import Listener, ProgressEvent

#: Values of the chunks in which training cells are summed.
_CHUNK_VALUES = 2**22


def rank_genes(
    store: Store,
    runner: TaskRunner,
    wanted: str,
    known: GeneMoments | None,
    on_progress: Listener,
) -> GeneRanking:
    """Rank the genes of a store by the method `wanted` (``data.hvg``).

    Sums of the training cells' counts that are `known` need no pass. Reports "ranking genes".

    Raises
    ------
    DataError
        The method that the preset names fails on these cells.
    """
    # Chunks of equally many training cells: log values are summed in these chunks.
    training = store.rows("train")
    at_once = max(_CHUNK_VALUES * store.n_cells // store.manifest.n_values, 1)
    borders = [*training[::at_once].tolist(), int(training[-1]) + 1]
    del training  # 8 bytes a cell

    def sum_over_cells(one_pass: GenePass) -> Any:  # noqa: ANN401 (the sums of the pass)
        if known is not None and one_pass == MomentsPass("stored"):
            return known
        tasks = [
            _Task(store.path, one_pass, first, last) for first, last in itertools.pairwise(borders)
        ]
        on_progress(ProgressEvent("ranking genes", 0, store.n_cells))
        merged: Any = None
        for task, sums in zip(tasks, runner.in_order(_sum_chunk, tasks), strict=True):
            merged = sums if merged is None else merged + sums
            on_progress(ProgressEvent("ranking genes", task.last, store.n_cells))
        on_progress(ProgressEvent("ranking genes", store.n_cells, store.n_cells))
        return merged

    try:
        return rank_in_passes(
            sum_over_cells, wanted=wanted, value_kind=store.value_kind, n_genes=len(store.genes)
        )
    finally:
        _opened_store.cache_clear()  # if this process is the worker


@dataclass(frozen=True)
class _Task:
    """Training cells among the store's cells [first, last)."""

    store: Path
    one_pass: GenePass
    first: int
    last: int


@lru_cache(maxsize=1)
def _opened_store(path: Path) -> Store:
    return Store.open(path)


def _sum_chunk(task: _Task) -> Any:  # noqa: ANN401 (the sums of the pass)
    store = _opened_store(task.store)
    # Not `Store.rows`: every worker would hold the numbers of all training cells.
    is_training = store.split_codes[task.first : task.last] == SPLITS.index("train")
    cells = store.read_stored(task.first + np.flatnonzero(is_training))
    return task.one_pass.sum_chunk(cells, store.value_kind, len(store.genes))
