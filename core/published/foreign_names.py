"""How transformers' BERT and DistilBERT call the modules that ours correspond to."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NAMINGS", "Naming"]


@dataclass(frozen=True)
class Naming:
    """How a family calls the modules of a layer and of its head.

    Attributes
    ----------
    layer
        Prefix of a layer, with a place for its number.
    query_key_value
        Within a layer; ours is one matrix.
    modules
        Our name within a layer -> theirs.
    transform
        Linear and norm of the head.
    decoder
        The output's weight; where it was not saved it is the value table.
    decoder_bias
        Its bias, under the first of these names that was saved.
    """

    layer: str
    query_key_value: tuple[str, str, str]
    modules: Mapping[str, str]
    transform: tuple[str, str]
    decoder: str
    decoder_bias: tuple[str, ...]


NAMINGS = {
    "bert": Naming(
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
    "distilbert": Naming(
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
