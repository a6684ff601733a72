"""Values: log1p counts per 10,000 to ordered bins, and bins back to values.

`ValueEncoder` holds the edges and assigns bins; `ValueTable` holds the training values within each bin
of each gene, and turns generated bins into values again.

`CountBins` assigns the same bins straight from counts. Within a cell the bin of a count depends on the
count alone, and rises with it. So a cell has for each edge a smallest count that reaches it, and a
count's bin is the number of these thresholds at or below it: comparisons of small integers instead of a
logarithm per value.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import GenePanel, strip_version
from core.cells.normalisation import count_scales, log_normalise
from core.errors import ConfigurationError, DataError
from core.files import file_json
from core.presets.schema import EncodingSettings
from core.wording import listed

FloatArray = NDArray[np.float32]
Decoding = Literal["sample", "mean", "bins"]

#: Order statistics kept per gene and bin for decoding.
QUANTILES = 32
#: Threshold of an edge that no 16-bit count reaches.
NEVER = 65_536


@dataclass(frozen=True)
class ValueEncoder:
    """Assign each value to its ordered bin: the number of edges at or below it."""

    kind: Literal["binary", "binned", "continuous"]
    #: (bins - 1,) for all genes or (genes, bins - 1), float32, not decreasing. Binary and continuous
    #: have one edge: the smallest number above the threshold.
    edges: FloatArray

    @property
    def n_bins(self) -> int:
        """Number of bins, bin 0 ("not expressed") included."""
        return int(self.edges.shape[-1]) + 1

    def encode(
        self, values: FloatArray, genes: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.uint8]:
        """Assign bins to whole cells, (cells, genes), or to single values, (values,) of the genes (values,).

        One comparison per edge, added up, is about 30 times faster than ``np.searchsorted`` here.
        """
        bins = np.zeros(values.shape, dtype=np.uint8)
        reached = np.empty(values.shape, dtype=bool)
        for edge in self._edge_rows:
            np.greater_equal(values, _of_genes(edge, genes), out=reached)
            bins += reached.view(np.uint8)
        return bins

    def expressed(
        self, values: FloatArray, genes: NDArray[np.integer[Any]] | None
    ) -> NDArray[np.bool_]:
        """Return which values are above bin 0; arguments as of `encode`."""
        above: NDArray[np.bool_] = values >= _of_genes(self._edge_rows[0], genes)
        return above

    @property
    def edges_are_shared(self) -> bool:
        """Whether all genes have the same edges."""
        return self.edges.ndim == 1

    def take(self, genes: NDArray[np.integer[Any]]) -> "ValueEncoder":
        """Return the encoder of some of the genes."""
        return self if self.edges_are_shared else ValueEncoder(self.kind, self.edges[genes])

    @cached_property
    def _edge_rows(self) -> FloatArray:
        """(bins - 1, ...), contiguous for each edge."""
        return np.ascontiguousarray(self.edges.T)


def _of_genes(edge: FloatArray, genes: NDArray[np.integer[Any]] | None) -> FloatArray:
    return edge if genes is None or edge.ndim == 0 else edge.take(genes)


def fit_value_encoder(
    settings: EncodingSettings, training: sparse.csr_matrix, panel: GenePanel
) -> ValueEncoder:
    """Make the encoder that a preset describes.

    ``training`` is (cells, genes), log1p counts per 10,000 of training cells, read only for quantiles;
    the panel is for edges per gene. Equal width as in PolyGene: bin 0 below the threshold, bins - 2 bins
    of equal width up to ``maximum``, and the last bin above it.
    """
    above_threshold = np.nextafter(np.float32(settings.threshold), np.float32(np.inf))
    if settings.kind != "binned":
        return ValueEncoder(settings.kind, np.array([above_threshold], dtype=np.float32))
    n_edges = settings.bins - 1
    if settings.edges == "equal_width":
        if settings.maximum <= settings.threshold:
            raise ConfigurationError(
                f"encoding.maximum ({settings.maximum}) must be above encoding.threshold "
                f"({settings.threshold})"
            )
        edges = np.linspace(settings.threshold, settings.maximum, n_edges, dtype=np.float32)
    elif settings.edges in ("quantile", "gene_quantile"):
        per_gene = settings.edges == "gene_quantile"
        edges = _quantile_edges(training, n_edges, above_threshold, per_gene=per_gene)
    elif isinstance(settings.edges, str):
        edges = read_gene_edges(Path(settings.edges), panel, n_edges)
    else:
        edges = np.asarray(settings.edges, dtype=np.float32)
        if len(edges) != n_edges:
            raise ConfigurationError(
                f"encoding.edges has {len(edges)} numbers, but encoding.bins = {settings.bins} "
                f"needs {n_edges}"
            )
        if not np.all(np.diff(edges) > 0):
            raise ConfigurationError("encoding.edges must be strictly increasing")
    edges[edges <= 0] = np.nextafter(np.float32(0), np.float32(1))  # a zero is never expressed
    return ValueEncoder("binned", edges)


def bin_counts(bins: NDArray[np.uint8], n_bins: int) -> NDArray[np.int64]:
    """Count the cells in each bin of each gene: (genes, bins) from (cells, genes)."""
    return np.stack([(bins == one).sum(axis=0) for one in range(n_bins)], axis=1)


def _quantile_edges(
    training: sparse.csr_matrix, n_edges: int, above_threshold: np.float32, *, per_gene: bool
) -> FloatArray:
    """Place edges so that the expressed bins hold equal numbers of training values."""
    inner = np.linspace(0, 1, n_edges + 1)[1:-1]  # edges between the n_edges expressed bins
    pooled = training.data[training.data >= above_threshold]
    if pooled.size == 0:
        raise DataError("no training value is above encoding.threshold: lower it")
    common = np.concatenate([[above_threshold], np.quantile(pooled, inner)]).astype(np.float32)
    if not per_gene:
        return common
    columns = training.tocsc()
    edges = np.tile(common, (training.shape[1], 1))
    for gene in range(training.shape[1]):
        values = columns.data[columns.indptr[gene] : columns.indptr[gene + 1]]
        values = values[values >= above_threshold]
        if values.size:
            edges[gene, 1:] = np.quantile(values, inner)
    return edges


def read_gene_edges(path: Path, panel: GenePanel, n_edges: int) -> FloatArray:
    """Read (genes, bins - 1) edges from a JSON object ``{"gene": [edge, ...], ...}``.

    Genes are looked up by id (Ensembl versions ignored) or symbol; the file may hold more genes
    than the panel, never fewer.
    """
    try:
        table = file_json(path)
    except OSError as error:
        raise DataError(
            f"encoding.edges: cannot read {path} ({error.strerror}); give 'equal_width', 'quantile', "
            f"'gene_quantile', numbers, or a JSON file"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path}: not JSON ({error}); expected an object of gene: [edges]"
        ) from error
    if not isinstance(table, dict):
        raise DataError(
            f"{path}: expected an object of gene: [edges], found a {type(table).__name__}"
        )
    named = {strip_version(str(gene)): edges for gene, edges in table.items()}
    rows = [
        named.get(gene, named.get(symbol))
        for gene, symbol in zip(panel.ids, panel.symbols, strict=True)
    ]
    if lacking := [panel.symbols[at] for at, row in enumerate(rows) if row is None]:
        raise DataError(
            f"{path}: no edges for {len(lacking)} of the {len(panel)} panel genes "
            f"({listed(lacking)}); add them or use encoding.edges = 'gene_quantile'"
        )
    for symbol, row in zip(panel.symbols, rows, strict=True):
        if not isinstance(row, list) or len(row) != n_edges:
            raise ConfigurationError(
                f"{path}: gene {symbol} must have {n_edges} edges (encoding.bins - 1)"
            )
        if not all(isinstance(edge, int | float) for edge in row):
            raise ConfigurationError(f"{path}: an edge of gene {symbol} is not a number")
    edges = np.asarray(rows, dtype=np.float32)
    sound = np.isfinite(edges).all(axis=1) & np.all(edges[:, 1:] >= edges[:, :-1], axis=1)
    if not sound.all():
        gene = panel.symbols[int(np.argmin(sound))]
        raise ConfigurationError(f"{path}: the edges of gene {gene} must be finite and increasing")
    return edges


@dataclass(frozen=True)
class ValueTable:
    """Training values within each bin of each gene, log1p counts per 10,000."""

    #: (genes, bins, `QUANTILES`), float32, ascending.
    quantiles: FloatArray
    #: (genes, bins), float32.
    means: FloatArray

    @classmethod
    def fit(cls, encoder: ValueEncoder, training: sparse.csr_matrix) -> "ValueTable":
        """Summarise training cells, (cells, genes) log1p counts per 10,000.

        A bin that a gene never used in training takes the values of the same bin of all genes, and one
        that no gene used its lower edge; an unused bin 0 takes 0.
        """
        n_cells, n_genes = training.shape
        n_bins = encoder.n_bins
        genes = training.indices.astype(np.int64)
        values = training.data.astype(np.float32)
        bins = encoder.encode(values, genes)
        group = genes * n_bins + bins
        order = np.lexsort((values, group))
        group, values = group[order], values[order]
        stored = np.bincount(group, minlength=n_genes * n_bins).reshape(n_genes, n_bins)
        starts = (np.cumsum(stored.ravel()) - stored.ravel()).reshape(n_genes, n_bins)
        zeros = np.zeros_like(stored)
        zeros[:, 0] = n_cells - stored.sum(axis=1)  # zeros are not stored, and sort before all
        totals = stored + zeros
        sums = np.bincount(group, weights=values, minlength=n_genes * n_bins)
        means = sums.reshape(n_genes, n_bins) / np.maximum(totals, 1)

        middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
        rank = np.floor(totals[..., None] * middles).astype(np.int64) - zeros[..., None]
        at = np.clip(starts[..., None] + np.maximum(rank, 0), 0, max(len(values) - 1, 0))
        picked = values[at] if len(values) else np.zeros(at.shape, np.float32)
        quantiles = np.where(rank < 0, np.float32(0), picked)

        bin_of_value = group % n_bins
        for one in np.flatnonzero((totals == 0).any(axis=0)).tolist():
            unused = totals[:, one] == 0
            pooled = values[bin_of_value == one].astype(np.float64)
            if one > 0 and pooled.size:
                quantiles[unused, one], means[unused, one] = (
                    np.quantile(pooled, middles),
                    pooled.mean(),
                )
            else:
                edge = 0.0 if one == 0 else float(np.mean(encoder.edges[..., one - 1]))
                quantiles[unused, one], means[unused, one] = edge, edge
        return cls(quantiles.astype(np.float32), means.astype(np.float32))

    def decode(
        self, bins: NDArray[np.integer[Any]], *, how: Decoding, rng: np.random.Generator
    ) -> FloatArray:
        """Turn (cells, genes) bins into log1p counts per 10,000, float32.

        "sample" draws from the gene's training values in that bin (bin means are detectable: a random
        forest separates them from real values), "mean" takes their mean, "bins" keeps the bins.
        """
        if how == "bins":
            return bins.astype(np.float32)
        genes = np.arange(bins.shape[1])
        if how == "mean":
            return self.means[genes, bins]
        at = rng.random(bins.shape, dtype=np.float32) * (QUANTILES - 1)
        lower = at.astype(np.int64)
        part = at - lower
        # Bin 0 is mostly zeros: a value between "absent" and "faint" would be neither.
        part[bins == 0] = 0
        low, high = self.quantiles[genes, bins, lower], self.quantiles[genes, bins, lower + 1]
        # Rounding may overshoot by a digit, which at an edge would be the next bin.
        return np.minimum(low + part * (high - low), high).astype(np.float32)


def count_thresholds(edges: NDArray[np.float32], totals: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (cells, edges), in [1, `NEVER`]: the smallest count of each cell that reaches each edge.

    ``edges`` are (edges,) for all cells, or (cells, edges). Of ``totals`` (cells, 1) and ``edges`` (genes,
    edges) it returns (cells, genes, edges). Inverting the edge in float64 comes within less than one count of the result for all 16-bit
    counts; which of three neighbours it is, the float32 formula of `Store.read` itself decides.
    """
    scale = count_scales(totals)[..., None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        guess = np.ceil(np.expm1(edges.astype(np.float64)) / scale)
    guess = np.clip(np.nan_to_num(guess, nan=NEVER, posinf=NEVER), 1, NEVER).astype(np.int64)
    thresholds = guess + 1
    for candidate in (guess, guess - 1):
        np.copyto(thresholds, candidate, where=log_normalise(candidate, scale) >= edges)
    return thresholds.clip(1, NEVER)


def possible_bins(thresholds: NDArray[np.int64], totals: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return (..., bins), whether a whole count falls into each bin of a cell.

    ``thresholds`` (..., edges) are those of `count_thresholds`, ``totals`` (...) the library sizes; where one
    is 0, not known, every bin is possible.
    """
    possible = np.ones((*thresholds.shape[:-1], thresholds.shape[-1] + 1), dtype=bool)
    # A bin is empty if the next one begins at the same count; counts above `NEVER` are one here.
    low, high = thresholds[..., :-1], thresholds[..., 1:]
    possible[..., 1:-1] = (low < high) | (low == NEVER) | (totals <= 0)[..., None]
    return possible


@dataclass(frozen=True)
class CountLattice:
    """The whole counts that the bins of each gene hold, in cells of library sizes ``totals`` (cells,)."""

    totals: NDArray[np.float32]
    #: (cells, genes or 1, edges), of `count_thresholds`.
    thresholds: NDArray[np.int64]

    @classmethod
    def of(cls, values: ValueEncoder, totals: NDArray[np.float32]) -> "CountLattice":
        """Find the counts of the bins of ``values``."""
        edges = values.edges[None] if values.edges_are_shared else values.edges
        return cls(totals, count_thresholds(edges, totals[:, None]))

    @property
    def possible(self) -> NDArray[np.bool_]:
        """(cells, genes or 1, bins), whether a whole count falls into each bin."""
        return possible_bins(self.thresholds, self.totals[:, None])

    def counts(
        self, cell: int, bins: NDArray[np.integer[Any]], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Bring (genes,) whole counts of one cell into their ``bins``."""
        edges = self.thresholds[cell].shape[-1]
        ends = np.broadcast_to(self.thresholds[cell], (len(bins), edges)).astype(np.float32)
        ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (0, np.inf)))
        genes = np.arange(len(bins))
        # An empty bin, which the model never draws, takes the count below it.
        return np.minimum(np.maximum(counts, ends[genes, bins]), ends[genes, bins + 1] - 1)


