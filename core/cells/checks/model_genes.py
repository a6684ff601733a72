"""The genes of a trained model, read from its folder without loading the network."""

import json
from pathlib import Path

from core.cells.genes import GenePanel
from core.errors import DataError

__all__ = ["read_model_genes"]

_GENES_FILE = "genes.json"
#: Where a run keeps its model.
_MODEL_FOLDER = "model"


def read_model_genes(folder: Path) -> GenePanel:
    """Read the gene panel of a model folder, or of the model of a run.

    Raises
    ------
    DataError
        The folder holds no model, or its list of genes is damaged.
    """
    paths = (folder / _GENES_FILE, folder / _MODEL_FOLDER / _GENES_FILE)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        message = (
            f"{folder}: not a model folder ({_GENES_FILE} is missing); give a run that has been "
            f"evaluated once, or the model folder inside it"
        )
        raise DataError(message)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        ids, symbols = tuple(map(str, record["ids"])), tuple(map(str, record["symbols"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path}: cannot be read ({error}); copy the model folder again"
        raise DataError(message) from error
    if len(ids) != len(symbols) or len(set(ids)) != len(ids) or not ids:
        message = f"{path}: its ids and symbols do not fit together; copy the model folder again"
        raise DataError(message)
    return GenePanel(ids, symbols)
