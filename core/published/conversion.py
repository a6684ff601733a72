"""Weights of other systems in our names and shapes: one dictionary of tensors to another.

The encoders of BERT and DistilBERT compute what ours does (post-norm, GELU, biases), so their
layers are taken as they are, query, key and value in one matrix. What else is taken depends on
what the model read:

- PolyGene and PerturbGene read cells. Value and identity embeddings are taken row by row, by the
  names of phenotype values and genes, and the head with them, so that the converted model gives
  their logits: with a joint head over the same answers, with a split head each in its own softmax.
- A model of text knows no gene and no bin. Its words are left behind; its position embeddings
  become the identities of our places where it has enough of them (ranked layout): BERT's position
  is PolyGene's identity. The transform of its head is taken, its output is not.

Shapes: D width.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from core.cells.genes import GenePanel
from core.encoding.tokens import CLS, END, MASK, NONE, START
from core.errors import ConfigurationError, DataError
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.presets.schema import ModelSettings, Preset
from core.published.foreign_model import (
    POSITION_TABLE,
    TYPE_TABLE,
    VALUE_TABLE,
    ForeignModel,
    ForeignShape,
    read_foreign_model,
    read_shape,
)
from core.published.foreign_names import NAMINGS
from core.published.foreign_tokens import ForeignTokens, Place
from core.published.matched_rows import MatchedRows, match_rows
from core.training.start_weights import is_foreign, start_folder

__all__ = ["check_start_shape", "convert", "convert_start"]

logger = logging.getLogger(__name__)

_OUR_EPSILON = 1e-12


def check_start_shape(preset: Preset) -> None:
    """Check the shape of another system's model in ``model.start_from``, before any cell is read.

    Raises
    ------
    ConfigurationError
        Its encoder has another shape than the preset's, or is of a kind that tfx does not have.
    DataError
        Its configuration cannot be read.
    """
    folder = start_folder(preset)
    if folder is not None and is_foreign(folder):
        _check_shape(read_shape(folder), preset.model, folder)


def convert_start(folder: Path, preset: Preset, model: CellModel) -> dict[str, Tensor]:
    """Read another system's model and convert its weights for a new model of ours.

    Raises
    ------
    ConfigurationError
        The other model has another shape, or does not know a gene, a phenotype, a value or the bins
        of ours.
    DataError
        A file of it is missing or damaged.
    """
    given = preset.data.vocabulary
    foreign = read_foreign_model(folder, vocabulary=None if given is None else Path(given))
    _check_shape(foreign.shape, preset.model, folder)
    columns = {name: column for name, column in preset.data.phenotypes.items() if column}
    tensors = convert(foreign, model.config, model.panel, columns)
    system = (
        f"a {foreign.shape.family} of text" if foreign.tokens is None else foreign.tokens.system
    )
    logger.info("initial weights: %s (%s)", folder, system)
    return tensors


def _check_shape(shape: ForeignShape, ours: ModelSettings, folder: Path) -> None:
    found = [
        f"{key} = {theirs!r} (the preset has {value!r})"
        for key, theirs, value in (
            ("model.layers", shape.layers, ours.layers),
            ("model.hidden_size", shape.hidden_size, ours.hidden_size),
            ("model.heads", shape.heads, ours.heads),
            (
                "model.intermediate_size",
                shape.intermediate_size,
                ours.intermediate_size or 4 * ours.hidden_size,
            ),
            ("model.activation", "gelu", ours.activation),
            ("model.norm", "post", ours.norm),
        )
        if theirs != value
    ]
    if shape.activation != "gelu":
        found.append(f"an activation {shape.activation!r}, which tfx does not have (it has 'gelu')")
    if found:
        message = f"model.start_from: {folder} has {', '.join(found)}; set the [model] section to its shape"
        raise ConfigurationError(message)


def convert(
    foreign: ForeignModel,
    config: TfxConfig,
    panel: GenePanel,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Turn another system's tensors into those of our network.

    Parameters
    ----------
    foreign
        The other model.
    config, panel
        Of our network, whose encoder has the same shape.
    columns
        Phenotype -> obs column, for systems that name phenotypes by their column.

    Returns
    -------
    Name in `TfxModel.state_dict` -> tensor, float64. What the other model does not know is absent:
    the network keeps its own initial weights there.

    Raises
    ------
    ConfigurationError
        The other model does not know a gene, a phenotype, a value or the bins of ours.
    DataError
        A tensor is missing, not finite, or of another shape than its configuration says.
    """
    source = _Source(foreign)
    if foreign.shape.norm_epsilon != _OUR_EPSILON:
        logger.warning(
            "%s: its layer norms add %g where tfx adds %g: answers differ slightly",
            foreign.folder,
            foreign.shape.norm_epsilon,
            _OUR_EPSILON,
        )
    converted = dict(_encoder(source))
    if foreign.tokens is None:
        converted |= _positions(source, config)
        converted |= _transforms(source, config)
    else:
        rows = match_rows(foreign, foreign.tokens, config, panel, columns or {})
        converted |= _embeddings(source, foreign.tokens, rows, config)
        converted |= _transforms(source, config)
        if not config.log_linear:  # beside a log-linear part the encoder's outputs start at zero
            converted |= _outputs(source, rows, config)
    return {f"encoder_part.{name}": tensor for name, tensor in converted.items()}


