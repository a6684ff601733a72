"""Where, in what precision and how fast a run computes; a request that cannot be met is an error.

Model FLOPs utilisation as in PaLM (arXiv 2204.02311, appendix B): the work that the model's maths
needs, whatever the kernels do besides or leave out, over the peak of the hardware.
"""

import platform
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike

from core.errors import MachineError
from core.presets.schema import TrainSettings

if TYPE_CHECKING:
    from core.model.cell_model import TfxModel  # imports transformers, 2 s

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

    ``where`` says in the message what requested the device. MachineError if there is none.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available.get(wanted, False):
        raise MachineError(
            f"{where} '{wanted}', but this machine has no such device; use 'auto' or 'cpu'"
        )
    return cast("Device", wanted)


def choose_machine(settings: TrainSettings) -> Machine:
    """Resolve ``train.device`` and ``train.precision``; MachineError if this machine has them not."""
    device = choose_device(settings.device)
    has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    if settings.precision == "auto":
        return Machine(device, "bf16" if has_bf16 else "no")
    if settings.precision == "fp16" and device != "cuda":
        raise MachineError(
            f"train.precision = 'fp16' needs a CUDA device (this run uses {device}); use 'auto', 'fp32' or 'bf16'"
        )
    if settings.precision == "bf16" and device == "cuda" and not has_bf16:
        raise MachineError(
            "train.precision = 'bf16', but this GPU has no bf16; use 'fp16', 'fp32' or 'auto'"
        )
    return Machine(device, "no" if settings.precision == "fp32" else settings.precision)


def set_up_speed(machine: Machine) -> None:
    """Let fp32 products on CUDA run in TF32: ten bits of mantissa, eight times the speed."""
    if machine.device == "cuda":
        torch.set_float32_matmul_precision("high")


# -- floating-point operations


#: Side of the square product that is timed; three fp32 matrices of it take 25 MB.
_SIDE = 1440


@dataclass(frozen=True)
class EncoderFlops:
    """What one token costs an encoder, forward and backward."""

    #: P, parameters of the encoder's layers: no embeddings, no heads, no log-linear part.
    parameters: int
    layers: int
    #: d, the hidden size.
    width: int
    #: Q, those of the last layer that are used at output positions alone: all but its keys and values.
    output_parameters: int = 0

    @classmethod
    def of(cls, network: "TfxModel") -> "EncoderFlops":
        """Count the layers of a network; none without an encoder."""
        part = network.encoder_part
        is_pooled = network.config.encoder == "pooled"  # its cost is of cells, not of tokens
        layers = [] if part is None or is_pooled else list(part.encoder.layers)
        of_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        width, outputs = network.config.hidden_size, 0
        if layers:
            projection = layers[-1].get_submodule("query_key_value")
            keys_and_values = sum(p.numel() for p in projection.parameters()) * 2 // 3
            outputs = of_layers[-1] - keys_and_values
        return cls(sum(of_layers), len(layers), width, outputs)

    def per_token(self, attended_length: float, output_fraction: float = 1.0) -> float:
        """Return the FLOPs of one token in one training step.

        6 (P - (1 - r) Q) + 12 d L̄ (layers - (1 - r)), where r is the fraction of the tokens that the last
        layer computes.
        """
        left_out = (1.0 - output_fraction) if self.layers else 0.0
        of_weights = self.parameters - left_out * self.output_parameters
        return 6.0 * of_weights + 12.0 * self.width * attended_length * (self.layers - left_out)

    def utilisation(
        self,
        *,
        tokens_per_second: float,
        attended_length: float,
        peak: float | None,
        output_fraction: float = 1.0,
    ) -> float | None:
        """Return the fraction of the peak that is reached (MFU), over all processes.

        None without an encoder or a known peak: no metric is better than a guessed one.
        """
        if not self.parameters or not peak:
            return None
        return self.per_token(attended_length, output_fraction) * tokens_per_second / peak


