"""A running average of the weights (EMA), evaluated and saved in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The exponential moving average of a network's parameters.

    Young averages forget faster, min(decay, (1 + t) / (10 + t)) at step t, so that the initial
    weights do not linger.

    Parameters
    ----------
    network
        Its floating-point parameters are followed; buffers do not move.
    decay
        Share of the average that a step keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step (counted from 0) in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self._average.values()),
            [p.detach() for p in self._parameters.values()],
            1.0 - decay,
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the averaged weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return the averages by the parameters' names."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, average in self._average.items():
            average.copy_(state[name])
