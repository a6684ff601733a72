"""Floating-point operations of training, and which share of the machine's peak they reach.

No torch: plain arithmetic, so that a forecast and a run log agree. Model FLOPs utilisation as in
PaLM (arXiv 2204.02311, appendix B): the work that the model's maths needs, whatever the kernels
do besides or leave out, over the peak of the hardware.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["EncoderFlops", "mean_attended_length", "peak_flops"]

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class EncoderFlops:
    """What one token costs an encoder, forward and backward.

    Attributes
    ----------
    parameters
        P, parameters of the encoder's layers: no embeddings, no heads, no log-linear part.
    layers
        Number of layers.
    width
        d, the hidden size.
    """

    parameters: int
    layers: int
    width: int

    def per_token(self, attended_length: float) -> float:
        """Return 6 P + 12 · layers · d · L̄, the FLOPs of one token in one training step.

        Parameters
        ----------
        attended_length
            L̄, as `mean_attended_length` gives it.
        """
        return 6.0 * self.parameters + 12.0 * self.layers * self.width * attended_length

    def utilisation(
        self, *, tokens_per_second: float, attended_length: float, peak: float | None
    ) -> float | None:
        """Return the share of the peak that is reached (MFU).

        Parameters
        ----------
        tokens_per_second
            Over all processes.
        attended_length
            L̄ of the same tokens.
        peak
            FLOP/s of all processes' devices together; None where it is not known.

        Returns
        -------
        A share, or None where there is no encoder or no known peak: no figure is better than a
        guessed one.
        """
        if not self.parameters or not peak:
            return None
        return self.per_token(attended_length) * tokens_per_second / peak


def mean_attended_length(lengths: Iterable[int]) -> float:
    """Return L̄ = Σ L² / Σ L: how many tokens a token attends to, on average over tokens.

    Parameters
    ----------
    lengths
        Tokens of each cell.
    """
    lengths = [int(length) for length in lengths]
    n_tokens = sum(lengths)
    return sum(length * length for length in lengths) / n_tokens if n_tokens else 0.0


@dataclass(frozen=True)
class _Peak:
    """Dense TFLOP/s of a GPU; products in bf16 or fp16 accumulate in fp32."""

    pattern: str
    half: float
    tf32: float | None
    fp32: float
    has_bf16: bool = True


#: The makers' figures without sparsity (which their datasheets often give alone, twice as high).
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

    Parameters
    ----------
    device_name
        As ``torch.cuda.get_device_name`` gives it.
    precision
        In accelerate's words; "no" is fp32.
    tf32
        Whether fp32 products may run in TF32.

    Returns
    -------
    FLOP/s, or None for a GPU that is not in the table, or a part of one (MIG).
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    for peak in _PEAKS:
        if not re.search(peak.pattern, device_name):
            continue
        if precision == "no":
            teraflops = peak.tf32 if tf32 and peak.tf32 else peak.fp32
        elif precision == "bf16" and not peak.has_bf16:
            return None  # emulated
        else:
            teraflops = peak.half
        return teraflops * 1e12
    return None
