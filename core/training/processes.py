"""The processes of a run: what they exchange, and weights as whole tensors however they share them.

Numbers about a step travel between hosts, not between GPUs, so that no GPU is waited for. A run of one
process exchanges nothing. Under FSDP2 every process holds a slice of every parameter (a ``DTensor``);
checkpoints and model folders hold whole tensors, so that a run may resume with another number of
processes. `torch.distributed.checkpoint.state_dict` is not used: it fills an optimiser that has not
taken a step by taking one, and a run stopped at its start would not resume bit for bit.
"""

import gc
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its functions would hold as a default
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from core.errors import ConfigurationError
from core.renamed import current_tensors
from core.training.machine import Machine

#: Silence after which a process counts as dead: fitting may differ by minutes.
_TIMEOUT = timedelta(minutes=30)
_REPLICATED = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)


def launched_processes() -> int:
    """Return how many processes a launcher started, before any communication; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_processes() -> None:
    """Leave the process group, at the end of a command that all processes have reached.

    A process that exits without it may be torn down under threads that still run, and then now and
    then ends as if it had failed (pytorch issue 190489). It cannot train again afterwards.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # a network that was shared holds the group, and is made of cycles


class Processes:
    """All processes of a run, seen from one; ``unused_parameters``: some steps leave parameters out."""

    def __init__(self, machine: Machine, *, unused_parameters: bool = False) -> None:
        # accelerate keeps one global state per process; another run in it may want another one.
        AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
        self.accelerator = Accelerator(
            cpu=machine.device == "cpu",
            mixed_precision=machine.precision,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, find_unused_parameters=unused_parameters
                ),
                InitProcessGroupKwargs(timeout=_TIMEOUT),
            ],
        )
        self.index: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        kind = self.accelerator.distributed_type
        self.is_sharded = kind == DistributedType.FSDP
        if self.is_sharded and not self.accelerator.is_fsdp2:
            raise ConfigurationError(
                "accelerate is configured for FSDP 1; set fsdp_version: 2, as presets/accelerate/fsdp2.yaml does"
            )
        if self.count > 1 and not self.is_sharded and kind not in _REPLICATED:
            raise ConfigurationError(
                f"accelerate is configured for {kind.value}; tfx trains with DDP or FSDP2"
            )
        self._host = None
        if self.count > 1 and dist.get_backend() != "gloo":
            self._host = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and reports to the user."""
        return self.index == 0

    def all_reduce(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self._host)
        return sums.tolist()

    def all_reduce_on_device(self, tensor: Tensor) -> Tensor:
        """Sum a tensor on the device over all processes, in place, without waiting for it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, thing: Any) -> Any:  # noqa: ANN401 (plain values of any kind)
        """Return the main process' plain value of a thing."""
        if self.count == 1:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, src=0, group=self._host)
        return things[0]

    def gather(self, thing: Any) -> list[Any]:  # noqa: ANN401 (plain values of any kind)
        """Return every process' plain value of a thing, in the order of the processes."""
        if self.count == 1:
            return [thing]
        things: list[Any] = [None] * self.count
        dist.all_gather_object(things, thing, group=self._host)
        return things

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier(group=self._host)


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


def merge_low_rank(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return ``weights`` of a network with low-rank additions merged: W + (alpha / rank) B A (LoRA, Hu et al. 2021)."""
    merged = dict(weights)
    for name, module in network.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        scale = float(module.scaling["default"])
        weight = merged.pop(f"{name}.base_layer.weight")
        down = merged.pop(f"{name}.lora_A.default.weight")
        up = merged.pop(f"{name}.lora_B.default.weight")
        merged[f"{name}.weight"] = weight + scale * (up.float() @ down.float()).to(weight.dtype)
        merged[f"{name}.bias"] = merged.pop(f"{name}.base_layer.bias")
    return merged


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network whole weights, under present or older names; each process keeps its own slice."""
    own = network.state_dict()
    network.load_state_dict(
        {name: _slice(tensor, own.get(name)) for name, tensor in current_tensors(weights).items()}
    )


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser what ``whole(optimiser.state_dict())`` returned."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]

    def own_slice(value: Any, parameter: Tensor) -> Any:  # noqa: ANN401 (the count of steps is a number)
        is_moment = isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
        return _slice(value, parameter) if is_moment else value

    states = {
        number: {name: own_slice(value, parameters[number]) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": states})


def _slice(tensor: Tensor, own: Tensor | None) -> Tensor:
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
