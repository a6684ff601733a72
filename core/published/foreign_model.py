"""Reading models of other systems: shape, tensors, and the meaning of their tokens.

    config.json                        transformers' configuration of a BERT or DistilBERT
    model.safetensors                  or its shards with model.safetensors.index.json,
                                       or pytorch_model.bin (read without running its code)
    genes.txt                          of PolyGene and PerturbGene: the model's genes, one id or symbol
                                       a line, in its order; these systems do not save them
    vocab.txt                          of PolyGene: its tokens, one a line
    phenotypic_tokens_map.json         of PerturbGene (or vocab.json): tokens by obs column

PolyGene and PerturbGene feed their encoders with the sum of a value embedding (their word
embeddings: special tokens, bins and phenotype values in one table) and an identity embedding
(PolyGene's learned positions, PerturbGene's token types). Text models have no such tokens.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.cells.genes import GenePanel, strip_version
from core.cells.vocabularies import load_vocabulary
from core.errors import ConfigurationError, DataError
from core.files import file_json, file_text

_GENES_FILE = "genes.txt"
_POLYGENE_FILE = "vocab.txt"
_PERTURBGENE_FILES = ("phenotypic_tokens_map.json", "vocab.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
#: The value, the position and the token type table, without the "bert." in front.
VALUE_TABLE = "embeddings.word_embeddings.weight"
POSITION_TABLE = "embeddings.position_embeddings.weight"
TYPE_TABLE = "embeddings.token_type_embeddings.weight"

#: PolyGene's phenotypes, in the order of its sequence.
_POLYGENE_SLOTS = ("sex", "tissue", "cell_type", "age", "disease")
_PERTURBGENE_SPECIAL = ("[CLS]", "[EOS]", "[MASK]", "[PAD]")


@dataclass(frozen=True)
class ForeignShape:
    """The configuration of another model's encoder."""

    #: Which of transformers' two layouts of names its tensors have.
    family: Literal["bert", "distilbert"]
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    #: transformers' name; ours is "gelu".
    activation: str
    #: Of its layer norms; ours is 1e-12.
    norm_epsilon: float


@dataclass(frozen=True)
class Token:
    """One token of another system's input: rows of its value table and of its identity table."""

    value: int
    identity: int


@dataclass(frozen=True)
class ForeignTokens:
    """The meaning of the rows of another system's embedding tables."""

    system: str
    #: What it writes where our sequence has [CLS], [START] and [END].
    cls: Token
    start: Token
    end: Token
    #: Value rows of [MASK] and of each bin.
    mask: int
    bins: tuple[int, ...]
    #: Phenotype, by its name or obs column -> identity row.
    slots: dict[str, int]
    #: Phenotype -> token, as in "[T_cell]" -> value row.
    values: dict[str, dict[str, int]]
    #: Phenotype -> value row of "not specified"; if a phenotype is absent, it writes ``empty``.
    unspecified: dict[str, int]
    empty: Token | None
    #: Its genes, and the identity row of the first; the others follow.
    genes: GenePanel
    first_gene: int


@dataclass(frozen=True)
class ForeignModel:
    """A model of another system; ``folder`` is for messages."""

    folder: Path
    shape: ForeignShape
    #: float32; the family's prefix ("bert.") is removed, "gamma" and "beta" of old layer norms are
    #: called weight and bias.
    tensors: Mapping[str, Tensor]
    #: None for a model of text, whose words mean nothing here.
    tokens: ForeignTokens | None


def read_foreign_model(folder: Path, *, vocabulary: Path | None = None) -> ForeignModel:
    """Read a folder; ``vocabulary`` (the preset's ``data.vocabulary``) may be PerturbGene's."""
    shape = read_shape(folder)
    tensors = _read_tensors(folder, shape.family)
    if VALUE_TABLE not in tensors:
        raise DataError(
            f"{folder}: {VALUE_TABLE} is not among its tensors; this is no {shape.family}"
        )
    tokens = None
    if shape.family == "distilbert":
        if TYPE_TABLE in tensors:  # only PerturbGene's DistilBERT has token types
            tokens = _perturbgene_tokens(folder, tensors, vocabulary)
    elif (folder / _POLYGENE_FILE).is_file():
        lines = _read_lines(folder / _POLYGENE_FILE)
        if {"[START]", "[END]", "[no_sex]"} <= set(lines):
            tokens = _polygene_tokens(folder, tensors, lines)
    return ForeignModel(folder, shape, tensors, tokens)


