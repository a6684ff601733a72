"""Predictions, embeddings and denoised values of new cells."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.cells.annotated_copy import AnnotatedCopy, Write
from core.cells.spelling import suggest
from core.encoding.cell_batch import CellBatch
from core.encoding.panel_cells import PanelCells
from core.errors import ConfigurationError
from core.evaluation.metrics import expected_years
from core.evaluation.predict import batch_cells, phenotype_probabilities, predict
from core.inference.query_cells import Hint, QueryCells
from core.model.batch_tensors import BatchTensors
from core.model.calibration import UnsureRule
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.losses import expected_values
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

#: Passes in which every gene is masked once: a sixth at a time, near the 15 % of the published models.
DENOISING_PASSES = 6

Position = Literal["cls", "mean"] | int


@dataclass(frozen=True)
class PhenotypePredictions:
    """Predictions of one phenotype: (cells,) codes of the most likely values, their probabilities."""

    name: str
    values: Sequence[str]
    codes: NDArray[np.int32]
    probability: NDArray[np.float32]
    #: Expected ages, of a phenotype whose values are ages.
    expected_years: NDArray[np.float32] | None = None

    def cells_per_value(self) -> dict[str, int]:
        """Return predicted values -> cells, the commonest first."""
        counts = np.bincount(self.codes, minlength=len(self.values))
        order = np.argsort(-counts, kind="stable").tolist()
        return {self.values[i]: int(counts[i]) for i in order if counts[i]}

    def is_unsure(self, rule: UnsureRule) -> NDArray[np.bool_]:
        """Return (cells,), whether the probability is below that of the rule."""
        return self.probability < rule.below


def prediction_table(
    predictions: Sequence[PhenotypePredictions],
    names: "pd.Index[str]",
    *,
    rules: Mapping[str, UnsureRule],
    prefix: str,
) -> pd.DataFrame:
    """Return (cells, columns): of each phenotype value, probability, whether that is unsure, and expected age."""
    columns: dict[str, object] = {}
    for one in predictions:
        name = f"{prefix}{one.name}"
        columns[name] = pd.Categorical.from_codes(one.codes.tolist(), pd.Index(list(one.values)))
        columns[f"{name}_probability"] = one.probability
        columns[f"{name}_unsure"] = one.is_unsure(rules[one.name])
        if one.expected_years is not None:
            columns[f"{name}_expected_years"] = one.expected_years
    return pd.DataFrame(columns, index=pd.Index(names))


def _encoded_blocks(
    model: CellModel, cells: QueryCells, hints: Sequence[Hint], stage: str, on_progress: Listener
) -> Iterator[tuple[slice, CellBatch]]:
    """Yield the cells of a file in batches, with their place in the file.

    Genes that the file lacks are masked, and so are phenotypes without a hint.
    """
    hidden = _without_hint(model.config.phenotypes, hints)
    on_progress(ProgressEvent(stage, 0, cells.n_cells))
    for first, expression, sizes in cells.blocks(
        batch_cells(model), sized=model.config.library_size
    ):
        span = slice(first, first + expression.shape[0])
        panel_cells = PanelCells.of(expression, sizes)
        codes = _codes_of_hints(hints, span, len(model.config.phenotypes))
        rng = generator(first, Stream.QUERY_GENES)  # chooses genes of cells that are too long
        yield span, model.batches.visible(panel_cells, codes, hidden, rng, missing=cells.missing)
        on_progress(ProgressEvent(stage, span.stop, cells.n_cells))


def _without_hint(names: Iterable[str], hints: Sequence[Hint]) -> list[str]:
    given = {hint.name for hint in hints}
    return [name for name in names if name not in given]


def _codes_of_hints(hints: Sequence[Hint], span: slice, n_phenotypes: int) -> NDArray[np.int32]:
    """Return (cells, phenotypes) codes of some cells; 0 masks a phenotype without a hint."""
    codes = np.zeros((span.stop - span.start, n_phenotypes), dtype=np.int32)
    for hint in hints:
        codes[:, hint.slot] = hint.codes[span]
    return codes


def predict_phenotypes_of(
    model: CellModel,
    cells: QueryCells,
    hints: Sequence[Hint] = (),
    *,
    on_progress: Listener = ignore_progress,
) -> list[PhenotypePredictions]:
    """Predict every phenotype of the model that has no hint; if there is none, a ConfigurationError."""
    config = model.config
    names = _without_hint(config.predicted, hints)
    if not names:
        raise ConfigurationError(
            "nothing is left to predict: the model's phenotypes are all given, or it has none"
        )
    codes = {name: np.zeros(cells.n_cells, dtype=np.int32) for name in names}
    probability = {name: np.zeros(cells.n_cells, dtype=np.float32) for name in names}
    ages: dict[str, NDArray[np.float32]] = {}
    spans: list[slice] = []

    def batches() -> Iterator[CellBatch]:
        stage = "predicting phenotypes"
        for span, batch in _encoded_blocks(model, cells, hints, stage, on_progress):
            spans.append(span)
            yield batch

    for prediction in predict(model, batches()):
        probabilities = phenotype_probabilities(model, prediction)
        for name in names:
            codes[name][spans[-1]] = probabilities[name].argmax(axis=1)
            probability[name][spans[-1]] = probabilities[name].max(axis=1)
            years = expected_years(name, config.phenotypes[name], probabilities[name])
            if years is not None:
                ages.setdefault(name, np.zeros(cells.n_cells, np.float32))[spans[-1]] = years
    return [
        PhenotypePredictions(
            name, config.phenotypes[name], codes[name], probability[name], ages.get(name)
        )
        for name in names
    ]


# --------------------------------------------------------------------- embeddings and denoised values
def resolve_position(config: TfxConfig, wanted: str) -> Position:
    """Return the output position of a cell's embedding: "cls", "mean", or a phenotype's slot."""
    if wanted in ("cls", "mean"):
        return "cls" if wanted == "cls" else "mean"
    if wanted in config.phenotypes:
        return config.phenotype_names.index(wanted)
    raise ConfigurationError(
        f"--from {wanted}: an embedding is taken from cls, from the mean, or from a phenotype; "
        f"{suggest(wanted, ['cls', 'mean', *config.phenotypes])}"
    )


def note_on_embedding(config: TfxConfig, position: Position) -> str | None:
    """Return a warning about embeddings that hold little of the cell, or None (docs/annotate.md)."""
    is_trained = config.encoder == "pooled" or config.cell_summary
    is_trained = is_trained or config.cls_reconstruction or config.cls_contrast
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
    """Pass the (cells, hidden size) embeddings to ``write``; the model needs an encoder."""
    network = model.network.eval()
    device = next(network.parameters()).device
    for span, arrays in _encoded_blocks(model, cells, hints, "embedding cells", on_progress):
        batch = BatchTensors.from_arrays(arrays, device)
        write(span, network.cell_embeddings(batch, position).float().cpu().numpy())


def gene_embeddings(model: CellModel) -> NDArray[np.float32]:
    """Return (genes, hidden size) identity embeddings; without an encoder, raise a ConfigurationError."""
    part = model.network.encoder_part
    if part is None:
        raise ConfigurationError(
            "this model is a log-linear part without an encoder: its genes have no embeddings"
        )
    found: NDArray[np.float32] = part.gene_vectors().detach().float().cpu().numpy()
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
    The model must be of the ranked layout (in the expressed one absent genes are no tokens), and no classifier.
    """
    config, network = model.config, model.network
    if config.classified is not None:
        raise ConfigurationError(
            f"denoising needs a model of genes; this one predicts {config.classified} alone: use the "
            f"model it was fine-tuned from"
        )
    if config.layout != "ranked":
        raise ConfigurationError(
            "denoising needs a model of the ranked layout; the expressed layout does not show the other genes"
        )
    device = next(network.parameters()).device
    network.eval()
    order = generator(seed, Stream.DENOISING_PASSES).permutation(config.n_genes)
    pass_of_gene = order % DENOISING_PASSES
    means = torch.from_numpy(model.table.means).to(device)
    hidden = _without_hint(config.phenotypes, hints)
    size = max(2**14 // config.longest_sequence, 1)
    rng = np.random.default_rng(0)  # unused: all genes of the panel fit
    for first, expression, sizes in cells.blocks(size, sized=config.library_size):
        span = slice(first, first + expression.shape[0])
        panel_cells = PanelCells.of(sparse.csr_matrix(expression), sizes)
        codes = _codes_of_hints(hints, span, len(config.phenotypes))
        values = np.zeros(expression.shape, dtype=np.float32)
        for number in range(DENOISING_PASSES):
            masked = cells.missing | (pass_of_gene == number)
            arrays = model.batches.visible(panel_cells, codes, hidden, rng, missing=masked)
            batch = BatchTensors.from_arrays(arrays, device)
            expected = expected_values(network(batch).gene_logits, config, means[batch.gene])
            values[arrays.gene_cell, arrays.gene] = expected.cpu().numpy()
        write(span, values)
        on_progress(ProgressEvent("denoising cells", span.stop, cells.n_cells))


# ------------------------------------------------------------------------ into the annotated copy
def add_gene_embeddings(copy: AnnotatedCopy, key: str, model: CellModel, cells: QueryCells) -> None:
    """Add the embeddings of the model's genes to varm; other genes of the file get NaN."""
    genes = np.flatnonzero(~cells.missing)
    table = np.full((copy.n_genes, model.config.hidden_size), np.nan, dtype=np.float32)
    table[cells.file_columns[genes]] = gene_embeddings(model)[genes]
    copy.add_array(f"varm/{key}", (len(table), table.shape[1]))(slice(0, len(table)), table)


def denoised_column(key: str) -> str:
    """Return the column of var that says which genes the columns of denoised values are."""
    return f"{key}_known"


def add_denoised(
    copy: AnnotatedCopy,
    key: str,
    model: CellModel,
    cells: QueryCells,
    *,
    hints: Sequence[Hint] = (),
    on_progress: Listener = ignore_progress,
) -> None:
    """Add the values of `denoise_cells` to obsm: of the genes that the model knows alone, in the order of var.

    A layer would have zeros for all other genes, which nothing tells from values. A column of var marks the genes.
    """
    genes = np.flatnonzero(~cells.missing)
    columns = cells.file_columns
    genes = genes[np.argsort(columns[genes])]
    is_known = np.zeros(copy.n_genes, dtype=bool)
    is_known[columns[genes]] = True
    copy.add_var({denoised_column(key): is_known})
    write = copy.add_array(f"obsm/{key}", (cells.n_cells, len(genes)))

    def write_present(span: slice, values: NDArray[np.float32]) -> None:
        write(span, values[:, genes])

    denoise_cells(model, cells, write_present, hints=hints, on_progress=on_progress)
