"""What a step of a run costs before the run begins: activation memory, counted, and time, measured.

Both use made-up cells of the lengths of the run's cells. Memory is counted without computing: fake
tensors, which torch traces with, have shapes but no data, so that the network itself processes a
batch and what autograd keeps is counted, each storage once.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.values import ValueEncoder
from core.model.attention import KEPT_BYTES, AttentionRoute, resolve_attention
from core.model.batch_tensors import BatchTensors, CellBounds
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.losses import cell_loss, masked_loss
from core.presets.schema import LossSettings, MaskingSettings, Preset
from core.training.machine import Machine
from core.training.run_setup import choose_trainable
from core.training.state import make_optimiser

#: Tokens whose memory is counted; beyond, each adds what the last half of these did.
_COUNTED_TOKENS = 500_000
#: Tokens of the first cells that are timed, at least one cell.
_FIRST_TOKENS = 1024
#: Seconds that a larger batch may take, and that one time is measured for.
_LARGER_SECONDS, _MEASURING_SECONDS = 1.5, 1.5
_MAX_REPEATS = 5


def example_values(kind: Literal["binary", "binned", "continuous"], n_bins: int) -> ValueEncoder:
    """Return a value encoder with made-up edges."""
    n_edges = n_bins - 1 if kind == "binned" else 1
    return ValueEncoder(kind, np.linspace(0.1, 7.0, n_edges, dtype=np.float32))


def example_batch(
    config: TfxConfig, masking: MaskingSettings, lengths: NDArray[np.int64], n_cells: int
) -> CellBatch:
    """Make up a training batch of ``n_cells``, with quantiles of ``lengths`` (some cells,) as lengths."""
    rng = np.random.default_rng(0)
    tokens = config.tokens
    wanted = np.quantile(lengths, (np.arange(n_cells) + 0.5) / n_cells).round().astype(int)
    n_genes = np.clip(wanted - tokens.header_length - 1, 1, config.n_genes)
    rng.shuffle(n_genes)
    columns = [np.sort(rng.choice(config.n_genes, count, replace=False)) for count in n_genes]
    indptr = np.concatenate([[0], np.cumsum(n_genes)])
    values = rng.uniform(0.2, 8.0, int(indptr[-1])).astype(np.float32)
    expression = sparse.csr_matrix(
        (values, np.concatenate(columns), indptr), shape=(n_cells, config.n_genes)
    )
    sizes = np.maximum(np.array(config.phenotype_sizes, dtype=int), 1)
    codes = rng.integers(0, sizes, (n_cells, len(sizes)), dtype=np.int32)
    value_encoder = example_values(config.kind, config.n_bins)
    encoder = BatchEncoder(
        tokens,
        value_encoder,
        max_length=config.longest_sequence,
        with_library_size=config.library_size,
        context_genes=config.context_genes,
    )
    return encoder.masked(expression, codes, masking, rng)


def activation_bytes(
    preset: Preset,
    config: TfxConfig,
    machine: Machine,
    route: AttentionRoute,
    lengths: NDArray[np.int64],
    n_cells: float,
) -> float:
    """Return the bytes that the backward pass of ``n_cells`` of these ``lengths`` needs, without weights."""

    def count(counted: int) -> int:
        batch = example_batch(config, preset.training_masking, lengths, counted)
        return batch_activation_bytes(config, preset.loss, machine, route, batch)

    counted = max(int(min(n_cells, _COUNTED_TOKENS / lengths.mean())), 1)
    kept, half = count(counted), counted // 2
    if n_cells < counted + 1:
        return kept * n_cells / counted
    of_one_more = (kept - (count(half) if half else 0)) / (counted - half)
    return kept + of_one_more * (n_cells - counted)


def batch_activation_bytes(
    config: TfxConfig, loss: LossSettings, machine: Machine, route: AttentionRoute, batch: CellBatch
) -> int:
    """Return the bytes that a batch's backward pass needs, weights not counted.

    Exact on a CPU, whose own attention is replaced: cell by cell it would take minutes. A GPU's
    kernels are replaced by those of a CPU that keep the same (q, k, v, output, log-sum-exp); what it
    keeps in fp32 for autocast may add a third.
    """
    if route.name == "cpu":
        route = replace(route, attend=_keep_per_cell)
    if machine.device != "cpu" and route.name != "eager":
        config = copy.deepcopy(config)
        config.attention = "sdpa"
        config.attention_dropout = 0.0  # with it a CPU keeps all weights, a GPU none
        cpu = torch.device("cpu")
        route = resolve_attention("sdpa", device=cpu, dtype=machine.dtype, dropout=0.0, ragged=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = TfxModel(config).train()
        network._route = route  # resolved already: not logged again
        tensors = BatchTensors.from_arrays(batch)
        own = {_storage(p) for p in (*network.parameters(), *network.buffers())}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            with machine.autocast("cpu"):
                output = network(tensors)
            total = masked_loss(
                output.gene_logits, output.phenotype_logits, tensors, config, loss
            ).total
        assert total.requires_grad  # and holds the graph, so that no storage was counted for two
    return sum(kept.values())


class _KeepPerCell(torch.autograd.Function):
    """Keeps what `core.model.attention` keeps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds) -> Tensor:  # noqa: ANN401
        n_weights = np.dot(np.diff(bounds.keys).astype(np.int64), np.diff(bounds.queries))
        n_kept = min(int(n_weights) * q.shape[1], KEPT_BYTES // q.element_size())
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
        ctx.save_for_backward(q, k, v, q.new_empty(n_kept))
        return torch.empty_like(q).transpose(0, 1)


def _keep_per_cell(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, _: float) -> Tensor:
    attended: Tensor = _KeepPerCell.apply(q, k, v, bounds)  # type: ignore[no-untyped-call]
    return attended


def _storage(tensor: Tensor) -> int:
    """Return what identifies a storage; fake ones have no address."""
    return cast("int", tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class StepProfile:
    """Seconds of cells and of an update; of several measurements the shortest."""

    #: Cells computed at a time.
    n_cells: int
    #: Of a cell: forward and backward; forward alone; while only the log-linear part is trained, or 0.
    cell: float
    scored_cell: float
    log_linear_cell: float = 0.0
    #: Of an update of all weights.
    optimiser: float = 0.0
    #: Memory of a GPU per cell at the peak, weights and gradients not counted; None elsewhere.
    peak_bytes: float | None = None


def profile_step(
    preset: Preset,
    config: TfxConfig,
    machine: Machine,
    route: AttentionRoute,
    lengths: NDArray[np.int64],
    *,
    max_cells: int,
) -> StepProfile:
    """Do steps of the real model on few cells of these ``lengths``, then on ``max_cells`` if time allows."""
    device = torch.device(machine.device)

    def example(n_cells: int) -> BatchTensors:
        arrays = example_batch(config, preset.training_masking, lengths, n_cells)
        return BatchTensors.from_arrays(arrays, device)

    def loss() -> Tensor:
        with machine.autocast():
            output = network(batch)
        parts = masked_loss(output.gene_logits, output.phenotype_logits, batch, config, preset.loss)
        return parts.total + cell_loss(output.cells, batch, config, preset.loss)

    def learn() -> None:
        loss().backward()  # type: ignore[no-untyped-call]

    def measure() -> tuple[float, float | None]:
        """Return the time of a step without the update, and a GPU's bytes at its peak."""
        if device.type != "cuda":
            return _shortest(learn, device), None
        learn()  # gradients exist from now on
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = _shortest(learn, device)
        return seconds, float(torch.cuda.max_memory_allocated() - before)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
        choose_trainable(network, preset)
        network._route = route  # resolved already: not logged again
        network.to(device).train()
        n_cells = int(np.clip(_FIRST_TOKENS // lengths.mean(), 1, max_cells))
        batch = example(n_cells)
        seconds, peak = measure()
        larger = min(max_cells, int(n_cells * _LARGER_SECONDS / seconds))
        if larger >= 2 * n_cells:
            n_cells = larger
            batch = example(n_cells)
            seconds, peak = measure()
        scored = _shortest(torch.inference_mode()(loss), device)
        update = _shortest(make_optimiser(network, preset.train).step, device)
        log_linear = 0.0
        has_both = network.log_linear is not None and network.encoder_part is not None
        if has_both and preset.train.log_linear_steps:
            network.log_linear_only = True
            log_linear, _ = measure()
    return StepProfile(
        n_cells=n_cells,
        cell=seconds / n_cells,
        scored_cell=scored / n_cells,
        log_linear_cell=log_linear / n_cells,
        optimiser=update,
        peak_bytes=None if peak is None else peak / n_cells,
    )


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest of several times, after one for warming up: other programs only slow it."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - began

    once()
    end = time.perf_counter() + _MEASURING_SECONDS
    shortest = math.inf
    for _ in range(_MAX_REPEATS):
        shortest = min(shortest, once())
        if time.perf_counter() > end:
            break
    return shortest
