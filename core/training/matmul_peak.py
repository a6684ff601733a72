"""The peak of the device a run computes on: from the maker's table for a GPU, measured on a CPU."""

import functools
import time

import torch

from core.training.flops import Precision, peak_flops

__all__ = ["device_peak", "measured_peak"]

#: Side of the square product that is timed; three fp32 matrices of it take 25 MB.
_SIDE = 1440
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_peak(device: torch.device, precision: Precision) -> float | None:
    """Return the peak FLOP/s of one process' device; None where it is not known.

    Parameters
    ----------
    device
        Where the process computes.
    precision
        In accelerate's words; "no" is fp32.
    """
    if device.type == "cuda":
        tf32 = torch.get_float32_matmul_precision() != "highest"
        return peak_flops(torch.cuda.get_device_name(device), precision, tf32=tf32)
    if device.type == "cpu" and precision != "fp16":  # no fp16 kernel there: 500 times slower
        return measured_peak(precision, torch.get_num_threads())
    return None


@functools.cache
def measured_peak(precision: Precision, n_threads: int, *, seconds: float = 0.3) -> float:
    """Measure the FLOP/s of a large matrix product on this CPU, once per process.

    Parameters
    ----------
    precision
        "no" (fp32) or "bf16".
    n_threads
        The number of threads torch computes with, of which the answer is a function.
    seconds
        How long to measure; the fastest product counts, since other programs only slow it.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(_SIDE, _SIDE, generator=generator).to(_DTYPES[precision]) for _ in range(2)
    )
    product = left @ right  # the first call sets kernels up
    fastest = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * _SIDE**3 / fastest
