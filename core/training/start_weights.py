"""`model.start_from`: the weights a run begins with, from our model folders and from other systems.

A folder of ours must agree with the preset in everything and gives all weights. A BERT, DistilBERT,
PolyGene or PerturbGene gives what `core.model.conversion` can translate; the rest stays as drawn.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from core.errors import ConfigurationError
from core.model.cell_model import TfxModel
from core.model.conversion import convert, differences
from core.model.folder import CellModel
from core.model.foreign_model import ForeignShape, is_foreign, read_foreign_model, read_shape
from core.presets.schema import Preset

__all__ = ["check_start", "start_from"]

logger = logging.getLogger(__name__)


def check_start(preset: Preset) -> None:
    """Refuse a ``model.start_from`` that cannot fit, before any cell is read.

    Raises
    ------
    ConfigurationError
        The folder is not there, or its encoder has another shape than the preset's.
    DataError
        Its configuration cannot be read.
    """
    if preset.model.start_from is None:
        return
    folder = _folder(preset.model.start_from)
    if is_foreign(folder):
        _refuse_differences(read_shape(folder), preset, folder)


def start_from(model: CellModel, preset: Preset) -> None:
    """Give a new model the weights of ``model.start_from``.

    Parameters
    ----------
    model
        As built from the preset; its network is changed.
    preset
        Whose ``model.start_from`` is set.

    Raises
    ------
    ConfigurationError
        The other model knows other genes, bins or phenotype values, or has another shape.
    DataError
        Its folder is damaged or incomplete.
    """
    assert preset.model.start_from is not None
    folder = _folder(preset.model.start_from)
    if not is_foreign(folder):
        _copy(model, folder)
        return
    given = preset.data.vocabulary
    foreign = read_foreign_model(folder, vocabulary=None if given is None else Path(given))
    _refuse_differences(foreign.shape, preset, folder)
    columns = {name: column for name, column in preset.data.phenotypes.items() if column}
    _load(model.network, convert(foreign, model.config, model.panel, columns))
    system = (
        f"a {foreign.shape.family} of text" if foreign.tokens is None else foreign.tokens.system
    )
    logger.info("weights to begin with: %s (%s)", folder, system)


def _folder(name: str) -> Path:
    """Return the model folder, which a run has inside."""
    folder = Path(name)
    if not folder.is_dir():
        message = f"model.start_from: {folder} is no folder; give a run, a model folder, or the folder of a BERT or DistilBERT"
        raise ConfigurationError(message)
    inside = folder / "model"
    return inside if (inside / "tfx.json").is_file() else folder


def _refuse_differences(shape: ForeignShape, preset: Preset, folder: Path) -> None:
    ours = preset.model
    found = differences(
        shape,
        layers=ours.layers,
        hidden_size=ours.hidden_size,
        heads=ours.heads,
        intermediate_size=ours.intermediate_size or 4 * ours.hidden_size,
        activation=ours.activation,
        norm=ours.norm,
    )
    if found:
        message = f"model.start_from: {folder} has {', '.join(found)}; set the [model] section to its shape"
        raise ConfigurationError(message)


def _load(network: TfxModel, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite some of a network's weights."""
    answer = network.load_state_dict(dict(tensors), strict=False)
    assert not answer.unexpected_keys, answer.unexpected_keys
    kept = [name for name in answer.missing_keys if name.startswith("encoder_part.")]
    if kept:
        logger.info("not in the other model, drawn anew: %s", ", ".join(kept))


def _copy(model: CellModel, folder: Path) -> None:
    """Copy the weights of another model of the same panel, vocabularies and shapes."""
    other = CellModel.load(folder)
    if other.panel.hash != model.panel.hash:
        message = f"model.start_from: {folder} knows other genes than this preset's panel; use the same data.genes and files"
        raise ConfigurationError(message)
    if other.values.kind != model.values.kind or not np.array_equal(
        other.values.edges, model.values.edges
    ):
        message = f"model.start_from: {folder} has other bins; use its [encoding] section and the same training cells"
        raise ConfigurationError(message)
    if other.config.phenotypes != model.config.phenotypes:
        message = f"model.start_from: {folder} knows other phenotype values; give its vocabulary as data.vocabulary"
        raise ConfigurationError(message)
    try:
        model.network.load_state_dict(other.network.state_dict())
    except RuntimeError as error:
        message = f"model.start_from: {folder} has other shapes than the [model] section describes"
        raise ConfigurationError(message) from error
