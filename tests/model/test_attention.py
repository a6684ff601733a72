"""Every attention route against a plain float64 reference, and against every other."""

import numpy as np
import pytest
import torch

from core.errors import MachineError
from core.model.attention import CellBounds, resolve_attention

HEADS, WIDTH = 3, 8
SHAPES = {"rectangular": [4, 4, 4], "ragged": [5, 1, 3, 7], "one cell": [6]}
CPU = torch.device("cpu")


def bounds_of(lengths, device=CPU):
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    return CellBounds.of(cu_seqlens, len(lengths), max(lengths), rectangular=len(set(lengths)) == 1)


def reference(q, k, v, lengths):
    """Softmax attention written out, cell by cell and head by head: (T, heads, width) float64."""
    out = np.zeros_like(v)
    start = 0
    for length in lengths:
        cell = slice(start, start + length)
        for head in range(q.shape[1]):
            scores = q[cell, head] @ k[cell, head].T / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[cell, head] = weights @ v[cell, head]
        start += length
    return out


def reference_gradients(q, k, v, gradient, lengths):
    """Gradients of sum(gradient * attention), from the textbook formulas."""
    dq, dk, dv = (np.zeros_like(x) for x in (q, k, v))
    start = 0
    for length in lengths:
        cell = slice(start, start + length)
        for head in range(q.shape[1]):
            scale = 1 / np.sqrt(q.shape[2])
            scores = q[cell, head] @ k[cell, head].T * scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            dv[cell, head] = weights.T @ gradient[cell, head]
            dweights = gradient[cell, head] @ v[cell, head].T
            dscores = weights * (dweights - (dweights * weights).sum(axis=1, keepdims=True))
            dq[cell, head] = dscores @ k[cell, head] * scale
            dk[cell, head] = dscores.T @ q[cell, head] * scale
        start += length
    return dq, dk, dv


def draw(lengths, *, seed=0, dtype=torch.float64, device=CPU):
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(lengths), HEADS, WIDTH)
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    return [x.to(device=device, dtype=dtype) for x in drawn]


def run_route(name, lengths, *, dtype=torch.float64, device=CPU):
    """Return output and the three gradients of a route, as float64 arrays."""
    route = resolve_attention(
        name, device=device, dtype=dtype, dropout=0.0, ragged=len(set(lengths)) > 1
    )
    *qkv, gradient = draw(lengths, dtype=dtype, device=device)
    q, k, v = (x.requires_grad_() for x in qkv)
    out = route.attend(q, k, v, bounds_of(lengths, device), 0.0)
    out.backward(gradient)
    return [x.detach().cpu().double().numpy() for x in (out, q.grad, k.grad, v.grad)]


def expected(lengths, dtype=torch.float64):
    q, k, v, gradient = (x.double().numpy() for x in draw(lengths, dtype=dtype))
    return [reference(q, k, v, lengths), *reference_gradients(q, k, v, gradient, lengths)]


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["sdpa", "eager", "auto"])
def test_a_route_equals_the_reference_forward_and_backward(name, lengths):
    for found, wanted in zip(run_route(name, lengths), expected(lengths), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["varlen", "sdpa"])
def test_a_gpu_route_equals_the_reference_of_the_rounded_inputs(name, lengths):
    """bf16 keeps 8 bits: the reference takes the same rounded inputs, 1 % of the scale remains."""
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    found = run_route(name, lengths, dtype=bf16, device=cuda)
    for one, wanted in zip(found, expected(lengths, bf16), strict=True):
        np.testing.assert_allclose(one, wanted, atol=0.03, rtol=0.02)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_dropout_keeps_the_expected_output(name):
    lengths = [5, 3]
    route = resolve_attention(name, device=CPU, dtype=torch.float32, dropout=0.5, ragged=True)
    q, k, v, _ = draw(lengths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runs = torch.stack([route.attend(q, k, v, bounds_of(lengths), 0.5) for _ in range(3000)])
    assert runs.std(dim=0).min() > 0
    wanted = route.attend(q, k, v, bounds_of(lengths), 0.0)
    torch.testing.assert_close(runs.mean(dim=0), wanted, atol=0.15, rtol=0)


def test_bounds_place_ragged_tokens_in_a_padded_array():
    bounds = bounds_of([2, 4, 1])
    assert bounds.padded_index.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert bounds_of([3, 3]).padded_index is None


@pytest.mark.parametrize(
    ("ragged", "reason"), [(False, "all cells have one length"), (True, "needs a CUDA device")]
)
def test_auto_on_a_cpu_is_sdpa_and_says_why(ragged, reason):
    route = resolve_attention("auto", device=CPU, dtype=torch.float32, dropout=0.0, ragged=ragged)
    assert route.name == "sdpa"
    assert reason in route.reason


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "lacks"),
    [
        ("cpu", torch.bfloat16, 0.0, "needs a CUDA device"),
        ("cuda", torch.float32, 0.0, "needs bf16 or fp16"),
        ("cuda", torch.bfloat16, 0.1, "no attention dropout"),
    ],
)
def test_varlen_asked_for_where_it_cannot_run_is_refused(device, dtype, dropout, lacks):
    with pytest.raises(
        MachineError, match=rf"model\.attention = 'varlen' cannot run here.*{lacks}"
    ):
        resolve_attention(
            "varlen", device=torch.device(device), dtype=dtype, dropout=dropout, ragged=True
        )
