"""From a preset and a store to a model ready to train: panel, bins, network, log-linear part, reference."""

import logging
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.store import Split, Store
from core.encoding.tokens import TokenSpace
from core.encoding.values import ValueEncoder, ValueTable, fit_value_encoder
from core.errors import ConfigurationError, DataError
from core.model.cell_model import TfxModel, check_parts
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.log_linear_fit import fit_log_linear
from core.model.losses import loss_kind
from core.model.reference import Reference, size_quantiles
from core.model.summary_fit import start_summary
from core.presets.schema import Preset
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator
from core.training.classification import (
    check_classification,
    check_labels,
    choose_trainable,
    labelled_rows,
    store_of_task,
)
from core.training.start_weights import (
    ConvertWeights,
    check_start,
    own_start,
    start_from,
    start_genes,
)

__all__ = [
    "MAX_FITTING_CELLS",
    "build_model",
    "check_preset",
    "chosen_rows",
    "class_weights",
    "training_panel",
]

logger = logging.getLogger(__name__)

#: Training cells read to fit edges, values per bin, profiles and log-linear part; a seeded sample beyond.
MAX_FITTING_CELLS = 50_000

_LOSSES = {
    "binary": ("bce", "label_smoothing"),
    "binned": ("label_smoothing", "gaussian"),
    "continuous": ("regression",),
}


def build_model(
    preset: Preset,
    store: Store,
    *,
    name: str,
    convert_weights: ConvertWeights | None = None,
    on_progress: Listener = ignore_progress,
) -> CellModel:
    """Make the untrained model that a preset describes, fitted to the store's training cells.

    ``convert_weights`` is needed where ``model.start_from`` names a model of another system.

    Raises
    ------
    ConfigurationError
        The preset contradicts itself or the data: loss and encoding, ``max_length``, ``start_from``.
    DataError
        The store has no training cells or no phenotype and no gene to learn from.
    """
    check_preset(preset)
    store = store_of_task(preset, store)
    train_rows = chosen_rows(preset, store, "train")
    if len(train_rows) == 0:
        message = (
            f"{store.path}: no training cells; lower data.split.validation and data.split.test"
        )
        raise DataError(message)
    check_labels(preset, store, train_rows)
    panel = training_panel(preset, store)
    if len(panel) < preset.data.genes:
        logger.info("the store has %d genes; the panel takes all of them", len(panel))
    rows = train_rows
    if len(rows) > MAX_FITTING_CELLS:
        rng = generator(preset.train.seed, Stream.FITTING_CELLS)
        rows = np.sort(rng.choice(rows, MAX_FITTING_CELLS, replace=False))
    on_progress(ProgressEvent("reading training cells", 0, len(rows)))
    expression = store.read(rows, panel)
    on_progress(ProgressEvent("reading training cells", len(rows), len(rows)))
    codes = np.asarray(store.phenotype_codes[rows])
    start = own_start(preset)
    values = (
        fit_value_encoder(preset.encoding, expression, panel)
        if start is None
        else start.values.take(np.array([start.panel.index_of(gene) for gene in panel.ids]))
    )
    table = ValueTable.fit(values, expression)
    bins = _dense_bins(values, expression)
    all_codes = np.asarray(store.phenotype_codes[train_rows])
    config = make_config(preset, store.phenotypes, n_genes=len(panel), values=values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.train.seed)
        network = TfxModel(config)
        network.start()
    if network.log_linear is not None:
        fit_log_linear(
            network.log_linear,
            config,
            table,
            bins,
            codes,
            donors=None if store.donors is None else np.asarray(store.donors[rows]),
            unexpressed=preset.training_masking.unexpressed,
            seed=preset.train.seed,
            on_progress=on_progress,
        )
    elif (
        network.encoder_part is not None and config.head == "split" and config.kind != "continuous"
    ):
        _fill_gene_bias(network, bins)
    encoder = network.encoder_part
    is_asked = preset.classified is not None  # a classifier's [CLS] finds its own way sooner
    if encoder is not None and encoder.embedding.summary is not None and not is_asked:
        start_summary(encoder.embedding, config, table, expression, bins, seed=preset.train.seed)
    model = CellModel(
        network=network,
        panel=panel,
        values=values,
        table=table,
        reference=make_reference(store, rows, config, expression, bins, codes, all_codes),
        masking=preset.training_masking,
        generate=preset.generate,
        provenance=_provenance(preset, store, name),
    )
    if preset.model.start_from is not None:
        start_from(model, preset, start, convert_weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.train.seed)
        choose_trainable(network, preset)
    return model


