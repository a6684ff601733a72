"""Every attention route against a plain float64 reference, and against every other."""

import numpy as np
import pytest
import torch

from core.errors import MachineError
from core.model.attention import attend_per_cell, resolve_attention
from core.model.batch_tensors import CellBounds

HEADS, WIDTH = 3, 8
#: Keys of each cell, and its queries: all of them, or those at output positions.
SHAPES = {
    "rectangular": ([4, 4, 4], [4, 4, 4]),
    "ragged": ([5, 1, 3, 7], [5, 1, 3, 7]),
    "one cell": ([6], [6]),
    "equal neighbours": ([5, 5, 2, 2, 2, 5], [5, 5, 2, 2, 2, 5]),
    "some queries": ([5, 3, 3, 7], [2, 3, 3, 4]),
    "as many queries each": ([5, 5, 5], [2, 2, 2]),
    "a cell without queries": ([5, 3, 3, 7], [2, 0, 0, 4]),
    "no queries": ([5, 3], [0, 0]),
}
CPU = torch.device("cpu")


def bounds_of(n_keys, n_queries=None, device=CPU):
    keys = np.array([0, *np.cumsum(n_keys)], dtype=np.int32)
    queries = np.array([0, *np.cumsum(n_keys if n_queries is None else n_queries)], dtype=np.int32)
    return CellBounds(
        keys, queries, torch.from_numpy(keys).to(device), torch.from_numpy(queries).to(device)
    )


def cells(n_keys, n_queries):
    """Slices of the queries and of the keys of each cell."""
    ends = np.cumsum(n_queries), np.cumsum(n_keys)
    return [
        (slice(end_q - q, end_q), slice(end_k - k, end_k))
        for end_q, q, end_k, k in zip(ends[0], n_queries, ends[1], n_keys, strict=True)
    ]


def softmax_weights(q, k):
    scores = q @ k.T / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def reference(q, k, v, gradient, n_keys, n_queries):
    """Softmax attention written out, cell by cell and head by head, and its textbook gradients."""
    out, dq = np.zeros_like(q), np.zeros_like(q)
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    scale = 1 / np.sqrt(q.shape[2])
    for at_q, at_k in cells(n_keys, n_queries):
        for head in range(q.shape[1]):
            weights = softmax_weights(q[at_q, head], k[at_k, head])
            out[at_q, head] = weights @ v[at_k, head]
            dv[at_k, head] = weights.T @ gradient[at_q, head]
            dweights = gradient[at_q, head] @ v[at_k, head].T
            dscores = weights * (dweights - (dweights * weights).sum(axis=1, keepdims=True))
            dq[at_q, head] = dscores @ k[at_k, head] * scale
            dk[at_k, head] = dscores.T @ q[at_q, head] * scale
    return out, dq, dk, dv


def draw(n_keys, n_queries, *, seed=0, dtype=torch.float64, device=CPU):
    generator = torch.Generator().manual_seed(seed)
    sizes = (sum(n_queries), sum(n_keys), sum(n_keys), sum(n_queries))
    drawn = (
        torch.randn((size, HEADS, WIDTH), generator=generator, dtype=torch.float64)
        for size in sizes
    )
    return [x.to(device=device, dtype=dtype) for x in drawn]


def outcome(attend, n_keys, n_queries, *, dtype=torch.float64, device=CPU):
    """Return output and the three gradients of a kernel, as float64 arrays."""
    *qkv, gradient = draw(n_keys, n_queries, dtype=dtype, device=device)
    q, k, v = (x.requires_grad_() for x in qkv)
    out = attend(q, k, v, bounds_of(n_keys, n_queries, device), 0.0)
    assert (out.dtype, out.shape) == (dtype, q.shape)
    out.backward(gradient)
    none = torch.zeros(())  # without queries nothing depends on q, k and v
    gradients = [x.grad if x.grad is not None else none.expand(x.shape) for x in (q, k, v)]
    return [x.detach().cpu().double().numpy() for x in (out, *gradients)]


def expected(n_keys, n_queries, dtype=torch.float64):
    drawn = draw(n_keys, n_queries, dtype=dtype)
    return reference(*(x.double().numpy() for x in drawn), n_keys, n_queries)


def run_route(name, shape, *, dtype=torch.float64, device=CPU):
    route = resolve_attention(name, device=device, dtype=dtype, dropout=0.0, ragged=True)
    return outcome(route.attend, *shape, dtype=dtype, device=device)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["sdpa", "cpu", "eager", "auto"])
def test_a_route_equals_the_reference_forward_and_backward(name, shape):
    for found, wanted in zip(run_route(name, shape), expected(*shape), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["sdpa", "cpu", "eager"])
