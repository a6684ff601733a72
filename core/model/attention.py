"""Attention routes: one interface over the kernels that can run here.

A route takes packed queries, keys and values (T, heads, width) and the bounds of the cells; every
token attends to all tokens of its own cell. `resolve_attention` picks the route once; the tests
hold every route against a float64 reference.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import MachineError

__all__ = ["AttentionRoute", "CellBounds", "resolve_attention"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellBounds:
    """Where the cells of a packed batch begin.

    Attributes
    ----------
    cu_seqlens
        (cells + 1,), int32.
    n_cells, max_length
        Host integers.
    padded_index
        (T,), place of each token in a (cells x max_length) array; None when all cells have
        ``max_length`` tokens, so that (T, ...) is a view of (cells, L, ...).
    """

    cu_seqlens: Tensor
    n_cells: int
    max_length: int
    padded_index: Tensor | None

    @classmethod
    def of(
        cls, cu_seqlens: Tensor, n_cells: int, max_length: int, *, rectangular: bool
    ) -> "CellBounds":
        """Describe a batch, computing what ragged cells need once for all layers."""
        if rectangular:
            return cls(cu_seqlens, n_cells, max_length, padded_index=None)
        starts = cu_seqlens[:-1].long()
        lengths = cu_seqlens[1:].long() - starts
        cell_start = torch.arange(n_cells, device=cu_seqlens.device) * max_length
        offset = torch.repeat_interleave(cell_start - starts, lengths)
        index = torch.arange(len(offset), device=cu_seqlens.device) + offset
        return cls(cu_seqlens, n_cells, max_length, padded_index=index)


Attend = Callable[[Tensor, Tensor, Tensor, CellBounds, float], Tensor]


@dataclass(frozen=True)
class AttentionRoute:
    """A kernel and why it was chosen."""

    name: str
    reason: str
    attend: Attend


def _to_cells(x: Tensor, bounds: CellBounds) -> Tensor:
    """(T, heads, width) to (cells, heads, max_length, width), zeros where a cell is shorter."""
    if bounds.padded_index is None:
        cells = x.view(bounds.n_cells, bounds.max_length, *x.shape[1:])
    else:
        flat = x.new_zeros(bounds.n_cells * bounds.max_length, *x.shape[1:])
        flat = flat.index_copy(0, bounds.padded_index, x)
        cells = flat.view(bounds.n_cells, bounds.max_length, *x.shape[1:])
    return cells.transpose(1, 2)


def _from_cells(x: Tensor, bounds: CellBounds) -> Tensor:
    """(cells, heads, max_length, width) back to (T, heads, width)."""
    flat = x.transpose(1, 2).reshape(bounds.n_cells * bounds.max_length, x.shape[1], x.shape[3])
    return flat if bounds.padded_index is None else flat[bounds.padded_index]


def _key_mask(bounds: CellBounds) -> Tensor | None:
    """(cells, 1, 1, max_length), True where a key exists; None when every key does."""
    if bounds.padded_index is None:
        return None
    mask = torch.zeros(
        bounds.n_cells * bounds.max_length, dtype=torch.bool, device=bounds.cu_seqlens.device
    )
    mask[bounds.padded_index] = True
    return mask.view(bounds.n_cells, 1, 1, bounds.max_length)


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    q, k, v = (_to_cells(x, bounds) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=_key_mask(bounds), dropout_p=dropout
    )
    return _from_cells(out, bounds)


def _attend_eager(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    q, k, v = (_to_cells(x, bounds) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mask = _key_mask(bounds)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = functional.dropout(torch.softmax(scores, dim=-1), dropout)
    return _from_cells(weights @ v, bounds)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: CellBounds, dropout: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only, torch >= 2.10

    assert dropout == 0.0, "refused by resolve_attention"
    bound, longest = bounds.cu_seqlens, bounds.max_length
    out = varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), bound, bound, longest, longest
    )
    assert isinstance(out, Tensor)
    return out


def resolve_attention(
    wanted: str, *, device: torch.device, dtype: torch.dtype, dropout: float, ragged: bool
) -> AttentionRoute:
    """Choose the attention kernel for a device and precision.

    Parameters
    ----------
    wanted
        "auto", "sdpa", "varlen" or "eager".
    device, dtype
        Where and in what precision attention runs.
    dropout
        Attention dropout of the model.
    ragged
        Whether cells differ in length.

    Raises
    ------
    MachineError
        A route was asked for by name and cannot run here.
    """
    varlen_lacks = _why_no_varlen(device, dtype, dropout)
    if wanted == "varlen":
        if varlen_lacks:
            message = f"model.attention = 'varlen' cannot run here: {varlen_lacks}; use 'auto'"
            raise MachineError(message)
        return AttentionRoute("varlen", "asked for", _attend_varlen)
    if wanted == "eager":
        return AttentionRoute("eager", "asked for", _attend_eager)
    if wanted == "sdpa":
        return AttentionRoute("sdpa", "asked for", _attend_sdpa)
    if not ragged:
        return AttentionRoute("sdpa", "all cells have one length", _attend_sdpa)
    if not varlen_lacks:
        return AttentionRoute("varlen", "cells differ in length, on a GPU", _attend_varlen)
    return AttentionRoute("sdpa", f"padded, because {varlen_lacks}", _attend_sdpa)


def _why_no_varlen(device: torch.device, dtype: torch.dtype, dropout: float) -> str:
    """Return why variable-length attention cannot run, or ""."""
    if device.type != "cuda":
        return f"variable-length attention needs a CUDA device (this is {device.type})"
    if dtype not in (torch.bfloat16, torch.float16):
        return "variable-length attention needs bf16 or fp16"
    if dropout > 0:
        return "variable-length attention has no attention dropout"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "variable-length attention needs compute capability 8.0"
    return ""
