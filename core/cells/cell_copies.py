"""Copies of cells: cells of any file with equal values of all genes, found by a hash of each cell.

The hash is the sum over the genes of value x key, modulo 2**64, with one random odd key per gene: it does not
depend on the order of the genes, and two different cells have one hash in about one of 2**60 cases. Source:
Lemire and Kaser, Strongly universal string hashing is fast, The Computer Journal 57 (2014).

Cells of few counts can have equal counts by chance. If the n counts of a cell are drawn independently, then
whatever the expression profile, the probability that they are x of gene 1, y of gene 2 and so on is at most
n! / n^n x (x^x / x!) x (y^y / y!) x ..., which is below 1.1 sqrt(2 pi n) e^-E. E, the evidence of the cell in nats, is
the sum of ln(x! e^x / x^x): 1 for a count of 1, 1.3 for 2, 2.1 for 10. Only cells with so much evidence are compared
that less than 0.01 chance pairs are expected among all cells.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.matrix_state import row_sums
from core.random_streams import splitmix64

#: Column of the CELLxGENE schema: False marks a cell whose original is in another dataset.
PRIMARY_COLUMN = "is_primary_data"
#: Chance pairs that are expected among all cells, at most; and n above: more counts do not matter.
_CHANCE_PAIRS, _MOST_COUNTS = 0.01, 1e5
#: Evidence that is enough for any number of cells.
_ENOUGH = 64
#: Hashes that are sorted at once are those with equal leading bits.
_LEADING_BITS = 4
_BLOCK_CELLS = 2**20


def gene_keys(columns: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the key of each gene of a file, 0 where it is left out.

    ``columns`` (genes of the file,) are columns of the store, -1 where left out.
    """
    keys = splitmix64(0, 0, int(columns.max(initial=-1)) + 1) | np.uint64(1)
    return np.append(keys, np.uint64(0))[columns]


def hash_cells(
    chunk: sparse.csr_matrix, keys: NDArray[np.uint64], *, is_counts: bool
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Return the hash of each cell over the genes that have a key, and its evidence, at most 255 nats."""
    # Bits of counts as float32 would have many zeros at the end, which spoil the product.
    values = chunk.data if is_counts else chunk.data.astype(np.float32).view(np.uint32)
    # One pass in C: scipy multiplies in uint64, which wraps around.
    whole = sparse.csr_matrix(
        (values.astype(np.uint64), chunk.indices, chunk.indptr), shape=chunk.shape
    )
    hashes: NDArray[np.uint64] = np.asarray(whole @ keys)
    evidence = np.diff(chunk.indptr).astype(np.float64)  # one nat per gene, at least
    has_key = keys != 0
    if not has_key.all():
        evidence = row_sums(chunk, has_key[chunk.indices].astype(np.float32))
    few = np.flatnonzero(evidence < _ENOUGH) if is_counts else ()
    if len(few):  # all others are certain
        cells = chunk[few]
        counts = cells.data.astype(np.float64)
        nats = np.log(2 * np.pi * counts) / 2 + 1 / (12 * counts + 1)  # Robbins' bound of x!
        evidence[few] = row_sums(cells, nats * has_key[cells.indices])
    return hashes, np.minimum(evidence, 255).astype(np.uint8)


def least_evidence(n_cells: int) -> int:
    """Return the evidence in nats from which cells are compared; see above."""
    pairs = max(n_cells, 2) ** 2 / 2
    return math.ceil(math.log(pairs / _CHANCE_PAIRS * 1.1 * math.sqrt(2 * math.pi * _MOST_COUNTS)))


def are_secondary(tables: Sequence[pd.DataFrame]) -> NDArray[np.bool_] | None:
    """(cells of all files,), whether a cell is marked ``is_primary_data = False``; None if none is."""
    marked = [np.zeros(len(table), dtype=bool) for table in tables]
    for table, of_file in zip(tables, marked, strict=True):
        if PRIMARY_COLUMN in table:
            column = pd.Categorical(table[PRIMARY_COLUMN])
            is_false = [str(value).casefold() == "false" for value in column.categories]
            of_file[:] = np.array([*is_false, False])[column.codes]
    every = np.concatenate([np.zeros(0, dtype=bool), *marked])
    return every if every.any() else None


@dataclass(frozen=True)
class CellCopies:
    """Cells that repeat another cell. Cells are numbered over all files, in their order."""

    #: (copies,), ascending, and the cell that each repeats.
    copies: NDArray[np.int64]
    originals: NDArray[np.int64]
    #: Cells with enough counts to be compared.
    n_compared: int

    def are_kept(self, n_cells: int) -> NDArray[np.bool_]:
        """(cells,), all but the copies."""
        kept = np.ones(n_cells, dtype=bool)
        kept[self.copies] = False
        return kept


def find_copies(
    read: Iterable[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint8]]],
    n_cells: int,
    *,
    secondary: NDArray[np.bool_] | None = None,
) -> CellCopies:
    """Find cells with one hash; the original is the first of them, ``secondary`` ones last.

    ``read`` gives numbers of cells, below ``n_cells``, with their hashes and evidence as of `hash_cells`;
    cells that were not read are not compared.
    """
    hashes, evidence = np.zeros(n_cells, dtype=np.uint64), np.zeros(n_cells, dtype=np.uint8)
    n_read = 0
    for numbers, of_cells, nats in read:
        hashes[numbers], evidence[numbers] = of_cells, nats
        n_read += len(numbers)
    compared = evidence >= least_evidence(n_read)
    repeated = [np.empty(0, dtype=np.uint64)]
    for leading in range(2**_LEADING_BITS):  # a sorted copy of them all would be large
        is_part = (hashes >> np.uint64(64 - _LEADING_BITS)) == leading
        part = np.sort(hashes[is_part & compared])
        repeated.append(np.unique(part[1:][part[1:] == part[:-1]]))
    known = np.concatenate(repeated)
    found = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(hashes) if len(known) else 0, _BLOCK_CELLS):
        block = hashes[first : first + _BLOCK_CELLS]
        at = np.minimum(np.searchsorted(known, block), len(known) - 1)
        is_found = (known[at] == block) & compared[first : first + _BLOCK_CELLS]
        found.append(first + np.flatnonzero(is_found))
    cells = np.concatenate(found)
    last = np.zeros(len(cells), dtype=bool) if secondary is None else secondary[cells]
    cells = cells[np.lexsort((cells, last, hashes[cells]))]
    is_first = np.append(True, hashes[cells[1:]] != hashes[cells[:-1]])[: len(cells)]
    originals = cells[is_first][np.cumsum(is_first) - 1]
    copies, originals = cells[~is_first], originals[~is_first]
    order = np.argsort(copies)
    return CellCopies(copies[order], originals[order], int(compared.sum()))


def without_copies(tables: Sequence[pd.DataFrame], found: CellCopies) -> list[pd.DataFrame]:
    """Return the obs tables of the files without the rows of copies."""
    borders = np.cumsum([len(table) for table in tables])[:-1]
    kept = np.split(found.are_kept(sum(map(len, tables))), borders)
    return [table[of_file] for table, of_file in zip(tables, kept, strict=True)]
