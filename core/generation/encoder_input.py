"""What the encoder reads of cells that are being drawn, in either layout.

Ranked: all genes of the panel, hidden ones as masked tokens. Expressed: the genes known to be expressed, and
the queried genes as masked tokens; genes that are not expressed are never shown, as in training.

Shapes: B cells, G genes of the panel, n queried genes per cell.
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

#: Genes that may be queried at once, however few hidden ones are expected to be expressed.
_FEWEST_QUERIED = 8


class RankedInput:
    """Cells as sequences of the whole panel, any number of whose genes can be queried at once."""

    def __init__(
        self,
        model: CellModel,
        codes: NDArray[np.int32],
        device: torch.device,
        library_size: Tensor | None,
    ) -> None:
        nothing = np.zeros((len(codes), model.config.n_genes), dtype=np.float32)
        is_masked = np.ones(nothing.shape, dtype=bool)
        arrays = model.batches.ranked(nothing, codes, _states(codes), is_masked)
        batch = BatchTensors.from_arrays(arrays, device)
        self._batch = replace(batch, library_size=library_size, possible=None)
        self._width = len(self._batch.token_id) // len(codes)
        self._first = model.config.tokens.header_length
        self._slots = slice(1, model.config.tokens.n_phenotypes + 1)

    def most_queried(self, n_hidden: int) -> int:
        """Return how many genes can be queried at once: all."""
        return n_hidden

    def query(
        self,
        genes: Tensor,
        value: Tensor,
        continuous: Tensor,
        mask_rate: Tensor,
        *,
        with_phenotypes: bool,
    ) -> BatchTensors:
        """Return a batch whose output positions are the hidden ``genes`` (B, n) of every cell.

        ``value`` (B, G) are the tokens of the genes' values, MASK where hidden, ``continuous`` (B, G) the
        values of a continuous model; ``mask_rate`` is (B,). All phenotypes are masked without
        ``with_phenotypes``.
        """
        n_cells, n_genes = value.shape
        panel = slice(self._first, self._first + n_genes)
        values = self._batch.value.view(n_cells, self._width).clone()
        values[:, panel] = value
        numbers = self._batch.continuous.new_zeros(values.shape)
        numbers[:, panel] = continuous
        if not with_phenotypes:
            values[:, self._slots] = MASK
        cell = torch.arange(n_cells, device=genes.device).unsqueeze(1)
        position = (cell * self._width + self._first + genes).reshape(-1)
        output_bounds = np.arange(n_cells + 1, dtype=np.int32) * genes.shape[1]
        return replace(
            self._batch,
            value=values.reshape(-1),
            continuous=numbers.reshape(-1),
            gene=genes.reshape(-1),
            gene_cell=cell.expand_as(genes).reshape(-1),
            gene_position=position,
            mask_rate=mask_rate,
            # Masked phenotypes are no output positions here.
            output_position=position,
            output_of_gene=torch.arange(len(position), device=position.device),
            output_bounds=output_bounds,
            cu_outputs=torch.from_numpy(output_bounds).to(position.device),
        )


class ExpressedInput:
    """Cells as sequences of the expressed genes.

    ``order`` (B, G) is that in which the genes of each cell become known: where more are expressed than a
    sequence holds, the first of them are shown. ``expressed_fraction`` of the panel is expected to be
    expressed.
    """

    def __init__(
        self,
        model: CellModel,
        codes: NDArray[np.int32],
        order: Tensor,
        expressed_fraction: float,
        library_size: Tensor | None = None,
    ) -> None:
        self._config, self._codes, self._library_size = model.config, codes, library_size
        self._expressed_fraction = expressed_fraction
        self._order = order.cpu().numpy()
        self._room = self._config.longest_sequence - self._config.tokens.header_length - 1

    def most_queried(self, n_hidden: int) -> int:
        """Return how many genes can be queried at once: the number that training would have masked.

        In training the masked tokens of a cell are as many as its hidden expressed genes.
        """
        expected = max(round(n_hidden * self._expressed_fraction), _FEWEST_QUERIED)
        return max(min(expected, self._room // 2), 1)

    def query(
        self,
        genes: Tensor,
        value: Tensor,
        continuous: Tensor,
        mask_rate: Tensor,
        *,
        with_phenotypes: bool,
    ) -> BatchTensors:
        """Return a batch as `RankedInput.query` does."""
        tokens = self._config.tokens
        is_continuous = self._config.kind == "continuous"
        queried, values, numbers = (one.cpu().numpy() for one in (genes, value, continuous))
        is_expressed = numbers > 0 if is_continuous else values > tokens.first_bin
        n_cells, n_queried = queried.shape
        token_ids, shown, shown_numbers = [], [], []
        none = np.zeros(n_queried, np.float32)
        masked = np.full(n_queried, MASK)
        for cell, order in enumerate(self._order):
            expressed = order[is_expressed[cell, order]][: max(self._room - n_queried, 0)]
            every = np.concatenate([expressed, queried[cell]])
            token_ids.append((every + tokens.first_gene).astype(tokens.token_id_type))
            shown_values = np.concatenate([values[cell, expressed], masked])
            shown.append(shown_values.astype(tokens.value_type))
            shown_numbers.append(np.concatenate([numbers[cell, expressed], none]))
        lengths = np.array([len(one) for one in token_ids])
        ends = np.cumsum(lengths)
        states = _states(self._codes)
        if not with_phenotypes:
            states = np.full_like(states, Show.MASKED)
        packed = pack(
            tokens,
            self._codes,
            states,
            lengths=lengths,
            token_id=token_ids,
            value=shown,
            continuous=shown_numbers if is_continuous else None,
            masked_at=(ends[:, None] - n_queried + np.arange(n_queried)).ravel(),
            n_masked=np.full(n_cells, n_queried),
            gene=queried.ravel().astype(np.int32),
            target=np.zeros(queried.size, np.float32 if is_continuous else tokens.value_type),
            mask_rate=mask_rate.cpu().numpy().astype(np.float32),
        )
        batch = BatchTensors.from_arrays(packed, genes.device)
        return replace(batch, library_size=self._library_size)


def _states(codes: NDArray[np.int32]) -> NDArray[np.int8]:
    return np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
