"""Fit the log-linear part to training cells before training: its frozen tables, and where couplings begin.

The class table is an additive multinomial regression of every gene's bin on the phenotypes shown,
fitted for all genes at once by mini-batches. Main effects only: the effects of "female" and "lung" add
up, so combinations that no training cell has get a prediction too.

Shapes: C training cells, G genes, N bins, K latent cell states.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.encoding.values import ValueTable, bin_counts
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.model.log_linear import MAX_CLASS_TABLE, LogLinear
from core.model.phenotype_fit import fit_phenotype_scores
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

_STEPS = 400
_BATCH = 512
_LEARNING_RATE = 0.05
#: Chance that a phenotype is hidden while fitting, so that [NO_*] gets effects of its own.
_HIDE = 0.15
#: Weight of the ridge penalty, in cells: an effect backed by few cells is drawn to zero.
_RIDGE = 2.0
#: Fraction of the rank that begins at the factor model.
_BEGUN = 0.25
#: Cells beyond which a sample is grouped into latent states.
_MOST_CELLS = 20_000
#: Fewest cells of a state.
_FEWEST_CELLS = 20
#: Cells of all types that count for each type's fractions of bins.
_PSEUDO_CELLS = 5
#: Components of a type's cells by which they are grouped.
_COMPONENTS = 10


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
    """Fill the log-linear part's frozen tables, and begin its couplings, in place.

    ``table`` holds the mean value of each gene's bins; ``bins`` are (cells, genes) of training cells,
    ``codes`` (cells, phenotypes), -1 where missing. ``donors`` (cells,), if known, are kept whole in
    cross-validation. ``unexpressed`` is, in the expressed layout, the fraction of the masked genes that
    are not expressed (`masking.unexpressed`). A class table that would be too large raises
    ConfigurationError.
    """
    if log_linear.class_table.numel() > MAX_CLASS_TABLE:
        raise ConfigurationError(
            f"model.log_linear needs a table of {log_linear.class_table.numel():,} entries for "
            f"{config.n_genes} genes, {config.n_bins} bins and {log_linear.n_shown} phenotype "
            f"values (at most {MAX_CLASS_TABLE:,}); lower data.genes or set model.log_linear = false"
        )
    counts = bin_counts(bins, config.n_bins)
    _fill_bin_values(log_linear, table, counts)
    _fill_phenotype_prior(log_linear, config, codes)
    fit_phenotype_scores(
        log_linear, config, bins, codes, groups=donors, seed=seed, on_progress=on_progress
    )
    prior = gene_marginals(config, counts)
    states = _fill_states(log_linear, bins, codes, seed) if log_linear.n_states else None
    shown = _shown_codes(log_linear, codes, states)
    effects = _fit_class_effects(log_linear, config, prior, bins, shown, seed, on_progress)
    if config.layout == "expressed" and 0 < unexpressed < 1:
        prior = gene_marginals(config, masked_counts(counts, unexpressed))
    log_linear.gene_prior.copy_(prior.reshape(-1))
    log_linear.class_table.copy_(effects)
    if log_linear.couplings is not None and log_linear.n_outputs == config.n_bins:
        # A single output has no slope per bin.
        _start_couplings(log_linear, config, bins, shown)


def masked_counts(
    counts: NDArray[np.integer | np.floating], unexpressed: float
) -> NDArray[np.float64]:
    """Return (genes, bins) counts with bin 0 as rare as among the masked genes of the expressed layout."""
    absent, expressed = counts[:, 0].sum(), counts[:, 1:].sum()
    masked = counts.astype(np.float64)
    masked[:, 0] *= unexpressed / (1 - unexpressed) * expressed / max(absent, 1)
    return masked


def gene_marginals(config: TfxConfig, counts: NDArray[np.integer | np.floating]) -> Tensor:
    """Return (genes, outputs) log marginals of the bins (binary: log-odds), one pseudo-count per bin."""
    log_fraction = np.log((counts + 1) / (counts + 1).sum(axis=1, keepdims=True))
    if config.kind == "binary" and config.head != "joint":
        log_fraction = log_fraction[:, 1:] - log_fraction[:, :1]
    return torch.from_numpy(log_fraction.astype(np.float32))


def _fill_bin_values(log_linear: LogLinear, table: ValueTable, counts: NDArray[np.int64]) -> None:
    """Standardise each gene's bin means over training cells: the input of the linear scores."""
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = (fraction * table.means).sum(axis=1, keepdims=True)
    deviation = np.sqrt((fraction * (table.means - mean) ** 2).sum(axis=1, keepdims=True))
    standard = np.zeros_like(table.means, dtype=float)
    np.divide(table.means - mean, deviation, out=standard, where=deviation > 1e-6)
    log_linear.bin_values.copy_(torch.from_numpy(np.clip(standard, -10, 10).astype(np.float32)))


