"""Devices and attention: whether torch, its CUDA and the driver fit, by computing on each device."""

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import MachineError
from core.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from core.model.attention import AttentionRoute

#: Every value of model.attention but "auto".
ROUTES = ("cpu", "sdpa", "varlen", "flash", "eager")
#: Largest error of a product of 64 numbers in fp32 or TF32, against float64.
_PRODUCT_TOLERANCE = 0.05
#: Largest error of attended values of about 1, by number of bits; bf16 has a mantissa of eight.
_ATTENTION_TOLERANCES = {32: 5e-3, 16: 5e-2}
#: Tokens of the example cells: one alone, a few, and enough for a second tile.
_LENGTHS = [1, 7, 150]
_HEADS, _WIDTH = 2, 32


@dataclass(frozen=True)
class DriverFacts:
    """What the NVIDIA driver reports, independent of torch; names of GPUs are empty without one."""

    gpus: tuple[str, ...] = ()
    version: str = ""
    #: Newest CUDA that the driver supports, as (major, minor).
    cuda: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TorchFacts:
    """What torch was built for, and which devices it finds."""

    version: str
    #: CUDA version of the build; None for a build without CUDA.
    cuda: str | None = None
    #: GPU architectures of the build, as ``sm_90``.
    architectures: tuple[str, ...] = ()
    #: Name and compute capability of each GPU.
    gpus: tuple[tuple[str, tuple[int, int]], ...] = ()
    #: An Apple GPU.
    has_mps: bool = False


