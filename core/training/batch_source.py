"""From a preset, a store and a model to the batches of a run."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.cells.store import Store
from core.encoding.batches import BatchEncoder
from core.encoding.loader import BatchSource
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import BlockSampler
from core.errors import ConfigurationError
from core.model.folder import CellModel
from core.presets.schema import MaskingSettings, TrainSettings

__all__ = ["cells_per_virtual_rank", "make_batch_source"]


def make_batch_source(
    train: TrainSettings,
    masking: MaskingSettings,
    store: Store,
    rows: NDArray[np.int64],
    model: CellModel,
    *,
    virtual_rank: int = 0,
    virtual_ranks: int = 1,
    bins_on_device: bool = False,
    rows_of_epoch: Callable[[int], NDArray[np.int64]] | None = None,
    views: int = 1,
) -> BatchSource:
    """Make what encodes the training batches of one virtual rank.

    Parameters
    ----------
    train, masking
        How large steps are, in which order cells come, and what is hidden.
    store, rows
        The training cells, ascending.
    model
        Its panel and its encoding.
    virtual rank, virtual ranks
        Which stream of the epoch, and how many there are: each gives its share of a step.
    bins_on_device
        Leave the bins of counts to the device.
    rows_of_epoch
        Draws the cells of an epoch from ``rows``; None: an epoch is all of them.
    views
        How often a cell is in its batch, masked anew each time.

    Raises
    ------
    ConfigurationError
        There are fewer cells than virtual ranks, ``train.batch_size`` cannot be shared among them, or
        ``train.tokens_per_batch`` is too small.
    DataError
        The store has none of the model's genes.
    """
    reader = PanelReader(store, model.panel)
    encoder = BatchEncoder(
        model.config.tokens,
        model.values,
        max_length=model.config.longest_sequence,
        bins_on_device=bins_on_device,
    )
    is_ranked = model.config.layout == "ranked"
    batch_size, budget = cells_per_virtual_rank(
        train, virtual_ranks, length=encoder.tokens.required_length if is_ranked else None
    )
    lengths = None
    if budget is not None:
        genes = np.minimum(reader.count_values(rows), encoder.room)
        lengths = genes + encoder.tokens.header_length + 1
    sampler = BlockSampler(
        rows,
        seed=train.seed,
        batch_size=batch_size,
        lengths=lengths,
        tokens_per_batch=budget,
        virtual_rank=virtual_rank,
        virtual_ranks=virtual_ranks,
        rows_of_epoch=rows_of_epoch,
    )
    return BatchSource(reader, encoder, sampler, masking, views=views)


def cells_per_virtual_rank(
    train: TrainSettings, virtual_ranks: int, *, length: int | None = None
) -> tuple[int, int | None]:
    """Return what each virtual rank gives to a step: so many cells, or where not None so many tokens.

    Parameters
    ----------
    train, virtual_ranks
        As in `make_batch_source`.
    length
        Tokens of every cell; None where cells differ.

    Raises
    ------
    ConfigurationError
        The cells cannot be shared equally, or the tokens have no room for a cell.
    """
    if train.tokens_per_batch is None:
        if train.batch_size % virtual_ranks:
            message = (
                f"train.batch_size = {train.batch_size} cells cannot be shared equally by {virtual_ranks} "
                f"virtual ranks; give a multiple of {virtual_ranks}"
            )
            raise ConfigurationError(message)
        return train.batch_size // virtual_ranks, None
    budget = train.tokens_per_batch // virtual_ranks
    if length is None:
        return train.batch_size, budget
    if budget < length:
        message = (
            f"train.tokens_per_batch = {train.tokens_per_batch} has no room for a cell of "
            f"{length} tokens{_per_virtual_rank(virtual_ranks)}; give at least {length * virtual_ranks} or lower "
            f"data.genes"
        )
        raise ConfigurationError(message)
    return budget // length, None


def _per_virtual_rank(virtual_ranks: int) -> str:
    return f" in each of {virtual_ranks} virtual ranks" if virtual_ranks > 1 else ""
