"""Attention routes: one interface over the kernels that can run here.

A route takes packed queries (queries, heads, width), keys and values (T, heads, width) and the bounds
of the cells; every query attends to all tokens of its own cell. `resolve_attention` picks the route
once; the tests hold every route against a float64 reference.

On a CPU cells are attended to one by one: torch's CPU kernel has no form for packed cells, and reaches
half (bf16) to five sixths (fp32) of what plain batched matrix products do (measured:
benchmarks/engine.md). The scores of some heads of a cell, or of a few short cells, are made at a time, in
memory that stays in the cache. The weights are kept for the backward pass as far as `KEPT_BYTES` go; the
others are made once more there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.errors import MachineError
from core.model.batch_tensors import CellBounds

#: Bytes of attention weights that one layer may keep for its backward pass.
KEPT_BYTES = 256 * 2**20
#: Bytes of scores made at a time: with their products about what a core's cache holds.
_BLOCK_BYTES = 2 * 2**20

Attend = Callable[[Tensor, Tensor, Tensor, CellBounds, float], Tensor]


@dataclass(frozen=True)
class AttentionRoute:
    """A kernel and why it was chosen."""

    name: str
    reason: str
    attend: Attend


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=key_mask, dropout_p=dropout
        )

    return _attend_padded(q, k, v, bounds, attend)


def _attend_eager(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask, float("-inf"))
        return functional.dropout(torch.softmax(scores, dim=-1), dropout) @ v

    return _attend_padded(q, k, v, bounds, attend)


def _attend_padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: CellBounds,
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Call a kernel of padded cells (cells, heads, length, width), bucket by bucket."""
    if bounds.is_rectangular:
        q, k, v = (x.view(bounds.n_cells, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, None).transpose(1, 2).flatten(0, 1)
    tokens, parts = [], []
    for bucket in bounds.buckets:
        q_padded, k_padded, v_padded = (
            x[places.flatten()].view(*places.shape, *x.shape[1:]).transpose(1, 2)
            for x, places in ((q, bucket.queries), (k, bucket.keys), (v, bucket.keys))
        )
        attended = attend(q_padded, k_padded, v_padded, bucket.key_mask)
        attended = attended.transpose(1, 2).flatten(0, 1)
        parts.append(attended[bucket.query_exists])
        tokens.append(bucket.query_tokens)
    if not parts:
        return q.clone()  # no query, but the graph continues
    return torch.empty_like(q).index_copy(0, torch.cat(tokens), torch.cat(parts))


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only, torch >= 2.10

    assert dropout == 0.0, "checked by resolve_attention"
    out = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), *_packed(bounds))
    assert isinstance(out, Tensor)
    return out