def _shown_codes(
    log_linear: LogLinear, codes: NDArray[np.int32], states: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """(cells, phenotypes, and states if there are any): which of the values to show each cell has."""
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
    genes_per_cell = np.log1p((bins > 0).sum(axis=1))
    for state in range(n_found):
        own = genes_per_cell[states == state] if counts[state] > 1 else genes_per_cell
        log_linear.state_depth[0, state] = own.mean()
        log_linear.state_depth[1, state] = max(own.std(), 0.05)
    if log_linear.n_phenotypes_shown:
        prior = _fit_state_prior(log_linear, codes, states, n_found, seed)
        log_linear.state_prior[:, :n_found] = prior
    return states


def _fit_state_prior(
    log_linear: LogLinear,
    codes: NDArray[np.int32],
    states: NDArray[np.int64],
    n_states: int,
    seed: int,
) -> Tensor:
    """(phenotype values shown, states): additive effects on the log-odds of the states."""
    bias = log_linear.state_bias[:n_states]

    def loss_of(logits: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return functional.cross_entropy(logits + bias, torch.from_numpy(states[rows]))

    effects = torch.zeros(log_linear.n_phenotypes_shown, n_states, requires_grad=True)
    none = log_linear.slot_not_specified.numpy()
    shown, rng = _shown_codes(log_linear, codes, None), generator(seed, Stream.STATE_EFFECTS_FIT)
    return _fit_effects(effects, shown, none, loss_of, rng)


def _fit_effects(
    effects: Tensor,
    shown: NDArray[np.int64],
    none: NDArray[np.int64],
    loss_of: Callable[[Tensor, NDArray[np.int64]], Tensor],
    rng: np.random.Generator,
    on_progress: Listener = ignore_progress,
) -> Tensor:
    """Fit (values shown, outputs) additive effects by mini-batches, with a ridge penalty.

    ``shown`` (cells, phenotypes) are the values that each cell shows, ``none`` (phenotypes,) those that
    replace hidden ones; ``loss_of`` returns the mean loss of (rows, outputs) and the rows.
    """
    n_cells = len(shown)
    optimiser = torch.optim.Adam([effects], lr=_LEARNING_RATE, betas=(0.9, 0.99))
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        rows = rng.integers(n_cells, size=min(_BATCH, n_cells))
        at = np.where(rng.random((len(rows), len(none))) < _HIDE, none, shown[rows])
        design = torch.zeros(len(rows), len(effects)).scatter_(1, torch.from_numpy(at), 1.0)
        loss = loss_of(design @ effects, rows)
        loss = loss + 0.5 * _RIDGE / n_cells * effects.square().sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 20 == 0:
            on_progress(ProgressEvent("fitting class log-odds", step, _STEPS))
    on_progress(ProgressEvent("fitting class log-odds", _STEPS, _STEPS))
    return effects.detach()


def _start_couplings(
    log_linear: LogLinear, config: TfxConfig, bins: NDArray[np.uint8], shown: NDArray[np.int64]
) -> None:
    """Begin the couplings at the factor model of the residual correlations, in closed form.

    Probabilistic PCA (Tipping and Bishop 1999) of the standardised bin values, phenotypes regressed
    out: with loadings L, noise s2 and a fraction of genes visible, the factors are about
    L' z / (fraction d + s2), and a gene's bin has the log-odds slope value / (1 - communality). Only
    directions above the edge of pure noise (Marchenko and Pastur 1967) are used, and of these the
    strongest, a quarter of the rank. The others begin at random, without effect, for effects that are
    not linear in the values: a rank full of linear factors does not learn those
    (benchmarks/log_linear_constants.md). Without any, training takes hundreds of steps to get here.
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
        fraction = bin_counts(bins, table.shape[1]) / n_cells
        couplings = _couplings_of_expressed(table, fraction, loadings, strength, noise)
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
    fraction: NDArray[np.float64],
    loadings: NDArray[np.float64],
    strength: NDArray[np.float64],
    noise: float,
) -> NDArray[np.float64]:
    """Return (genes, bins, rank) couplings where only expressed genes are visible.

    A gene that is not visible is not expressed, or masked, as half of the expressed genes are on average.
    Its chance of being not expressed counts already, so a visible gene subtracts it; and all couplings
    share equally what all genes that are not visible would add together.

    ``table`` (genes, bins) are standardised values, ``fraction`` (genes, bins) fractions of training cells;
    ``loadings`` (genes, rank), ``strength`` (rank,) and ``noise``, a variance, are of the factor model.
    """
    visible, expressed, absent = 0.5, 1 - fraction[:, 0], fraction[:, 0]
    is_absent = visible * absent / (1 - visible * expressed)
    couplings = table - is_absent[:, None] * table[:, :1]
    power = (
        visible * (fraction[:, 1:] * table[:, 1:] ** 2).sum(axis=1)
        + (1 - visible * expressed) * (is_absent * table[:, 0]) ** 2
    )
    power = (loadings**2 * power[:, None]).sum(axis=0) / (loadings**2).sum(axis=0)
    n_expressed = max(float(expressed.sum()), 1.0)
    scale = loadings * (np.sqrt(visible * n_expressed + 8) / (power * strength + noise))
    together = (table[:, 0] * (absent + is_absent * expressed)) @ scale / n_expressed
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
    none = log_linear.slot_not_specified.numpy()
    if log_linear.n_states:
        none = np.append(none, log_linear.n_phenotypes_shown)
    n_genes, n_outputs = bins.shape[1], log_linear.n_outputs
    effects = torch.zeros(log_linear.n_shown, n_genes * n_outputs, requires_grad=True)
    if len(none) == 0:
        return effects.detach()

    def loss_of(logits: Tensor, rows: NDArray[np.int64]) -> Tensor:
        logits = logits.view(len(rows), n_genes, n_outputs) + prior
        target = torch.from_numpy(bins[rows].astype(np.int64))
        if config.kind == "binary":
            loss = functional.binary_cross_entropy_with_logits(
                logits.squeeze(-1), target.float(), reduction="sum"
            )
        else:
            loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        return loss / len(rows)

    rng = generator(seed, Stream.EFFECTS_FIT)
    return _fit_effects(effects, shown, none, loss_of, rng, on_progress)


class StateScores(NamedTuple):
    """A cell's state is the one with the highest sum."""

    #: (G, N, K), what each gene's bin adds.
    table: NDArray[np.float32]
    #: (K,), what the sums begin with.
    offset: NDArray[np.float32]

    def states(self, bins: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(cells,), the state of each of (cells, G)."""
        scores = np.tile(self.offset.astype(np.float64), (len(bins), 1))
        for gene in range(bins.shape[1]):
            scores += self.table[gene, bins[:, gene]]
        return scores.argmax(axis=1)


def find_states(
    bins: NDArray[np.uint8],
    values: NDArray[np.floating],
    codes: NDArray[np.int32],
    n_states: int,
    *,
    seed: int,
) -> StateScores:
    """Group training cells into latent states.

    Cells of one type are of several kinds that no label names: naive and memory, stressed or dividing.
    Genes vary together because of them, in ways that couplings, linear in the visible genes, follow only
    in part. So the cells of each type are grouped by k-means in the strongest components of their genes,
    standardised within the type: that is the variation that types do not explain. A cell's state is a
    sum over its genes: the log-likelihood of its type, and nearness to the centre.

    ``bins`` (C, G); ``values`` (G, N), one for every bin of every gene; ``codes`` (C, phenotypes), -1 where
    missing. At most ``n_states`` are shared among the types by their numbers of cells; a state has 20
    cells or more.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rng = generator(seed, Stream.STATE_CELLS)
    if len(bins) > _MOST_CELLS:
        rows = np.sort(rng.choice(len(bins), _MOST_CELLS, replace=False))
        bins, codes = bins[rows], codes[rows]
    n_genes, n_bins = values.shape
    cells = np.take_along_axis(values, bins.T.astype(np.int64), axis=1).T.astype(np.float64)
    types = _main_phenotype(cells, codes)
    overall = bin_counts(bins, n_bins) / len(bins)
    tables, offsets = [], []
    for cell_type in np.unique(types):
        own = np.flatnonzero(types == cell_type)
        counts = bin_counts(bins[own], n_bins)
        of_type = np.log((counts + _PSEUDO_CELLS * overall + 1e-3) / (len(own) + _PSEUDO_CELLS))
        centre, spread = cells[own].mean(axis=0), cells[own].std(axis=0) + 1e-2
        standard = (cells[own] - centre) / spread
        n_groups = min(round(n_states * len(own) / len(bins)), len(own) // _FEWEST_CELLS)
        at_centre = np.zeros((1, n_genes))
        if n_groups > 1:
            n_components = min(_COMPONENTS, *standard.shape)
            components = PCA(n_components, random_state=seed).fit(standard)
            places = components.transform(standard)
            group = KMeans(n_groups, n_init=4, random_state=seed).fit_predict(places)
            large = np.flatnonzero(np.bincount(group) >= _FEWEST_CELLS)
            if len(large) > 1:
                at_centre = np.stack(
                    [places[group == one].mean(axis=0) @ components.components_ for one in large]
                )
        for place in at_centre:
            pull = place / spread
            tables.append(of_type + (values - centre[:, None]) * pull[:, None])
            offsets.append(np.log(len(own) / len(bins)) - 0.5 * (place**2).sum())
    return StateScores(
        np.stack(tables[:n_states], axis=2).astype(np.float32),
        np.array(offsets[:n_states], dtype=np.float32),
    )


def _main_phenotype(values: NDArray[np.floating], codes: NDArray[np.int32]) -> NDArray[np.integer]:
    """(C,) codes of the phenotype between whose values the genes differ most."""
    best, most = np.zeros(len(values), dtype=np.int32), 0.0
    for column in codes.T:
        present, group = np.unique(column, return_inverse=True)
        if len(present) < 2:
            continue
        sizes = np.bincount(group)
        sums = np.zeros((len(present), values.shape[1]))
        np.add.at(sums, group, values)
        between = (sums**2 / sizes[:, None]).sum() - (values.sum(axis=0) ** 2).sum() / len(values)
        if between > most:
            best, most = column, float(between)
    return best