def one_line(error: Exception) -> str:
    """Return type and message of an error on one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def read_driver() -> DriverFacts:
    """Query the NVIDIA driver; a machine without one gives empty facts."""
    # No package, driver, rights or device: drivers raise anything, and the facts are optional.
    with contextlib.suppress(Exception):
        import pynvml  # of nvidia-ml-py

        pynvml.nvmlInit()
        try:
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            names = tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
            cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
            version = str(pynvml.nvmlSystemGetDriverVersion())
            return DriverFacts(names, version, (cuda // 1000, cuda % 1000 // 10))
        finally:
            pynvml.nvmlShutdown()
    return DriverFacts()


def read_torch() -> TorchFacts:
    """Query torch; raises whatever importing torch raises."""
    import torch

    indices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()),
        gpus=tuple(
            (torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
            for index in indices
        ),
        has_mps=torch.backends.mps.is_available(),
    )


def check_torch_and_driver(torch_facts: TorchFacts, driver: DriverFacts) -> list[Finding]:
    """Check that torch, its CUDA and the driver fit together."""
    torch_version = f"torch {torch_facts.version}"
    if torch_facts.gpus:
        finding = f"{torch_version} (CUDA {torch_facts.cuda}), driver {driver.version or 'unknown'}"
        row = Finding("ok", "compute", "torch and driver", finding)
        return [row, *_check_architectures(torch_facts)]
    if torch_facts.has_mps:
        return [Finding("ok", "compute", "torch", f"{torch_version}, on an Apple GPU")]
    if not driver.gpus:
        finding = f"{torch_version}, no GPU: tfx computes on the CPU"
        return [Finding("ok", "compute", "torch", finding)]
    # Torch finds no GPU although the driver does.
    level: Level = "fail"
    gpu = driver.gpus[0]
    supported = ".".join(map(str, driver.cuda))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch_facts.cuda is None:
        level, finding = "warn", f"{gpu} is present, but {torch_version} is a build without CUDA"
        fix = "install the build of torch for your CUDA, as pytorch.org says"
    elif int(torch_facts.cuda.split(".")[0]) > driver.cuda[0]:
        driver_supports = f"driver {driver.version} supports CUDA {supported} at most"
        finding = f"{torch_version} needs CUDA {torch_facts.cuda}, but {driver_supports}"
        fix = f"update the driver, or install the build of torch for CUDA {supported}"
    elif hidden is not None:
        level, finding = "ok", f"CUDA_VISIBLE_DEVICES={hidden!r} hides {gpu}"
        fix = "unset it to use the GPU"
    else:
        finding = f"the driver finds {gpu}, torch does not"
        fix = "run python -c 'import torch; torch.cuda.init()', which prints the reason"
    return [Finding(level, "compute", "torch and driver", finding, fix)]


def _check_architectures(torch_facts: TorchFacts) -> list[Finding]:
    built = [
        int(name.removeprefix("sm_").rstrip("af"))
        for name in torch_facts.architectures
        if name.startswith("sm_")
    ]
    rows = []
    for index, (name, (major, minor)) in enumerate(torch_facts.gpus):
        level: Level = "ok"
        finding, fix = f"{name}, compute capability {major}.{minor}", ""
        # Code for sm_80 runs on every later 8.x; newer generations need code of their own.
        if built and not any(one // 10 == major and one % 10 <= minor for one in built):
            level, fix = "fail", "install a build of torch for this GPU, as pytorch.org says"
            finding += f", for which torch {torch_facts.version} was not built"
        elif major < 8:
            level = "warn"
            finding += ": no bf16 and no variable-length attention"
            fix = "nothing; tfx pads cells and computes in fp32, or in fp16 if you set it"
        rows.append(Finding(level, "compute", f"GPU {index}", finding, fix))
    return rows


def usable_devices() -> "tuple[list[torch.device], list[Finding]]":
    """Multiply two matrices on every kind of device that torch finds.

    Returns the devices with a correct product, the CPU first, and a row for each kind.
    """
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kinds = ["cpu", *(kind for kind, is_available in found.items() if is_available)]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in "ab")
    devices, rows = [], []
    for kind in kinds:
        try:
            product = (left.float().to(kind) @ right.float().to(kind)).double().cpu()
            error = float((product - left @ right).abs().max())
            problem = f"a product is wrong by {error:.2g}" if error > _PRODUCT_TOLERANCE else ""
        except Exception as failure:  # noqa: BLE001 - drivers raise anything; it is a finding
            problem = one_line(failure)
        if not problem:
            devices.append(torch.device(kind))
            finding = _describe_cpu() if kind == "cpu" else "computes"
            rows.append(Finding("ok", "compute", kind, finding))
            continue
        fix = "install torch again" if kind == "cpu" else "update the driver, or use --device cpu"
        rows.append(Finding("fail", "compute", kind, f"does not compute ({problem})", fix))
    return devices, rows


def _describe_cpu() -> str:
    import torch

    n_threads = torch.get_num_threads()
    read = getattr(torch.cpu, "get_capabilities", dict)  # since torch 2.12
    capabilities: dict[str, Any] = read()
    fast = [name for name in ("avx512_bf16", "amx_bf16", "amx_tile") if capabilities.get(name)]
    bf16 = f"fast bf16 ({fast[0]}): train.precision = 'bf16' pays" if fast else "no fast bf16"
    return f"computes on {n_threads} thread{'s' * (n_threads != 1)}; {bf16}"


def check_attention(devices: "Sequence[torch.device]") -> list[Finding]:
    """Call every attention route on every device and compare its output with float64.

    Routes run in the precision that ``train.precision = "auto"`` chooses. A route that is not
    available on a device is ok; one that is available and fails, or is wrong, is not.
    """
    import torch

    from core.model.attention import resolve_attention

    rows = []
    for device in devices:
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if has_bf16 else torch.float32
        where: dict[str, Any] = {"device": device, "dtype": dtype, "dropout": 0.0, "ragged": True}
        automatic = resolve_attention("auto", **where).name
        for name in ROUTES:
            check = f"{name} on {device.type}"
            try:
                route = resolve_attention(name, **where)
            except MachineError as error:
                reason = str(error).partition("here: ")[2].rpartition(";")[0]
                rows.append(Finding("ok", "attention", check, f"not available here: {reason}"))
                continue
            problem, finding = _try_route(route, device, dtype)
            if not problem:
                finding += ", chosen by 'auto'" * (name == automatic)
                rows.append(Finding("ok", "attention", check, finding))
            elif name == automatic:
                fix = "set model.attention to another route"
                rows.append(Finding("fail", "attention", check, problem, fix))
            else:
                fix = "do not set model.attention to it; 'auto' chooses another"
                rows.append(Finding("warn", "attention", check, problem, fix))
    return rows


def _try_route(
    route: "AttentionRoute", device: "torch.device", dtype: "torch.dtype"
) -> tuple[str, str]:
    """Return a problem and a finding, one of them empty."""
    import numpy as np
    import torch

    from core.model.batch_tensors import CellBounds

    generator = torch.Generator().manual_seed(0)
    ends = np.cumsum([0, *_LENGTHS], dtype=np.int32)
    shape = (int(ends[-1]), _HEADS, _WIDTH)
    q, k, v = (torch.randn(shape, generator=generator) for _ in "qkv")
    bounds = CellBounds.of(ends, torch.from_numpy(ends).to(device))
    try:
        q_device, k_device, v_device = (x.to(device).to(dtype) for x in (q, k, v))
        attended = route.attend(q_device, k_device, v_device, bounds, 0.0)
        error = float((attended.double().cpu() - _attend_float64(q, k, v)).abs().max())
    except Exception as failure:  # noqa: BLE001 - kernels raise anything; it is a finding
        return f"does not run ({one_line(failure)})", ""
    kind = str(dtype).removeprefix("torch.")
    if not error <= _ATTENTION_TOLERANCES[torch.finfo(dtype).bits]:  # NaN is wrong too
        return f"is wrong in {kind}: off by {error:.2g}", ""
    return "", f"runs in {kind}, within {error:.0e} of float64"


def _attend_float64(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
    """Softmax attention in float64, cell by cell; (tokens, heads, width)."""
    import torch

    attended = []
    split = (torch.split(x.double().transpose(0, 1), _LENGTHS, dim=1) for x in (q, k, v))
    for one_q, one_k, one_v in zip(*split, strict=True):
        weights = torch.softmax(one_q @ one_k.transpose(1, 2) / _WIDTH**0.5, dim=-1)
        attended.append(weights @ one_v)
    return torch.cat(attended, dim=1).transpose(0, 1)