def _attend_flash(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # an extra, compiled for CUDA

    packed = [x.contiguous() for x in (q, k, v)]
    out = flash_attn_varlen_func(*packed, *_packed(bounds), dropout_p=dropout)
    assert isinstance(out, Tensor)
    return out


def _packed(bounds: CellBounds) -> tuple[Tensor, Tensor, int, int]:
    return bounds.cu_queries, bounds.cu_keys, bounds.max_queries, bounds.max_keys


def attend_per_cell(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    """Attend within each cell of packed tokens: (queries, heads, width).

    ``q`` is (queries, heads, width), ``k`` and ``v`` (T, heads, width).
    """
    assert dropout == 0.0, "checked by resolve_attention"
    attended: Tensor = _PerCell.apply(q, k, v, bounds)  # type: ignore[no-untyped-call]
    return attended


@dataclass(frozen=True)
class _Block:
    """Scores that are made at a time: of cells of equal shape with all their heads, or of one cell."""

    n_cells: int
    heads: slice
    queries: slice
    keys: slice
    #: Whether these heads of the keys had queries in the block before.
    continues: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the scores: (heads x cells, queries, keys)."""
        n_heads, n_queries, n_keys = (
            span.stop - span.start for span in (self.heads, self.queries, self.keys)
        )
        return n_heads * self.n_cells, n_queries // self.n_cells, n_keys // self.n_cells

    def part_of(self, scratch: Tensor) -> Tensor:
        """Return the part of it that the scores need."""
        return scratch[: math.prod(self.shape)].view(self.shape)

    def take(self, x: Tensor, span: slice) -> Tensor:
        """(heads, tokens, width) to (heads x cells, length, width)."""
        part = x[self.heads, span]
        return part if self.n_cells == 1 else part.reshape(len(part) * self.n_cells, -1, x.shape[2])

    def put(self, a: Tensor, b: Tensor, out: Tensor, span: slice, scale: float = 1.0) -> None:
        """Put the product of a and b into its place in (heads, tokens, width)."""
        place = out[self.heads, span]
        if self.n_cells > 1:
            product = place.new_empty(len(a), a.shape[1], b.shape[2])
            _product(a, b, scale, product)
            place.copy_(product.view(place.shape))
        elif self.continues and span == self.keys:
            place.baddbmm_(a, b, alpha=scale)
        else:
            _product(a, b, scale, place)


def _blocks(bounds: CellBounds, n_heads: int, element_bytes: int) -> list[_Block]:
    """Cut a batch to blocks of about `_BLOCK_BYTES`."""
    blocks = []
    for first, last in bounds.equal_runs:
        n_queries = int(bounds.queries[first + 1] - bounds.queries[first])
        n_keys = int(bounds.keys[first + 1] - bounds.keys[first])
        if n_queries == 0:
            continue
        at_once = max(_BLOCK_BYTES // (n_queries * n_keys * element_bytes), 1)  # cell's heads
        cells_at_once = max(at_once // n_heads, 1)
        heads_at_once = _even(n_heads, min(at_once, n_heads))
        rows = _even(n_queries, max(_BLOCK_BYTES // (n_keys * element_bytes), 64))
        for cell in range(first, last, cells_at_once):
            end = min(cell + cells_at_once, last)
            keys = slice(int(bounds.keys[cell]), int(bounds.keys[end]))
            begin, stop = int(bounds.queries[cell]), int(bounds.queries[end])
            step = rows if end - cell == 1 else stop - begin
            blocks += [
                _Block(
                    end - cell,
                    slice(head, min(head + heads_at_once, n_heads)),
                    slice(at, min(at + step, stop)),
                    keys,
                    continues=at > begin,
                )
                for head in range(0, n_heads, heads_at_once)
                for at in range(begin, stop, step)
            ]
    return blocks


def _even(n: int, most: int) -> int:
    """Size of equal parts of n, at most ``most``."""
    return -(-n // -(-n // most))


class _PerCell(torch.autograd.Function):
    """softmax(q k^T / sqrt(width)) v within each cell."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds) -> Tensor:  # noqa: ANN401
        ctx.scale = 1 / math.sqrt(q.shape[2])
        ctx.blocks = _blocks(bounds, q.shape[1], q.element_size())
        ctx.has_unused_keys = bool((np.diff(bounds.queries) == 0).any())
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))  # (heads, tokens, width)
        out = torch.empty_like(q)
        scores, spare = _scratch(ctx.blocks, q), _scratch(ctx.blocks, q)
        free = KEPT_BYTES if any(ctx.needs_input_grad) else 0
        kept: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for block in ctx.blocks:
                free -= math.prod(block.shape) * q.element_size()
                if free >= 0:
                    weights = q.new_empty(block.shape)
                    kept.append(weights)
                else:
                    weights = block.part_of(spare)
                _weigh(block, q, k, ctx.scale, block.part_of(scores), weights)
                block.put(weights, block.take(v, block.keys), out, block.queries)
        ctx.save_for_backward(q, k, v, *kept)
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        q, k, v, *kept = ctx.saved_tensors
        gradient = gradient.transpose(0, 1).contiguous()
        empty = torch.zeros_like if ctx.has_unused_keys else torch.empty_like
        dq, dk, dv = torch.empty_like(q), empty(k), empty(v)
        scores, spare = _scratch(ctx.blocks, q), _scratch(ctx.blocks, q)
        with torch.autocast("cpu", enabled=False):
            for index, block in enumerate(ctx.blocks):
                if index < len(kept):
                    weights = kept[index]
                else:
                    weights = block.part_of(spare)
                    _weigh(block, q, k, ctx.scale, block.part_of(scores), weights)
                queries = block.take(q, block.queries)
                above = block.take(gradient, block.queries)
                dscores = block.part_of(scores)
                torch.bmm(above, block.take(v, block.keys).transpose(1, 2), out=dscores)
                torch._softmax_backward_data(dscores, weights, -1, q.dtype, grad_input=dscores)
                block.put(dscores, block.take(k, block.keys), dq, block.queries, ctx.scale)
                block.put(dscores.transpose(1, 2), queries, dk, block.keys, ctx.scale)
                block.put(weights.transpose(1, 2), above, dv, block.keys)
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), None


