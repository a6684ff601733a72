"""Attention routes: one interface over the kernels that can run here.

A route takes packed queries (queries, heads, width), keys and values (T, heads, width) and the bounds
of the cells; every query attends to all tokens of its own cell. `resolve_attention` picks the route
once; the tests hold every route against a float64 reference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import MachineError
from core.model.attention_cpu import attend_per_cell
from core.model.batch_tensors import CellBounds

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
            message = f"model.attention = '{wanted}' cannot run here: {lacks}; use 'auto'"
            raise MachineError(message)
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
