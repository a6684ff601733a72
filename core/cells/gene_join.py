"""The genes of several files, joined by id: those all have, or all that any has."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.cells.genes import GenePanel, GeneTable, describe_ids
from core.errors import DataError

__all__ = ["GeneJoin", "join_genes"]


@dataclass(frozen=True)
class GeneJoin:
    """The genes of a store and where each file's columns go.

    Attributes
    ----------
    panel
        In the order of the first file; with "union", then those each later file adds.
    columns
        For each file (genes of the file,), int32: column in `panel`, -1 where the gene is left out.
    """

    panel: GenePanel
    columns: list[NDArray[np.int32]]


def join_genes(
    tables: Sequence[GeneTable], names: Sequence[str], how: Literal["intersection", "union"]
) -> GeneJoin:
    """Join the genes of files by id.

    Raises
    ------
    DataError
        The files share no gene; the message shows what the ids of each look like.
    """
    # Shards of one dataset come with one and the same table.
    different = list({id(table): table for table in tables}.values())
    shared = set(different[0].ids).intersection(*(table.ids for table in different[1:]))
    # A union is checked too: files of two naming schemes would hold every gene twice.
    if not (_all_overlap(different) if how == "union" else shared):
        looks = {describe_ids(table.ids): name for table, name in zip(tables, names, strict=True)}
        listed = "; ".join(f"{name}: {look}" for look, name in list(looks.items())[:4])
        message = (
            f"the {len(tables)} files share no gene ({listed}); set data.gene_ids to a column of "
            f"the same kind of ids in all of them"
        )
        raise DataError(message)
    symbols: dict[str, str] = {}
    for table in different:
        for gene, symbol in zip(table.ids, table.symbols, strict=True):
            if how == "union" or gene in shared:
                known = symbols.setdefault(gene, symbol)
                if known == gene:  # a later file may know the symbol
                    symbols[gene] = symbol
    panel = GenePanel(tuple(symbols), tuple(symbols.values()))
    place = {gene: column for column, gene in enumerate(panel.ids)}
    columns = {
        id(table): np.array([place.get(gene, -1) for gene in table.ids], dtype=np.int32)
        for table in different
    }
    return GeneJoin(panel, [columns[id(table)] for table in tables])


def _all_overlap(tables: Sequence[GeneTable]) -> bool:
    """Whether every file shares a gene with another."""
    n_files = Counter(gene for table in tables for gene in table.ids)
    return len(tables) == 1 or all(any(n_files[gene] > 1 for gene in table.ids) for table in tables)