def _scratch(blocks: list[_Block], like: Tensor) -> Tensor:
    """Memory for the scores of any block."""
    return like.new_empty(max((math.prod(block.shape) for block in blocks), default=0))


def _weigh(
    block: _Block, q: Tensor, k: Tensor, scale: float, scores: Tensor, weights: Tensor
) -> None:
    """Make the attention weights of a block; ``scores`` is working memory."""
    keys = block.take(k, block.keys).transpose(1, 2)
    _product(block.take(q, block.queries), keys, scale, scores)
    torch.softmax(scores, dim=-1, out=weights)


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    """Scaled batched matrix product in one pass."""
    torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale, out=out)


_ROUTES: dict[str, Attend] = {
    "varlen": _attend_varlen,
    "flash": _attend_flash,
    "sdpa": _attend_sdpa,
    "cpu": attend_per_cell,
    "eager": _attend_eager,
}


def resolve_attention(
    wanted: str, *, device: torch.device, dtype: torch.dtype, dropout: float, ragged: bool
) -> AttentionRoute:
    """Choose the attention kernel for a device and precision.

    ``wanted`` is "auto" or a route by name, which raises MachineError if it cannot run here; ``dropout`` is
    that of attention in training, and ``ragged`` says whether cells differ in length.
    """
    if wanted != "auto":
        lacks = _why_not(wanted, device, dtype, dropout)
        if lacks:
            raise MachineError(f"model.attention = '{wanted}' cannot run here: {lacks}; use 'auto'")
        return AttentionRoute(wanted, "requested", _ROUTES[wanted])
    if device.type == "cpu":
        lacks = _why_not("cpu", device, dtype, dropout)
        name, reason = ("sdpa", lacks) if lacks else ("cpu", "packed cells on a CPU")
    elif not ragged:
        name, reason = "sdpa", "all cells have one length"
    elif lacks := _why_not("varlen", device, dtype, dropout):
        name, reason = "sdpa", f"padded in buckets of length, because {lacks}"
    else:
        name, reason = "varlen", "cells differ in length, on a GPU"
    return AttentionRoute(name, reason, _ROUTES[name])


def _why_not(name: str, device: torch.device, dtype: torch.dtype, dropout: float) -> str:
    """Return why a route cannot run, or ""."""
    if name == "cpu" and device.type != "cpu":
        return f"the per-cell route is for CPUs (this is {device.type})"
    if name == "cpu":
        return "the per-cell route has no attention dropout" if dropout > 0 else ""
    if name not in ("varlen", "flash"):
        return ""
    if device.type != "cuda":
        return f"variable-length attention needs a CUDA device (this is {device.type})"
    if dtype not in (torch.bfloat16, torch.float16):
        return "variable-length attention needs bf16 or fp16"
    if name == "varlen" and dropout > 0:
        return "torch's variable-length attention has no attention dropout"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "variable-length attention needs compute capability 8.0"
    if name == "varlen" and find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has none (2.10 is the first)"
    if name == "flash" and find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (pip install 'transformerics[flash]')"
    return ""
