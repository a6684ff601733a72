"""`train.task = "classification"`: what it needs of preset and cells, and what of a model it trains.

The model is the masked one with another question (`core.encoding.cell_batch`): [CLS] tells one phenotype,
with its genes visible. Gene heads answer nothing and rest; of the encoder learns what
``classification.encoder`` says. Low-rank additions are peft's; they are added up with the weights
they belong to wherever a model is saved, so that a model folder needs no peft.
"""

import importlib.util
import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from core.cells.phenotypes import suggest
from core.cells.store import OneVsRest, Store
from core.errors import ConfigurationError, DataError, MachineError
from core.model.cell_model import TfxModel
from core.presets.schema import Preset
from core.random_streams import Stream, generator

__all__ = [
    "balanced_epochs",
    "check_classification",
    "check_labels",
    "choose_trainable",
    "labelled_rows",
    "store_of_task",
    "with_additions",
]

logger = logging.getLogger(__name__)

#: The linear layers of a block: all of them get additions (Dettmers et al. 2023, QLoRA).
_LORA_LAYERS = ["query_key_value", "attention_output", "feed_forward_in", "feed_forward_out"]
_GENE_HEADS = ("gene_transform", "gene_output", "gene_bias")
_GENE_TERMS = ("class_scale", "couplings", "share_scale", "class_gate", "mix", "effects")


def check_classification(preset: Preset) -> None:
    """Refuse a classification that contradicts itself, before any cell is read.

    Raises
    ------
    ConfigurationError
        It has the originals' joint head, or trains a part of an encoder that nobody has trained.
    MachineError
        It needs peft, which is not installed.
    """
    if preset.classified is None:
        return
    kind, layers = preset.classification.encoder, preset.model.layers
    if preset.model.head == "joint":
        message = (
            "train.task = 'classification' asks one question, which model.head = 'joint' mixes with "
            "the genes'; use model.head = 'split'"
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


def store_of_task(preset: Preset, store: Store) -> Store:
    """Return the store as the preset's task sees it: one value against the rest, if it asks so.

    Raises
    ------
    ConfigurationError
        The store lacks the phenotype, one that is given, or the value.
    DataError
        No cell has a label, or all have the same.
    """
    if preset.classified is None:
        return store
    for key, name in [
        ("column", preset.classified),
        *(("given", name) for name in preset.classification.given),
    ]:
        if name not in store.phenotypes:
            message = (
                f"classification.{key} names {name!r}, which is no phenotype of {store.path}; "
                f"{suggest(name, store.phenotypes)}"
            )
            raise ConfigurationError(message)
    if preset.classification.positive is not None:
        return OneVsRest(store, preset.classified, preset.classification.positive)
    return store


def labelled_rows(preset: Preset, store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep the cells that have a label of the phenotype that is asked for."""
    if preset.classified is None or len(rows) == 0:
        return rows
    slot = list(store.phenotypes).index(preset.classified)
    return rows[np.asarray(store.phenotype_codes[rows, slot]) >= 0]


def check_labels(preset: Preset, store: Store, rows: NDArray[np.int64]) -> None:
    """Refuse training cells that tell nothing apart.

    Raises
    ------
    DataError
        They have fewer than two values.
    """
    if preset.classified is None:
        return
    slot = list(store.phenotypes).index(preset.classified)
    found = np.unique(np.asarray(store.phenotype_codes[rows, slot]))
    if len(found) < 2:
        values = [store.phenotypes[preset.classified][code] for code in found]
        message = (
            f"{store.path}: training cells have {'no label' if not values else f'one {preset.classified} alone'}"
            f"{f' ({values[0]})' if values else f' of {preset.classified}'}; a classification needs two"
        )
        raise DataError(message)


def balanced_epochs(
    preset: Preset, store: Store, rows: NDArray[np.int64]
) -> Callable[[int], NDArray[np.int64]] | None:
    """Return what draws an epoch's cells, as many of each value; None where cells come as they are.

    A value with more cells than its share gives a new choice of them every epoch; one with fewer
    gives all of them as often as it takes, and a choice for the rest.

    Returns
    -------
    Epoch -> (cells,), ascending rows with repeats, as many as there are cells.
    """
    if preset.classified is None or preset.classification.sampling == "natural":
        return None
    slot = list(store.phenotypes).index(preset.classified)
    codes = np.asarray(store.phenotype_codes[rows, slot])
    groups = [rows[codes == code] for code in np.unique(codes)]
    shares = np.full(len(groups), len(rows) // len(groups))
    shares[: len(rows) % len(groups)] += 1
    seed = preset.train.seed

    def draw(epoch: int) -> NDArray[np.int64]:
        rng = generator(seed, epoch, Stream.BALANCED_EPOCH)
        parts = []
        for group, share in zip(groups, shares.tolist(), strict=True):
            whole, rest = divmod(share, len(group))
            parts += [group] * whole + [rng.choice(group, rest, replace=False)]
        return np.sort(np.concatenate(parts))

    return draw


def choose_trainable(network: TfxModel, preset: Preset) -> None:
    """Freeze what a classification does not train, and add what it trains instead.

    Parameters
    ----------
    network
        Changed in place; additions are drawn from torch's global generator.
    """
    if preset.classified is None:
        return
    part = network.encoder_part
    if part is not None:
        for name in _GENE_HEADS:
            getattr(part, name).requires_grad_(requires_grad=False)
        if preset.classification.encoder != "full":
            part.embedding.requires_grad_(requires_grad=False)
            part.encoder.requires_grad_(requires_grad=False)
        if preset.classification.encoder == "lora":
            _add_low_rank(part.encoder, preset)
    if network.log_linear is not None:
        for name in _GENE_TERMS:
            term = getattr(network.log_linear, name)
            if term is not None:
                term.requires_grad_(requires_grad=False)
    learnt = sum(p.numel() for p in network.parameters() if p.requires_grad)
    logger.info(
        "classification of %s: %d of %d parameters learn",
        preset.classified, learnt, sum(p.numel() for p in network.parameters()),
    )  # fmt: skip


def _add_low_rank(encoder: nn.Module, preset: Preset) -> None:
    # peft imports transformers' models, 2 s: only where it is asked for.
    from peft import LoraConfig, inject_adapter_in_model

    settings = preset.classification
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=_LORA_LAYERS,
    )
    inject_adapter_in_model(config, encoder)


def with_additions(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Add low-rank additions to the weights they belong to; without any, weights are as they were.

    W + (alpha / rank) B A (Hu et al. 2021, LoRA).

    Parameters
    ----------
    weights
        Of ``network``, whole.
    network
        Tells which layers have additions, and their scale.
    """
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
