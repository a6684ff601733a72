"""AdamW over three groups: encoder matrices with decay, the rest without, the log-linear part apart."""

import torch
from torch import nn

from core.model.cell_model import TfxModel
from core.presets.schema import TrainSettings

__all__ = ["ENCODER", "LOG_LINEAR", "make_optimiser"]

#: Which part of the model a group of parameters belongs to: ``group["part"]``.
ENCODER, LOG_LINEAR = "encoder", "log_linear"


def make_optimiser(network: TfxModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Return the optimiser of a run.

    Biases, norms and embeddings are not decayed: decay would pull rare genes' embeddings to zero
    between their few updates. The log-linear part is a regression and wants a larger step and more decay.
    """
    log_linear = (
        []
        if network.log_linear is None
        else [parameter for parameter in network.log_linear.parameters() if parameter.requires_grad]
    )
    own = {id(parameter) for parameter in log_linear}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in own or not parameter.requires_grad:
                continue
            is_matrix = isinstance(module, nn.Linear) and name == "weight"
            (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "part": ENCODER, "weight_decay": settings.weight_decay},
        {"params": plain, "part": ENCODER, "weight_decay": 0.0},
    ]
    if log_linear:
        groups.append(
            {
                "params": log_linear,
                "part": LOG_LINEAR,
                "lr": settings.log_linear_learning_rate,
                "weight_decay": settings.log_linear_weight_decay,
            }
        )
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, fused=True
    )