def training_panel(preset: Preset, store: Store) -> GenePanel:
    """Choose the genes: the most variable, or those of the model that a classification begins with.

    Raises
    ------
    DataError
        The store has fewer than half of that model's genes.
    """
    known = start_genes(preset)
    if known is None:
        return store.panel(preset.data.genes, preset.data.include_genes)
    lacking = set(store.missing_genes(known))
    if 2 * len(lacking) > len(known):
        message = (
            f"{store.path} has only {len(known) - len(lacking):,} of the {len(known):,} genes of "
            f"model.start_from; begin with a model of these genes"
        )
        raise DataError(message)
    if lacking:
        logger.warning(
            "%d of the %d genes of model.start_from are not in the store, and are left out",
            len(lacking), len(known),
        )  # fmt: skip
    return known.take(np.flatnonzero([gene not in lacking for gene in known.ids]))


def chosen_rows(preset: Preset, store: Store, split: Split) -> NDArray[np.int64]:
    """Rows of a split that ``data.where`` chooses, ascending; all of them without a filter.

    Of a classification only those that have a label.

    Raises
    ------
    ConfigurationError
        The filter cannot be read, or names what the store does not have.
    DataError
        The split has cells, but none that the filter chooses.
    """
    cells = CellFilter.parse(preset.data.where, where="data.where")
    rows = store.rows(split)
    if not cells or len(rows) == 0:
        return labelled_rows(preset, store, rows)
    chosen = store.select(cells, split=split)
    if len(chosen) == 0:
        way_out = "" if split == "train" else f", or set data.split.{split} = 0 and prepare again"
        message = (
            f"{store.path}: no {split} cell matches data.where = {cells} "
            f"({cells.describe_no_match(store.labels, rows)}); choose other cells{way_out}"
        )
        raise DataError(message)
    return labelled_rows(preset, store, chosen)


def make_config(
    preset: Preset, phenotypes: dict[str, list[str]], *, n_genes: int, values: ValueEncoder
) -> TfxConfig:
    """Return the network's configuration."""
    settings = preset.model
    n_token_bins = 1 if values.kind == "continuous" else values.n_bins
    tokens = TokenSpace.build(phenotypes, n_genes, n_token_bins, layout=preset.encoding.layout)
    asked = preset.classification
    value = None if asked.positive is None else phenotypes[str(preset.classified)][0]
    return TfxConfig(
        phenotype_names=list(phenotypes),
        phenotype_values=list(phenotypes.values()),
        n_genes=n_genes,
        n_bins=values.n_bins,
        kind=values.kind,
        layout=preset.encoding.layout,
        longest_sequence=tokens.resolve_max_length(preset.encoding.max_length),
        hidden_size=settings.hidden_size,
        layers=settings.layers,
        heads=settings.heads,
        intermediate_size=settings.intermediate_size or 4 * settings.hidden_size,
        dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
        norm=settings.norm,
        activation=settings.activation,
        attention=settings.attention,
        head=settings.head,
        log_linear=settings.log_linear,
        log_linear_rank=settings.log_linear_rank,
        cell_states=settings.cell_states if settings.log_linear else 0,
        cell_summary=settings.cell_summary,
        cls_reconstruction=preset.loss.cls_reconstruction > 0 and preset.classified is None,
        cls_contrast=preset.loss.cls_contrast > 0 and preset.classified is None,
        classified=preset.classified,
        given=asked.given,
        positive=value,
    )