def mean_attended_length(lengths: ArrayLike) -> float:
    """Return L̄ = Σ L² / Σ L of cells of L tokens: how many tokens a token attends to, on average."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return float((lengths**2).sum() / lengths.sum()) if len(lengths) else 0.0


#: Precision and threads -> FLOP/s of this CPU, as far as they were measured.
_peaks: dict[tuple[Precision, int], float] = {}


class _Peak(NamedTuple):
    """Dense TFLOP/s of a GPU; products in bf16 or fp16 accumulate in fp32."""

    pattern: str
    half: float
    tf32: float | None
    fp32: float
    has_bf16: bool = True


#: The makers' numbers without sparsity (their datasheets often give only those with it, twice as high).
#: The first pattern that is found in the device's name counts.
_PEAKS = (
    # NVIDIA, HGX B200 datasheet, per GPU
    _Peak(r"\bB200\b", 2250, 1125, 75),
    # NVIDIA, H200 and H100 datasheets; GH200 holds the same chip as H100 SXM
    _Peak(r"\bH200 NVL\b", 835.5, 417.7, 60),
    _Peak(r"\bH100 NVL\b", 835.5, 417.7, 60),
    _Peak(r"\bH100 PCIe\b", 756, 378, 51),
    _Peak(r"\b(H200|H100|GH200)\b", 989.4, 494.7, 67),
    # NVIDIA, datasheets of A100, A30, A40, A10
    _Peak(r"\bA100\b", 312, 156, 19.5),
    _Peak(r"\bA30\b", 165, 82, 10.3),
    _Peak(r"\bA40\b", 149.7, 74.8, 37.4),
    _Peak(r"\bA10\b", 125, 62.5, 31.2),
    # NVIDIA, datasheets of L40S, L40, L4
    _Peak(r"\bL40S\b", 362, 183, 91.6),
    _Peak(r"\bL40\b", 181, 90.5, 90.5),
    _Peak(r"\bL4\b", 121, 60, 30.3),
    # NVIDIA, Ada and GA102 architecture papers (fp32 accumulation runs at half rate on GeForce)
    _Peak(r"\bRTX 6000 Ada\b", 364.2, 182.1, 91.1),
    _Peak(r"\bRTX A6000\b", 154.8, 77.4, 38.7),
    _Peak(r"\bRTX 4090$", 165.2, 82.6, 82.6),
    _Peak(r"\bRTX 3090$", 71, 35.6, 35.6),
    # NVIDIA, datasheets of V100 and T4: tensor cores for fp16 alone
    _Peak(r"\bV100-SXM", 125, None, 15.7, has_bf16=False),
    _Peak(r"\bV100-PCIE", 112, None, 14, has_bf16=False),
    _Peak(r"\bT4\b", 65, None, 8.1, has_bf16=False),
    # AMD, Instinct MI300X datasheet
    _Peak(r"\bMI300X\b", 1307.4, 653.7, 163.4),
)


def peak_flops(device_name: str, precision: Precision, *, tf32: bool = False) -> float | None:
    """Return the dense peak of a GPU in FLOP/s, as its maker states it.

    None for a GPU that is not in the table, for a part of one (MIG), and where bf16 is emulated.
    ``tf32`` is whether fp32 products may run in TF32.
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    peak = next((peak for peak in _PEAKS if re.search(peak.pattern, device_name)), None)
    if peak is None or (precision == "bf16" and not peak.has_bf16):
        return None
    if precision == "no":
        return 1e12 * (peak.tf32 if tf32 and peak.tf32 else peak.fp32)
    return 1e12 * peak.half


def device_peak(device: torch.device, precision: Precision, *, again: bool = False) -> float | None:
    """Return the peak FLOP/s of a device: of a GPU from the table, of a CPU measured; None if unknown.

    A CPU is measured once, and ``again`` where other programs may have slowed it: the fastest counts.
    """
    if device.type == "cuda":
        tf32 = torch.get_float32_matmul_precision() != "highest"
        return peak_flops(torch.cuda.get_device_name(device), precision, tf32=tf32)
    if device.type == "cpu" and precision != "fp16":  # no fp16 kernel there: 500 times slower
        key = precision, torch.get_num_threads()
        if again or key not in _peaks:
            _peaks[key] = max(_measure_peak(precision), _peaks.get(key, 0.0))
        return _peaks[key]
    return None


def _measure_peak(precision: Precision, *, seconds: float = 0.3) -> float:
    """Measure the FLOP/s of a large matrix product on this CPU."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(_SIDE, _SIDE, generator=generator).to(DTYPES[precision]) for _ in range(2)
    )
    product = left @ right  # the first call sets kernels up
    fastest = float("inf")  # other programs only slow a product
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * _SIDE**3 / fastest