def test_a_route_in_bf16_equals_the_reference_of_the_rounded_inputs(name, shape):
    """bf16 keeps 8 bits: the reference takes the same rounded inputs, 1 % of the scale remains."""
    found = run_route(name, shape, dtype=torch.bfloat16)
    for one, wanted in zip(found, expected(*shape, torch.bfloat16), strict=True):
        np.testing.assert_allclose(one, wanted, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("kept", [0, 500_000, 2**30], ids=["kept none", "some", "all"])
@pytest.mark.parametrize("block", [1, 200_000, 400_000, 2**22], ids=["rows", "1", "2", "cells"])
def test_a_cpu_cell_may_be_cut_into_heads_and_blocks_of_queries(monkeypatch, kept, block):
    """What is kept for the backward pass is bounded; the rest is made again there, to the same end."""
    monkeypatch.setattr("core.model.attention._BLOCK_BYTES", block)
    monkeypatch.setattr("core.model.attention.KEPT_BYTES", kept)
    shape = ([150, 150, 7, 7, 200], [150, 150, 7, 7, 90])
    held = []

    def attend(q, k, v, bounds, dropout):
        out = attend_per_cell(q, k, v, bounds, dropout)
        held.extend(out.grad_fn.saved_tensors[3:])
        return out

    for found, wanted in zip(outcome(attend, *shape), expected(*shape), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)
    n_bytes = 8 * HEADS * sum(n_keys * n_queries for n_keys, n_queries in zip(*shape, strict=True))
    assert sum(x.nbytes for x in held) <= min(kept, n_bytes)
    assert (kept < n_bytes) or sum(x.nbytes for x in held) == n_bytes


def test_a_cpu_route_works_inside_autocast():
    shape = ([150, 20], [150, 20])

    def attend(q, k, v, bounds, dropout):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend_per_cell(q, k, v, bounds, dropout)

    for found, wanted in zip(outcome(attend, *shape), expected(*shape), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["varlen", "sdpa"])
def test_a_gpu_route_equals_the_reference_of_the_rounded_inputs(name, shape):
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    found = run_route(name, shape, dtype=bf16, device=cuda)
    for one, wanted in zip(found, expected(*shape, bf16), strict=True):
        np.testing.assert_allclose(one, wanted, atol=0.03, rtol=0.02)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_dropout_keeps_the_expected_output(name):
    lengths = [5, 3]
    route = resolve_attention(name, device=CPU, dtype=torch.float32, dropout=0.5, ragged=True)
    q, k, v, _ = draw(lengths, lengths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runs = torch.stack([route.attend(q, k, v, bounds_of(lengths), 0.5) for _ in range(3000)])
    assert runs.std(dim=0).min() > 0
    wanted = route.attend(q, k, v, bounds_of(lengths), 0.0)
    torch.testing.assert_close(runs.mean(dim=0), wanted, atol=0.15, rtol=0)


def test_padding_stays_below_an_eighth():
    lengths = [100, 3, 90, 4, 50, 95, 4]
    buckets = bounds_of(lengths).buckets
    assert sum(len(bucket.keys) for bucket in buckets) == len(lengths)
    for bucket in buckets:
        mask = bucket.key_mask
        assert mask is None or mask.float().mean() >= 7 / 8
    tokens = torch.cat([bucket.query_tokens for bucket in buckets])
    assert sorted(tokens.tolist()) == list(range(sum(lengths)))


@pytest.mark.parametrize(
    ("dropout", "name", "reason"),
    [(0.0, "cpu", "packed cells on a CPU"), (0.1, "sdpa", "has no attention dropout")],
)
def test_auto_on_a_cpu_gives_its_reason(dropout, name, reason):
    route = resolve_attention("auto", device=CPU, dtype=torch.float32, dropout=dropout, ragged=True)
    assert route.name == name
    assert reason in route.reason


@pytest.mark.parametrize(
    ("dtype", "dropout", "ragged", "name", "reason"),
    [
        (torch.bfloat16, 0.0, False, "sdpa", "one length"),
        (torch.float32, 0.0, True, "sdpa", "needs bf16 or fp16"),
        (torch.bfloat16, 0.1, True, "sdpa", "no attention dropout"),
    ],
)
def test_auto_on_a_gpu_gives_its_reason(dtype, dropout, ragged, name, reason):
    cuda = torch.device("cuda")
    route = resolve_attention("auto", device=cuda, dtype=dtype, dropout=dropout, ragged=ragged)
    assert route.name == name
    assert reason in route.reason


def test_a_route_for_another_device_is_an_error():
    with pytest.raises(MachineError, match=r"'cpu' cannot run here.*for CPUs \(this is cuda\)"):
        resolve_attention(
            "cpu", device=torch.device("cuda"), dtype=torch.float32, dropout=0.0, ragged=True
        )
    with pytest.raises(MachineError, match=r"'flash' cannot run here.*needs a CUDA device"):
        resolve_attention("flash", device=CPU, dtype=torch.bfloat16, dropout=0.0, ragged=True)


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "lacks"),
    [
        ("cpu", torch.bfloat16, 0.0, "needs a CUDA device"),
        ("cuda", torch.float32, 0.0, "needs bf16 or fp16"),
        ("cuda", torch.bfloat16, 0.1, "no attention dropout"),
    ],
)
def test_requested_varlen_that_cannot_run_is_an_error(device, dtype, dropout, lacks):
    with pytest.raises(
        MachineError, match=rf"model\.attention = 'varlen' cannot run here.*{lacks}"
    ):
        resolve_attention(
            "varlen", device=torch.device(device), dtype=dtype, dropout=dropout, ragged=True
        )
