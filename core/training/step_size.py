"""How large the steps of a run will be, and how many: what its sampler will cut, known beforehand."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.encoding.sampler import BlockSampler
from core.model.configuration import TfxConfig
from core.presets.schema import TrainSettings
from core.training.batch_source import cells_per_virtual_rank
from core.training.flops import mean_attended_length
from core.training.schedule import total_steps

__all__ = ["RunSize"]

#: Cells that are dealt to steps to see how many there are; of more cells there are as many more.
_DEALT_CELLS = 100_000


@dataclass(frozen=True)
class RunSize:
    """Cells and tokens of a step over all processes, and steps.

    Attributes
    ----------
    cells, tokens
        Of a step, on average.
    length, longest
        Tokens of a cell, on average and at most.
    attended_length
        L̄ of the operations' formula.
    lengths
        (some cells,), tokens of each.
    per_epoch, total
        Steps of an epoch, and of the run.
    """

    cells: float
    tokens: float
    length: float
    longest: int
    attended_length: float
    lengths: NDArray[np.int64]
    per_epoch: int
    total: int

    @classmethod
    def of(
        cls,
        train: TrainSettings,
        config: TfxConfig,
        *,
        n_training: int,
        genes_per_cell: NDArray[np.int64],
        n_virtual_ranks: int,
    ) -> "RunSize":
        """Work it out.

        Parameters
        ----------
        train, config
            Of the run.
        n_training
            Training cells.
        genes_per_cell
            (some cells,), expressed genes of the panel.
        n_virtual_ranks
            Streams that the cells are dealt to.

        Raises
        ------
        ConfigurationError
            A step has no room for a cell, or cells or steps cannot be dealt to the virtual ranks.
        """
        special = config.tokens.header_length + 1
        is_ranked = config.layout == "ranked"
        genes = (
            np.array([config.n_genes])
            if is_ranked
            else np.minimum(genes_per_cell, config.longest_sequence - special)
        )
        lengths = genes.astype(np.int64) + special
        n_cells = min(n_training, _DEALT_CELLS)
        batch_size, budget = cells_per_virtual_rank(
            train, n_virtual_ranks, length=int(lengths.max()) if is_ranked else None
        )
        sampler = BlockSampler(
            np.arange(n_cells),
            seed=train.seed,
            batch_size=batch_size,
            lengths=None if budget is None else np.resize(lengths, n_cells),
            tokens_per_batch=budget,
            virtual_ranks=n_virtual_ranks,
        )
        length = float(lengths.mean())
        in_step = n_virtual_ranks * sampler.quota / (1.0 if budget is None else length)

        def steps_of(epoch: int) -> int:
            return round(sampler.steps(epoch) * n_training / n_cells)

        return cls(
            cells=in_step,
            tokens=in_step * length,
            length=length,
            longest=int(lengths.max()),
            attended_length=mean_attended_length(lengths.tolist()),
            lengths=lengths,
            per_epoch=steps_of(0),
            total=total_steps(steps_of, max_steps=train.max_steps, epochs=train.epochs),
        )
