"""Effects of one gene on another in a model: the Jacobian of its conditionals, as one number for a pair.

For a source gene i and a target gene j, in a cell of the context, i is set to levels that it has in the
context while j is masked, and the probabilities of j's bins are read. With standardised mid-ranks s of the bins,
and p their fractions in the context, the effect is

    sum over levels a of i, and bins b of j:  p_i(a) s_i(a)  s_j(b)  P(j = b | i = a)

the covariance of s_i with what the model expects of s_j: the rank correlation of the pair if the model's
conditionals are right and i is all that it sees, in the units of a correlation otherwise. Covariances of s_i with
the log-odds of j rank the pairs worse: the log-odds of rare genes have large errors (benchmarks/interactions.md).

An effect is averaged over cells, and over random sets of other genes that are masked with j. In one pass all
masked genes are targets. Passes are repeated until the standard error of the average is as small as requested.

Shapes: S sources, T targets, G genes of the model, L levels, O outputs, n passes of a batch.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.cell_batch import CellBatch
from core.encoding.masking import Show
from core.encoding.values import bin_counts
from core.errors import ConfigurationError
from core.evaluation.predict import batch_cells
from core.interactions.cells import ContextCells, FloatArray
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.losses import bin_logits
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

#: Levels of a source: not expressed, the lower and the upper half of its expressed values.
LEVELS = 3
#: Fraction of the other genes that are masked with a target where a model was trained for all fractions
#: (benchmarks/interactions.md).
MASKED = 0.5
#: Passes of each source: at least, and at most.
LEAST_PASSES, MOST_PASSES = 12, 256
_STAGE = "perturbing genes"


@dataclass(frozen=True)
class Effects:
    """Effects of sources on targets in a context, (S, T) each; NaN on a gene itself."""

    weight: FloatArray
    #: Standard errors of the averages.
    error: FloatArray
    #: (2, S, T), of two halves of the donors.
    of_halves: FloatArray
    #: The effect in the log-linear part alone; None where the model is one part.
    log_linear: FloatArray | None
    #: Passes of each source.
    n_passes: int

    def of_both_directions(self) -> "Effects":
        """Return the means of both directions of each pair; sources and targets are the same genes.

        Cells that are only observed do not tell a direction, and the mean finds edges better
        (benchmarks/interactions.md).
        """
        return Effects(
            weight=_symmetric(self.weight),
            error=np.sqrt(_symmetric(self.error**2) / 2),
            of_halves=np.stack([_symmetric(one) for one in self.of_halves]),
            log_linear=None if self.log_linear is None else _symmetric(self.log_linear),
            n_passes=self.n_passes,
        )

    @property
    def relative_error(self) -> float:
        """Root mean square of the standard errors over that of the effects."""
        return _root_mean_square(self.error) / max(_root_mean_square(self.weight), 1e-12)


def _symmetric(values: FloatArray) -> FloatArray:
    return (values + values.T) / 2


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.nanmean(values**2)))


@dataclass(frozen=True)
class GeneLevels:
    """How the bins of each gene enter an effect."""

    #: (G, L), the bin that a source is set to, and p s summed over the bins that it represents.
    bin: NDArray[np.int64]
    weight: FloatArray
    #: (G, bins), fractions p and standardised mid-ranks s, 0 where a gene never varies.
    fraction: FloatArray
    score: FloatArray

    @classmethod
    def of(cls, bins: NDArray[np.uint8], n_bins: int) -> "GeneLevels":
        """Take the (cells, G) bins of a context."""
        fraction = bin_counts(bins, n_bins) / len(bins)
        score = np.cumsum(fraction, axis=1) - 0.5 * fraction - 0.5
        deviation = np.sqrt((fraction * score**2).sum(axis=1, keepdims=True))
        score = np.divide(score, deviation, out=np.zeros_like(score), where=deviation > 1e-9)
        level, weight = (
            np.zeros((len(fraction), LEVELS), np.int64),
            np.zeros((len(fraction), LEVELS)),
        )
        for gene, of_gene in enumerate(fraction):
            for at, group in enumerate(_level_groups(of_gene)):
                within = np.cumsum(of_gene[group])
                level[gene, at] = group[np.searchsorted(within, 0.5 * within[-1])]
                weight[gene, at] = (of_gene[group] * score[gene, group]).sum()
        return cls(level, weight, fraction, score)  # fmt: skip


def _level_groups(fraction: FloatArray) -> list[NDArray[np.int64]]:
    """Divide the bins that occur into at most `LEVELS` groups of neighbours, bin 0 alone."""
    used = np.flatnonzero(fraction)
    if len(used) <= LEVELS:
        return [used[[at]] for at in range(len(used))]
    first = [used[:1]] if used[0] == 0 else []
    rest = used[len(first) :]
    middle = np.cumsum(fraction[rest]) - 0.5 * fraction[rest]
    n_groups = LEVELS - len(first)
    group = np.minimum(middle / fraction[rest].sum() * n_groups, n_groups - 1).astype(np.int64)
    return [*first, *(rest[group == one] for one in range(n_groups) if (group == one).any())]


def check_can_perturb(model: CellModel) -> None:
    """Raise ConfigurationError for a model whose genes cannot be perturbed."""
    config = model.config
    if config.classified is not None:
        raise ConfigurationError(
            f"interactions need a model of genes; this one predicts {config.classified} alone: use the "
            f"model it was fine-tuned from"
        )
    if config.layout != "ranked" or config.kind == "continuous":
        raise ConfigurationError(
            "interactions need a model that sees every gene of a cell, in bins: train with encoding.layout "
            "= 'ranked' and encoding.kind = 'binned' or 'binary'"
        )


def masked_fraction(model: CellModel) -> float:
    """Return the fraction of genes to mask: what the model was trained for."""
    trained = model.masking.genes
    return MASKED if trained == "uniform" else float(trained)


@torch.inference_mode()
def estimate_effects(
    model: CellModel,
    cells: ContextCells,
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    error: float = 0.1,
    masked: float | None = None,
    most_passes: int = MOST_PASSES,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> Effects:
    """Estimate the effects of ``sources`` on ``targets``, both genes of the model.

    ``error`` is the relative error (`Effects.relative_error`) at which passes end, ``masked`` the fraction
    of genes that are masked in a pass. A classifier, and a model of the expressed layout or of continuous
    values, is a ConfigurationError.
    """
    check_can_perturb(model)
    config, network = model.config, model.network.eval()
    device = next(network.parameters()).device
    bins = bins_of(model, cells)
    levels = GeneLevels.of(bins, config.n_bins)
    # Without couplings no gene has an effect in the log-linear part.
    has_two_parts = network.has_couplings and network.encoder_part is not None
    sums = _Sums(len(sources), len(targets), n_parts=1 + has_two_parts)
    fraction = masked_fraction(model) if masked is None else masked
    of_half = [np.flatnonzero(cells.halves == half) for half in (0, 1)]
    at_once = max(batch_cells(model) // LEVELS, 1)
    done = 0
    while done < most_passes:
        rng = generator(seed, done, Stream.INTERACTION_PASSES)
        for start in range(0, len(sources), at_once):
            at = np.arange(start, min(start + at_once, len(sources)))
            chosen = rng.choice(of_half[done % 2], len(at))
            mask = rng.random((len(at), config.n_genes)) < fraction
            mask |= cells.missing
            mask[np.arange(len(at)), sources[at]] = False
            batch = _perturbed(model, cells.take(chosen), bins[chosen], levels, sources[at], mask)
            tensors = BatchTensors.from_arrays(batch, device)
            logits = [bin_logits(network(tensors).gene_logits, config)]
            if has_two_parts:
                of_part, _ = network.log_linear(tensors)
                logits.append(bin_logits(of_part, config))
            weights = levels.weight[sources[at]]
            found = [_effects_of(one, batch, levels, weights) for one in logits]
            sums.add(at, done % 2, [one[:, targets] for one in found], mask[:, targets])
        done += 1
        on_progress(ProgressEvent(_STAGE, done, most_passes))
        if done >= min(LEAST_PASSES, most_passes) and done % 2 == 0:
            effects = sums.effects(sources, targets, done)
            is_complete = np.isnan(effects.error).sum() == (sources[:, None] == targets).sum()
            if is_complete and effects.relative_error <= error:
                on_progress(ProgressEvent(_STAGE, most_passes, most_passes))
                return effects
    return sums.effects(sources, targets, done)


def bins_of(model: CellModel, cells: ContextCells) -> NDArray[np.uint8]:
    """Return the (cells, G) bins of cells."""
    blocks = [
        model.values.encode(cells.expression[first : first + 1024].toarray())
        for first in range(0, len(cells), 1024)
    ]
    return np.concatenate(blocks)


def _perturbed(
    model: CellModel,
    cells: ContextCells,
    bins: NDArray[np.uint8],
    levels: GeneLevels,
    sources: NDArray[np.int64],
    mask: NDArray[np.bool_],
) -> CellBatch:
    """Encode each cell ``LEVELS`` times, one source set to its levels, and ``mask`` (n, G) masked."""
    tokens = model.config.tokens
    codes = np.repeat(cells.codes, LEVELS, axis=0)
    states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
    sizes = np.repeat(cells.library_size, LEVELS)
    values = np.repeat(cells.expression.toarray(), LEVELS, axis=0)
    mask = np.repeat(mask, LEVELS, axis=0)
    batch = model.batches.ranked(values, codes, states, mask, sizes)
    value = batch.value.copy()
    at = batch.cu_seqlens[:-1] + tokens.header_length + np.repeat(sources, LEVELS)
    value[at] = tokens.first_bin + levels.bin[sources].ravel()
    return replace(batch, value=value)


def _effects_of(
    logits: Tensor, batch: CellBatch, levels: GeneLevels, weights: FloatArray
) -> FloatArray:
    """(n, G) effects of one source per cell, 0 where a gene is not masked, from logits (M, bins)."""
    probability = torch.softmax(logits.double(), dim=-1).cpu().numpy()
    expected = np.zeros((batch.n_cells, len(levels.score)))
    expected[batch.gene_cell, batch.gene] = (probability * levels.score[batch.gene]).sum(axis=1)
    by_level = expected.reshape(len(weights), LEVELS, -1)
    found: FloatArray = (by_level * weights[:, :, None]).sum(axis=1)
    return found


class _Sums:
    """Running sums of effects, and their number, of each pair and half."""

    def __init__(self, n_sources: int, n_targets: int, *, n_parts: int) -> None:
        shape = (n_sources, n_targets)
        self.parts = np.zeros((n_parts, *shape))
        self.squares = np.zeros(shape)
        self.halves = np.zeros((2, *shape))
        self.counts = np.zeros((2, *shape))

    def add(
        self, at: NDArray[np.int64], half: int, found: list[FloatArray], mask: NDArray[np.bool_]
    ) -> None:
        for part, one in zip(self.parts, found, strict=True):
            part[at] += one
        self.squares[at] += found[0] ** 2
        self.halves[half, at] += found[0]
        self.counts[half, at] += mask

    def effects(
        self, sources: NDArray[np.int64], targets: NDArray[np.int64], n_passes: int
    ) -> Effects:
        count = self.counts.sum(axis=0)
        itself = sources[:, None] == targets
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(itself | (count == 0), np.nan, self.parts / count)
            spread = np.maximum(self.squares / count - means[0] ** 2, 0) * count / (count - 1)
            error = np.where(count > 1, np.sqrt(spread / count), np.nan)
            halves = np.where(itself, np.nan, self.halves / self.counts)
        log_linear = means[1] if len(means) > 1 else None
        return Effects(means[0], error, halves, log_linear, n_passes)