class _Source:
    """The other model's tensors, checked as they are taken."""

    def __init__(self, foreign: ForeignModel) -> None:
        self.foreign, self.naming = foreign, NAMINGS[foreign.shape.family]
        self.width = foreign.shape.hidden_size

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Return a tensor of a shape (None: any length), float64."""
        tensor = self.foreign.tensors.get(name)
        if tensor is None:
            message = (
                f"{self.foreign.folder}: {name} is not among its tensors; copy the model again"
            )
            raise DataError(message)
        fits = tensor.ndim == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = " x ".join("any" if length is None else str(length) for length in shape)
            message = f"{self.foreign.folder}: {name} is {' x '.join(map(str, tensor.shape))}, where its config.json means {wanted}; copy both from one model"
            raise DataError(message)
        if not torch.isfinite(tensor).all():
            message = f"{self.foreign.folder}: {name} holds values that are not finite; start from another checkpoint"
            raise DataError(message)
        return tensor.double()

    def module(self, name: str, *shape: int) -> Iterator[tuple[str, Tensor]]:
        """Give weight and bias of a linear layer or norm."""
        yield "weight", self.take(f"{name}.weight", *shape)
        yield "bias", self.take(f"{name}.bias", shape[0])

    def has(self, name: str) -> bool:
        return name in self.foreign.tensors


def _encoder(source: _Source) -> Iterator[tuple[str, Tensor]]:
    """Give the layers, and the norm of the embeddings."""
    naming, width = source.naming, source.width
    inner = source.foreign.shape.intermediate_size
    shapes = {
        "attention_output": (width, width),
        "attention_norm": (width,),
        "feed_forward_in": (inner, width),
        "feed_forward_out": (width, inner),
        "feed_forward_norm": (width,),
    }
    for number in range(source.foreign.shape.layers):
        theirs, ours = naming.layer.format(number), f"encoder.layers.{number}."
        parts = [
            dict(source.module(theirs + name, width, width)) for name in naming.query_key_value
        ]
        for kind in ("weight", "bias"):
            yield f"{ours}query_key_value.{kind}", torch.cat([part[kind] for part in parts])
        for name, module in naming.modules.items():
            for kind, tensor in source.module(theirs + module, *shapes[name]):
                yield f"{ours}{name}.{kind}", tensor
    for kind, tensor in source.module("embeddings.LayerNorm", width):
        yield f"embedding.norm.{kind}", tensor


def _identity_table(source: _Source, name: str) -> Tensor:
    """Return positions, with token type 0 folded in, or token types; (rows, D)."""
    table = source.take(name, None, source.width)
    if name == POSITION_TABLE and source.has(TYPE_TABLE):
        table = table + source.take(TYPE_TABLE, None, source.width)[0]
    return table


def _positions(source: _Source, config: TfxConfig) -> dict[str, Tensor]:
    """Return a text model's positions as the identities of our sequence, if there are enough."""
    tokens = config.tokens
    n_positions = len(source.foreign.tensors.get(POSITION_TABLE, ()))
    if config.layout != "ranked" or n_positions < tokens.required_length:
        logger.info(
            "%s: its %d positions are not taken (%s)",
            source.foreign.folder,
            n_positions,
            f"cells have {tokens.required_length} tokens"
            if config.layout == "ranked"
            else "the expressed layout has none",
        )
        return {}
    slots = range(tokens.first_slot, tokens.first_gene)
    genes = range(tokens.first_gene, tokens.n_token_ids)
    in_order = torch.tensor([CLS, *slots, START, *genes, END])
    identity = torch.empty(tokens.n_token_ids, source.width, dtype=torch.float64)
    identity[in_order] = _identity_table(source, POSITION_TABLE)[: len(in_order)]
    return {"embedding.identity.weight": identity}


