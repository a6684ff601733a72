"""Predictions for new cells: every phenotype that is not given, with all genes visible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.encoding.cell_batch import CellBatch
from core.errors import ConfigurationError
from core.evaluation.predict import batch_cells, phenotype_probabilities, predict
from core.inference.hints import Hint
from core.inference.query_cells import QueryCells
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator


@dataclass(frozen=True)
class PhenotypePredictions:
    """Predictions of one phenotype: (cells,) codes of the most likely values, their probabilities."""

    name: str
    values: Sequence[str]
    codes: NDArray[np.int32]
    probability: NDArray[np.float32]

    def cells_per_value(self) -> dict[str, int]:
        """Return predicted values -> cells, the commonest first."""
        counts = np.bincount(self.codes, minlength=len(self.values))
        order = np.argsort(-counts, kind="stable").tolist()
        return {self.values[i]: int(counts[i]) for i in order if counts[i]}

    def is_unsure(self, least: float) -> NDArray[np.bool_]:
        """Return (cells,), whether the probability is below ``least``."""
        return self.probability < least


def prediction_table(
    predictions: Sequence[PhenotypePredictions],
    names: "pd.Index[str]",
    *,
    unsure_below: float,
    prefix: str,
) -> pd.DataFrame:
    """Return (cells, 3 per phenotype): value, probability, and whether that is unsure."""
    columns: dict[str, object] = {}
    for one in predictions:
        name = f"{prefix}{one.name}"
        columns[name] = pd.Categorical.from_codes(one.codes.tolist(), pd.Index(list(one.values)))
        columns[f"{name}_probability"] = one.probability
        columns[f"{name}_unsure"] = one.is_unsure(unsure_below)
    return pd.DataFrame(columns, index=pd.Index(names))


def encoded_blocks(
    model: CellModel,
    cells: QueryCells,
    hints: Sequence[Hint] = (),
    *,
    stage: str,
    on_progress: Listener = ignore_progress,
) -> Iterator[tuple[slice, CellBatch]]:
    """Yield the cells of a file in batches, with their place in the file.

    Genes that the file lacks are masked, and so are phenotypes without a hint.
    """
    config, encoder = model.config, model.batches
    names = list(config.phenotypes)
    hidden = [name for name in names if name not in {hint.name for hint in hints}]
    size = batch_cells(model)
    on_progress(ProgressEvent(stage, 0, cells.n_cells))
    for first, expression in cells.blocks(size):
        span = slice(first, first + expression.shape[0])
        codes = codes_of_hints(hints, span, len(names))
        rng = generator(first, Stream.QUERY_GENES)  # chooses genes of cells that are too long
        yield span, encoder.visible(expression, codes, hidden, rng, missing=cells.missing)
        on_progress(ProgressEvent(stage, span.stop, cells.n_cells))


def codes_of_hints(hints: Sequence[Hint], span: slice, n_phenotypes: int) -> NDArray[np.int32]:
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
    """Predict every phenotype of the model that has no hint.

    Raises
    ------
    ConfigurationError
        The model has no phenotypes, or all of them are given.
    """
    config = model.config
    names = [name for name in config.predicted if name not in {hint.name for hint in hints}]
    if not names:
        message = "nothing is left to predict: the model's phenotypes are all given, or it has none"
        raise ConfigurationError(message)
    codes = {name: np.zeros(cells.n_cells, dtype=np.int32) for name in names}
    probability = {name: np.zeros(cells.n_cells, dtype=np.float32) for name in names}
    spans: list[slice] = []

    def batches() -> Iterator[CellBatch]:
        stage = "predicting phenotypes"
        for span, batch in encoded_blocks(
            model, cells, hints, stage=stage, on_progress=on_progress
        ):
            spans.append(span)
            yield batch

    for prediction in predict(model, batches()):
        probabilities = phenotype_probabilities(model, prediction)
        for name in names:
            codes[name][spans[-1]] = probabilities[name].argmax(axis=1)
            probability[name][spans[-1]] = probabilities[name].max(axis=1)
    return [
        PhenotypePredictions(name, config.phenotypes[name], codes[name], probability[name])
        for name in names
    ]
