"""Fit the frozen tables of the skeleton from training cells, before training begins.

The class table is an additive multinomial regression of every gene's bin on the phenotypes shown,
fitted for all genes at once by mini-batches. Main effects only: what "female" and "lung" do adds
up, so combinations that no training cell has still get an answer.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.encoding.values import ValueTable
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.model.phenotype_fit import fit_phenotype_scores
from core.model.skeleton import MAX_CLASS_TABLE, Skeleton
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["fit_skeleton"]

_STEPS = 400
_BATCH = 512
_LEARNING_RATE = 0.05
#: Chance that a phenotype is hidden while fitting, so that [NO_*] gets an answer of its own.
_HIDE = 0.15
#: Weight of the ridge penalty, in cells: an effect backed by few cells is drawn to zero.
_RIDGE = 2.0


def fit_skeleton(
    skeleton: Skeleton,
    config: TfxConfig,
    table: ValueTable,
    bins: NDArray[np.uint8],
    codes: NDArray[np.int32],
    *,
    donors: NDArray[np.integer[Any]] | None = None,
    seed: int,
    on_progress: Listener = ignore_progress,
) -> None:
    """Fill the skeleton's frozen tables.

    Parameters
    ----------
    skeleton
        Changed in place.
    config
        The model's.
    table
        Mean value of each gene's bins.
    bins
        (cells, genes) of training cells.
    codes
        (cells, phenotypes), -1 where missing.
    donors
        (cells,), or None: cross-validation of the phenotype scores keeps donors whole.
    seed
        Of the mini-batches.

    Raises
    ------
    ConfigurationError
        The class table would be too large for the panel and the vocabularies.
    """
    if skeleton.class_table.numel() > MAX_CLASS_TABLE:
        message = (
            f"model.skeleton needs a table of {skeleton.class_table.numel():,} entries for "
            f"{config.n_genes} genes, {config.n_bins} bins and {skeleton.n_shown} phenotype "
            f"values (at most {MAX_CLASS_TABLE:,}); lower data.genes or set model.skeleton = false"
        )
        raise ConfigurationError(message)
    counts = np.stack([(bins == b).sum(axis=0) for b in range(config.n_bins)], axis=1)  # (G, N)
    _fill_bin_values(skeleton, table, counts)
    _fill_phenotype_prior(skeleton, config, codes)
    fit_phenotype_scores(
        skeleton, config, bins, codes, groups=donors, seed=seed, on_progress=on_progress
    )
    prior = _gene_prior(config, counts)
    effects = _fit_class_effects(skeleton, config, prior, bins, codes, seed, on_progress)
    skeleton.gene_prior.copy_(prior.reshape(-1))
    skeleton.class_table.copy_(effects)


def _gene_prior(config: TfxConfig, counts: NDArray[np.int64]) -> Tensor:
    """(genes, outputs) log marginals of the bins (binary: log-odds), one pseudo-count per bin."""
    log_share = np.log((counts + 1) / (counts + 1).sum(axis=1, keepdims=True))
    if config.kind == "binary":
        log_share = log_share[:, 1:] - log_share[:, :1]
    return torch.from_numpy(log_share.astype(np.float32))


def _fill_bin_values(skeleton: Skeleton, table: ValueTable, counts: NDArray[np.int64]) -> None:
    """Standardise each gene's bin means over training cells: the input of the linear scores."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = (share * table.means).sum(axis=1, keepdims=True)
    variance = (share * (table.means - mean) ** 2).sum(axis=1, keepdims=True)
    deviation = np.sqrt(variance)
    standard = np.divide(
        table.means - mean, deviation, out=np.zeros_like(table.means, dtype=float),
        where=deviation > 1e-6,
    )  # fmt: skip
    skeleton.bin_values.copy_(torch.from_numpy(np.clip(standard, -10, 10).astype(np.float32)))


def _fill_phenotype_prior(skeleton: Skeleton, config: TfxConfig, codes: NDArray[np.int32]) -> None:
    parts = []
    for slot, size in enumerate(config.phenotype_sizes):
        known = codes[:, slot][codes[:, slot] >= 0]
        counts = np.bincount(known, minlength=size) + 1.0
        parts.append(np.log(counts / counts.sum()))
    if parts:
        prior = np.concatenate(parts).astype(np.float32)
        skeleton.phenotype_prior.copy_(torch.from_numpy(prior))


def _fit_class_effects(
    skeleton: Skeleton,
    config: TfxConfig,
    prior: Tensor,
    bins: NDArray[np.uint8],
    codes: NDArray[np.int32],
    seed: int,
    on_progress: Listener,
) -> Tensor:
    """Return (shown values, genes x outputs) additive effects on the logits."""
    n_cells, n_genes = bins.shape
    n_outputs = skeleton.n_outputs
    first = skeleton.slot_not_specified.numpy()
    rng = np.random.default_rng([seed, 71])
    effects = torch.zeros(skeleton.n_shown, n_genes * n_outputs, requires_grad=True)
    if codes.shape[1] == 0:
        return effects.detach()
    optimiser = torch.optim.Adam([effects], lr=_LEARNING_RATE, betas=(0.9, 0.99))
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        rows = rng.integers(n_cells, size=min(_BATCH, n_cells))
        shown = np.where(rng.random((len(rows), len(first))) < _HIDE, -1, codes[rows])
        design = torch.zeros(len(rows), skeleton.n_shown)
        design.scatter_(1, torch.from_numpy(first + shown + 1), 1.0)
        logits = (design @ effects).view(len(rows), n_genes, n_outputs) + prior
        target = torch.from_numpy(bins[rows].astype(np.int64))
        if config.kind == "binary":
            loss = functional.binary_cross_entropy_with_logits(
                logits.squeeze(-1), target.float(), reduction="sum"
            )
        else:
            loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        loss = loss / len(rows) + 0.5 * _RIDGE / n_cells * effects.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            on_progress(ProgressEvent("fitting class log-odds", step, _STEPS))
    on_progress(ProgressEvent("fitting class log-odds", _STEPS, _STEPS))
    return effects.detach()
