"""Cells with a share of their genes hidden: what is said of the genes, and of the phenotypes.

Which genes of a cell are hidden follows from the seed, the rate and the cell's row in the store:
neither other cells nor the batch size move a mask. All phenotypes are hidden.

In the ranked layout hidden genes are masked tokens, and one look at a cell answers both questions.
In the expressed layout a masked token would tell that its gene is probably on; there phenotypes
are asked with the hidden genes left out, and genes as in training, with masks of the batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.masking import Show
from core.evaluation.gene_scores import GeneScores
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.presets.schema import MaskingSettings
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["MASK_RATES", "draw_static_mask", "evaluate_at_rate"]

#: A little, as in BERT; half; nearly everything, as at the beginning of generation.
MASK_RATES = (0.15, 0.5, 0.9)


def draw_static_mask(
    rows: NDArray[np.int64], n_genes: int, rate: float, *, seed: int
) -> NDArray[np.bool_]:
    """Choose the hidden genes of cells.

    Parameters
    ----------
    rows
        (cells,), rows in the store.
    rate
        Share of the genes, rounded to a whole number of them.

    Returns
    -------
    (cells, genes), True where hidden.
    """
    n_hidden = round(rate * n_genes)
    mask = np.zeros((len(rows), n_genes), dtype=bool)
    for number, row in enumerate(rows.tolist()):
        rng = generator(seed, Stream.HIDDEN_GENES, round(1000 * rate), row)
        mask[number, rng.permutation(n_genes)[:n_hidden]] = True
    return mask


@torch.inference_mode()
def evaluate_at_rate(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    rate: float,
    *,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> tuple[dict[str, NDArray[np.float32]], GeneScores]:
    """Hide a share of the genes and all phenotypes, and ask for both.

    Returns
    -------
    phenotype -> (cells, values) probabilities, and the scores of the hidden genes.
    """
    network = model.network.eval()
    device = next(network.parameters()).device
    asked = model.config.answered
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in asked}
    genes = GeneScores.of(model, rate)
    for number, start in enumerate(range(0, len(rows), batch_size)):
        some = rows[start : start + batch_size]
        rng = generator(seed, number, Stream.MASK_RATE_BATCH, round(1000 * rate))
        about_phenotypes, about_genes = _encode(model, store, some, rate, seed, rng)
        batch = BatchTensors.from_arrays(about_phenotypes, device)
        output = network(batch)
        for name, slot in asked.items():
            own = output.phenotype_logits[batch.phenotype_slot == slot]
            probability = network.phenotype_probabilities(own, slot)
            parts[name].append(probability.float().cpu().numpy())
        if model.config.classified is not None:
            continue
        if about_genes is not about_phenotypes:
            batch = BatchTensors.from_arrays(about_genes, device)
            output = network(batch)
        genes.add(output.gene_logits, about_genes.gene, batch.gene_target)
        done = min(start + batch_size, len(rows))
        on_progress(ProgressEvent(f"{100 * rate:.0f} % of the genes hidden", done, len(rows)))
    return {name: np.concatenate(found) for name, found in parts.items() if found}, genes


def _encode(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    rate: float,
    seed: int,
    rng: np.random.Generator,
) -> tuple[CellBatch, CellBatch]:
    """Return the batch that is asked about phenotypes, and the one about genes."""
    names = list(model.config.phenotypes)
    expression = store.read(rows, model.panel)
    mask = draw_static_mask(rows, len(model.panel), rate, seed=seed)
    # Zeros make every slot a question, label or not.
    codes = np.zeros((len(rows), len(names)), dtype=np.int32)
    if model.config.layout == "ranked":
        states = np.full(codes.shape, Show.MASKED, dtype=np.int8)
        batch = model.batches.ranked(expression.toarray(), codes, states, mask)
        return batch, batch
    shown = sparse.csr_matrix(expression.multiply(~mask))
    shown.eliminate_zeros()
    masking = MaskingSettings(
        genes=rate, phenotypes=1.0, unspecified=0.0, unexpressed=model.masking.unexpressed
    )
    return (
        model.batches.visible(shown, codes, names, rng),
        model.batches.masked(expression, codes, masking, rng),
    )
