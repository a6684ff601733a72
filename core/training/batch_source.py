"""From a preset, a store and a model to the batches of a run."""

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

__all__ = ["make_batch_source"]


def make_batch_source(
    train: TrainSettings,
    masking: MaskingSettings,
    store: Store,
    rows: NDArray[np.int64],
    model: CellModel,
    *,
    rank: int = 0,
    world_size: int = 1,
    bins_on_device: bool = False,
) -> BatchSource:
    """Make what encodes the training batches of one process.

    Parameters
    ----------
    train, masking
        How large batches are, in which order cells come, and what is hidden.
    store, rows
        The training cells, ascending.
    model
        Its panel and its encoding.
    rank, world_size
        Of this process, and how many there are.
    bins_on_device
        Leave the bins of counts to the device.

    Raises
    ------
    ConfigurationError
        There are fewer cells than processes, or ``train.tokens_per_batch`` is too small.
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
    batch_size, lengths, budget = train.batch_size, None, train.tokens_per_batch
    if budget is not None and model.config.layout == "ranked":
        length = encoder.tokens.required_length
        if budget < length:
            message = (
                f"train.tokens_per_batch = {budget} has no room for a cell of {length} tokens; "
                f"give at least {length} or lower data.genes"
            )
            raise ConfigurationError(message)
        batch_size, budget = budget // length, None
    elif budget is not None:
        genes = np.minimum(reader.count_values(rows), encoder.room)
        lengths = genes + encoder.tokens.header_length + 1
    sampler = BlockSampler(
        rows,
        seed=train.seed,
        batch_size=batch_size,
        lengths=lengths,
        tokens_per_batch=budget,
        rank=rank,
        world_size=world_size,
    )
    return BatchSource(reader, encoder, sampler, masking)