def make_reference(
    store: Store,
    rows: NDArray[np.int64],
    config: TfxConfig,
    expression: sparse.csr_matrix,
    bins: NDArray[np.uint8],
    codes: NDArray[np.int32],
    all_codes: NDArray[np.int32],
) -> Reference:
    """Summarise the training cells; joint counts over all of them, profiles over those read."""
    combinations, counts = Reference.count(all_codes)
    expressed = sparse.csr_matrix(bins > 0, dtype=np.float32)
    means, detection = [], []
    for slot, size in enumerate(config.phenotype_sizes):
        for code in range(size):
            has = codes[:, slot] == code
            n = max(int(has.sum()), 1)
            means.append(np.asarray(expression[has].sum(axis=0)).ravel() / n)
            detection.append(np.asarray(expressed[has].sum(axis=0)).ravel() / n)
    shape = (sum(config.phenotype_sizes), config.n_genes)
    n_bins = config.n_bins
    is_counted = store.value_kind == "counts"
    totals = np.asarray(store.totals[rows]) if is_counted else np.zeros(len(rows), np.float32)
    return Reference(
        combinations=combinations,
        counts=counts,
        means=np.asarray(means, dtype=np.float32).reshape(shape),
        detection=np.asarray(detection, dtype=np.float32).reshape(shape),
        bin_counts=np.stack([(bins == b).sum(axis=0) for b in range(n_bins)], axis=1).astype(
            np.int64
        ),
        genes_per_cell=size_quantiles(combinations, codes, (bins > 0).sum(axis=1)),
        library_size=size_quantiles(combinations, codes, totals),
    )


def class_weights(codes: NDArray[np.int32], config: TfxConfig, kind: str) -> torch.Tensor | None:
    """Return (all phenotype values,) weights by inverse training frequency, mean 1 per phenotype.

    None where the preset asks for equal weights.
    """
    if kind == "none":
        return None
    parts = []
    for slot, size in enumerate(config.phenotype_sizes):
        known = codes[:, slot][codes[:, slot] >= 0]
        counts = np.bincount(known, minlength=size)
        weights = len(known) / (size * np.maximum(counts, 1))
        parts.append(np.where(counts > 0, weights, 0.0))
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return torch.from_numpy(joined.astype(np.float32))


def check_preset(preset: Preset) -> None:
    """Refuse what contradicts itself, before any cell is read.

    Raises
    ------
    ConfigurationError
        The loss does not fit the encoding, the parts of the model exclude each other, or
        ``model.start_from`` does not exist.
    """
    check_parts(
        kind=preset.encoding.kind,
        head=preset.model.head,
        layers=preset.model.layers,
        log_linear=preset.model.log_linear,
        layout=preset.encoding.layout,
        states=preset.model.cell_states,
    )
    kind = loss_kind(preset.loss, preset.encoding.kind)
    fitting = _LOSSES[preset.encoding.kind]
    if kind not in fitting:
        message = (
            f"loss.kind = '{kind}' does not fit encoding.kind = '{preset.encoding.kind}'; "
            f"use {' or '.join(repr(k) for k in fitting)}, or 'auto'"
        )
        raise ConfigurationError(message)
    if (
        kind == "label_smoothing"
        and preset.encoding.kind == "binary"
        and preset.model.head != "joint"
    ):
        message = "loss.kind = 'label_smoothing' with binary encoding needs model.head = 'joint'; use 'bce'"
        raise ConfigurationError(message)
    check_classification(preset)
    check_start(preset)


def _dense_bins(values: ValueEncoder, expression: sparse.csr_matrix) -> NDArray[np.uint8]:
    """(cells, genes) bins, made in blocks: the dense float matrix never exists whole."""
    blocks = [
        values.encode(expression[start : start + 4096].toarray())
        for start in range(0, expression.shape[0], 4096)
    ]
    return np.concatenate(blocks)


def _fill_gene_bias(network: TfxModel, bins: NDArray[np.uint8]) -> None:
    """Start every gene's output at its training marginals."""
    part = network.encoder_part
    assert part is not None
    n_bins = network.config.n_bins
    counts = np.stack([(bins == b).sum(axis=0) for b in range(n_bins)], axis=1) + 1.0
    logits = np.log(counts / counts.sum(axis=1, keepdims=True))
    if network.config.kind == "binary":
        logits = logits[:, 1:] - logits[:, :1]
    with torch.no_grad():
        part.gene_bias.weight.copy_(torch.from_numpy(logits.astype(np.float32)))


def _provenance(preset: Preset, store: Store, name: str) -> dict[str, Any]:
    split = store.report.get("split", {})
    return {
        "name": name,
        "sources": [source.name for source in store.manifest.sources],
        "simulated": store.truth is not None,
        "store": str(store.path.resolve()),
        "store_key": store.manifest.key,
        "split": split.get("method", "unknown") if isinstance(split, dict) else str(split),
        "versions": {p: version(p) for p in ("torch", "transformers", "numpy")},
        "seed": preset.train.seed,
        **({"where": preset.data.where} if preset.data.where else {}),
    }
