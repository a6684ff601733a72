"""`model.start_from`: the initial weights of a run, from our model folders and from other systems.

A folder of ours must agree with the preset in everything and gives all weights; a classification
takes its genes, bins and shape from it, and the weights of genes, phenotypes and values that both
have. Models of other systems are converted by the caller's `ConvertWeights`; what it does not
convert keeps its initial weights.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from core.errors import ConfigurationError
from core.model.folder import CellModel, read_outline
from core.presets.loading import ResolvedPreset
from core.presets.schema import Preset

logger = logging.getLogger(__name__)

#: Folder of another system's model, preset, new model -> tensors of its network, by name:
#: `core.published.weights.convert_start`, which the commands pass.
ConvertWeights = Callable[[Path, Preset, CellModel], Mapping[str, Tensor]]

_PROVENANCE = "model.start_from"
#: Preset keys that a classification takes from the model, whose configuration calls them alike.
_SHAPE = (
    *("encoding.kind", "encoding.layout", "model.encoder", "model.layers", "model.hidden_size"),
    "model.heads",
    *("model.intermediate_size", "model.norm", "model.activation", "model.library_size"),
)
#: What a classification takes; gene heads predict nothing, and its phenotype output is new.
_EMBEDDING = "encoder_part.embedding."
_TAKEN = (_EMBEDDING, "encoder_part.encoder.", "encoder_part.phenotype_transform.")


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds another system's model and not one of ours."""
    return not (folder / "tfx.json").exists() and (folder / "config.json").is_file()


def own_start(preset: Preset) -> Path | None:
    """Return the model folder of ours that a classification starts from; None if there is none."""
    folder = None if preset.classified is None else start_folder(preset)
    return None if folder is None or is_foreign(folder) else folder


def take_shape_of_start(resolved: ResolvedPreset) -> ResolvedPreset:
    """Give a classification the shape of the model it starts from; ConfigurationError if it sets another."""
    folder = own_start(resolved.preset)
    if folder is None:
        return resolved
    config, panel = read_outline(folder)
    theirs: dict[str, Any] = {"data.genes": len(panel)}
    theirs |= {key: getattr(config, key.partition(".")[2]) for key in _SHAPE}
    if config.cell_summary:  # one that has none may get one
        theirs["model.cell_summary"] = True
    if config.kind == "binned":
        theirs["encoding.bins"] = config.n_bins
    if config.layout == "expressed":
        theirs["encoding.max_length"] = config.longest_sequence
    ours = resolved.preset.model_dump()
    differing = [
        f"{key} = {ours[section][name]!r} ({value!r} there)"
        for key, value in theirs.items()
        for section, _, name in [key.partition(".")]
        if resolved.provenance[key] not in ("default", _PROVENANCE) and ours[section][name] != value
    ]
    if differing:
        raise ConfigurationError(
            f"model.start_from: {folder} has another shape than the preset: "
            f"{', '.join(differing)}; leave these keys out, they are taken from there"
        )
    return resolved.changed(options=theirs, option_names=dict.fromkeys(theirs, _PROVENANCE))


def start_from(
    model: CellModel, preset: Preset, start: CellModel | None, convert: ConvertWeights | None
) -> None:
    """Give a new model the weights of ``model.start_from``; ``start`` is that of `own_start`.

    ConfigurationError if the other model has other genes, bins, phenotype values or shapes; or if it is
    of another system and there is no ``convert``.
    """
    folder = start_folder(preset)
    assert folder is not None
    if start is not None:
        model.network.load_state_dict(_translated(start, model), strict=False)
        logger.info("initial weights: %s, without its predictions", folder)
        return
    if not is_foreign(folder):
        _copy(model, folder)
        return
    if convert is None:
        raise ConfigurationError(
            f"model.start_from: {folder} is no model folder of tfx, and cannot be converted here"
        )
    tensors = dict(convert(folder, preset, model))
    loaded = model.network.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    kept = [name for name in loaded.missing_keys if name.startswith("encoder_part.")]
    if kept:
        logger.info("not in the other model, drawn at random: %s", ", ".join(kept))


def start_folder(preset: Preset) -> Path | None:
    """Return the folder of ``model.start_from``, or None; ConfigurationError if it does not exist."""
    if preset.model.start_from is None:
        return None
    folder = Path(preset.model.start_from)
    if not folder.is_dir():
        raise ConfigurationError(
            f"model.start_from: {folder} is no folder; give a run, a model folder, or the folder of a BERT or DistilBERT"
        )
    inside = folder / "model"
    return inside if (inside / "tfx.json").is_file() else folder


def _translated(start: CellModel, model: CellModel) -> dict[str, Tensor]:
    """Return the encoder's weights of another model of ours, its tables by name of gene and value."""
    weights, own = start.network.state_dict(), model.network.state_dict()
    taken = {
        name: tensor for name, tensor in weights.items() if name.startswith(_TAKEN) and name in own
    }
    ours, theirs = _row_names(model), _row_names(start)
    for table in taken.keys() & ours.keys():
        rows = {name: row for row, name in enumerate(theirs[table])}
        shared = {row: rows[name] for row, name in enumerate(ours[table]) if name in rows}
        taken[table] = own[table].clone()
        taken[table][list(shared)] = weights[table][list(shared.values())]
    return taken


def _row_names(model: CellModel) -> dict[str, list[object]]:
    """Return what each row of the embedding tables is for."""
    tokens, genes = model.config.tokens, model.panel.ids
    values = {name: [None, *values] for name, values in tokens.phenotypes.items()}
    slots = [("slot", name) for name in tokens.names]
    contents = [
        *range(tokens.first_bin + tokens.n_bins),
        *((name, value) for name in values for value in values[name]),
    ]
    return {
        f"{_EMBEDDING}identity.weight": [*range(tokens.first_slot), *slots, *genes],
        f"{_EMBEDDING}value.weight": contents,
        f"{_EMBEDDING}summary.weight": [
            (gene, bin_) for gene in genes for bin_ in range(tokens.n_bins)
        ],
        # of the pooled encoder
        f"{_EMBEDDING}gene.weight": list(genes),
        f"{_EMBEDDING}higher_bin.weight": [
            (gene, bin_) for gene in genes for bin_ in range(1, tokens.n_bins)
        ],
        f"{_EMBEDDING}phenotype.weight": contents,
    }


def _copy(model: CellModel, folder: Path) -> None:
    """Copy the weights of another model of the same panel, vocabularies and shapes."""
    other = CellModel.load(folder)
    if other.panel.hash != model.panel.hash:
        raise ConfigurationError(
            f"model.start_from: {folder} has other genes than this preset's panel; use the same data.genes and files"
        )
    theirs, ours = other.values, model.values
    if theirs.kind != ours.kind or not np.array_equal(theirs.edges, ours.edges):
        raise ConfigurationError(
            f"model.start_from: {folder} has other bins; use its [encoding] section and the same training cells"
        )
    if other.config.phenotypes != model.config.phenotypes:
        raise ConfigurationError(
            f"model.start_from: {folder} has other phenotype values; give its vocabulary as data.vocabulary"
        )
    try:
        model.network.load_state_dict(other.network.state_dict())
    except RuntimeError as error:
        raise ConfigurationError(
            f"model.start_from: {folder} has other shapes than the [model] section describes"
        ) from error
