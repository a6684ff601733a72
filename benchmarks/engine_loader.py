"""How long training waits for cells: part of `engine_gpu`.

The real loader (its thread, encoder, masks, page-locked memory, copies) before a real training step;
only the store is missing: cells are in memory, where the system keeps the pages of a store that is
read for the second time.
"""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from engine_cells import EDGES, MASKING, N_SPECIAL, draw_lengths

from core.encoding.batches import BatchEncoder
from core.encoding.loader import READY_BATCHES, BatchLoader, BatchSource
from core.encoding.panel_cells import PanelCells
from core.encoding.sampler import BlockSampler, Cursor
from core.encoding.values import ValueEncoder
from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig


@dataclass(frozen=True)
class MemoryReader:
    """Cells in memory, as `core.encoding.panel_cells.PanelReader` gives those of a store."""

    cells: PanelCells
    store: SimpleNamespace

    def pool(self, rows: np.ndarray) -> tuple[PanelCells, np.ndarray]:
        return self.cells, rows

    def take(self, parts: list[tuple[PanelCells, np.ndarray]]) -> PanelCells:
        rows = np.concatenate([chosen for _, chosen in parts])
        spans = self.cells.spans(rows)
        return PanelCells(
            indptr=np.concatenate([[0], np.cumsum(np.diff(self.cells.indptr)[rows])]),
            columns=np.concatenate([self.cells.columns[span] for span in spans]),
            values=np.concatenate([self.cells.values[span] for span in spans]),
            totals=self.cells.totals[rows],
            panel_of=None,
            column_of=None,
            n_genes=self.cells.n_genes,
        )


def make_source(
    config: TfxConfig, n_cells: int, tokens_per_batch: int, *, on_device: bool
) -> BatchSource:
    """Make batches of expressed cells of log-normal length, counts that become bins on the device."""
    rng = np.random.default_rng(3)
    lengths = draw_lengths(rng, n_cells).clip(max=config.longest_sequence)
    n_expressed = lengths - N_SPECIAL
    # Every seventh gene from a random one on: distinct as long as a cell has under a seventh of all.
    assert 7 * n_expressed.max() < config.n_genes
    columns = [
        np.sort((start + 7 * np.arange(count)) % config.n_genes)
        for start, count in zip(rng.integers(0, config.n_genes, n_cells), n_expressed, strict=True)
    ]
    indptr = np.concatenate([[0], np.cumsum(n_expressed)])
    counts = rng.geometric(0.4, indptr[-1]).astype(np.uint16)
    cells = PanelCells(
        indptr=indptr,
        columns=np.concatenate(columns).astype(np.uint16),
        values=counts,
        totals=np.add.reduceat(counts.astype(np.float32), indptr[:-1]),
        panel_of=None,
        column_of=None,
        n_genes=config.n_genes,
    )
    codes = np.stack([rng.integers(0, size, n_cells) for size in config.phenotype_sizes], axis=1)
    encoder = BatchEncoder(
        config.tokens,
        ValueEncoder("binned", EDGES),
        max_length=config.longest_sequence,
        bins_on_device=on_device,
    )
    sampler = BlockSampler(
        np.arange(n_cells), seed=0, batch_size=1, lengths=lengths, tokens_per_batch=tokens_per_batch
    )
    store = SimpleNamespace(phenotype_codes=codes.astype(np.int32))
    return BatchSource(MemoryReader(cells, store), encoder, sampler, MASKING)


class _OnHost:
    """A source whose batches are tensors."""

    def __init__(self, source: BatchSource, *, pin: bool) -> None:
        self.source, self.sampler, self.pin = source, source.sampler, pin

    def batch(self, cursor: Cursor) -> tuple[np.ndarray, BatchTensors]:
        """Return the rows and the batch of a cursor."""
        rows, arrays = self.source.batch(cursor)
        return rows, BatchTensors.on_host(arrays, pin=self.pin)


def measure_wait(step, source: BatchSource, device: torch.device, n_steps: int) -> dict:
    """Train on what the loader gives; share of the time in which the step waited for it.

    Parameters
    ----------
    step
        Trains on a `BatchTensors`.
    source
        Of `make_source`.
    device
        Where the step computes.
    n_steps
        After three for warming up.
    """
    pin = device.type == "cuda"
    waited, n_cells = 0.0, 0
    with BatchLoader(_OnHost(source, pin=pin), source.sampler.start) as loader:
        for turn in range(n_steps + 3):
            if turn == 3:
                _finish(device)
                began = time.perf_counter()
            loaded = loader.next()
            batch: BatchTensors = loaded.batch.to(device)
            step(batch)
            if turn >= 3:
                waited += loaded.waited_seconds
                n_cells += loaded.batch.n_cells
        _finish(device)
        seconds = time.perf_counter() - began
        for _ in range(READY_BATCHES):  # made while the steps computed
            loader.next()
        alone_cells, began = 0, time.perf_counter()
        for _ in range(n_steps):
            alone_cells += loader.next().batch.n_cells
        alone = alone_cells / (time.perf_counter() - began)
    return {
        "wait_share": waited / seconds,
        "cells_per_second": n_cells / seconds,
        "loader_alone_cells_per_second": alone,
    }


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
