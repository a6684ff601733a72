"""`train.task = "classification"`: which settings it allows, and which weights it trains.

The model is the masked one with another target (`core.encoding.cell_batch`): [CLS] predicts one phenotype,
with its genes visible. Gene heads predict nothing and are frozen; ``classification.encoder`` says
what of the encoder is trained. Low-rank additions are peft's; they are added to the weights they
belong to wherever a model is saved, so that a model folder needs no peft.
"""

import importlib.util
import logging
from typing import Any

from torch import Tensor, nn

from core.errors import ConfigurationError, MachineError
from core.model.cell_model import TfxModel
from core.presets.schema import Preset

logger = logging.getLogger(__name__)

#: The linear layers of a block: all of them get additions (Dettmers et al. 2023, QLoRA).
_LORA_LAYERS = ["query_key_value", "attention_output", "feed_forward_in", "feed_forward_out"]
_GENE_HEADS = ("gene_transform", "gene_output", "gene_bias")
_GENE_TERMS = ("class_scale", "couplings", "share_scale", "class_gate", "mix", "effects")


def check_classification(preset: Preset) -> None:
    """Check the settings of a classification before any cell is read.

    Raises
    ------
    ConfigurationError
        It has a joint head, or keeps weights of an encoder that is not trained.
    MachineError
        It needs peft, which is not installed.
    """
    if preset.classified is None:
        return
    kind, layers = preset.classification.encoder, preset.model.layers
    if preset.model.head == "joint":
        message = (
            "train.task = 'classification' predicts one phenotype, which model.head = 'joint' mixes "
            "with the genes; use model.head = 'split'"
        )
        raise ConfigurationError(message)
    if kind != "full" and (layers == 0 or preset.model.start_from is None):
        message = (
            f"classification.encoder = '{kind}' keeps weights of an encoder that was trained before; "
            f"name it as model.start_from, or use 'full'"
        )
        raise ConfigurationError(message)
    if kind == "lora" and importlib.util.find_spec("peft") is None:
        message = (
            "classification.encoder = 'lora' needs the package peft; install it by pip install "
            "'transformerics[lora]', or use 'full' or 'frozen'"
        )
        raise MachineError(message)
    if preset.classification.sampling == "balanced" and preset.train.tokens_per_batch is not None:
        message = (
            "classification.sampling = 'balanced' deals cells, not tokens; give train.batch_size "
            "instead of train.tokens_per_batch"
        )
        raise ConfigurationError(message)


def choose_trainable(network: TfxModel, preset: Preset) -> None:
    """Freeze what a classification does not train, and add low-rank weights if it trains those.

    These are drawn from torch's global generator.
    """
    if preset.classified is None:
        return
    frozen: list[Any] = []  # modules and parameters
    part, log_linear = network.encoder_part, network.log_linear
    if part is not None:
        frozen += [getattr(part, name) for name in _GENE_HEADS]
        if preset.classification.encoder != "full":
            frozen += [part.embedding, part.encoder]
    if log_linear is not None:
        frozen += [getattr(log_linear, name) for name in _GENE_TERMS]
    for weights in frozen:
        if weights is not None:
            weights.requires_grad_(requires_grad=False)
    if part is not None and preset.classification.encoder == "lora":
        _add_low_rank(part.encoder, preset)
    n_all = sum(p.numel() for p in network.parameters())
    n_trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    logger.info(
        "classification of %s: %d of %d parameters learn", preset.classified, n_trained, n_all
    )


def _add_low_rank(encoder: nn.Module, preset: Preset) -> None:
    # peft imports transformers' models, 2 s.
    from peft import LoraConfig, inject_adapter_in_model

    settings = preset.classification
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=_LORA_LAYERS
    )
    inject_adapter_in_model(config, encoder)


def merge_low_rank(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return ``weights`` of a network with low-rank additions merged: W + (alpha / rank) B A (LoRA, Hu et al. 2021)."""
    merged = dict(weights)
    for name, module in network.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        scale = float(module.scaling["default"])
        weight = merged.pop(f"{name}.base_layer.weight")
        down = merged.pop(f"{name}.lora_A.default.weight")
        up = merged.pop(f"{name}.lora_B.default.weight")
        merged[f"{name}.weight"] = weight + scale * (up.float() @ down.float()).to(weight.dtype)
        merged[f"{name}.bias"] = merged.pop(f"{name}.base_layer.bias")
    return merged
