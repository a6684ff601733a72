"""Batches: from cells as they are stored to packed tokens, with the masked positions and targets.

Both layouts give the same form of batch, so the model does not distinguish them:

- ranked: every panel gene, in panel order, for every cell;
- expressed: the genes above bin 0, in no particular order, some of the masked ones replaced by
  unexpressed genes so that "bin 0" is a target; a cell with more genes than ``max_length`` allows
  keeps a random choice of them.

Everything is vectorised over the batch but joining slices, one per cell. Values are binned as they
are stored: counts are compared with a cell's own thresholds (`CountBins`), never normalised.

The panel may be all 58,604 genes of an annotation, of which a cell expresses a twentieth, so
candidates for unexpressed genes are drawn uniformly from the whole panel and looked up; only for cells
with hardly any unexpressed gene left are these listed.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.encoding.cell_batch import CellBatch, pack
from core.encoding.masking import Show, draw_masked_counts, draw_phenotype_states, draw_subsets
from core.encoding.panel_cells import PanelCells
from core.encoding.tokens import MASK, TokenSpace
from core.encoding.values import CountBins, ValueEncoder, count_thresholds, possible_bins
from core.presets.schema import MaskingSettings

#: A little below glibc's largest threshold, 32 MiB.
_BLOCK_BYTES = 31 * 2**20
#: Cells looked up at a time: their rows of a 58,604-gene panel fit a core's own cache.
_ROWS = 16
#: Candidates per wanted gene beyond which listing the unexpressed genes is cheaper.
_MOST_CANDIDATES = 4


class Lookup:
    """Memory in which cells are looked up, kept between batches: touching new pages is slow.

    ``width`` is the number of columns of the source, plus one.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.expressed = np.zeros(_ROWS * width, dtype=bool)
        self.last_drawn = np.zeros(_ROWS * width, dtype=np.int32)

    def are_new(
        self, cells: PanelCells, columns: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return which drawn columns their cell does not express and has not drawn twice.

        ``columns`` (candidates,) are in the order of cells; ``ends`` (cells + 1,) is where the
        candidates of each cell begin.
        """
        is_new = np.empty(len(columns), dtype=bool)
        row = np.arange(0, _ROWS * self.width, self.width)
        for first in range(0, cells.n_cells, _ROWS):
            end = min(first + _ROWS, cells.n_cells)
            some = slice(int(ends[first]), int(ends[end]))
            if some.start == some.stop:
                continue
            places = np.repeat(row[: end - first], np.diff(cells.indptr[first : end + 1]))
            places += cells.columns[int(cells.indptr[first]) : int(cells.indptr[end])]
            self.expressed[:] = False
            self.expressed[places] = True
            places = np.repeat(row[: end - first], np.diff(ends[first : end + 1]))
            places += columns[some]
            draw = np.arange(len(places), dtype=np.int32)
            self.last_drawn[places] = draw
            is_last = self.last_drawn.take(places) == draw
            is_new[some] = is_last & ~self.expressed.take(places)
        return is_new


def draw_unexpressed(
    cells: PanelCells, n_wanted: NDArray[np.int64], lookup: Lookup, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``n_wanted`` (cells,) distinct genes that each cell does not express, uniformly.

    Returns the panel index of the drawn genes, cell after cell, and (cells,) the number drawn, which is
    lower where a cell has no more. ``cells`` hold expressed values alone.
    """
    n_genes = cells.n_genes
    n_free = n_genes - np.diff(cells.indptr)
    n_drawn = np.minimum(n_wanted, n_free)
    # Enough for the expressed and the twice drawn among them, plus three standard deviations.
    ample = (n_drawn + 3 * np.sqrt(n_drawn) + 3) * n_genes / np.maximum(n_free, 1)
    most = _MOST_CANDIDATES * n_drawn + 16
    n_candidates = np.where(n_drawn > 0, np.minimum(np.ceil(ample), most), 0).astype(np.int64)
    ends = np.concatenate(([0], np.cumsum(n_candidates)))
    drawn = (rng.random(int(ends[-1])) * n_genes).astype(np.int64)
    good = np.flatnonzero(lookup.are_new(cells, cells.gene_columns.take(drawn), ends))
    bounds = np.searchsorted(good, ends)
    found = np.diff(bounds)
    enough = found >= n_drawn
    # The candidates are in random order, so the first good ones are as random as any.
    rank = np.arange(len(good)) - np.repeat(bounds[:-1], found)
    n_first = np.where(enough, n_drawn, 0)
    genes = drawn[good[rank < np.repeat(n_first, found)]]
    if enough.all():
        return genes, n_drawn
    parts = np.split(genes, np.cumsum(n_first)[:-1])
    for cell in np.flatnonzero(~enough).tolist():
        is_free = np.ones(cells.n_columns + 1, dtype=bool)
        is_free[cells.columns[cells.indptr[cell] : cells.indptr[cell + 1]]] = False
        free = np.flatnonzero(is_free[cells.gene_columns])
        parts[cell] = rng.choice(free, int(n_drawn[cell]), replace=False)
    return np.concatenate(parts), n_drawn


class _Encoded(NamedTuple):
    """Values of genes as tokens, in any shape; `CellBatch` describes the members."""

    value: NDArray[Any]
    continuous: NDArray[np.float32] | None = None
    thresholds: NDArray[np.int32] | None = None

    def mask(self, at: NDArray[np.int64], first_bin: int) -> NDArray[Any]:
        """Mask flat places, in place, and return their targets."""
        if self.thresholds is not None:  # the device makes the targets, and masks
            return np.zeros(len(at), dtype=np.uint8)
        value = self.value.ravel()
        target: NDArray[Any] = value.take(at) - value.dtype.type(first_bin)
        value[at] = MASK
        if self.continuous is not None:
            target = self.continuous.ravel().take(at)
            self.continuous.ravel()[at] = 0
        return target


class BatchEncoder:
    """Make batches of at most ``max_length`` tokens a cell from expression and phenotype codes.

    ``bins_on_device`` leaves the bins of counts to the device (`CellBatch.thresholds`) where that is
    possible: stored counts, bins, and edges that all genes share. ``with_library_size`` adds the cells'
    library sizes, and the bins of masked genes that these allow. With ``context_genes`` (in training) an encoder
    with attention reads at most so many genes of a cell, drawn anew by `masked`, which alone are predicted.
    """

    def __init__(
        self,
        tokens: TokenSpace,
        values: ValueEncoder,
        *,
        max_length: int,
        bins_on_device: bool = False,
        with_library_size: bool = False,
        context_genes: int | None = None,
    ) -> None:
        self.context_genes = context_genes
        self.with_library_size = with_library_size
        # The device makes bins for the targets of masked genes, which a classifier does not have.
        # It masks the predicted genes alone.
        self.bins_on_device = bins_on_device and tokens.classified is None and context_genes is None
        self.tokens = tokens
        self.values = values
        self.max_length = max_length
        self.continuous = values.kind == "continuous"
        self._lookup: Lookup | None = None
        _keep_freed_memory()

    @property
    def room(self) -> int:
        """Most genes of a sequence."""
        return self.max_length - self.tokens.header_length - 1

    def masked(
        self,
        expression: PanelCells | sparse.csr_matrix,
        codes: NDArray[np.int32],
        masking: MaskingSettings,
        rng: np.random.Generator,
    ) -> CellBatch:
        """Encode cells with genes and phenotypes masked at random, as in training.

        ``expression`` has cells over the panel: as stored, or (cells, genes) log1p counts per 10,000;
        ``codes`` (cells, phenotypes) are -1 where missing. All chance is of ``rng``.
        """
        cells = expression if isinstance(expression, PanelCells) else PanelCells.of(expression)
        states = draw_phenotype_states(
            codes,
            mask=masking.phenotypes,
            drop=masking.drop_phenotypes,
            unspecified=masking.unspecified,
            rng=rng,
        )
        # Some cells as annotation meets them: every gene visible, every known phenotype masked.
        visible = rng.random(len(codes)) < masking.visible_cells
        states[visible[:, None] & (codes >= 0)] = Show.MASKED
        if self.tokens.layout == "expressed":
            return self._expressed(cells, codes, states, masking, rng, visible)
        every = np.full(cells.n_cells, cells.n_genes)
        n_masked = draw_masked_counts(every, masking.genes, rng)
        n_masked[visible] = 0
        mask = draw_subsets(every, n_masked, rng).reshape(cells.n_cells, cells.n_genes)
        sizes = self._library_sizes(cells.n_cells, cells.totals, masking.unspecified, rng)
        in_context = None
        if self.context_genes is not None and self.context_genes < cells.n_genes:
            in_context = draw_subsets(every, np.full_like(every, self.context_genes), rng)
        return self._ranked(self._dense(cells), codes, states, mask, sizes, in_context)

    def visible(
        self,
        expression: PanelCells | sparse.csr_matrix,
        codes: NDArray[np.int32],
        hidden: Sequence[str],
        rng: np.random.Generator,
        *,
        missing: NDArray[np.bool_] | None = None,
    ) -> CellBatch:
        """Encode cells with all genes visible and the ``hidden`` phenotypes masked.

        A masked phenotype has a target only where its label is known. The other phenotypes are
        shown. ``rng`` chooses genes of cells longer than ``max_length``. Genes that are ``missing``
        (panel,) are masked: not known, rather than not expressed. In the expressed layout they are
        no tokens in any case.
        """
        cells = expression if isinstance(expression, PanelCells) else PanelCells.of(expression)
        states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
        for name in hidden:
            states[:, self.tokens.names.index(name)] = Show.MASKED
        if self.tokens.layout == "expressed":
            unmasked = MaskingSettings(genes=0.0, phenotypes=0.0, unspecified=0.0)
            visible = np.ones(len(codes), dtype=bool)
            return self._expressed(cells, codes, states, unmasked, rng, visible)
        mask = np.zeros((cells.n_cells, cells.n_genes), dtype=bool)
        if missing is not None:
            mask[:, missing] = True
        sizes = self._library_sizes(cells.n_cells, cells.totals)
        return self._ranked(self._dense(cells), codes, states, mask, sizes)

    def ranked(
        self,
        expression: NDArray[np.float32],
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        mask: NDArray[np.bool_],
        library_size: NDArray[np.float32] | None = None,
    ) -> CellBatch:
        """Encode every panel gene of every cell, masked exactly at ``states`` and ``mask``.

        ``expression`` and ``mask`` are (cells, genes), ``codes`` and ``states`` (cells, phenotypes),
        ``library_size`` (cells,), 0 where not known.
        """
        encoded = self._tokens_of(self.values.encode(expression), expression)
        sizes = self._library_sizes(len(codes), library_size)
        return self._ranked(encoded, codes, states, mask, sizes)

    def _ranked(
        self,
        encoded: _Encoded,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        mask: NDArray[np.bool_],
        library_size: NDArray[np.float32] | None,
        in_context: NDArray[np.bool_] | None = None,
    ) -> CellBatch:
        """Pack dense (cells, genes) values, which are masked in place."""
        n_cells, n_genes = mask.shape
        tokens = self.tokens
        at = np.flatnonzero(mask)
        mask_rate = mask.sum(axis=1) / max(n_genes, 1)
        target = encoded.mask(at, tokens.first_bin)
        if in_context is not None:
            mask = mask & in_context.reshape(mask.shape)
            is_predicted = in_context[at]
            at, target = at[is_predicted], target[is_predicted]
        n_masked = mask.sum(axis=1)
        every = (np.arange(n_genes) + tokens.first_gene).astype(tokens.token_id_type)
        gene = (at - np.repeat(np.arange(n_cells) * n_genes, n_masked)).astype(np.int32)
        return pack(
            tokens,
            codes,
            states,
            lengths=np.full(n_cells, n_genes),
            token_id=[every] * n_cells,
            value=list(encoded.value),
            continuous=None if encoded.continuous is None else list(encoded.continuous),
            masked_at=at,
            n_masked=n_masked,
            gene=gene,
            target=target,
            mask_rate=mask_rate.astype(np.float32),
            thresholds=encoded.thresholds,
            library_size=library_size,
            possible=self._possible(gene, n_masked, library_size),
            in_context=in_context,
        )

    def _expressed(
        self,
        cells: PanelCells,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        masking: MaskingSettings,
        rng: np.random.Generator,
        visible: NDArray[np.bool_],
    ) -> CellBatch:
        tokens = self.tokens
        count_bins = self._count_bins(cells)
        cells = self._without_bin_0(cells, count_bins)
        expressed = np.diff(cells.indptr)
        lengths = np.minimum(expressed, self.room)
        part = cells
        if (lengths < expressed).any():
            part = cells.only(np.flatnonzero(draw_subsets(expressed, lengths, rng)), lengths)
        n_masked = draw_masked_counts(lengths, masking.genes, rng)
        n_masked[visible] = 0
        at = np.flatnonzero(draw_subsets(lengths, n_masked, rng))
        dtype = tokens.token_id_type
        token_id = np.add(part.genes.astype(dtype, copy=False), tokens.first_gene, dtype=dtype)
        encoded = self._encode(part, count_bins)
        target = encoded.mask(at, tokens.first_bin)
        if masking.unexpressed and len(at):
            swapped, genes = self._swaps(cells, n_masked, masking.unexpressed, rng)
            token_id[at[swapped]] = genes + tokens.first_gene
            target[swapped] = 0
            if encoded.thresholds is not None:
                encoded.value[at[swapped]] = 0
        spans = part.spans(np.arange(part.n_cells))
        numbers = encoded.continuous
        gene = token_id.take(at).astype(np.int32) - tokens.first_gene
        sizes = self._library_sizes(cells.n_cells, cells.totals, masking.unspecified, rng)
        return pack(
            tokens,
            codes,
            states,
            lengths=lengths,
            token_id=[token_id[span] for span in spans],
            value=[encoded.value[span] for span in spans],
            continuous=None if numbers is None else [numbers[span] for span in spans],
            masked_at=at,
            n_masked=n_masked,
            gene=gene,
            target=target,
            mask_rate=(n_masked / np.maximum(lengths, 1)).astype(np.float32),
            thresholds=encoded.thresholds,
            library_size=sizes,
            possible=self._possible(gene, n_masked, sizes),
        )

    def _library_sizes(
        self,
        n_cells: int,
        totals: NDArray[np.float32] | None,
        hidden: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> NDArray[np.float32] | None:
        """(cells,) library sizes, left out with the probability ``hidden``; None if the model has none."""
        if not self.with_library_size:
            return None
        sizes = np.zeros(n_cells, np.float32) if totals is None else totals.astype(np.float32)
        if rng is not None:
            sizes[rng.random(n_cells) < hidden] = 0
        return sizes

    def _possible(
        self,
        gene: NDArray[np.int32],
        n_masked: NDArray[np.int64],
        library_size: NDArray[np.float32] | None,
    ) -> NDArray[np.bool_] | None:
        """(M, bins), which bins the library size allows masked genes; None where all are possible."""
        if library_size is None or self.continuous or self.values.n_bins == 2:
            return None
        edges = self.values.edges
        if self.values.edges_are_shared:
            of_cells = possible_bins(count_thresholds(edges, library_size), library_size)
            return np.repeat(of_cells, n_masked, axis=0)
        sizes = np.repeat(library_size, n_masked)
        return possible_bins(count_thresholds(edges[gene], sizes), sizes)

    def _swaps(
        self, cells: PanelCells, n_masked: NDArray[np.int64], rate: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose masked genes, and for each an unexpressed gene of its cell to replace it.

        A cell that expresses nearly the whole panel may lack candidates: the rest stays as it is.
        """
        chance = rng.random(int(n_masked.sum()), dtype=np.float32)
        swapped = np.flatnonzero(chance < rate)
        ends = np.searchsorted(swapped, np.concatenate(([0], np.cumsum(n_masked))))
        wanted = np.diff(ends)
        if self._lookup is None or self._lookup.width != cells.n_columns + 1:
            self._lookup = Lookup(cells.n_columns + 1)
        genes, n_drawn = draw_unexpressed(cells, wanted, self._lookup, rng)
        if (n_drawn < wanted).any():
            rank = np.arange(len(swapped)) - np.repeat(ends[:-1], wanted)
            swapped = swapped[rank < np.repeat(n_drawn, wanted)]
        return swapped, genes

    def _count_bins(self, cells: PanelCells) -> CountBins | None:
        """Bins straight from counts, where values are counts and all genes share their edges."""
        is_binned = not self.continuous and self.values.edges_are_shared
        if cells.totals is None or not cells.holds_counts or not is_binned:
            return None
        return CountBins(self.values.edges, cells.totals)

    def _without_bin_0(self, cells: PanelCells, count_bins: CountBins | None) -> PanelCells:
        """Leave out values below a gene's first edge; usually there are none."""
        if count_bins is not None:
            expressed = count_bins.expressed(cells.values, cells.indptr)
        else:
            expressed = self.values.expressed(cells.log_values, self._edge_genes(cells))
        if expressed is None or expressed.all():
            return cells
        at = np.flatnonzero(expressed)
        return cells.only(at, np.diff(np.searchsorted(at, cells.indptr)))

    def _edge_genes(self, cells: PanelCells) -> NDArray[np.integer[Any]] | None:
        return None if self.values.edges_are_shared else cells.genes

    def _encode(self, cells: PanelCells, count_bins: CountBins | None) -> _Encoded:
        """Encode stored values, (values,)."""
        if count_bins is not None:
            if self.bins_on_device and cells.values.dtype == np.uint16:
                thresholds = count_bins.thresholds.astype(np.int32)
                return _Encoded(cells.values.copy(), thresholds=thresholds)
            first, dtype = self.tokens.first_bin, self.tokens.value_type
            return _Encoded(count_bins.bins(cells.values, cells.indptr, first=first, dtype=dtype))
        values = cells.log_values
        return self._tokens_of(self.values.encode(values, self._edge_genes(cells)), values)

    def _tokens_of(self, bins: NDArray[np.uint8], values: NDArray[np.float32]) -> _Encoded:
        """Turn bins into tokens; in a continuous model one token announces a number."""
        first, dtype = self.tokens.first_bin, self.tokens.value_type
        if self.continuous:
            token = np.full(bins.shape, first, dtype=dtype)
            return _Encoded(token, np.where(bins > 0, values, np.float32(0)))
        return _Encoded(np.add(bins, first, dtype=dtype))

    def _dense(self, cells: PanelCells) -> _Encoded:
        """Encode all genes, (cells, genes)."""
        shape = (cells.n_cells, cells.n_genes)
        flat = self._encode(cells, self._count_bins(cells))
        at = np.repeat(np.arange(cells.n_cells) * cells.n_genes, np.diff(cells.indptr))
        at += cells.genes
        absent = self.tokens.first_bin if flat.thresholds is None else 0
        value = np.full(shape, absent, dtype=flat.value.dtype)
        value.ravel()[at] = flat.value
        continuous = None
        if flat.continuous is not None:
            continuous = np.zeros(shape, dtype=np.float32)
            continuous.ravel()[at] = flat.continuous
        return _Encoded(value, continuous, flat.thresholds)


@cache
def _keep_freed_memory() -> None:
    """Let the C library keep the memory that a batch frees for the next batch, once per process.

    glibc returns blocks above a threshold to the kernel, and the next batch touches new pages instead:
    measured, 1,200 page faults a batch of 128 cells and a third of its time. The threshold follows the
    largest block freed so far (mallopt(3), M_MMAP_THRESHOLD); this block is never touched, so it takes
    no memory, and at most twice its size stays with the process. Other C libraries ignore it.
    """
    block = np.empty(_BLOCK_BYTES, dtype=np.uint8)
    del block
