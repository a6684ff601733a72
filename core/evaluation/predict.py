"""The one loop that predicts: batches of cells go through a network, its logits come back.

Every prediction of an evaluation and of `tfx predict` passes through `predict`, which puts the network
into evaluation mode and needs no gradient. The seeds of the batches are those of their makers: the same
cells always get the same prediction.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.panel_cells import PanelReader
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import CellOutput
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

BATCH_SIZE = 64
#: Tokens of a batch of cells of a file, on a CPU and on a GPU.
_TOKENS = {"cpu": 2**14, "cuda": 2**17}

Probabilities = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Prediction:
    """A batch on the host and on the device, and the logits of its masked positions."""

    cells: CellBatch
    batch: BatchTensors
    output: CellOutput


@torch.inference_mode()
def predict(model: CellModel, batches: Iterable[CellBatch]) -> Iterator[Prediction]:
    """Predict the masked positions of each batch; the network is left in evaluation mode."""
    network = model.network.eval()
    device = next(network.parameters()).device
    for cells in batches:
        batch = BatchTensors.from_arrays(cells, device)
        yield Prediction(cells, batch, network(batch))


def batch_cells(model: CellModel) -> int:
    """Return how many cells of a file fit a batch on the model's device, however long they are."""
    device = next(model.network.parameters()).device
    tokens = _TOKENS.get(device.type, _TOKENS["cpu"])
    return max(tokens // model.config.longest_sequence, 1)


def phenotype_probabilities(model: CellModel, prediction: Prediction) -> Probabilities:
    """Phenotype -> (cells in which it is masked, values) probabilities, at the model's temperatures."""
    logits, slots = prediction.output.phenotype_logits, prediction.batch.phenotype_slot
    found: Probabilities = {}
    for name, slot in model.config.predicted.items():
        known = model.calibration.get(name)
        of_slot = logits[slots == slot] / (1.0 if known is None else known.temperature)
        probabilities = model.network.phenotype_probabilities(of_slot, slot)
        found[name] = probabilities.float().cpu().numpy()
    return found


def join_probabilities(model: CellModel, parts: Iterable[Probabilities]) -> Probabilities:
    """Join the probabilities of batches; without batches (0, values) of each phenotype."""
    values = model.config.phenotypes
    joined = {
        name: [np.zeros((0, len(values[name])), np.float32)] for name in model.config.predicted
    }
    for part in parts:
        for name, probabilities in part.items():
            joined[name].append(probabilities)
    return {name: np.concatenate(of_name) for name, of_name in joined.items()}


def row_batches(
    rows: NDArray[np.int64], stage: str, on_progress: Listener
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Divide rows into numbered batches; progress is reported after each has been used."""
    for number, start in enumerate(range(0, len(rows), BATCH_SIZE)):
        some = rows[start : start + BATCH_SIZE]
        yield number, some
        on_progress(ProgressEvent(stage, start + len(some), len(rows)))


def predict_phenotypes(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    *,
    given_others: bool = False,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> Probabilities:
    """Phenotype -> (cells, values) probabilities, with all genes visible and all phenotypes masked.

    With ``given_others`` each phenotype is predicted with the other known phenotypes of the cell visible.
    """
    names = list(model.config.phenotypes)
    reader = PanelReader(store, model.panel)
    stage = "given the other phenotypes" if given_others else "predicting phenotypes"

    def batches() -> Iterator[CellBatch]:
        for number, some in row_batches(rows, stage, on_progress):
            cells, known = reader.read(some), np.asarray(store.phenotype_codes[some])
            # The model does not see a masked code; 0 masks a phenotype whose label is missing too.
            masked = [([name], slot) for name, slot in model.config.predicted.items()]
            for targets, slots in masked if given_others else [(names, slice(None))]:
                codes = known.copy()
                codes[:, slots] = 0
                rng = generator(seed, number, Stream.VISIBLE_GENES)
                yield model.batches.visible(cells, codes, targets, rng)

    return join_probabilities(
        model, (phenotype_probabilities(model, one) for one in predict(model, batches()))
    )
