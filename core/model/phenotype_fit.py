"""Fit the skeleton's phenotype scores from training cells: regression, then a small network.

Both are frozen afterwards. On the simulated atlas (192 genes, validation donors) logistic regression
alone told tissue at 0.980 and stopped there; a hidden layer on top, with genes hidden at random while
it is fitted, reached 0.989.
"""

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from core.model.configuration import TfxConfig
from core.model.skeleton import Skeleton
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["fit_phenotype_scores"]

#: Phenotype scores: cells and dense entries at most, sklearn's inverse penalty (the best of 0.002,
#: 0.01 and 0.05 on validation donors of the simulated atlas), iterations.
_SCORE_CELLS = 20_000
_SCORE_ENTRIES = 60_000_000
_SCORE_PENALTY = 0.01
_SCORE_ITERATIONS = 300
_CORRECTION_EPOCHS = 20
_CORRECTION_BATCH = 128


def fit_phenotype_scores(
    skeleton: Skeleton,
    config: TfxConfig,
    bins: NDArray[np.uint8],
    codes: NDArray[np.int32],
    *,
    seed: int,
    on_progress: Listener = ignore_progress,
) -> None:
    """Fit logistic regression of every phenotype, then a small network on what it leaves over.

    Parameters
    ----------
    skeleton
        Its ``bin_values`` and ``phenotype_prior`` are filled; the scores are changed in place.
    bins
        (cells, genes) of training cells.
    codes
        (cells, phenotypes), -1 where missing.
    seed
        Of the sample of cells and the mini-batches.
    """
    from sklearn.linear_model import LogisticRegression  # 500 ms, only where it is asked for

    n_cells, n_genes = bins.shape
    rows = np.arange(n_cells)
    most = max(min(_SCORE_CELLS, _SCORE_ENTRIES // n_genes), 1)
    if n_cells > most:
        rows = np.random.default_rng([seed, 73]).choice(n_cells, most, replace=False)
    table = skeleton.bin_values.numpy()
    values = table[np.arange(n_genes), bins[rows]]  # (cells, genes)
    skeleton.score_bias.copy_(skeleton.phenotype_prior)
    first = 0
    for slot, size in enumerate(config.phenotype_sizes):
        on_progress(ProgressEvent("fitting phenotype scores", slot, len(config.phenotype_sizes)))
        labels = codes[rows, slot]
        known = labels >= 0
        if len(np.unique(labels[known])) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one that has not converged is still a good start
                fit = LogisticRegression(C=_SCORE_PENALTY, max_iter=_SCORE_ITERATIONS).fit(
                    values[known], labels[known]
                )
            weight, bias = fit.coef_, fit.intercept_
            if len(fit.classes_) == 2:  # sklearn answers with one row: the second class's log-odds
                weight, bias = np.concatenate([-weight, weight]) / 2, np.r_[-bias, bias] / 2
            at = first + torch.from_numpy(fit.classes_.astype(np.int64))
            skeleton.score_weight[at] = torch.from_numpy(weight.astype(np.float32))
            skeleton.score_bias[at] = torch.from_numpy(bias.astype(np.float32))
        first += size
    if skeleton.phenotype_correction is not None:
        _fit_correction(skeleton, config, values, codes[rows], seed, on_progress)


def _fit_correction(
    skeleton: Skeleton,
    config: TfxConfig,
    values: NDArray[np.float32],
    codes: NDArray[np.int32],
    seed: int,
    on_progress: Listener,
) -> None:
    """Train the correction on top of the fixed scores, with genes hidden at random.

    The share of hidden genes is u squared, u uniform: mostly few, as when cells are annotated.
    """
    correction = skeleton.phenotype_correction
    assert correction is not None
    slots = torch.repeat_interleave(
        torch.arange(len(config.phenotype_sizes)), torch.tensor(config.phenotype_sizes)
    )
    x, labels = torch.from_numpy(values), torch.from_numpy(codes.astype(np.int64))
    n_cells = len(x)
    n_steps = max(_CORRECTION_EPOCHS * n_cells // _CORRECTION_BATCH, 1)
    rng = np.random.default_rng([seed, 79])
    correction.requires_grad_(requires_grad=True).train()
    optimiser = torch.optim.AdamW(correction.parameters(), lr=1e-3, weight_decay=0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the dropout's
        for step in range(n_steps):
            for group in optimiser.param_groups:
                group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            rows = torch.from_numpy(rng.integers(n_cells, size=min(_CORRECTION_BATCH, n_cells)))
            hidden = torch.from_numpy(rng.random((len(rows), 1), dtype=np.float32) ** 2)
            shown = torch.from_numpy(rng.random((len(rows), x.shape[1]), dtype=np.float32))
            seen = x[rows] * (shown >= hidden)
            level = hidden * skeleton.phenotype_prior + (1 - hidden) * skeleton.score_bias
            logits = level + seen @ skeleton.score_weight.T + correction(seen)
            loss = logits.new_zeros(())
            for slot in range(len(config.phenotype_sizes)):
                loss = loss + functional.cross_entropy(
                    logits[:, slots == slot], labels[rows, slot].clamp(min=-1), ignore_index=-1,
                    reduction="sum",
                ) / len(rows)  # fmt: skip
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 50 == 0:
                on_progress(ProgressEvent("fitting phenotype corrections", step, n_steps))
    correction.requires_grad_(requires_grad=False).eval()
    on_progress(ProgressEvent("fitting phenotype corrections", n_steps, n_steps))