def read_shape(folder: Path) -> ForeignShape:
    """Read ``config.json`` of a BERT or DistilBERT; ConfigurationError for any other model."""
    path = folder / "config.json"
    try:
        record = file_json(path)
        if not isinstance(record, dict):
            raise DataError(f"{path}: expected a JSON object; copy the model again")
        return _shape(record, folder)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the model again") from error
    except KeyError as error:
        raise DataError(f"{path}: {error} is missing; copy the model again") from error


def _shape(record: dict[str, Any], folder: Path) -> ForeignShape:
    family = record.get("model_type")
    positions = record.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ConfigurationError(
            f"model.start_from: {folder} has {positions} positions; tfx starts from models with absolute ones"
        )
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
    raise ConfigurationError(
        f"model.start_from: {folder} is a model of type {family!r}; tfx starts from its own model "
        f"folders and from BERT and DistilBERT"
    )


# ---------------------------------------------------------------------------------------- tokens
def _polygene_tokens(
    folder: Path, tensors: Mapping[str, Tensor], vocabulary: Sequence[str]
) -> ForeignTokens:
    """Return PolyGene's tokens.

    Its sequence is [CLS], sex, tissue, cell type, age, disease, [START], the genes, [END], at
    positions 0, 1, ...; its value table holds the lines of ``vocab.txt``, then the bins.
    """
    if POSITION_TABLE not in tensors:
        raise DataError(
            f"{folder}: {POSITION_TABLE} is not among its tensors; copy the model again"
        )
    genes = _read_genes(folder)
    n_values, n_positions = len(tensors[VALUE_TABLE]), len(tensors[POSITION_TABLE])
    row = {token: index for index, token in enumerate(vocabulary)}
    needed = ("[CLS]", "[START]", "[END]", "[MASK]", *(f"[no_{name}]" for name in _POLYGENE_SLOTS))
    missing = [token for token in needed if token not in row]
    if missing:
        raise DataError(
            f"{folder}: {_POLYGENE_FILE} lacks {', '.join(missing)}; copy the vocabulary that the model was trained with"
        )
    header = len(_POLYGENE_SLOTS) + 2
    if n_positions != header + len(genes) + 1:
        raise DataError(
            f"{folder}: {_GENES_FILE} lists {len(genes)} genes, but {n_positions} positions are those "
            f"of {n_positions - header - 1}; list the genes of the model's shards, in their order"
        )
    _check_bins(folder, f"{_POLYGENE_FILE} has {len(vocabulary)} lines", len(vocabulary), n_values)
    special = {*needed, "[PAD]", "[SEP]", "[UNK]"}
    labels = {token: index for token, index in row.items() if token not in special}
    return ForeignTokens(
        system="PolyGene",
        cls=Token(row["[CLS]"], 0),
        start=Token(row["[START]"], header - 1),
        end=Token(row["[END]"], n_positions - 1),
        mask=row["[MASK]"],
        bins=tuple(range(len(vocabulary), n_values)),
        slots={name: place for place, name in enumerate(_POLYGENE_SLOTS, start=1)},
        # One vocabulary for all phenotypes: the file does not assign tokens to phenotypes.
        values=dict.fromkeys(_POLYGENE_SLOTS, labels),
        unspecified={name: row[f"[no_{name}]"] for name in _POLYGENE_SLOTS},
        empty=None,
        genes=genes,
        first_gene=header,
    )


