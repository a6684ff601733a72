"""Weights of other systems as tensors of our network.

The encoders of BERT and DistilBERT compute the same as ours (post-norm, GELU, biases), so that their
layers are copied, with query, key and value in one matrix. The rest depends on the input of the model:

- PolyGene and PerturbGene read cells. The rows of their embeddings and of their head are copied by
  the names of phenotype values and genes, so that the converted model gives their logits: with a
  joint head over the same classes, with a split head each in its own softmax.
- A model of text knows no gene and no bin. Its words are not used; its position embeddings become our
  token embeddings if it has enough of them (ranked layout), because BERT's position is PolyGene's
  gene. The transform of its head is copied, its output is not.

Shapes: D width.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.cells.genes import GenePanel
from core.cells.spelling import label_token, match_label
from core.encoding.tokens import CLS, END, MASK, NONE, START
from core.errors import ConfigurationError, DataError
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.presets.phenotype_names import STANDARD_PHENOTYPES
from core.presets.schema import ModelSettings, Preset
from core.published.foreign_model import (
    POSITION_TABLE,
    TYPE_TABLE,
    VALUE_TABLE,
    ForeignModel,
    ForeignShape,
    ForeignTokens,
    Token,
    read_foreign_model,
    read_shape,
)
from core.training.start_weights import is_foreign, start_folder
from core.wording import listed

logger = logging.getLogger(__name__)

_OUR_EPSILON = 1e-12


@dataclass(frozen=True)
class _Names:
    """The names of a family's modules in transformers."""

    #: Prefix of a layer, with a place for its number.
    layer: str
    #: Within a layer; ours is one matrix.
    query_key_value: tuple[str, str, str]
    #: Our name within a layer -> theirs.
    modules: Mapping[str, str]
    #: Linear and norm of the head.
    transform: tuple[str, str]
    #: The output's weight; if it was not saved it is the value table.
    decoder: str
    #: Its bias, under the first of these names that was saved.
    decoder_bias: tuple[str, ...]


