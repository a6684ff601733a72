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

__all__ = ["cells_per_lane", "make_batch_source"]


def make_batch_source(
    train: TrainSettings,
    masking: MaskingSettings,
    store: Store,
    rows: NDArray[np.int64],
    model: CellModel,
    *,
    lane: int = 0,
    lanes: int = 1,
    bins_on_device: bool = False,
    rows_of_epoch: Callable[[int], NDArray[np.int64]] | None = None,
    views: int = 1,
) -> BatchSource:
    """Make what encodes the training batches of one lane.

    Parameters
    ----------
    train, masking
        How large steps are, in which order cells come, and what is hidden.
    store, rows
        The training cells, ascending.
    model
        Its panel and its encoding.
    lane, lanes
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
        There are fewer cells than lanes, ``train.batch_size`` cannot be shared among them, or
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
    batch_size, budget = cells_per_lane(
        train, lanes, length=encoder.tokens.required_length if is_ranked else None
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
        lane=lane,
        lanes=lanes,
        rows_of_epoch=rows_of_epoch,
    )
    return BatchSource(reader, encoder, sampler, masking, views=views)


def cells_per_lane(
    train: TrainSettings, lanes: int, *, length: int | None = None
) -> tuple[int, int | None]:
    """Return what each lane gives to a step: so many cells, or where not None so many tokens.

    Parameters
    ----------
    train, lanes
        As in `make_batch_source`.
    length
        Tokens of every cell; None where cells differ.

    Raises
    ------
    ConfigurationError
        The cells cannot be shared equally, or the tokens have no room for a cell.
    """
    if train.tokens_per_batch is None:
        if train.batch_size % lanes:
            message = (
                f"train.batch_size = {train.batch_size} cells cannot be shared equally by {lanes} "
                f"lanes; give a multiple of {lanes}"
            )
            raise ConfigurationError(message)
        return train.batch_size // lanes, None
    budget = train.tokens_per_batch // lanes
    if length is None:
        return train.batch_size, budget
    if budget < length:
        message = (
            f"train.tokens_per_batch = {train.tokens_per_batch} has no room for a cell of "
            f"{length} tokens{_per_lane(lanes)}; give at least {length * lanes} or lower "
            f"data.genes"
        )
        raise ConfigurationError(message)
    return budget // length, None


def _per_lane(lanes: int) -> str:
    return f" in each of {lanes} lanes" if lanes > 1 else ""
