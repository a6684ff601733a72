"""What the encoder reads of cells that are partly known, in either layout.

Ranked: all genes of the panel, hidden ones as masked tokens. Expressed: the genes that are known to be on,
and beside them those that are asked for, as masked tokens; genes that are off are never seen, as in training.

Shapes: B cells, G genes of the panel, n genes asked for per cell.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.cell_batch import pack
from core.encoding.masking import Show
from core.encoding.tokens import MASK
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel

__all__ = ["ExpressedInput", "RankedInput"]

#: Genes that may be asked for at once, however few are expected to be hidden still.
_FEWEST_ASKED = 8


class RankedInput:
    """Cells as sequences of the whole panel."""

    def __init__(self, model: CellModel, codes: NDArray[np.int32], device: torch.device) -> None:
        n_cells, n_genes = len(codes), model.config.n_genes
        nothing = np.zeros((n_cells, n_genes), dtype=np.float32)
        arrays = model.batches.ranked(
            nothing, codes, _states(codes), np.ones(nothing.shape, dtype=bool)
        )
        self._batch = BatchTensors.from_arrays(arrays, device)
        self._width = len(self._batch.token_id) // n_cells
        self._first = model.config.tokens.header_length
        self._slots = slice(1, model.config.tokens.n_phenotypes + 1)

    def most_asked(self, n_hidden: int) -> int:
        """Return how many genes can be asked for at once: all."""
        return n_hidden

    def ask(
        self, genes: Tensor, value: Tensor, number: Tensor, share: Tensor, *, with_phenotypes: bool
    ) -> BatchTensors:
        """Return a batch that asks for ``genes`` of every cell, given the values so far.

        Parameters
        ----------
        genes
            (B, n), hidden ones.
        value, number
            (B, G), tokens of the genes' values, MASK where hidden, and values of a continuous model.
        share
            (B,), masked share.
        with_phenotypes
            False: with all phenotypes masked.
        """
        n_cells, n_genes = value.shape
        panel = slice(self._first, self._first + n_genes)
        every = self._batch.value.view(n_cells, self._width).clone()
        every[:, panel] = value
        numbers = self._batch.continuous.new_zeros(every.shape)
        numbers[:, panel] = number
        if not with_phenotypes:
            every[:, self._slots] = MASK
        cell = torch.arange(n_cells, device=genes.device).unsqueeze(1)
        position = (cell * self._width + self._first + genes).reshape(-1)
        output_bounds = np.arange(n_cells + 1, dtype=np.int32) * genes.shape[1]
        return replace(
            self._batch,
            value=every.reshape(-1),
            continuous=numbers.reshape(-1),
            gene=genes.reshape(-1),
            gene_cell=cell.expand_as(genes).reshape(-1),
            gene_position=position,
            mask_rate=share,
            # Only the genes asked for are read; no phenotype is masked as a question here.
            output_position=position,
            output_of_gene=torch.arange(len(position), device=position.device),
            output_bounds=output_bounds,
            cu_outputs=torch.from_numpy(output_bounds).to(position.device),
        )


class ExpressedInput:
    """Cells as sequences of the genes that are on.

    Parameters
    ----------
    model
        Of the expressed layout.
    codes
        (B, phenotypes), -1 for [NO_*].
    order
        (B, G), in which the genes of each cell become known: where more are on than a sequence holds,
        the first of them are read.
    on_share
        Expected share of genes that are on.
    """

    def __init__(
        self, model: CellModel, codes: NDArray[np.int32], order: Tensor, on_share: float
    ) -> None:
        self._config, self._codes, self._on_share = model.config, codes, on_share
        self._order = order.cpu().numpy()
        self._room = self._config.longest_sequence - self._config.tokens.header_length - 1

    def most_asked(self, n_hidden: int) -> int:
        """Return how many genes can be asked for at once: as many as training would have masked.

        In training the masked tokens of a cell are as many as its hidden genes that are on.
        """
        expected = max(round(n_hidden * self._on_share), _FEWEST_ASKED)
        return max(min(expected, self._room // 2), 1)

    def ask(
        self, genes: Tensor, value: Tensor, number: Tensor, share: Tensor, *, with_phenotypes: bool
    ) -> BatchTensors:
        """Return a batch as `RankedInput.ask` does."""
        tokens = self._config.tokens
        is_continuous = self._config.kind == "continuous"
        wanted, values, numbers = (one.cpu().numpy() for one in (genes, value, number))
        is_on = numbers > 0 if is_continuous else values > tokens.first_bin
        n_cells, n_asked = wanted.shape
        identity, shown, levels, lengths = [], [], [], []
        for cell in range(n_cells):
            order = self._order[cell]
            on = order[is_on[cell, order]][: max(self._room - n_asked, 0)]
            every = np.concatenate([on, wanted[cell]])
            identity.append((every + tokens.first_gene).astype(tokens.token_id_type))
            hidden = np.full(n_asked, MASK)
            shown.append(np.concatenate([values[cell, on], hidden]).astype(tokens.value_type))
            levels.append(np.concatenate([numbers[cell, on], np.zeros(n_asked, np.float32)]))
            lengths.append(len(every))
        ends = np.cumsum(lengths)
        states = _states(self._codes)
        if not with_phenotypes:
            states = np.full_like(states, Show.MASKED)
        packed = pack(
            tokens,
            self._codes,
            states,
            lengths=np.array(lengths),
            token_id=identity,
            value=shown,
            continuous=levels if is_continuous else None,
            masked_at=(ends[:, None] - n_asked + np.arange(n_asked)).ravel(),
            n_masked=np.full(n_cells, n_asked),
            gene=wanted.ravel().astype(np.int32),
            target=np.zeros(wanted.size, np.float32 if is_continuous else tokens.value_type),
            mask_rate=share.cpu().numpy().astype(np.float32),
        )
        return BatchTensors.from_arrays(packed, genes.device)


def _states(codes: NDArray[np.int32]) -> NDArray[np.int8]:
    return np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
