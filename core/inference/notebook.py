"""A model at work on an AnnData object: what `tfx predict` and `tfx embed` do, in one call each.

model = CellModel.load("runs/base/model")
adata.obs = adata.obs.join(label_cells(adata, model, given=["tissue"]))
adata.obsm["X_tfx"] = cell_embeddings(adata, model)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.inference.embed import embed_cells, resolve_position
from core.inference.hints import read_hint
from core.inference.predict import predict_phenotypes_of, prediction_table
from core.inference.query_cells import open_query_cells
from core.model.folder import CellModel
from core.progress import Listener, ignore_progress

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def label_cells(
    cells: "AnnData | str | Path",
    model: CellModel,
    *,
    given: Sequence[str] = (),
    unsure_below: float = 0.5,
    prefix: str = "tfx_",
    on_progress: Listener = ignore_progress,
) -> pd.DataFrame:
    """Label cells: for each phenotype its value, probability, and whether that is unsure.

    Parameters
    ----------
    cells
        AnnData, or an .h5ad file; counts or log values, genes in any order.
    model
        Of `CellModel.load`.
    given
        Phenotypes that are known, as hints: "tissue", or "tissue=organ" for the obs column.
    unsure_below
        Least probability of a sure answer.
    prefix
        What the columns begin with.

    Returns
    -------
    (cells, 3 per phenotype), with the cells' names as index.

    Raises
    ------
    DataError, ConfigurationError
        As `tfx predict` says them.
    """
    with open_query_cells(cells, model.panel) as query:
        hints = [read_hint(query.source, model.config, one) for one in given]
        found = predict_phenotypes_of(model, query, hints, on_progress=on_progress)
        names = query.source.obs.index
        return prediction_table(found, names, unsure_below=unsure_below, prefix=prefix)


def cell_embeddings(
    cells: "AnnData | str | Path",
    model: CellModel,
    *,
    place: str = "cls",
    given: Sequence[str] = (),
    on_progress: Listener = ignore_progress,
) -> NDArray[np.float32]:
    """Return (cells, hidden size), read at ``place``: "cls", "mean", or a phenotype.

    Raises
    ------
    DataError, ConfigurationError
        As `tfx embed` says them.
    """
    position = resolve_position(model.config, place)
    with open_query_cells(cells, model.panel) as query:
        hints = [read_hint(query.source, model.config, one) for one in given]
        found = np.empty((query.n_cells, model.config.hidden_size), dtype=np.float32)
        embed_cells(
            model, query, found.__setitem__, position=position, hints=hints,
            on_progress=on_progress,
        )  # fmt: skip
    return found