_NAMES = {
    "bert": _Names(
        layer="encoder.layer.{}.",
        query_key_value=("attention.self.query", "attention.self.key", "attention.self.value"),
        modules={
            "attention_output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "feed_forward_in": "intermediate.dense",
            "feed_forward_out": "output.dense",
            "feed_forward_norm": "output.LayerNorm",
        },
        transform=("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        decoder="cls.predictions.decoder.weight",
        decoder_bias=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ),
    "distilbert": _Names(
        layer="transformer.layer.{}.",
        query_key_value=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        modules={
            "attention_output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "feed_forward_in": "ffn.lin1",
            "feed_forward_out": "ffn.lin2",
            "feed_forward_norm": "output_layer_norm",
        },
        transform=("vocab_transform", "vocab_layer_norm"),
        decoder="vocab_projector.weight",
        decoder_bias=("vocab_projector.bias",),
    ),
}


def check_start_shape(preset: Preset) -> None:
    """Check the shape of another system's model in ``model.start_from``, before any cell is read.

    ConfigurationError if it is not the preset's; DataError if its configuration cannot be read.
    """
    folder = start_folder(preset)
    if folder is not None and is_foreign(folder):
        _check_shape(read_shape(folder), preset.model, folder)


def convert_start(folder: Path, preset: Preset, model: CellModel) -> dict[str, Tensor]:
    """Read another system's model and convert its weights for a new model of ours.

    ConfigurationError if its shape, genes, phenotypes, values or bins do not fit ours; DataError if a
    file is missing or damaged.
    """
    given = preset.data.vocabulary
    foreign = read_foreign_model(folder, vocabulary=None if given is None else Path(given))
    _check_shape(foreign.shape, preset.model, folder)
    columns = {name: column for name, column in preset.data.phenotypes.items() if column}
    tensors = convert(foreign, model.config, model.panel, columns)
    system = foreign.tokens.system if foreign.tokens else f"a {foreign.shape.family} of text"
    logger.info("initial weights: %s (%s)", folder, system)
    return tensors


def _check_shape(shape: ForeignShape, ours: ModelSettings, folder: Path) -> None:
    inner = ours.intermediate_size or 4 * ours.hidden_size
    found = [
        f"{key} = {theirs!r} (the preset has {value!r})"
        for key, theirs, value in (
            ("model.layers", shape.layers, ours.layers),
            ("model.hidden_size", shape.hidden_size, ours.hidden_size),
            ("model.heads", shape.heads, ours.heads),
            ("model.intermediate_size", shape.intermediate_size, inner),
            ("model.activation", "gelu", ours.activation),
            ("model.norm", "post", ours.norm),
        )
        if theirs != value
    ]
    if shape.activation != "gelu":
        found.append(f"an activation {shape.activation!r}, which tfx does not have (it has 'gelu')")
    if found:
        raise ConfigurationError(
            f"model.start_from: {folder} has {', '.join(found)}; set the [model] section to its shape"
        )


def convert(
    foreign: ForeignModel,
    config: TfxConfig,
    panel: GenePanel,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Convert another system's tensors, of an encoder of the same shape, to those of our network.

    ``columns`` is phenotype -> obs column, for systems that name phenotypes by their column. Returns
    name in `TfxModel.state_dict` -> tensor, float64; tensors that the other model lacks are absent: the
    network keeps its own initial weights there.
    """
    source = _Source(foreign)
    if foreign.shape.norm_epsilon != _OUR_EPSILON:
        note = "%s: its layer norms add %g where tfx adds %g: predictions differ slightly"
        logger.warning(note, foreign.folder, foreign.shape.norm_epsilon, _OUR_EPSILON)
    converted = dict(_encoder(source)) | _transforms(source, config)
    if foreign.tokens is None:
        converted |= _positions(source, config)
    else:
        rows = _match_rows(foreign, foreign.tokens, config, panel, columns or {})
        converted |= _embeddings(source, foreign.tokens, rows, config)
        if not config.log_linear:  # beside a log-linear part the encoder's outputs start at zero
            converted |= _outputs(source, foreign.tokens, rows, config)
    return {f"encoder_part.{name}": tensor for name, tensor in converted.items()}


class _Source:
    """The other model's tensors, checked when they are read."""

    def __init__(self, foreign: ForeignModel) -> None:
        self.folder, self.shape, self.tensors = foreign.folder, foreign.shape, foreign.tensors
        self.names = _NAMES[foreign.shape.family]
        self.width = foreign.shape.hidden_size

    def tensor(self, name: str, *shape: int | None) -> Tensor:
        """Return a tensor of a shape (None: any length), float64."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise DataError(f"{self.folder}: {name} is not among its tensors; copy the model again")
        fits = tensor.ndim == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = " x ".join("any" if length is None else str(length) for length in shape)
            raise DataError(
                f"{self.folder}: {name} is {' x '.join(map(str, tensor.shape))}, where its config.json means {wanted}; copy both from one model"
            )
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"{self.folder}: {name} holds values that are not finite; start from another checkpoint"
            )
        return tensor.double()

    def module(self, name: str, *shape: int) -> Iterator[tuple[str, Tensor]]:
        """Yield weight and bias of a linear layer or norm."""
        yield "weight", self.tensor(f"{name}.weight", *shape)
        yield "bias", self.tensor(f"{name}.bias", shape[0])

    @property
    def has_head(self) -> bool:
        """Whether the transform of the head was saved."""
        return f"{self.names.transform[0]}.weight" in self.tensors


def _encoder(source: _Source) -> Iterator[tuple[str, Tensor]]:
    """Yield the layers, and the norm of the embeddings."""
    names, width = source.names, source.width
    inner = source.shape.intermediate_size
    shapes = {
        "attention_output": (width, width),
        "attention_norm": (width,),
        "feed_forward_in": (inner, width),
        "feed_forward_out": (width, inner),
        "feed_forward_norm": (width,),
    }
    for number in range(source.shape.layers):
        theirs, ours = names.layer.format(number), f"encoder.layers.{number}."
        parts = [dict(source.module(theirs + name, width, width)) for name in names.query_key_value]
        for kind in ("weight", "bias"):
            yield f"{ours}query_key_value.{kind}", torch.cat([part[kind] for part in parts])
        for name, module in names.modules.items():
            for kind, tensor in source.module(theirs + module, *shapes[name]):
                yield f"{ours}{name}.{kind}", tensor
    for kind, tensor in source.module("embeddings.LayerNorm", width):
        yield f"embedding.norm.{kind}", tensor


def _transforms(source: _Source, config: TfxConfig) -> dict[str, Tensor]:
    """Return the head's transform for each of our heads; nothing if it was not saved."""
    if not source.has_head:
        return {}
    heads = ["joint"] if config.head == "joint" else ["gene"]
    if config.head == "split" and config.phenotype_sizes:
        heads.append("phenotype")
    linear, norm = source.names.transform
    modules = (("linear", linear, (source.width, source.width)), ("norm", norm, (source.width,)))
    return {
        f"{head}_transform.{ours}.{kind}": tensor
        for head in heads
        for ours, name, shape in modules
        for kind, tensor in source.module(name, *shape)
    }


def _position_table(source: _Source) -> Tensor:
    """Return positions, with token type 0 added; (rows, D)."""
    table = source.tensor(POSITION_TABLE, None, source.width)
    if TYPE_TABLE in source.tensors:
        table = table + source.tensor(TYPE_TABLE, None, source.width)[0]
    return table


def _positions(source: _Source, config: TfxConfig) -> dict[str, Tensor]:
    """Return a text model's positions as our token embeddings, if there are enough."""
    tokens = config.tokens
    n_positions = len(source.tensors.get(POSITION_TABLE, ()))
    if config.layout != "ranked" or n_positions < tokens.required_length:
        why = (
            f"cells have {tokens.required_length} tokens"
            if config.layout == "ranked"
            else "the expressed layout has none"
        )
        logger.info("%s: its %d positions are not used (%s)", source.folder, n_positions, why)
        return {}
    slots = range(tokens.first_slot, tokens.first_gene)
    genes = range(tokens.first_gene, tokens.n_token_ids)
    in_order = torch.tensor([CLS, *slots, START, *genes, END])
    identity = torch.empty(tokens.n_token_ids, source.width, dtype=torch.float64)
    identity[in_order] = _position_table(source)[: len(in_order)]
    return {"embedding.identity.weight": identity}


@dataclass(frozen=True)
class _Rows:
    """Rows of the other model's tables, in the order of our phenotypes, values and panel."""

    slots: list[int]
    genes: list[int]
    values: list[list[int]]
    #: For [NO_*] of our phenotypes; None if the other model has no such token.
    unspecified: list[int | None]


def _match_rows(
    foreign: ForeignModel,
    tokens: ForeignTokens,
    config: TfxConfig,
    panel: GenePanel,
    columns: Mapping[str, str],
) -> _Rows:
    """Find our genes, phenotypes and values among another model's, by name."""
    where = f"model.start_from: {foreign.folder}"
    if config.kind == "continuous" or config.n_bins != len(tokens.bins):
        raise ConfigurationError(
            f"{where} has {len(tokens.bins)} bins; set encoding.kind = 'binned' and encoding.bins = {len(tokens.bins)}"
        )
    genes, unknown = [], []
    for gene, symbol in zip(panel.ids, panel.symbols, strict=True):
        index = tokens.genes.index_of(gene)
        index = tokens.genes.index_of(symbol) if index is None else index
        if index is None:
            unknown.append(gene)
        else:
            genes.append(tokens.first_gene + index)
    if unknown:
        raise ConfigurationError(
            f"{where} does not know {listed(unknown, most=5)} of the panel's {len(panel)} genes; lower data.genes, or prepare from files with its genes only"
        )
    rows = _Rows([], genes, [], [])
    unmatched = []
    for name, own in config.phenotypes.items():
        names = (name, columns.get(name), STANDARD_PHENOTYPES.get(name))
        key = next((one for one in names if one in tokens.slots), None)
        if key is None:
            raise ConfigurationError(
                f"{where} does not know the phenotype '{name}' (it knows {', '.join(tokens.slots)}); set data.phenotypes.{name} = false"
            )
        known = tokens.values[key]
        found = {value: match_label(label_token(value), known) for value in own}
        unmatched += [f"{name} '{value}'" for value, token in found.items() if token is None]
        rows.slots.append(tokens.slots[key])
        rows.values.append([known[token] for token in found.values() if token is not None])
        rows.unspecified.append(tokens.unspecified.get(key))
    if unmatched:
        ages = "; ages in years need data.age_groups = 'none'" if "age" in config.phenotypes else ""
        raise ConfigurationError(
            f"{where} does not know {listed(unmatched, most=5)}; give its values as data.vocabulary{ages}"
        )
    absent = [name for name, row in tokens.slots.items() if row not in rows.slots]
    if absent:
        note = "%s was trained with the phenotypes %s, which these cells do not have"
        logger.warning(note, foreign.folder, ", ".join(absent))
    return rows


def _embeddings(
    source: _Source, theirs: ForeignTokens, rows: _Rows, config: TfxConfig
) -> dict[str, Tensor]:
    """Return token and value tables whose sums are the other model's.

    [CLS], [START] and [END] have no value of their own in our sequence (NONE, which is zero here),
    so that their token embeddings include their words.
    """
    ours = config.tokens
    words = source.tensor(VALUE_TABLE, None, source.width)
    if theirs.empty is None:
        places = _position_table(source)
    else:
        places = source.tensor(TYPE_TABLE, None, source.width)

    def embedding(token: Token) -> Tensor:
        return words[token.value] + places[token.identity]

    identity = torch.empty(ours.n_token_ids, source.width, dtype=torch.float64)
    for place, token in ((CLS, theirs.cls), (START, theirs.start), (END, theirs.end)):
        identity[place] = embedding(token)
    identity[ours.first_slot :] = places[rows.slots + rows.genes]
    value = torch.empty(ours.n_values, source.width, dtype=torch.float64)
    value[NONE] = 0.0
    value[MASK] = words[theirs.mask]
    value[ours.first_bin : ours.first_bin + len(theirs.bins)] = words[list(theirs.bins)]
    for slot, row in enumerate(rows.unspecified):
        first = int(ours.not_specified[slot])
        if row is not None:
            value[first] = words[row]
        else:
            assert theirs.empty is not None
            value[first] = embedding(theirs.empty) - places[rows.slots[slot]]
        value[first + 1 : first + 1 + len(rows.values[slot])] = words[rows.values[slot]]
    return {"embedding.identity.weight": identity, "embedding.value.weight": value}


def _outputs(
    source: _Source, theirs: ForeignTokens, rows: _Rows, config: TfxConfig
) -> dict[str, Tensor]:
    """Return the rows of the decoder for our bins and values; nothing without a head."""
    if not source.has_head:
        return {}
    names, width = source.names, source.width
    tied = names.decoder not in source.tensors
    weight = source.tensor(VALUE_TABLE if tied else names.decoder, None, width)
    saved = next((name for name in names.decoder_bias if name in source.tensors), None)
    bias = weight.new_zeros(len(weight)) if saved is None else source.tensor(saved, len(weight))
    bins = list(theirs.bins)
    values = [row for one in rows.values for row in one]
    if config.head == "joint":
        both = bins + values
        return {"joint_output.weight": weight[both], "joint_output.bias": bias[both]}
    if config.kind == "binary":  # one logit, of "expressed"
        gene = weight[bins[1:]] - weight[bins[:1]], bias[bins[1:]] - bias[bins[:1]]
    else:
        gene = weight[bins], bias[bins]
    outputs = {
        "gene_output.weight": gene[0],
        "gene_output.bias": gene[1],
        "gene_bias.weight": weight.new_zeros(config.n_genes, config.n_gene_outputs),
    }
    if values:
        outputs["phenotype_output.weight"] = weight[values]
        outputs["phenotype_output.bias"] = bias[values]
    return outputs
