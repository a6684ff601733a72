"""Fit the frozen tables of the log-linear part from training cells, and begin its gene pairs, before training.

The class table is an additive multinomial regression of every gene's bin on the phenotypes shown,
fitted for all genes at once by mini-batches. Main effects only: what "female" and "lung" do adds
up, so combinations that no training cell has still get an answer.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.encoding.values import ValueTable
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.model.log_linear import MAX_CLASS_TABLE, LogLinear
from core.model.phenotype_fit import fit_phenotype_scores
from core.model.state_fit import find_states
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["fit_log_linear"]

_STEPS = 400
_BATCH = 512
_LEARNING_RATE = 0.05
#: Chance that a phenotype is hidden while fitting, so that [NO_*] gets an answer of its own.
_HIDE = 0.15
#: Weight of the ridge penalty, in cells: an effect backed by few cells is drawn to zero.
_RIDGE = 2.0
#: Share of the rank that begins at the factor model.
_BEGUN = 0.25


def fit_log_linear(
    log_linear: LogLinear,
    config: TfxConfig,
    table: ValueTable,
    bins: NDArray[np.uint8],
    codes: NDArray[np.int32],
    *,
    donors: NDArray[np.integer[Any]] | None = None,
    unexpressed: float = 0.0,
    seed: int,
    on_progress: Listener = ignore_progress,
) -> None:
    """Fill the log-linear part's frozen tables.

    Parameters
    ----------
    log_linear
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
    unexpressed
        In the expressed layout: share of the masked genes that are off (`masking.unexpressed`).
    seed
        Of the mini-batches.

    Raises
    ------
    ConfigurationError
        The class table would be too large for the panel and the vocabularies.
    """
    if log_linear.class_table.numel() > MAX_CLASS_TABLE:
        message = (
            f"model.log_linear needs a table of {log_linear.class_table.numel():,} entries for "
            f"{config.n_genes} genes, {config.n_bins} bins and {log_linear.n_shown} phenotype "
            f"values (at most {MAX_CLASS_TABLE:,}); lower data.genes or set model.log_linear = false"
        )
        raise ConfigurationError(message)
    counts = np.stack([(bins == b).sum(axis=0) for b in range(config.n_bins)], axis=1)  # (G, N)
    _fill_bin_values(log_linear, table, counts)
    _fill_phenotype_prior(log_linear, config, codes)
    fit_phenotype_scores(
        log_linear, config, bins, codes, groups=donors, seed=seed, on_progress=on_progress
    )
    prior = _gene_prior(config, counts)
    states = _fill_states(log_linear, bins, codes, seed) if log_linear.n_states else None
    shown = _shown_codes(log_linear, codes, states)
    effects = _fit_class_effects(log_linear, config, prior, bins, shown, seed, on_progress)
    if config.layout == "expressed" and 0 < unexpressed < 1:
        prior = _gene_prior(config, _as_asked(counts, unexpressed))
    log_linear.gene_prior.copy_(prior.reshape(-1))
    log_linear.class_table.copy_(effects)
    if log_linear.couplings is not None and log_linear.n_outputs == config.n_bins:
        # A single output has no slope per bin.
        _start_gene_pairs(log_linear, config, bins, shown)


def _as_asked(counts: NDArray[np.int64], unexpressed: float) -> NDArray[np.float64]:
    """(genes, bins) counts with bin 0 as rare as it is among the masked genes of the expressed layout."""
    off, on = counts[:, 0].sum(), counts[:, 1:].sum()
    asked = counts.astype(np.float64)
    asked[:, 0] *= unexpressed / (1 - unexpressed) * on / max(off, 1)
    return asked


def _gene_prior(config: TfxConfig, counts: NDArray[np.integer | np.floating]) -> Tensor:
    """(genes, outputs) log marginals of the bins (binary: log-odds), one pseudo-count per bin."""
    log_share = np.log((counts + 1) / (counts + 1).sum(axis=1, keepdims=True))
    if config.kind == "binary":
        log_share = log_share[:, 1:] - log_share[:, :1]
    return torch.from_numpy(log_share.astype(np.float32))


def _fill_bin_values(log_linear: LogLinear, table: ValueTable, counts: NDArray[np.int64]) -> None:
    """Standardise each gene's bin means over training cells: the input of the linear scores."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = (share * table.means).sum(axis=1, keepdims=True)
    variance = (share * (table.means - mean) ** 2).sum(axis=1, keepdims=True)
    deviation = np.sqrt(variance)
    standard = np.divide(
        table.means - mean, deviation, out=np.zeros_like(table.means, dtype=float),
        where=deviation > 1e-6,
    )  # fmt: skip
    log_linear.bin_values.copy_(torch.from_numpy(np.clip(standard, -10, 10).astype(np.float32)))


