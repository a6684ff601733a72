"""Weights and optimiser state as whole tensors, whether or not processes hold them in shards.

Under FSDP2 every process holds a slice of every parameter (a ``DTensor``). Checkpoints and model
folders hold whole tensors, so that a run may go on with another number of processes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from core.renamed import current_tensors

__all__ = ["load_optimiser", "load_weights", "whole", "whole_weights"]


def whole(state: Any) -> Any:  # noqa: ANN401 (dictionaries and lists of tensors and plain values)
    """Return a state with every tensor whole and on the host; under FSDP2 all processes call it."""
    if isinstance(state, DTensor):
        return state.full_tensor().detach().cpu()
    if isinstance(state, Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a network, whole, contiguous, on the host."""
    weights: dict[str, Tensor] = whole(network.state_dict())
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network its weights; each process keeps its own slice.

    Raises
    ------
    RuntimeError
        Names or shapes differ, as ``load_state_dict`` raises it.
    """
    own = network.state_dict()
    network.load_state_dict(
        {name: _like(tensor, own.get(name)) for name, tensor in current_tensors(weights).items()}
    )


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser what ``whole(optimiser.state_dict())`` returned."""
    parameters = dict(enumerate(_parameters(optimiser)))
    states = {
        number: {
            # The count of steps is a number of its own, no slice.
            name: _like(value, parameters[number])
            if _is_slice(value, parameters[number])
            else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": states})


def _parameters(optimiser: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimiser.param_groups:
        yield from group["params"]


def _is_slice(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


def _like(tensor: Tensor, own: Tensor | None) -> Tensor:
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