class CountBins:
    """The bins of the counts of some cells, of library sizes ``totals`` (cells,).

    All genes share the ``edges`` (edges,): ascending, log1p counts per 10,000, above zero.
    """

    def __init__(self, edges: NDArray[np.float32], totals: NDArray[np.float32]) -> None:
        self.edges = edges
        self.totals = totals
        self.thresholds = count_thresholds(edges, totals)

    def expressed(
        self, counts: NDArray[np.unsignedinteger[Any]], indptr: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """Return which counts above zero are above bin 0, (values,), or None where all are."""
        least = self.thresholds[:, 0]
        if (least <= 1).all():
            return None
        return counts >= np.repeat(least.astype(np.uint32), np.diff(indptr))

    def bins(
        self,
        counts: NDArray[np.unsignedinteger[Any]],
        indptr: NDArray[np.int64],
        *,
        first: int = 0,
        dtype: type[np.uint8 | np.uint16 | np.int32] = np.uint8,
    ) -> NDArray[Any]:
        """Assign bins, counted from ``first``, to counts above zero, (values,), cell after cell."""
        small, large = counts, np.zeros(0, dtype=np.int64)
        if counts.dtype != np.uint16:
            large = np.flatnonzero(counts >= NEVER - 1)
            small = np.minimum(counts, NEVER - 2).astype(np.uint16)
        most = int(small.max(initial=0))
        lowest = self.thresholds.min(axis=0, initial=NEVER)
        in_all = int(np.count_nonzero(self.thresholds.max(axis=0, initial=0) <= 1))
        last = int(np.searchsorted(lowest, most, side="right"))  # no count reaches those behind
        thresholds = np.minimum(self.thresholds, NEVER - 1).astype(np.uint16)
        bins = np.full(len(small), first + in_all, dtype=dtype)
        reached, per_cell = np.empty(len(small), dtype=bool), np.diff(indptr)
        for edge in range(in_all, last):
            np.greater_equal(small, np.repeat(thresholds[:, edge], per_cell), out=reached)
            bins += reached.view(np.uint8)
        if len(large):
            cell = np.searchsorted(indptr, large, side="right") - 1
            values = log_normalise(counts[large], count_scales(self.totals)[cell])
            bins[large] = first + np.searchsorted(self.edges, values, side="right")
        return bins