def _shown_codes(
    log_linear: LogLinear, codes: NDArray[np.int32], states: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """(cells, phenotypes, and states where there are any): which of the S values each cell shows."""
    at = log_linear.slot_not_specified.numpy() + 1 + codes.astype(np.int64)
    if states is None:
        return at
    return np.column_stack([at, log_linear.n_phenotypes_shown + 1 + states])


def _fill_states(
    log_linear: LogLinear, bins: NDArray[np.uint8], codes: NDArray[np.int32], seed: int
) -> NDArray[np.int64]:
    """Find the latent cell states; return (cells,), that of every training cell."""
    scores = find_states(bins, log_linear.bin_values.numpy(), codes, log_linear.n_states, seed=seed)
    n_found = len(scores.offset)
    log_linear.state_offset.fill_(-1e9)  # states for which there were too few cells
    log_linear.state_offset[:n_found] = torch.from_numpy(scores.offset)
    log_linear.state_scores[:, :n_found] = torch.from_numpy(scores.table.reshape(-1, n_found))
    states = scores.states(bins)
    counts = np.bincount(states, minlength=n_found)
    log_linear.state_bias.fill_(-1e9)
    log_linear.state_bias[:n_found] = torch.from_numpy(np.log((counts + 0.1) / len(states))).float()
    depth = np.log1p((bins > 0).sum(axis=1))
    for state in range(n_found):
        own = depth[states == state] if counts[state] > 1 else depth
        log_linear.state_depth[0, state] = own.mean()
        log_linear.state_depth[1, state] = max(own.std(), 0.05)
    if log_linear.n_phenotypes_shown:
        log_linear.state_prior[:, :n_found] = _fit_state_prior(
            log_linear, codes, states, n_found, seed
        )
    return states


def _fit_state_prior(
    log_linear: LogLinear,
    codes: NDArray[np.int32],
    states: NDArray[np.int64],
    n_states: int,
    seed: int,
) -> Tensor:
    """(phenotype values shown, states): additive effects on the log-odds of the states."""
    at = _shown_codes(log_linear, codes, None)
    none = log_linear.slot_not_specified.numpy()
    bias = log_linear.state_bias[:n_states]
    rng = generator(seed, Stream.STATE_EFFECTS_FIT)
    effects = torch.zeros(log_linear.n_phenotypes_shown, n_states, requires_grad=True)
    for rows, optimiser in _mini_batches(effects, len(codes), rng):
        shown = np.where(rng.random((len(rows), len(none))) < _HIDE, none, at[rows])
        design = torch.zeros(len(rows), len(effects)).scatter_(1, torch.from_numpy(shown), 1.0)
        target = torch.from_numpy(states[rows])
        loss = functional.cross_entropy(design @ effects + bias, target)
        loss = loss + 0.5 * _RIDGE / len(codes) * effects.square().sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return effects.detach()


def _mini_batches(
    effects: Tensor, n_cells: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], torch.optim.Optimizer]]:
    """Yield the rows of every step, and the optimiser of the effects at the step's learning rate."""
    optimiser = torch.optim.Adam([effects], lr=_LEARNING_RATE, betas=(0.9, 0.99))
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        yield rng.integers(n_cells, size=min(_BATCH, n_cells)), optimiser


