"""What a model says of each phenotype when the others are shown: "given tissue = lung, which type?"."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.cells.store import Store
from core.encoding.panel_cells import PanelReader
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["predict_given_others"]


@torch.inference_mode()
def predict_given_others(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    *,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> dict[str, NDArray[Any]]:
    """Ask for each phenotype in turn, with all genes and the cell's other known phenotypes shown.

    Returns
    -------
    phenotype -> (cells, values) probabilities; empty for a model of fewer than two phenotypes, and
    for a classifier that is given none.
    """
    config = model.config
    names = list(config.answered)
    if len(config.phenotypes) < 2 or (config.classified is not None and not config.given):
        return {}
    network = model.network.eval()
    device = next(network.parameters()).device
    batches, reader = model.batches, PanelReader(store, model.panel)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for number, start in enumerate(range(0, len(rows), batch_size)):
        some = rows[start : start + batch_size]
        cells, known = reader.read(some), np.asarray(store.phenotype_codes[some])
        for name, slot in config.answered.items():
            codes = known.copy()
            codes[:, slot] = 0  # hidden from the model; a zero makes it a question, label or not
            rng = generator(seed, number, Stream.VISIBLE_GENES)
            batch = BatchTensors.from_arrays(batches.visible(cells, codes, [name], rng), device)
            logits = network(batch).phenotype_logits
            probability = network.phenotype_probabilities(logits, slot)
            parts[name].append(probability.float().cpu().numpy())
        done = min(start + batch_size, len(rows))
        on_progress(ProgressEvent("given the other phenotypes", done, len(rows)))
    return {name: np.concatenate(found) for name, found in parts.items() if found}
