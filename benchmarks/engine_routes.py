"""Attention routes against each other and against float64, right and fast: part of `engine_gpu`."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from core.errors import MachineError
from core.model.attention import AttentionRoute, resolve_attention
from core.model.batch_tensors import CellBounds

ROUTES = ("varlen", "flash", "sdpa", "cpu", "eager")
#: Largest ||found - reference|| / ||reference||: bf16 keeps 8 bits, fp32 and TF32 more.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-3}
PARTS = ("output", "dq", "dk", "dv")


def cell_bounds(
    lengths: Sequence[int], device: torch.device, *, read_share: float | None = None
) -> CellBounds:
    """Bounds of cells of which all tokens, or a share of them, are queries."""
    keys = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    n_queries = lengths if read_share is None else [max(int(x * read_share), 1) for x in lengths]
    queries = np.concatenate([[0], np.cumsum(n_queries)]).astype(np.int32)
    cu_keys, cu_queries = (torch.from_numpy(x).to(device) for x in (keys, queries))
    return CellBounds(keys, queries, cu_keys, cu_queries)


def draw(bounds: CellBounds, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Random q, k, v with gradients, and the gradient of the output."""
    device = bounds.cu_keys.device
    n_queries, n_keys = int(bounds.queries[-1]), int(bounds.keys[-1])
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, gradient = (
        torch.randn(n, heads, width, device=device, dtype=dtype, generator=generator)
        for n in (n_queries, n_keys, n_keys, n_queries)
    )
    return [*(x.requires_grad_() for x in (q, k, v)), gradient]


def reference(qkv: Sequence[Tensor], gradient: Tensor, bounds: CellBounds) -> list[Tensor]:
    """Softmax attention written out in float64, cell by cell, and its gradients."""
    q, k, v = (x.detach().double().requires_grad_() for x in qkv)
    outputs = []
    for cell in range(bounds.n_cells):
        asked = slice(bounds.queries[cell], bounds.queries[cell + 1])
        own = slice(bounds.keys[cell], bounds.keys[cell + 1])
        scores = torch.einsum("qhw,khw->hqk", q[asked], k[own]) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hqk,khw->qhw", scores.softmax(-1), v[own]))
    out = torch.cat(outputs)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), gradient.double())]


def route_of(name: str, device: torch.device, dtype: torch.dtype) -> AttentionRoute | str:
    """Return a route, or why it cannot run here."""
    try:
        return resolve_attention(name, device=device, dtype=dtype, dropout=0.0, ragged=True)
    except MachineError as error:
        return str(error)


def compare(device: torch.device, *, quick: bool) -> list[dict]:
    """Relative error of output and gradients of every route, each precision, each kind of cells."""
    heads, width = (2, 16) if quick else (12, 64)
    lengths = [40, 7, 64, 64] if quick else [1024, 64, 501, 501, 777, 1, 300, 130]
    rows = []
    for share, cells in ((None, "ragged"), (0.15, "ragged, 15 % of queries")):
        for dtype in (torch.bfloat16, torch.float32):
            bounds = cell_bounds(lengths, device, read_share=share)
            *qkv, gradient = draw(bounds, heads, width, dtype)
            expected = reference(qkv, gradient, bounds)
            for name in ROUTES:
                row = {"route": name, "dtype": str(dtype).removeprefix("torch."), "cells": cells}
                route = route_of(name, device, dtype)
                if isinstance(route, str):
                    rows.append(row | {"refused": route})
                    continue
                out = route.attend(*qkv, bounds, 0.0)
                found = [out.detach(), *torch.autograd.grad(out, qkv, gradient)]
                errors = {
                    part: ((one.double() - wanted).norm() / wanted.norm()).item()
                    for part, one, wanted in zip(PARTS, found, expected, strict=True)
                }
                # Written so that a NaN is wrong.
                right = all(error <= TOLERANCE[dtype] for error in errors.values())
                rows.append(row | errors | {"right": right})
    return rows


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, after three for warming up."""
    times = []
    for turn in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _there_and_back(route: AttentionRoute, arguments: tuple, gradient: Tensor) -> None:
    torch.autograd.grad(route.attend(*arguments, 0.0), arguments[:3], gradient)


def time_routes(
    shapes: dict[str, Sequence[int]], device: torch.device, *, heads: int, width: int, repeats: int
) -> list[dict]:
    """Time forward and backward of attention alone in bf16, by shape and route."""
    rows = []
    for shape, lengths in shapes.items():
        bounds = cell_bounds(lengths, device)
        *qkv, gradient = draw(bounds, heads, width, torch.bfloat16)
        # 2 products forward, 4 backward (without what kernels compute again), 2 operations each.
        flops = 12 * heads * width * float((np.asarray(lengths, float) ** 2).sum())
        for name in ROUTES:
            if name == "eager":  # for attention maps; its weights alone would fill the memory
                continue
            route = route_of(name, device, torch.bfloat16)
            if isinstance(route, str):
                continue

            once = partial(_there_and_back, route, (*qkv, bounds), gradient)
            seconds = seconds_of(once, device, repeats)
            rows.append(
                {
                    "shape": shape,
                    "route": name,
                    "ms": seconds * 1e3,
                    "tflops": flops / seconds / 1e12,
                }
            )
    return rows