def _embeddings(
    source: _Source, theirs: ForeignTokens, rows: MatchedRows, config: TfxConfig
) -> dict[str, Tensor]:
    """Return identity and value tables whose sums are the other model's.

    [CLS], [START] and [END] have no value of their own in our sequence (NONE, which is zero here),
    so that their identities hold their words too.
    """
    ours = config.tokens
    words = source.take(VALUE_TABLE, None, source.width)
    places = _identity_table(source, POSITION_TABLE if theirs.empty is None else TYPE_TABLE)

    def written(place: Place) -> Tensor:
        return words[place.value] + places[place.identity]

    identity = torch.empty(ours.n_token_ids, source.width, dtype=torch.float64)
    identity[CLS], identity[START], identity[END] = map(
        written, (theirs.cls, theirs.start, theirs.end)
    )
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
            value[first] = written(theirs.empty) - places[rows.slots[slot]]
        value[first + 1 : first + 1 + len(rows.values[slot])] = words[rows.values[slot]]
    return {"embedding.identity.weight": identity, "embedding.value.weight": value}


def _transforms(source: _Source, config: TfxConfig) -> dict[str, Tensor]:
    """Return the head's transform, in each head that we have; nothing if it was not saved."""
    dense, norm = source.naming.transform
    if not source.has(f"{dense}.weight"):
        return {}
    heads = ["joint"] if config.head == "joint" else ["gene"]
    if config.head == "split" and config.phenotype_sizes:
        heads.append("phenotype")
    return {
        f"{head}_transform.{ours}.{kind}": tensor
        for head in heads
        for ours, name, shape in (
            ("linear", dense, (source.width, source.width)),
            ("norm", norm, (source.width,)),
        )
        for kind, tensor in source.module(name, *shape)
    }


def _outputs(source: _Source, rows: MatchedRows, config: TfxConfig) -> dict[str, Tensor]:
    """Return the rows of the decoder that answer our questions; nothing without a head."""
    naming = source.naming
    if not source.has(f"{naming.transform[0]}.weight"):
        return {}
    tied = not source.has(naming.decoder)
    weight = source.take(VALUE_TABLE if tied else naming.decoder, None, source.width)
    saved = next((name for name in naming.decoder_bias if source.has(name)), None)
    bias = weight.new_zeros(len(weight)) if saved is None else source.take(saved, len(weight))
    assert source.foreign.tokens is not None
    bins = list(source.foreign.tokens.bins)
    values = [row for one in rows.values for row in one]
    if config.head == "joint":
        return {
            "joint_output.weight": weight[bins + values],
            "joint_output.bias": bias[bins + values],
        }
    if config.kind == "binary":  # one logit, of "on"
        gene = weight[bins[1:]] - weight[bins[:1]], bias[bins[1:]] - bias[bins[:1]]
    else:
        gene = weight[bins], bias[bins]
    outputs = {
        "gene_output.weight": gene[0],
        "gene_output.bias": gene[1],
        "gene_bias.weight": weight.new_zeros(config.n_genes, config.n_gene_outputs),
    }
    if values:
        outputs |= {
            "phenotype_output.weight": weight[values],
            "phenotype_output.bias": bias[values],
        }
    return outputs
