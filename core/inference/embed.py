"""Embeddings of new cells and of genes, and the expression that a model expects."""

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
from core.inference.predict import codes_of_hints, encoded_blocks
from core.inference.query_cells import QueryCells
from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.losses import expected_values
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

#: Passes in which every gene is masked once: a sixth at a time, near the 15 % of the published models.
DENOISING_PASSES = 6

Position = Literal["cls", "mean"] | int
#: Takes which cells, and their rows, block by block.
Write = Callable[[slice, NDArray[np.float32]], None]


def resolve_position(config: TfxConfig, wanted: str) -> Position:
    """Return the output position of a cell's embedding: "cls", "mean", or a phenotype's slot.

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
        f"--from {wanted}: an embedding is taken from cls, from the mean, or from a phenotype; "
        f"{suggest(wanted, ['cls', 'mean', *config.phenotypes])}"
    )
    raise ConfigurationError(message)


def note_on_embedding(config: TfxConfig, position: Position) -> str | None:
    """Return a warning about embeddings that hold little of the cell, or None (docs/annotate.md)."""
    is_trained = config.cell_summary or config.cls_reconstruction or config.cls_contrast
    if position != "cls" or is_trained or config.classified is not None:
        return None
    return (
        "[CLS] of this model was not trained to summarise the cell, and principal components hold "
        "more of it: train with model.cell_summary = true"
    )


@torch.inference_mode()
def embed_cells(
    model: CellModel,
    cells: QueryCells,
    write: Write,
    *,
    position: Position = "cls",
    hints: Sequence[Hint] = (),
    on_progress: Listener = ignore_progress,
) -> None:
    """Pass the (cells, hidden size) embeddings to ``write``.

    Raises
    ------
    ConfigurationError
        The model is a log-linear part without an encoder.
    """
    network = model.network.eval()
    device = next(network.parameters()).device
    blocks = encoded_blocks(model, cells, hints, stage="embedding cells", on_progress=on_progress)
    for span, arrays in blocks:
        batch = BatchTensors.from_arrays(arrays, device)
        write(span, network.cell_embeddings(batch, position).float().cpu().numpy())


def gene_embeddings(model: CellModel) -> NDArray[np.float32]:
    """Return (genes, hidden size): the identity embeddings of the genes.

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
    write: Write,
    *,
    hints: Sequence[Hint] = (),
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> None:
    """Pass (cells, model's genes) expected log1p counts per 10,000 to ``write``.

    Each gene is masked in one of `DENOISING_PASSES` passes, with others at random, and gets its expected
    value given the rest: the bins' mean training values weighted by their probabilities.

    Raises
    ------
    ConfigurationError
        The model is of the expressed layout, in which absent genes are no tokens, or a classifier.
    """
    config, network = model.config, model.network
    if config.classified is not None:
        message = (
            f"denoising needs a model of genes; this one predicts {config.classified} alone: use the "
            f"model it was fine-tuned from"
        )
        raise ConfigurationError(message)
    if config.layout != "ranked":
        message = "denoising needs a model of the ranked layout; the expressed layout does not show the other genes"
        raise ConfigurationError(message)
    device = next(network.parameters()).device
    network.eval()
    order = generator(seed, Stream.DENOISING_PASSES).permutation(config.n_genes)
    pass_of_gene = order % DENOISING_PASSES
    means = torch.from_numpy(model.table.means).to(device)
    hidden = [name for name in config.phenotypes if name not in {hint.name for hint in hints}]
    size = max(2**14 // config.longest_sequence, 1)
    rng = np.random.default_rng(0)  # unused: all genes of the panel fit
    for first, expression in cells.blocks(size):
        span = slice(first, first + expression.shape[0])
        codes = codes_of_hints(hints, span, len(config.phenotypes))
        values = np.zeros(expression.shape, dtype=np.float32)
        for number in range(DENOISING_PASSES):
            masked = cells.missing | (pass_of_gene == number)
            arrays = model.batches.visible(
                sparse.csr_matrix(expression), codes, hidden, rng, missing=masked
            )
            batch = BatchTensors.from_arrays(arrays, device)
            expected = expected_values(network(batch).gene_logits, config, means[batch.gene])
            values[arrays.gene_cell, arrays.gene] = expected.cpu().numpy()
        write(span, values)
        on_progress(ProgressEvent("denoising cells", span.stop, cells.n_cells))


def add_gene_embeddings(copy: AnnotatedCopy, key: str, model: CellModel, cells: QueryCells) -> None:
    """Add the embeddings of the model's genes to varm; other genes of the file get NaN."""
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
    """Add the values of `denoise_cells` as a layer, without values at genes the model lacks."""
    genes = np.flatnonzero(~cells.missing)
    genes = genes[np.argsort(cells.column_of[genes])]
    shape = (cells.n_cells, copy.n_genes)
    write = copy.add_sparse(f"layers/{layer}", shape, cells.column_of[genes])

    def write_present(span: slice, values: NDArray[np.float32]) -> None:
        write(span, values[:, genes])

    denoise_cells(model, cells, write_present, hints=hints, on_progress=on_progress)
