"""The processes of a run: who is the main one, and what they tell each other.

Figures of a step travel between hosts, not between GPUs, so that no GPU is waited for. In a run of
one process nothing travels.
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

from core.errors import ConfigurationError
from core.training.machine import Machine

__all__ = ["Processes", "launched_processes", "leave_processes"]

#: A process that is not heard of for so long is taken for dead: fitting may differ by minutes.
_PATIENCE = timedelta(minutes=30)


def launched_processes() -> int:
    """Return, before any of them has spoken, how many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_processes() -> None:
    """Part from the other processes of a launcher, at the end of a command that all have come to.

    A process that exits without it may be torn down under threads that still run, and then now and
    then ends as if it had failed (pytorch issue 190489). It cannot train again afterwards.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # a network that was shared holds the group, and is made of cycles


class Processes:
    """All processes of a run, seen from one of them.

    Parameters
    ----------
    machine
        Device and precision of each.
    unused_parameters
        Whether some steps leave parameters out (while the log-linear part is trained first).

    Raises
    ------
    ConfigurationError
        They run under a kind of sharing that tfx does not know.
    """

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
                InitProcessGroupKwargs(timeout=_PATIENCE),
            ],
        )
        self.index: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        kind = self.accelerator.distributed_type
        self.is_sharded = kind == DistributedType.FSDP
        if self.is_sharded and not self.accelerator.is_fsdp2:
            message = "accelerate is configured for FSDP 1; set fsdp_version: 2, as presets/accelerate/fsdp2.yaml does"
            raise ConfigurationError(message)
        if self.count > 1 and not self.is_sharded and kind not in _REPLICATED:
            message = f"accelerate is configured for {kind.value}; tfx trains with DDP or FSDP2"
            raise ConfigurationError(message)
        self._host = None
        if self.count > 1 and dist.get_backend() != "gloo":
            self._host = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and speaks to the user."""
        return self.index == 0

    @property
    def is_first_of_machine(self) -> bool:
        """Whether this process is the first of those on its machine."""
        return bool(self.accelerator.is_local_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def prepare(
        self, network: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[nn.Module, Any]:
        """Share a network among the processes: (what to call in a step, accelerate's optimiser)."""
        shared, optimiser = self.accelerator.prepare(network, optimiser)
        return shared, optimiser

    def unwrap(self, network: nn.Module) -> nn.Module:
        """Return the network within what `prepare` gave."""
        own: nn.Module = self.accelerator.unwrap_model(network)
        return own

    def total(self, figures: Sequence[float]) -> list[float]:
        """Add figures up over all processes; each gets the sums."""
        if self.count == 1:
            return list(figures)
        sums = torch.tensor(figures, dtype=torch.float64)
        dist.all_reduce(sums, group=self._host)
        return sums.tolist()

    def add_up(self, figures: Tensor) -> Tensor:
        """Add a tensor on the device up over all processes, in place, without waiting for it."""
        if self.count > 1:
            dist.all_reduce(figures)
        return figures

    def any(self, *, flag: bool) -> bool:
        """Tell whether any process says yes."""
        return self.total([float(flag)])[0] > 0

    def of_main(self, thing: Any) -> Any:  # noqa: ANN401 (plain values of any kind)
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

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            dist.barrier(group=self._host)


_REPLICATED = (
    DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU,
)  # fmt: skip
