"""The shift of all log-odds of expression that brings the expected number of expressed genes to a requested one.

Sampling given the sum, in its exponential form. Shapes: B cells, G genes of the panel, O outputs per gene.
"""

import torch
from torch import Tensor

from core.model.configuration import TfxConfig

#: The largest shift: beyond it genes would be expressed that the cell's kind does not have.
_LARGEST_SHIFT = 2.0
_HALVINGS = 14


def expression_log_odds(logits: Tensor, config: TfxConfig) -> Tensor:
    """Return (...,) log-odds of expression from (..., O) logits."""
    if config.kind == "continuous" or logits.shape[-1] == 1:
        return logits[..., 0]
    return torch.logsumexp(logits[..., 1 : config.n_bins], dim=-1) - logits[..., 0]


def shift_expression(logits: Tensor, shift: Tensor, config: TfxConfig) -> Tensor:
    """Add (B,) shifts to the log-odds of expression of (B, n, O) logits."""
    shift = shift.to(logits.dtype)[:, None]
    shifted = logits.clone()
    if config.kind == "continuous" or logits.shape[-1] == 1:
        shifted[..., 0] += shift
    else:
        shifted[..., 0] -= shift
    return shifted


def solve_shift(log_odds: Tensor, is_hidden: Tensor, missing: Tensor, temperature: float) -> Tensor:
    """Find the shift at which the hidden genes are expected to add the missing number.

    ``log_odds`` and ``is_hidden`` are (B, G), ``missing`` (B,) genes still to be expressed. Returns (B,), at
    most `_LARGEST_SHIFT` either way.
    """
    low = torch.full_like(missing, -_LARGEST_SHIFT, dtype=log_odds.dtype)
    high = -low
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        expected = torch.sigmoid((log_odds + middle[:, None]) / temperature) * is_hidden
        is_short = expected.sum(dim=1) < missing
        low = torch.where(is_short, middle, low)
        high = torch.where(is_short, high, middle)
    return 0.5 * (low + high)
