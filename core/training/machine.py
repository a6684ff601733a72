"""Where and in what precision a run computes; an explicit request that cannot be met is an error."""

import platform
from dataclasses import dataclass
from typing import Literal, cast

import torch

from core.errors import MachineError
from core.presets.schema import TrainSettings

Device = Literal["cpu", "cuda", "mps"]
#: In accelerate's words; "no" is fp32.
Precision = Literal["no", "bf16", "fp16"]
#: What products are computed in.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """A device and a precision."""

    device: Device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return DTYPES[self.precision]

    @property
    def device_name(self) -> str:
        """Name of the GPU, or kind of the processor."""
        if self.device == "cuda":
            return torch.cuda.get_device_name()
        return platform.processor() or platform.machine()

    def autocast(self, device: Device | None = None) -> torch.autocast:
        """Return the context in which a forward pass has this precision."""
        return torch.autocast(
            device or self.device, dtype=self.dtype, enabled=self.precision != "no"
        )


def choose_device(wanted: str, *, where: str = "train.device =") -> Device:
    """Resolve "auto", "cpu", "cuda" or "mps"; "auto" is a GPU if there is one.

    ``where`` says in the message what requested the device.

    Raises
    ------
    MachineError
        This machine has no such device.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available.get(wanted, False):
        message = f"{where} '{wanted}', but this machine has no such device; use 'auto' or 'cpu'"
        raise MachineError(message)
    return cast("Device", wanted)


def choose_machine(settings: TrainSettings) -> Machine:
    """Resolve ``train.device`` and ``train.precision``; MachineError if this machine has them not."""
    device = choose_device(settings.device)
    has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    if settings.precision == "auto":
        return Machine(device, "bf16" if has_bf16 else "no")
    if settings.precision == "fp16" and device != "cuda":
        message = f"train.precision = 'fp16' needs a CUDA device (this run uses {device}); use 'auto', 'fp32' or 'bf16'"
        raise MachineError(message)
    if settings.precision == "bf16" and device == "cuda" and not has_bf16:
        message = "train.precision = 'bf16', but this GPU has no bf16; use 'fp16', 'fp32' or 'auto'"
        raise MachineError(message)
    return Machine(device, "no" if settings.precision == "fp32" else settings.precision)


def set_up_speed(machine: Machine) -> None:
    """Let fp32 products on CUDA run in TF32: ten bits of mantissa, eight times the speed."""
    if machine.device == "cuda":
        torch.set_float32_matmul_precision("high")
