"""A batch on the device: the arrays of `core.encoding.batches.CellBatch` as tensors."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from core.encoding.batches import CellBatch

__all__ = ["BatchTensors"]


@dataclass(frozen=True)
class BatchTensors:
    """The model's input; shapes as in `CellBatch`.

    ``n_cells``, ``max_length`` and ``rectangular`` stay on the host, so that no step waits for the
    device to learn a shape.
    """

    identity: Tensor
    value: Tensor
    number: Tensor
    cu_seqlens: Tensor
    gene_position: Tensor
    gene_cell: Tensor
    gene: Tensor
    gene_target: Tensor
    phenotype_position: Tensor
    phenotype_cell: Tensor
    phenotype_slot: Tensor
    phenotype_target: Tensor
    mask_share: Tensor
    n_cells: int
    max_length: int
    rectangular: bool

    @classmethod
    def from_arrays(cls, batch: CellBatch, device: torch.device | str = "cpu") -> "BatchTensors":
        """Copy a batch to ``device``."""
        device = torch.device(device)
        tensors = {}
        for field in fields(batch):
            tensor = torch.from_numpy(getattr(batch, field.name))
            if device.type == "cuda":
                tensor = tensor.pin_memory()
            tensors[field.name] = tensor.to(device, non_blocking=True)
        return cls(
            **tensors,
            n_cells=batch.n_cells,
            max_length=batch.max_length,
            rectangular=batch.rectangular,
        )