def _start_gene_pairs(
    log_linear: LogLinear, config: TfxConfig, bins: NDArray[np.uint8], shown: NDArray[np.int64]
) -> None:
    """Begin the gene pairs at the factor model of the residual correlations, in closed form.

    Probabilistic PCA (Tipping and Bishop 1999) of the standardised bin values, phenotypes regressed
    out: with loadings L, noise s2 and a share of genes visible, the factors are about
    L' z / (share d + s2), and a gene's bin has the log-odds slope value / (1 - communality). Only
    directions above the edge of pure noise (Marchenko and Pastur 1967) are used, and of these the
    strongest, a quarter of the rank. The others begin at random, without effect: they are for what is
    not linear in the values, and a rank full of linear factors does not learn it
    (benchmarks/log_linear_constants.md). Without any, training spends its first hundreds of steps on getting here.
    """
    assert log_linear.couplings is not None
    assert log_linear.effects is not None
    n_cells, n_genes = bins.shape
    table = log_linear.bin_values.numpy()
    values = np.take_along_axis(table, bins.T.astype(np.int64), axis=1).T.astype(np.float64)
    design = np.zeros((n_cells, log_linear.n_shown + 1))
    design[:, -1] = 1.0
    np.put_along_axis(design, shown, 1.0, axis=1)
    penalty = _RIDGE * np.eye(design.shape[1])
    values -= design @ np.linalg.solve(design.T @ design + penalty, design.T @ values)
    covariance = values.T @ values / n_cells
    power, axes = np.linalg.eigh(covariance)
    power, axes = power[::-1], axes[:, ::-1]
    edge = covariance.diagonal().mean() * (1 + np.sqrt(n_genes / n_cells)) ** 2
    rank = min(int((power > edge).sum()), log_linear.couplings.weight.shape[1])
    if rank == 0:
        return
    noise = max(float(power[rank:].mean()), 1e-3)
    strength = power[:rank] - noise
    loadings = axes[:, :rank] * np.sqrt(strength)
    left = np.maximum(covariance.diagonal() - (loadings**2).sum(axis=1), 0.2)
    if config.layout == "expressed":
        share = np.stack([(bins == level).mean(axis=0) for level in range(table.shape[1])], axis=1)
        couplings = _couplings_of_expressed(table, share, loadings, strength, noise)
    else:
        scale = np.sqrt(0.5 * n_genes + 8) / (0.5 * strength + noise)
        couplings = table[:, :, None] * (loadings * scale)[:, None]
    effects = table[:, :, None] * (loadings / left[:, None])[:, None]
    begun = min(rank, max(round(_BEGUN * log_linear.couplings.weight.shape[1]), 1))
    with torch.no_grad():
        for weight, fitted in (
            (log_linear.couplings.weight, couplings),
            (log_linear.effects.weight, effects),
        ):
            flat = fitted.reshape(-1, rank)[:, :begun].astype(np.float32)
            weight[:, :begun] = torch.from_numpy(flat)


def _couplings_of_expressed(
    table: NDArray[np.float32],
    share: NDArray[np.float64],
    loadings: NDArray[np.float64],
    strength: NDArray[np.float64],
    noise: float,
) -> NDArray[np.float64]:
    """Return (genes, bins, rank) votes where only genes that are on are seen.

    A gene that is not seen is off, or hidden: of half the genes that are on, as votes are made for. Its
    share of being off has already had its say, so a gene that is seen takes it back; and all votes give
    up alike what all genes that are not seen would say together.

    Parameters
    ----------
    table
        (genes, bins) standardised values.
    share
        (genes, bins) shares of training cells.
    loadings, strength, noise
        Of the factor model: (genes, rank), (rank,) and its variance.
    """
    seen, on, off = 0.5, 1 - share[:, 0], share[:, 0]
    is_off = seen * off / (1 - seen * on)
    couplings = table - is_off[:, None] * table[:, :1]
    told = (
        seen * (share[:, 1:] * table[:, 1:] ** 2).sum(axis=1)
        + (1 - seen * on) * (is_off * table[:, 0]) ** 2
    )
    told = (loadings**2 * told[:, None]).sum(axis=0) / (loadings**2).sum(axis=0)
    n_on = max(float(on.sum()), 1.0)
    scale = loadings * (np.sqrt(seen * n_on + 8) / (told * strength + noise))
    together = (table[:, 0] * (off + is_off * on)) @ scale / n_on
    scaled: NDArray[np.float64] = couplings[:, :, None] * scale[:, None] + together
    return scaled


def _fill_phenotype_prior(
    log_linear: LogLinear, config: TfxConfig, codes: NDArray[np.int32]
) -> None:
    parts = []
    for slot, size in enumerate(config.phenotype_sizes):
        known = codes[:, slot][codes[:, slot] >= 0]
        counts = np.bincount(known, minlength=size) + 1.0
        parts.append(np.log(counts / counts.sum()))
    if parts:
        prior = np.concatenate(parts).astype(np.float32)
        log_linear.phenotype_prior.copy_(torch.from_numpy(prior))


def _fit_class_effects(
    log_linear: LogLinear,
    config: TfxConfig,
    prior: Tensor,
    bins: NDArray[np.uint8],
    shown: NDArray[np.int64],
    seed: int,
    on_progress: Listener,
) -> Tensor:
    """Return (shown values, genes x outputs) additive effects on the logits."""
    n_cells, n_genes = bins.shape
    n_outputs = log_linear.n_outputs
    none = log_linear.slot_not_specified.numpy()
    if log_linear.n_states:
        none = np.append(none, log_linear.n_phenotypes_shown)
    rng = generator(seed, Stream.EFFECTS_FIT)
    effects = torch.zeros(log_linear.n_shown, n_genes * n_outputs, requires_grad=True)
    if len(none) == 0:
        return effects.detach()
    for step, (rows, optimiser) in enumerate(_mini_batches(effects, n_cells, rng)):
        at = np.where(rng.random((len(rows), len(none))) < _HIDE, none, shown[rows])
        design = torch.zeros(len(rows), log_linear.n_shown)
        design.scatter_(1, torch.from_numpy(at), 1.0)
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
