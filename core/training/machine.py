"""Where and in what precision a run computes; an explicit request that cannot be met is refused."""

import platform
from dataclasses import dataclass
from typing import Literal, cast

import torch

from core.errors import MachineError
from core.presets.schema import TrainSettings

__all__ = ["DTYPES", "Machine", "choose_device", "choose_machine", "set_up_speed"]

#: What products are computed in, by precision.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """A device and a precision.

    Attributes
    ----------
    device
        "cpu", "cuda" or "mps".
    precision
        In accelerate's words.
    """

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["no", "bf16", "fp16"]

    @property
    def device_name(self) -> str:
        """Of the GPU, or of the processor's kind."""
        if self.device == "cuda":
            return torch.cuda.get_device_name()
        return platform.processor() or platform.machine()


def choose_device(wanted: str, *, where: str = "train.device =") -> Literal["cpu", "cuda", "mps"]:
    """Resolve a device: "auto" takes a GPU where there is one.

    Parameters
    ----------
    wanted
        "auto", "cpu", "cuda" or "mps".
    where
        What asked for it, for the message.

    Raises
    ------
    MachineError
        There is no such device here.
    """
    has = {
        "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
    }  # fmt: skip
    if wanted == "auto":
        return "cuda" if has["cuda"] else "cpu"
    if not has.get(wanted, False):
        message = f"{where} '{wanted}', but this machine has no such device; use 'auto' or 'cpu'"
        raise MachineError(message)
    return cast("Literal['cpu', 'cuda', 'mps']", wanted)


def choose_machine(settings: TrainSettings) -> Machine:
    """Resolve ``train.device`` and ``train.precision``.

    Raises
    ------
    MachineError
        The device is not there, or cannot compute in that precision.
    """
    device = choose_device(settings.device)
    if settings.precision == "auto":
        fast_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
        return Machine(device, "bf16" if fast_bf16 else "no")
    if settings.precision == "fp16" and device != "cuda":
        message = f"train.precision = 'fp16' needs a CUDA device (this run uses {device}); use 'auto', 'fp32' or 'bf16'"
        raise MachineError(message)
    if settings.precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        message = "train.precision = 'bf16', but this GPU has no bf16; use 'fp16', 'fp32' or 'auto'"
        raise MachineError(message)
    precision: Literal["no", "bf16", "fp16"] = (
        "no" if settings.precision == "fp32" else settings.precision
    )
    return Machine(device, precision)


def set_up_speed(machine: Machine) -> None:
    """Let fp32 products on CUDA run in TF32: ten bits of mantissa, eight times the speed."""
    if machine.device == "cuda":
        torch.set_float32_matmul_precision("high")
