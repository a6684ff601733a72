"""What the backward pass of a step will hold in memory, counted without computing the step.

Fake tensors, which torch traces with, have shapes but no data: the network itself goes over a batch
without computing anything. What autograd keeps is counted, each storage once.
"""

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from core.encoding.cell_batch import CellBatch
from core.model.attention import AttentionRoute, resolve_attention
from core.model.attention_cpu import KEPT_BYTES
from core.model.batch_tensors import BatchTensors
from core.model.cell_bounds import CellBounds
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.losses import masked_loss
from core.presets.schema import LossSettings, Preset
from core.training.example_cells import example_batch
from core.training.machine import DTYPES, Machine

__all__ = ["kept_by_cells", "kept_bytes"]

#: Tokens that are counted; of more, each adds what the last half of these did.
_MOST_TOKENS = 500_000


def kept_by_cells(
    preset: Preset,
    config: TfxConfig,
    machine: Machine,
    route: AttentionRoute,
    lengths: NDArray[np.int64],
    n_cells: float,
) -> float:
    """Return the bytes that the backward pass of so many cells needs kept, weights not counted.

    Parameters
    ----------
    preset, config, machine, route
        Of the run.
    lengths
        (some cells,), tokens of its cells.
    n_cells
        That are computed at a time.
    """

    def count(counted: int) -> int:
        batch = example_batch(config, preset.training_masking, lengths, counted)
        return kept_bytes(config, preset.loss, machine, route, batch)

    counted = max(int(min(n_cells, _MOST_TOKENS / lengths.mean())), 1)
    kept, before = count(counted), counted // 2
    if n_cells < counted + 1:
        return kept * n_cells / counted
    of_one_more = (kept - (count(before) if before else 0)) / (counted - before)
    return kept + of_one_more * (n_cells - counted)


def kept_bytes(
    config: TfxConfig,
    loss: LossSettings,
    machine: Machine,
    route: AttentionRoute,
    batch: CellBatch,
) -> int:
    """Return the bytes that a batch's backward pass needs kept, weights not counted.

    Exact on a CPU, whose own attention is stood in for: cell by cell it would take minutes. A GPU's
    kernels are stood in for by those of a CPU that keep the same (q, k, v, what they answered,
    log-sum-exp); what it keeps in fp32 for autocast may add a third.
    """
    if route.name == "cpu":
        route = replace(route, attend=_keep_per_cell)
    if machine.device != "cpu" and route.name != "eager":
        config = copy.deepcopy(config)
        config.attention = "sdpa"
        config.attention_dropout = 0.0  # with it a CPU keeps all weights, a GPU none
        route = resolve_attention(
            "sdpa", device=torch.device("cpu"), dtype=DTYPES[machine.precision], dropout=0.0,
            ragged=True,
        )  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = TfxModel(config).train()
        network._route = route  # resolved already: it need not say so again
        tensors = BatchTensors.from_arrays(batch)
        own = {_storage(p) for p in (*network.parameters(), *network.buffers())}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        autocast = torch.autocast(
            "cpu", dtype=DTYPES[machine.precision], enabled=machine.precision != "no"
        )
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            with autocast:
                output = network(tensors)
            total = masked_loss(
                output.gene_logits, output.phenotype_logits, tensors, config, loss
            ).total
        assert total.requires_grad  # and holds the graph, so that no storage was counted for two
    return sum(kept.values())


class _KeepPerCell(torch.autograd.Function):
    """Keeps what `core.model.attention_cpu` keeps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds) -> Tensor:  # noqa: ANN401
        n_weights = np.dot(np.diff(bounds.keys).astype(np.int64), np.diff(bounds.queries))
        n_kept = min(int(n_weights) * q.shape[1], KEPT_BYTES // q.element_size())
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
        ctx.save_for_backward(q, k, v, q.new_empty(n_kept))
        return torch.empty_like(q).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        raise NotImplementedError


def _keep_per_cell(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, _: float) -> Tensor:
    attended: Tensor = _KeepPerCell.apply(q, k, v, bounds)  # type: ignore[no-untyped-call]
    return attended


def _storage(tensor: Tensor) -> int:
    """Tell storages apart; fake ones have no address."""
    return cast("int", tensor.untyped_storage()._cdata)
