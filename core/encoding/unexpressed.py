"""Genes that cells do not express, drawn uniformly: masked genes whose target is bin 0.

The panel may be all 58,604 genes of an annotation, of which a cell expresses a twentieth, so
candidates are drawn from the whole panel and looked up; only for cells with hardly any unexpressed
gene left are these listed.
"""

import numpy as np
from numpy.typing import NDArray

from core.encoding.panel_cells import PanelCells

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
    """Draw distinct genes that each cell does not express, uniformly.

    Parameters
    ----------
    cells
        With expressed values alone.
    n_wanted
        (cells,), genes to draw.

    Returns
    -------
    genes
        Panel index of the drawn genes, cell after cell.
    n_drawn
        (cells,), ``n_wanted``, or fewer where a cell has no more.
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