def _perturbgene_tokens(
    folder: Path, tensors: Mapping[str, Tensor], given: Path | None
) -> ForeignTokens:
    """Return PerturbGene's tokens.

    Its value table holds [CLS], [EOS], [MASK], [PAD], the phenotype tokens by sorted obs column,
    and the bins; its token types are 0 for special tokens, one per phenotype, one per gene. It has
    neither [START] nor "not specified". A phenotype that it drops becomes [PAD] of type 0 and is
    attended to: that is what we write for both.
    """
    paths = (*(folder / name for name in _PERTURBGENE_FILES), given)
    path = next((path for path in paths if path is not None and path.is_file()), None)
    if path is None:
        raise ConfigurationError(
            f"model.start_from: {folder} is a PerturbGene model without its vocabulary; copy "
            f"{_PERTURBGENE_FILES[0]} into it, or name it as data.vocabulary"
        )
    vocabulary = load_vocabulary(path)
    genes = _read_genes(folder)
    n_values, n_types = len(tensors[VALUE_TABLE]), len(tensors[TYPE_TABLE])
    columns = sorted(vocabulary)
    tokens = [*_PERTURBGENE_SPECIAL, *(token for name in columns for token in vocabulary[name])]
    row = {token: index for index, token in enumerate(tokens)}
    _check_bins(folder, f"its vocabulary has {len(tokens)} tokens", len(tokens), n_values)
    if n_types != 1 + len(columns) + len(genes):
        raise DataError(
            f"{folder}: {_GENES_FILE} lists {len(genes)} genes, but {n_types} token types are those of "
            f"{n_types - 1 - len(columns)}; list the genes of the model's shards, in their order"
        )
    empty = Token(row["[PAD]"], 0)
    return ForeignTokens(
        system="PerturbGene",
        cls=Token(row["[CLS]"], 0),
        start=empty,
        end=Token(row["[EOS]"], 0),
        mask=row["[MASK]"],
        bins=tuple(range(len(tokens), n_values)),
        slots={name: place for place, name in enumerate(columns, start=1)},
        values={name: {token: row[token] for token in vocabulary[name]} for name in columns},
        unspecified={},
        empty=empty,
        genes=genes,
        first_gene=1 + len(columns),
    )


def _check_bins(folder: Path, has: str, n_tokens: int, n_values: int) -> None:
    if n_values - n_tokens < 2:
        raise DataError(
            f"{folder}: {has} and the model {n_values} tokens, which leaves no bins; copy the vocabulary that it was trained with"
        )


def _read_lines(path: Path) -> list[str]:
    """Read a file of names, one a line."""
    try:
        lines = file_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read_genes(folder: Path) -> GenePanel:
    """Read ``genes.txt``, or the ``genes.json`` of our own model folders."""
    path, table = folder / _GENES_FILE, folder / "genes.json"
    if path.is_file():
        ids = symbols = tuple(strip_version(line.strip()) for line in _read_lines(path))
    elif table.is_file():
        path = table
        try:
            record = file_json(path)
            ids, symbols = tuple(record["ids"]), tuple(record["symbols"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); copy it again") from error
    else:
        raise ConfigurationError(
            f"model.start_from: {folder} does not say which genes its model knows; write them into "
            f"{path}, one id or symbol a line, in the order of var_names in its training files"
        )
    seen: set[str] = set()
    for name in ids:
        if not name or name in seen:
            what = f"{name!r} is named twice" if name else "an empty line"
            raise DataError(f"{path}: {what}; give every gene once")
        seen.add(name)
    return GenePanel(ids, symbols)


# --------------------------------------------------------------------------------------- tensors
def _read_tensors(folder: Path, family: str) -> dict[str, Tensor]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: no weights ({' or '.join(_WEIGHTS)}); copy the whole model")
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
        record = file_json(index)
        names = sorted(set(record["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: cannot be read ({error}); copy the model again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(
                f"{index}: names {name!r}, which is no file of its folder; copy the model again"
            )
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; copy the whole model") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a safetensors file, or damaged ({error}); copy the model again"
        ) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: damaged, or holds more than tensors, which could run code; save the model as safetensors"
        ) from error
    tensors = isinstance(saved, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in saved.items()
    )
    if not tensors:
        raise DataError(f"{path}: not a dictionary of tensors; save the model as safetensors")
    return saved
