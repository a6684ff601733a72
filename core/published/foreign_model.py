"""Models of other systems, as their folders hold them: shape, tensors, tokens.

    config.json                        transformers' configuration of a BERT or DistilBERT
    model.safetensors                  or its shards with model.safetensors.index.json,
                                       or pytorch_model.bin (read without running its code)
    vocab.txt, genes.txt, ...          of PolyGene and PerturbGene; see `core.published.foreign_tokens`

Nothing is converted here; that is `core.published.conversion`.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.errors import ConfigurationError, DataError
from core.published.foreign_tokens import (
    POLYGENE_FILE,
    ForeignTokens,
    is_polygene_vocabulary,
    perturbgene_tokens,
    polygene_tokens,
    read_genes,
    read_lines,
    read_phenotype_tokens,
)

__all__ = ["ForeignModel", "ForeignShape", "read_foreign_model", "read_shape"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
#: Of the value, the position and the token type table, without the "bert." in front.
VALUE_TABLE = "embeddings.word_embeddings.weight"
POSITION_TABLE = "embeddings.position_embeddings.weight"
TYPE_TABLE = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True)
class ForeignShape:
    """What the configuration of another model says.

    Attributes
    ----------
    family
        Which of transformers' two layouts of names its tensors have.
    layers, hidden_size, heads, intermediate_size
        Of its encoder.
    activation
        In transformers' words; ours is "gelu".
    norm_epsilon
        Of its layer norms; ours is 1e-12.
    """

    family: Literal["bert", "distilbert"]
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    activation: str
    norm_epsilon: float


@dataclass(frozen=True)
class ForeignModel:
    """A model of another system.

    Attributes
    ----------
    folder
        Where it lies, for messages.
    shape
        Its configuration.
    tensors
        Name -> tensor, float32; the family's prefix ("bert.") removed, "gamma" and "beta" of old
        layer norms called weight and bias.
    tokens
        What its embedding rows mean; None for a model of text, whose words mean nothing here.
    """

    folder: Path
    shape: ForeignShape
    tensors: Mapping[str, Tensor]
    tokens: ForeignTokens | None


def read_shape(folder: Path) -> ForeignShape:
    """Read ``config.json``.

    Raises
    ------
    ConfigurationError
        The model is neither a BERT nor a DistilBERT, or its positions are not learned rows.
    DataError
        The file cannot be read or lacks a key.
    """
    path = folder / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            message = f"{path}: expected a JSON object; copy the model again"
            raise DataError(message)
        return _shape(record, folder)
    except (OSError, ValueError, TypeError) as error:
        message = f"{path}: cannot be read ({error}); copy the model again"
        raise DataError(message) from error
    except KeyError as error:
        message = f"{path}: {error} is missing; copy the model again"
        raise DataError(message) from error


def _shape(record: dict[str, Any], folder: Path) -> ForeignShape:
    family = record.get("model_type")
    positions = record.get("position_embedding_type", "absolute")
    if positions != "absolute":
        message = f"model.start_from: {folder} has {positions} positions; tfx starts from models with absolute ones"
        raise ConfigurationError(message)
    if family == "bert":
        return ForeignShape(
            family="bert",
            layers=int(record["num_hidden_layers"]),
            hidden_size=int(record["hidden_size"]),
            heads=int(record["num_attention_heads"]),
            intermediate_size=int(record["intermediate_size"]),
            activation=str(record.get("hidden_act", "gelu")),
            norm_epsilon=float(record.get("layer_norm_eps", 1e-12)),
        )
    if family == "distilbert":
        return ForeignShape(
            family="distilbert",
            layers=int(record["n_layers"]),
            hidden_size=int(record["dim"]),
            heads=int(record["n_heads"]),
            intermediate_size=int(record["hidden_dim"]),
            activation=str(record.get("activation", "gelu")),
            norm_epsilon=1e-12,  # fixed in the family's code, whatever layer_norm_eps says
        )
    message = (
        f"model.start_from: {folder} is a model of type {family!r}; tfx starts from its own model "
        f"folders and from BERT and DistilBERT"
    )
    raise ConfigurationError(message)


def read_foreign_model(folder: Path, *, vocabulary: Path | None = None) -> ForeignModel:
    """Read a folder.

    Parameters
    ----------
    folder
        See the module's docstring.
    vocabulary
        The preset's ``data.vocabulary``, which PerturbGene's may also be.

    Raises
    ------
    ConfigurationError
        Of a model that tfx cannot start from, or that lacks its genes or vocabulary.
    DataError
        A file is missing, damaged, or not what its name says.
    """
    shape = read_shape(folder)
    tensors = _read_tensors(folder, shape.family)
    if VALUE_TABLE not in tensors:
        message = f"{folder}: {VALUE_TABLE} is not among its tensors; this is no {shape.family}"
        raise DataError(message)
    return ForeignModel(folder, shape, tensors, _read_tokens(folder, shape, tensors, vocabulary))


def _read_tokens(
    folder: Path, shape: ForeignShape, tensors: Mapping[str, Tensor], vocabulary: Path | None
) -> ForeignTokens | None:
    n_values = len(tensors[VALUE_TABLE])
    if shape.family == "distilbert":
        if TYPE_TABLE not in tensors:  # PerturbGene alone has token types there
            return None
        return perturbgene_tokens(
            read_phenotype_tokens(folder, vocabulary),
            read_genes(folder),
            vocab_size=n_values,
            n_types=len(tensors[TYPE_TABLE]),
            where=str(folder),
        )
    if not is_polygene_vocabulary(folder / POLYGENE_FILE):
        return None
    if POSITION_TABLE not in tensors:
        message = f"{folder}: {POSITION_TABLE} is not among its tensors; copy the model again"
        raise DataError(message)
    return polygene_tokens(
        read_lines(folder / POLYGENE_FILE),
        read_genes(folder),
        vocab_size=n_values,
        n_positions=len(tensors[POSITION_TABLE]),
        where=str(folder),
    )


def _read_tensors(folder: Path, family: str) -> dict[str, Tensor]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        message = f"{folder}: no weights ({' or '.join(_WEIGHTS)}); copy the whole model"
        raise DataError(message)
    if path.suffix == ".bin":
        saved = _read_pickled(path)
    elif path.suffix == ".json":
        saved = {}
        for name in _shards(path):
            saved |= _read_safetensors(folder / name)
    else:
        saved = _read_safetensors(path)
    return {_plain(name, family): tensor.float() for name, tensor in saved.items()}


def _plain(name: str, family: str) -> str:
    name = name.removeprefix(f"{family}.")
    # As converted from the first TensorFlow releases; bert-base-uncased is still saved so.
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    return name.removesuffix("beta") + "bias" if name.endswith("LayerNorm.beta") else name


def _shards(index: Path) -> list[str]:
    try:
        record = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(record["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{index}: cannot be read ({error}); copy the model again"
        raise DataError(message) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            message = (
                f"{index}: names {name!r}, which is no file of its folder; copy the model again"
            )
            raise DataError(message)
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        message = f"{path}: no such file; copy the whole model"
        raise DataError(message) from error
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path}: not a safetensors file, or damaged ({error}); copy the model again"
        raise DataError(message) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        message = f"{path}: damaged, or holds more than tensors, which could run code; save the model as safetensors"
        raise DataError(message) from error
    tensors = isinstance(saved, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in saved.items()
    )
    if not tensors:
        message = f"{path}: not a dictionary of tensors; save the model as safetensors"
        raise DataError(message)
    return saved
