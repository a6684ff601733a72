"""The processes of a run: what they exchange, and weights as whole tensors however they share them.

Numbers about a step travel between hosts, not between GPUs, so that no GPU is waited for. A run of one
process exchanges nothing. Under FSDP2 every process holds a slice of every parameter (a ``DTensor``);
checkpoints and model folders hold whole tensors, so that a run may resume with another number of
processes. `torch.distributed.checkpoint.state_dict` is not used: it fills an optimiser that has not
taken a step by taking one, and a run stopped at its start would not resume bit for bit.
"""

import gc
import os
import threading
import time
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
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from core.errors import ConfigurationError, MachineError
from core.renamed import current_tensors
from core.training.launched import hidden_variables, launched_process
from core.training.machine import Machine
from core.wording import first_line

#: Silence after which a process counts as dead: fitting may differ by minutes.
_TIMEOUT = timedelta(minutes=30)
#: Seconds in which all processes of a launcher have to come.
MEETING_SECONDS = 60.0
_REPLICATED = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)
#: Text of variables that are off and on, as accelerate reads them.
_OFF, _ON = ("", "0", "false", "no", "off", "n", "f"), ("1", "true", "yes", "on", "y", "t")
_meeting_store: Any = None  # that of the main process serves the others


def meet_processes() -> None:
    """Wait until all processes of the launcher have come, a minute at most; MachineError if they have not.

    torch waits for half an hour, and handles no signal within its calls. A thread calls it here, so that
    Ctrl-C and SIGTERM end this process at once.
    """
    global _meeting_store
    process = launched_process()
    if process.count == 1 or _meeting_store is not None or dist.is_initialized():
        return
    found: list[Any] = []  # a store of torch.distributed
    problem: list[str] = []

    def connect() -> None:
        try:
            # Longer than the wait below: torch prints the frames of its own timeout.
            timeout = timedelta(seconds=MEETING_SECONDS + 300)
            found.append(next(rendezvous("env://", timeout=timeout))[0])
        except Exception as error:  # noqa: BLE001 (of a socket or of torch; it becomes a sentence)
            problem.append(first_line(error))

    # A store of torchrun survives a restart of its processes.
    turn = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"tfx/{turn}/{rank}" for rank in range(process.count)]
    threading.Thread(target=connect, daemon=True).start()
    end = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < end and not problem:
        if found:
            found[0].set(names[process.rank], "here")
            if found[0].check(names):
                _meeting_store = found[0]
                return
        time.sleep(0.05)
    reason = f" ({problem[0]})" if problem else ""
    raise MachineError(
        f"WORLD_SIZE={process.count} in the environment, but the processes did not meet at "
        f"{process.address} within {MEETING_SECONDS:.0f} s{reason}; start all of them by 'tfx train "
        f"--processes N' or 'accelerate launch', or unset WORLD_SIZE to train in one process"
    )


def check_accelerate_variables(machine: Machine) -> None:
    """Check that no variable of accelerate contradicts the preset; ConfigurationError if one does.

    `accelerate launch` sets them from its own configuration, and some would change the result in silence.
    """
    device = os.environ.get("ACCELERATE_TORCH_DEVICE", "").partition(":")[0]
    allowed: dict[str, tuple[Sequence[str], str]] = {
        "ACCELERATE_USE_CPU": (_OFF + (_ON if machine.device == "cpu" else ()), "train.device"),
        "ACCELERATE_TORCH_DEVICE": ((machine.device, ""), "train.device"),
        "ACCELERATE_MIXED_PRECISION": (("no", machine.precision), "train.precision"),
        "ACCELERATE_DYNAMO_BACKEND": (("no", ""), "train.compile"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "train.micro_batches"),
    }
    for strategy in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER"):
        allowed[f"ACCELERATE_USE_{strategy}"] = (_OFF, "presets/accelerate/fsdp2.yaml")
    for name, (values, decides) in allowed.items():
        value = os.environ.get(name)
        if (
            value is None
            or (device if name == "ACCELERATE_TORCH_DEVICE" else value.lower()) in values
        ):
            continue
        raise ConfigurationError(
            f"{name}={value} in the environment does not fit this run; use {decides}, and unset {name} or "
            f"remove it from accelerate's configuration"
        )


def recorded_variables() -> dict[str, str]:
    """Return the variables of accelerate in the environment, for run.json."""
    prefixes = ("ACCELERATE_", "FSDP_")
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(prefixes)}


def leave_processes() -> None:
    """Leave the process group, at the end of a command that all processes have reached.

    A process that exits without it may be torn down under threads that still run, and then now and
    then ends as if it had failed (pytorch issue 190489). It cannot train again afterwards.
    """
    global _meeting_store
    _meeting_store = None
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # a network that was shared holds the group, and is made of cycles


class Processes:
    """All processes of a run, seen from one; ``unused_parameters``: some steps leave parameters out."""

    def __init__(self, machine: Machine, *, unused_parameters: bool = False) -> None:
        # accelerate keeps one global state per process; another run in it may want another one.
        AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
        try:
            with hidden_variables(launched_process()):
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
        except (ValueError, ImportError, NotImplementedError, RuntimeError) as error:
            raise MachineError(
                f"the processes of the run cannot be set up ({first_line(error)}); check the variables "
                f"WORLD_SIZE, MASTER_ADDR, MASTER_PORT and ACCELERATE_* of the environment"
            ) from error
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
