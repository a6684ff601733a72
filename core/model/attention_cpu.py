"""Attention on a CPU, cell by cell: no padding, and faster than torch's kernel in bf16.

torch's CPU kernel has no form for packed cells, and in bf16 it reaches half of what plain batched
matrix products do (measured: benchmarks/engine.md). Here the scores of a few cells or of a block of
queries at a time are made, kept for the backward pass and used up there. What that would need more
memory for than `KEPT_BYTES` goes to torch's kernel, cell by cell.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.model.cell_bounds import CellBounds

__all__ = ["KEPT_BYTES", "attend_per_cell"]

#: Bytes of attention weights that one layer may keep for its backward pass.
KEPT_BYTES = 512 * 2**20
#: Bytes of scores made at a time: about what a core's cache holds.
_BLOCK_BYTES = 4 * 2**20
#: fp32 cells shorter than this are quicker with plain products than with torch's kernel.
_SHORT_FP32 = 256


def attend_per_cell(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    """Attend within each cell of packed tokens.

    Parameters
    ----------
    q
        (queries, heads, width).
    k, v
        (T, heads, width).
    bounds
        Of queries and keys.
    dropout
        Must be 0: `resolve_attention` refuses this route otherwise.

    Returns
    -------
    (queries, heads, width).
    """
    assert dropout == 0.0, "refused by resolve_attention"
    if _takes_own(q, bounds):
        own: Tensor = _PerCell.apply(q, k, v, bounds)  # type: ignore[no-untyped-call]
        return own
    parts = []
    for first, last in bounds.equal_runs:
        one = (last - first, -1, *q.shape[1:])  # (cells, length, heads, width)
        queries = q[bounds.queries[first] : bounds.queries[last]]
        if len(queries) == 0:
            continue
        span = slice(bounds.keys[first], bounds.keys[last])
        q_run, k_run, v_run = (x.view(one).transpose(1, 2) for x in (queries, k[span], v[span]))
        out = functional.scaled_dot_product_attention(q_run, k_run, v_run)
        parts.append(out.transpose(1, 2).reshape(queries.shape))
    return torch.cat(parts) if parts else q.clone()  # no query: but the graph goes on


def _takes_own(q: Tensor, bounds: CellBounds) -> bool:
    if q.dtype == torch.float32 and bounds.max_keys >= _SHORT_FP32:
        return False
    n_scores = int(np.dot(np.diff(bounds.keys).astype(np.int64), np.diff(bounds.queries)))
    return n_scores * q.shape[1] * q.element_size() <= KEPT_BYTES


@dataclass(frozen=True)
class _Block:
    """Scores that are made at a time.

    Attributes
    ----------
    n_cells
        Cells of equal shape, or one cell, or some queries of one.
    queries, keys
        Where they stand among all.
    continues
        Whether the keys had queries in the block before.
    """

    n_cells: int
    queries: slice
    keys: slice
    continues: bool = False

    def take(self, x: Tensor, span: slice) -> Tensor:
        """(heads, tokens, width) to (heads x cells, length, width)."""
        part = x[:, span]
        if self.n_cells == 1:
            return part
        return part.reshape(len(x) * self.n_cells, -1, x.shape[-1])

    def put(self, x: Tensor, span: slice, part: Tensor) -> None:
        """Put (heads x cells, length, width) to its place among (heads, tokens, width)."""
        part = part.view(len(x), -1, x.shape[-1])
        if self.continues and span == self.keys:
            x[:, span] += part
        else:
            x[:, span] = part


def _blocks(bounds: CellBounds, *, bytes_per_score: int) -> list[_Block]:
    """Cut a batch to blocks of about `_BLOCK_BYTES`; a score takes that many bytes over all heads."""
    blocks = []
    for first, last in bounds.equal_runs:
        n_queries = int(bounds.queries[first + 1] - bounds.queries[first])
        n_keys = int(bounds.keys[first + 1] - bounds.keys[first])
        if n_queries == 0:
            continue
        at_once = max(_BLOCK_BYTES // (n_queries * n_keys * bytes_per_score), 1)
        rows = max(_BLOCK_BYTES // (n_keys * bytes_per_score) // 32 * 32, 64)
        for cell in range(first, last, at_once):
            end = min(cell + at_once, last)
            keys = slice(int(bounds.keys[cell]), int(bounds.keys[end]))
            begin, stop = int(bounds.queries[cell]), int(bounds.queries[end])
            step = stop - begin if end - cell > 1 else rows
            blocks += [
                _Block(end - cell, slice(at, min(at + step, stop)), keys, continues=at > begin)
                for at in range(begin, stop, step)
            ]
    return blocks


class _PerCell(torch.autograd.Function):
    """softmax(q k^T / sqrt(width)) v within each cell; the weights are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds) -> Tensor:  # noqa: ANN401
        scale = 1 / math.sqrt(q.shape[-1])
        blocks = _blocks(bounds, bytes_per_score=q.shape[1] * q.element_size())
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))  # (heads, tokens, width)
        out = torch.empty_like(q)
        kept = []
        with torch.autocast("cpu", enabled=False):
            for block in blocks:
                scores = _product(
                    block.take(q, block.queries), block.take(k, block.keys).transpose(1, 2), scale
                )
                weights = torch.softmax(scores, dim=-1)
                kept.append(weights)
                attended = torch.bmm(weights, block.take(v, block.keys))
                block.put(out, block.queries, attended)
        ctx.blocks, ctx.scale = blocks, scale
        ctx.has_unasked_keys = bool((np.diff(bounds.queries) == 0).any())
        ctx.save_for_backward(q, k, v, *kept)
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        q, k, v, *kept = ctx.saved_tensors
        gradient = gradient.transpose(0, 1).contiguous()
        empty = torch.zeros_like if ctx.has_unasked_keys else torch.empty_like
        dq, dk, dv = torch.empty_like(q), empty(k), empty(v)
        for block, weights in zip(ctx.blocks, kept, strict=True):
            given = block.take(gradient, block.queries)
            dweights = torch.bmm(given, block.take(v, block.keys).transpose(1, 2))
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            block.put(dq, block.queries, _product(dscores, block.take(k, block.keys), ctx.scale))
            from_queries = _product(
                dscores.transpose(1, 2), block.take(q, block.queries), ctx.scale
            )
            block.put(dk, block.keys, from_queries)
            block.put(dv, block.keys, torch.bmm(weights.transpose(1, 2), given))
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), None


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Scaled batched matrix product in one pass."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
