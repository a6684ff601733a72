"""Attention routes: each is called for real on a few ragged cells, and held against float64."""

from typing import TYPE_CHECKING

from core.errors import MachineError
from core.machine_check.report import Level, MachineRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from core.model.attention import AttentionRoute
    from core.model.cell_bounds import CellBounds

__all__ = ["ROUTES", "check_attention"]

#: Every value of model.attention but "auto".
ROUTES = ("cpu", "sdpa", "varlen", "flash", "eager")
#: Tokens of the cells that are tried: one alone, a few, and enough for a second tile.
_LENGTHS = [1, 7, 150]
_HEADS, _WIDTH = 2, 32
#: Largest error of attended values of about 1, by number of bits; bf16 has a mantissa of eight.
_TOLERANCES = {32: 5e-3, 16: 5e-2}


def check_attention(devices: "Sequence[torch.device]") -> list[MachineRow]:
    """Call every attention route on every device.

    Parameters
    ----------
    devices
        That compute. Routes run in the precision that ``train.precision = "auto"`` takes there.

    Returns
    -------
    A row for each device and route. A route that is not for this device is no fault; one that is
    and fails, or answers wrongly, is one.
    """
    import torch

    from core.model.attention import resolve_attention

    rows = []
    for device in devices:
        is_cuda = device.type == "cuda"
        dtype = torch.bfloat16 if is_cuda and torch.cuda.is_bf16_supported() else torch.float32
        automatic = resolve_attention("auto", device=device, dtype=dtype, dropout=0.0, ragged=True)
        for name in ROUTES:
            check = f"{name} on {device.type}"
            try:
                route = resolve_attention(
                    name, device=device, dtype=dtype, dropout=0.0, ragged=True
                )
            except MachineError as error:
                reason = str(error).partition("here: ")[2].rpartition(";")[0]
                rows.append(MachineRow("ok", "attention", check, f"not for here: {reason}"))
                continue
            rows.append(_try_route(route, device, dtype, check, is_auto=name == automatic.name))
    return rows


def _try_route(
    route: "AttentionRoute",
    device: "torch.device",
    dtype: "torch.dtype",
    check: str,
    *,
    is_auto: bool,
) -> MachineRow:
    import torch

    level: Level = "fail" if is_auto else "warn"
    others = "another" if is_auto else "it unasked; 'auto' takes another"
    fix = f"set model.attention to {others}" if is_auto else f"leave {others}"
    q, k, v, bounds = _example_cells(device)
    expected = _written_out(q, k, v)
    try:
        attended = route.attend(q.to(dtype), k.to(dtype), v.to(dtype), bounds, 0.0)
        error = float((attended.double().cpu() - expected).abs().max())
    except Exception as failure:  # noqa: BLE001 - kernels raise anything; it is a finding
        why = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
        return MachineRow(level, "attention", check, f"does not run ({why})", fix)
    kind = str(dtype).removeprefix("torch.")
    if not error <= _TOLERANCES[torch.finfo(dtype).bits]:  # NaN fails too
        finding = f"answers wrongly in {kind}: off by {error:.2g}"
        return MachineRow(level, "attention", check, finding, fix)
    finding = f"runs in {kind}, within {error:.0e} of float64" + (", taken by 'auto'" * is_auto)
    return MachineRow("ok", "attention", check, finding)


def _example_cells(
    device: "torch.device",
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, CellBounds]":
    """Make queries, keys and values (tokens, heads, width) in fp32 of cells of `_LENGTHS`."""
    import numpy as np
    import torch

    from core.model.cell_bounds import CellBounds

    generator = torch.Generator().manual_seed(0)
    ends = np.cumsum([0, *_LENGTHS], dtype=np.int32)
    shape = (int(ends[-1]), _HEADS, _WIDTH)
    q, k, v = (torch.randn(shape, generator=generator).to(device) for _ in "qkv")
    return q, k, v, CellBounds.of(ends, torch.from_numpy(ends).to(device))


def _written_out(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
    """Softmax attention in float64, cell by cell."""
    import torch

    attended = []
    for one_q, one_k, one_v in zip(
        *(torch.split(x.double().cpu().transpose(0, 1), _LENGTHS, dim=1) for x in (q, k, v)),
        strict=True,
    ):
        weights = torch.softmax(one_q @ one_k.transpose(1, 2) / _WIDTH**0.5, dim=-1)
        attended.append(weights @ one_v)
    return torch.cat(attended, dim=1).transpose(0, 1)
