"""Embeddings of new cells and of genes, and expression as the model would have it."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.cells.phenotypes import suggest
from core.errors import ConfigurationError
from core.inference.annotated_file import AnnotatedCopy
from core.inference.hints import Hint
from core.inference.predict import encoded_blocks
from core.inference.query_cells import QueryCells
from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.gene_outputs import expected_values
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = [
    "add_denoised",
    "add_gene_embeddings",
    "denoise_cells",
    "embed_cells",
    "gene_embeddings",
    "note_on_embedding",
    "resolve_position",
]

#: Passes in which every gene is masked once: a sixth at a time, near the originals' 15 %.
DENOISING_PASSES = 6

Position = Literal["cls", "mean"] | int


def resolve_position(config: TfxConfig, wanted: str) -> Position:
    """Return where a cell's embedding is read: "cls", "mean", or a phenotype's slot.

    Raises
    ------
    ConfigurationError
        It is none of them.
    """
    if wanted == "cls":
        return "cls"
    if wanted == "mean":
        return "mean"
    if wanted in config.phenotypes:
        return config.phenotype_names.index(wanted)
    message = (
        f"--from {wanted}: an embedding is read at cls, as the mean, or at a phenotype; "
        f"{suggest(wanted, ['cls', 'mean', *config.phenotypes])}"
    )
    raise ConfigurationError(message)


def note_on_embedding(config: TfxConfig, position: Position) -> str | None:
    """Say what is known of embeddings that hold little of the cell, or None (docs/annotate.md)."""
    told = config.cell_summary or config.cls_reconstruction or config.cls_contrast
    if position != "cls" or told or config.classified is not None:
        return None
    return (
        "[CLS] of this model was never asked what the cell is, and principal components will hold more "
        "of it: train with model.cell_summary = true"
    )


@torch.inference_mode()
def embed_cells(
    model: CellModel,
    cells: QueryCells,
    write: Callable[[slice, NDArray[np.float32]], None],
    *,
    position: Position = "cls",
    hints: Sequence[Hint] = (),
    on_progress: Listener = ignore_progress,
) -> None:
    """Embed cells.

    Parameters
    ----------
    write
        Takes which cells, and their (cells, hidden size) embeddings, block by block.
    position
        Of `resolve_position`.

    Raises
    ------
    ConfigurationError
        The model is a log-linear part without an encoder.
    """
    network = model.network
    device = next(network.parameters()).device
    network.eval()
    blocks = encoded_blocks(model, cells, hints, stage="embedding cells", on_progress=on_progress)
    for span, arrays in blocks:
        batch = BatchTensors.from_arrays(arrays, device)
        write(span, network.cell_embeddings(batch, position).float().cpu().numpy())


def gene_embeddings(model: CellModel) -> NDArray[np.float32]:
    """Return (genes, hidden size): what the model adds to a token for the gene it is of.

    Raises
    ------
    ConfigurationError
        The model is a log-linear part without an encoder.
    """
    part = model.network.encoder_part
    if part is None:
        message = "this model is a log-linear part without an encoder: its genes have no embeddings"
        raise ConfigurationError(message)
    weight = part.embedding.identity.weight.detach()
    found: NDArray[np.float32] = weight[model.config.tokens.first_gene :].float().cpu().numpy()
    return found


@torch.inference_mode()
def denoise_cells(
    model: CellModel,
    cells: QueryCells,
    write: Callable[[slice, NDArray[np.float32]], None],
    *,
    hints: Sequence[Hint] = (),
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> None:
    """Give every gene the value that the model expects of it from the others.

    Each gene is masked in one of `DENOISING_PASSES` passes, with others drawn at random, and its
    expected value taken: the bins' mean training values by their probabilities.

    Parameters
    ----------
    write
        Takes which cells, and (cells, model's genes) log1p counts per 10,000.

    Raises
    ------
    ConfigurationError
        The model is of the expressed layout, in which absent genes are no tokens, or a classifier.
    """
    config, network = model.config, model.network
    if config.classified is not None:
        message = f"denoising needs a model of genes; this one tells {config.classified} alone: use the model it was fine-tuned from"
        raise ConfigurationError(message)
    if config.layout != "ranked":
        message = "denoising needs a model of the ranked layout; models of expressed genes alone do not see the others"
        raise ConfigurationError(message)
    device = next(network.parameters()).device
    network.eval()
    deal = generator(seed, Stream.DENOISING_PASSES).permutation(config.n_genes) % DENOISING_PASSES
    means = torch.from_numpy(model.table.means).to(device)
    encoder = model.batches
    hidden = [n for n in config.phenotypes if n not in {hint.name for hint in hints}]
    size = max(2**14 // config.longest_sequence, 1)
    rng = np.random.default_rng(0)  # nothing is drawn: all genes of the panel are in
    for first, expression in cells.blocks(size):
        span = slice(first, first + expression.shape[0])
        codes = np.zeros((expression.shape[0], len(config.phenotypes)), dtype=np.int32)
        for hint in hints:
            codes[:, hint.slot] = hint.codes[span]
        values = np.zeros(expression.shape, dtype=np.float32)
        for turn in range(DENOISING_PASSES):
            masked = cells.missing | (deal == turn)
            arrays = encoder.visible(
                sparse.csr_matrix(expression), codes, hidden, rng, missing=masked
            )
            batch = BatchTensors.from_arrays(arrays, device)
            expected = expected_values(network(batch).gene_logits, config, means[batch.gene])
            values[arrays.gene_cell, arrays.gene] = expected.cpu().numpy()
        write(span, values)
        on_progress(ProgressEvent("denoising cells", span.stop, cells.n_cells))


def add_gene_embeddings(copy: AnnotatedCopy, key: str, model: CellModel, cells: QueryCells) -> None:
    """Add the embeddings of the model's genes to varm; other genes of the file get NaN.

    Raises
    ------
    ConfigurationError
        The model is a log-linear part without an encoder.
    """
    genes = np.flatnonzero(~cells.missing)
    table = np.full((copy.n_genes, model.config.hidden_size), np.nan, dtype=np.float32)
    table[cells.column_of[genes]] = gene_embeddings(model)[genes]
    copy.add_array(f"varm/{key}", (len(table), table.shape[1]))(slice(0, len(table)), table)


def add_denoised(
    copy: AnnotatedCopy,
    layer: str,
    model: CellModel,
    cells: QueryCells,
    *,
    hints: Sequence[Hint] = (),
    on_progress: Listener = ignore_progress,
) -> None:
    """Add what `denoise_cells` gives as a layer, which has no values at genes the model lacks."""
    genes = np.flatnonzero(~cells.missing)
    genes = genes[np.argsort(cells.column_of[genes])]
    write = copy.add_sparse(
        f"layers/{layer}", (cells.n_cells, copy.n_genes), cells.column_of[genes]
    )
    denoise_cells(
        model,
        cells,
        lambda span, values: write(span, values[:, genes]),
        hints=hints,
        on_progress=on_progress,
    )
