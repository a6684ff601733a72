"""Devices: whether torch, its CUDA and the driver fit together, shown by one product on each."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.machine_check.report import MachineRow

if TYPE_CHECKING:
    import torch

__all__ = [
    "DriverFacts",
    "TorchFacts",
    "check_compute",
    "read_driver",
    "read_torch",
    "usable_devices",
]

_CPU_ONLY_FIX = "install the build of torch for your CUDA, as pytorch.org says"
#: Largest error of a product of 64 numbers in fp32 or TF32, against float64.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class DriverFacts:
    """What the NVIDIA driver says, whatever torch thinks of it.

    Attributes
    ----------
    gpus
        Names of the GPUs; empty without driver.
    version
        Of the driver.
    cuda
        Newest CUDA that the driver serves, as (major, minor).
    """

    gpus: tuple[str, ...] = ()
    version: str = ""
    cuda: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TorchFacts:
    """What torch was built for, and sees.

    Attributes
    ----------
    version
        Of torch.
    cuda
        CUDA version that it was built for; None in a build without.
    architectures
        Of the GPUs it was built for, as ``sm_90``.
    gpus
        Name and compute capability of each GPU that it sees.
    has_mps
        Whether an Apple GPU is there.
    """

    version: str
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    gpus: tuple[tuple[str, tuple[int, int]], ...] = ()
    has_mps: bool = False


def read_driver() -> DriverFacts:
    """Ask the NVIDIA driver; no driver is no error."""
    try:
        import pynvml  # of nvidia-ml-py
    except ImportError:
        return DriverFacts()
    try:
        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no rights, no device: all one here
        return DriverFacts()
    try:
        names = [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        version = str(pynvml.nvmlSystemGetDriverVersion())
        return DriverFacts(tuple(names), version, (cuda // 1000, cuda % 1000 // 10))
    except Exception:  # noqa: BLE001 - drivers raise anything; the facts are optional
        return DriverFacts()
    finally:
        pynvml.nvmlShutdown()


def read_torch() -> TorchFacts:
    """Ask torch.

    Raises
    ------
    Exception
        Whatever importing torch raises.
    """
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(index)
            gpus.append((torch.cuda.get_device_name(index), capability))
    return TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()),
        gpus=tuple(gpus),
        has_mps=torch.backends.mps.is_available(),
    )


def check_compute(torch_facts: TorchFacts, driver: DriverFacts) -> list[MachineRow]:
    """Check that torch, its CUDA and the driver fit together.

    Parameters
    ----------
    torch_facts, driver
        What each says.
    """
    version = torch_facts.version
    if torch_facts.gpus:
        cuda = f"torch {version} (CUDA {torch_facts.cuda}), driver {driver.version or 'unknown'}"
        return [
            MachineRow("ok", "compute", "torch and driver", cuda),
            *_check_architectures(torch_facts),
        ]
    if torch_facts.has_mps:
        return [MachineRow("ok", "compute", "torch", f"torch {version}, on an Apple GPU")]
    if driver.gpus and torch_facts.cuda is None:
        finding = f"{driver.gpus[0]} is here, but torch {version} is a build without CUDA"
        return [MachineRow("warn", "compute", "torch and driver", finding, _CPU_ONLY_FIX)]
    if driver.gpus:
        return [_blind(torch_facts, driver)]
    finding = f"torch {version}, no GPU: tfx computes on the CPU"
    return [MachineRow("ok", "compute", "torch", finding)]


def _blind(torch_facts: TorchFacts, driver: DriverFacts) -> MachineRow:
    """Say why torch sees no GPU where the driver does."""
    needed = tuple(int(part) for part in (torch_facts.cuda or "0.0").split(".")[:2])
    serves = ".".join(map(str, driver.cuda))
    if needed[0] > driver.cuda[0]:
        finding = (
            f"torch {torch_facts.version} needs CUDA {torch_facts.cuda}, but driver "
            f"{driver.version} serves CUDA {serves} at most"
        )
        fix = f"update the driver, or install the build of torch for CUDA {serves}"
        return MachineRow("fail", "compute", "torch and driver", finding, fix)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        finding = f"CUDA_VISIBLE_DEVICES={hidden!r} hides {driver.gpus[0]}"
        return MachineRow("ok", "compute", "torch and driver", finding, "unset it to use the GPU")
    finding = f"the driver sees {driver.gpus[0]}, torch does not"
    fix = "run python -c 'import torch; torch.cuda.init()', which says why"
    return MachineRow("fail", "compute", "torch and driver", finding, fix)


def _check_architectures(torch_facts: TorchFacts) -> list[MachineRow]:
    rows = []
    built = sorted(
        int(name.removeprefix("sm_").rstrip("af"))
        for name in torch_facts.architectures
        if name.startswith("sm_")
    )
    for index, (name, capability) in enumerate(torch_facts.gpus):
        own = capability[0] * 10 + capability[1]
        finding = f"{name}, compute capability {capability[0]}.{capability[1]}"
        # Code for sm_80 runs on every later 8.x; newer generations need code of their own.
        if built and not any(one <= own and one // 10 == own // 10 for one in built):
            finding += f", for which torch {torch_facts.version} was not built"
            fix = "install a build of torch for this GPU, as pytorch.org says"
            rows.append(MachineRow("fail", "compute", f"GPU {index}", finding, fix))
        elif own < 80:
            finding += ": no bf16 and no variable-length attention"
            fix = "nothing; tfx pads cells and computes in fp32, or in fp16 if asked"
            rows.append(MachineRow("warn", "compute", f"GPU {index}", finding, fix))
        else:
            rows.append(MachineRow("ok", "compute", f"GPU {index}", finding))
    return rows


def usable_devices() -> "tuple[list[torch.device], list[MachineRow]]":
    """Multiply on every kind of device that torch sees: those where the product is right, and rows.

    Returns
    -------
    Devices that compute, the CPU first, and a row for each.
    """
    import torch

    kinds = ["cpu"]
    kinds += ["cuda"] if torch.cuda.is_available() else []
    kinds += ["mps"] if torch.backends.mps.is_available() else []
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in "ab")
    devices, rows = [], []
    for kind in kinds:
        try:
            product = (left.float().to(kind) @ right.float().to(kind)).double().cpu()
            error = float((product - left @ right).abs().max())
        except Exception as failure:  # noqa: BLE001 - drivers raise anything; it is a finding
            rows.append(_not_computing(kind, " ".join(str(failure).split())[:200]))
            continue
        if error > _TOLERANCE:
            rows.append(_not_computing(kind, f"a product is wrong by {error:.2g}"))
            continue
        devices.append(torch.device(kind))
        if kind == "cpu":
            ask = getattr(torch.cpu, "get_capabilities", dict)  # not in every release
            rows.append(_describe_cpu(torch.get_num_threads(), ask()))
        else:
            rows.append(MachineRow("ok", "compute", kind, "computes"))
    return devices, rows


def _not_computing(kind: str, why: str) -> MachineRow:
    fix = "install torch again" if kind == "cpu" else "update the driver, or use --device cpu"
    return MachineRow("fail", "compute", kind, f"does not compute ({why})", fix)


def _describe_cpu(n_threads: int, capabilities: dict[str, Any]) -> MachineRow:
    fast = [name for name in ("avx512_bf16", "amx_bf16", "amx_tile") if capabilities.get(name)]
    bf16 = f"fast bf16 ({fast[0]}): train.precision = 'bf16' pays" if fast else "no fast bf16"
    return MachineRow(
        "ok", "compute", "cpu", f"computes on {n_threads} thread{'s' * (n_threads != 1)}; {bf16}"
    )
