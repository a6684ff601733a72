"""A batch on the device: the arrays of `core.encoding.batches.CellBatch` as tensors.

`HostBatch` is the batch with the small integers of the host, in page-locked memory where a GPU will
fetch it; `BatchTensors` is what the model takes. Bins that the encoder left to the device are made
on the way from one to the other.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.cell_batch import CellBatch, PendingBins
from core.encoding.tokens import MASK

__all__ = ["BatchTensors", "HostBatch"]


@dataclass(frozen=True)
class BatchTensors:
    """The model's input; shapes as in `CellBatch`.

    What a step must know of shapes stays on the host, so that it never waits for the device.

    Attributes
    ----------
    output_position
        (R,), flat positions that an answer is read from: masked genes and phenotypes, ascending.
    output_of_gene, output_of_phenotype
        (M,), (K,), where among those the masked genes and phenotypes stand.
    bounds, output_bounds
        (cells + 1,), host integers: first token, and first read position, of each cell.
    cu_outputs
        ``output_bounds`` on the device, int32.
    """

    token_id: Tensor
    value: Tensor
    continuous: Tensor
    cu_seqlens: Tensor
    gene_position: Tensor
    gene_cell: Tensor
    gene: Tensor
    gene_target: Tensor
    phenotype_position: Tensor
    phenotype_cell: Tensor
    phenotype_slot: Tensor
    phenotype_target: Tensor
    mask_rate: Tensor
    output_position: Tensor
    output_of_gene: Tensor
    output_of_phenotype: Tensor
    cu_outputs: Tensor
    bounds: NDArray[np.int32]
    output_bounds: NDArray[np.int32]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.bounds) - 1

    @classmethod
    def from_arrays(cls, batch: CellBatch, device: torch.device | str = "cpu") -> "BatchTensors":
        """Copy a batch to ``device``."""
        return HostBatch.of(batch, pin=torch.device(device).type == "cuda").to(device)


@dataclass(frozen=True)
class HostBatch:
    """A batch on the host, ready to go to a device.

    Attributes
    ----------
    tensors
        By name, integers as small as they are; a repeated zero is a single one.
    thresholds
        Of pending bins, or None.
    arrays
        Where the tensors' shapes and the pending bins are described.
    output_bounds
        As in `BatchTensors`.
    """

    tensors: dict[str, Tensor]
    thresholds: Tensor | None
    arrays: CellBatch
    output_bounds: NDArray[np.int32]

    @classmethod
    def of(cls, arrays: CellBatch, *, pin: bool = False) -> "HostBatch":
        """Wrap arrays, in page-locked memory if ``pin``: so they travel while the host goes on."""
        tensors = {
            field.name: _wrap(getattr(arrays, field.name), pin=pin)
            for field in fields(arrays)
            if field.name != "pending"
        }
        reads, output_bounds = _reads(arrays)
        tensors |= {name: _wrap(array, pin=pin) for name, array in reads.items()}
        pending = arrays.pending
        thresholds = None if pending is None else _wrap(pending.thresholds, pin=pin)
        return cls(tensors, thresholds, arrays, output_bounds)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.arrays.n_cells

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.arrays.token_id)

    def to(self, device: torch.device | str) -> BatchTensors:
        """Copy to ``device``, integers as the model takes them: int64, ``cu_seqlens`` int32."""
        tensors = {name: _as_input(name, tensor, device) for name, tensor in self.tensors.items()}
        if len(tensors["continuous"]) != self.n_tokens:
            tensors["continuous"] = tensors["continuous"].new_zeros(self.n_tokens)
        if self.arrays.pending is not None and self.thresholds is not None:
            thresholds = self.thresholds.to(device, non_blocking=True)
            _make_bins(tensors, thresholds, self.arrays.pending)
        return BatchTensors(
            **tensors,
            bounds=self.arrays.cu_seqlens,
            output_bounds=self.output_bounds,
        )


def _reads(arrays: CellBatch) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
    """Join the positions that answers are read from; both kinds are ascending, none is in both."""
    n_genes = len(arrays.gene_position)
    joined = np.concatenate([arrays.gene_position, arrays.phenotype_position]).astype(np.int32)
    order = np.argsort(joined, kind="stable")
    place = np.empty(len(joined), dtype=np.int32)
    place[order] = np.arange(len(joined), dtype=np.int32)
    position = joined[order]
    bounds = np.searchsorted(position, arrays.cu_seqlens).astype(np.int32)
    reads = {
        "output_position": position,
        "output_of_gene": place[:n_genes],
        "output_of_phenotype": place[n_genes:],
        "cu_outputs": bounds,
    }
    return reads, bounds


def _wrap(array: NDArray[Any], *, pin: bool) -> Tensor:
    if len(array) and array.strides == (0,):
        array = np.zeros(1, dtype=array.dtype)
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor


def _as_input(name: str, tensor: Tensor, device: torch.device | str) -> Tensor:
    tensor = tensor.to(device, non_blocking=True)
    return (
        tensor
        if name in ("cu_seqlens", "cu_outputs") or tensor.is_floating_point()
        else tensor.long()
    )


def _make_bins(tensors: dict[str, Tensor], thresholds: Tensor, pending: PendingBins) -> None:
    """Turn counts into bins, ask for those at masked genes, and mask them."""
    counts, bounds = tensors["value"], tensors["cu_seqlens"].long()
    lengths = bounds.diff()
    cell = torch.repeat_interleave(lengths, output_size=len(counts))
    bins = torch.zeros_like(counts)
    for reaching in thresholds.unbind(1):
        bins += counts >= reaching[cell]
    is_gene = tensors["token_id"] >= pending.first_gene
    value = torch.where(is_gene, bins + pending.first_bin, counts)
    value[tensors["gene_position"]] = MASK
    tensors["gene_target"] = bins[tensors["gene_position"]]
    tensors["value"] = value
