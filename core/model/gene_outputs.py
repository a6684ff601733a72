"""From gene logits to predictions: the most likely value, the expected value, a draw.

Binary and binned models predict bins, continuous ones log1p counts per 10,000. Shapes: M masked genes.
"""

import torch
from torch import Tensor

from core.model.configuration import TfxConfig
from core.model.losses import LOG_DEVIATION_BOUNDS


def bin_logits(logits: Tensor, config: TfxConfig) -> Tensor:
    """Return (M, bins) float32 logits of a binary or binned model, whatever its head."""
    logits = logits.float()
    if config.head == "joint":
        return logits[:, : config.n_bins]
    if config.kind == "binary":
        return torch.cat([torch.zeros_like(logits), logits], dim=-1)
    return logits


def predict_genes(logits: Tensor, config: TfxConfig) -> Tensor:
    """Return (M,): the most likely bin (int64), or the expected value of a continuous model."""
    if config.kind == "continuous":
        expressed_logit, mean, _ = logits.float().unbind(-1)
        return torch.sigmoid(expressed_logit) * mean
    return bin_logits(logits, config).argmax(-1)


def expected_values(logits: Tensor, config: TfxConfig, means: Tensor) -> Tensor:
    """Return (M,) expected values, log1p counts per 10,000, of binary models too.

    ``means`` (M, bins) is the mean training value of each bin of each gene; continuous models do not
    use it.
    """
    if config.kind == "continuous":
        return predict_genes(logits, config).clamp(min=0.0)
    return (torch.softmax(bin_logits(logits, config), dim=-1) * means).sum(-1)


def sample_genes(
    logits: Tensor, config: TfxConfig, *, temperature: float, uniform: Tensor, normal: Tensor
) -> Tensor:
    """Draw a value for each masked gene: (M,) bins (int64), or values >= 0 of a continuous model.

    Parameters
    ----------
    logits
        (M, outputs).
    temperature
        1 draws from the model; lower ones sharpen.
    uniform, normal
        (M,), uniform in [0, 1) and standard normal numbers, from the caller, so that a cell's draws do
        not depend on its batch.
    """
    if config.kind == "continuous":
        expressed_logit, mean, log_deviation = logits.float().unbind(-1)
        expressed = uniform < torch.sigmoid(expressed_logit / temperature)
        deviation = torch.exp(log_deviation.clamp(*LOG_DEVIATION_BOUNDS)) * temperature
        return torch.where(
            expressed, (mean + deviation * normal).clamp(min=0.0), torch.zeros_like(mean)
        )
    # By the inverse distribution function in float32 (float32 Gumbel draws lose diversity).
    probability = torch.softmax(bin_logits(logits, config) / temperature, dim=-1)
    cumulative = probability.cumsum(-1)
    drawn = (uniform.unsqueeze(-1) * cumulative[:, -1:] >= cumulative).sum(-1)
    return drawn.clamp(max=probability.shape[-1] - 1)
