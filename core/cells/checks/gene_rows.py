"""Checks of the genes: ids, overlap of files and with a model, genes that are empty."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from core.cells.checks.report import CheckRow, fault_row
from core.cells.checks.summary import FileSummary
from core.cells.genes import GeneJoin, GenePanel, describe_ids, join_genes
from core.errors import DataError
from core.presets.schema import DataSettings
from core.wording import files_of, listed, percentage, some_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_genes", "check_model_genes", "join_files"]

#: A file that keeps less than this of its genes in the join loses what it was measured for.
_KEPT = 0.5
#: Of the genes a model knows: below the first it is refused, below the second warned of.
_LEAST_FOUND = 0.5
_MOST_FOUND = 0.9
#: Genes that a uint16 can number.
_SHORT_INDEX = 65_536
#: Share of a model's panel that may be genes no cell has.
_EMPTY_PANEL = 0.05


def join_files(
    files: Sequence[FileSummary], data: DataSettings
) -> tuple[GeneJoin | None, list[CheckRow]]:
    """Join the genes of files as `tfx prepare` does, or say why it cannot be done."""
    named = [one for one in files if one.table is not None]
    if not named:
        return None, []
    tables = [one.table for one in named if one.table is not None]
    try:
        return join_genes(tables, [one.name for one in named], data.join), []
    except DataError as error:
        return None, [fault_row("genes", "gene overlap", error)]


def check_genes(
    files: Sequence[FileSummary], data: DataSettings, join: GeneJoin | None
) -> Iterator[CheckRow]:
    """Judge gene ids and the genes that files share.

    Parameters
    ----------
    files
        In the order of the preset; those without gene names are left aside.
    data
        The preset's data section.
    join
        Of the files with gene names, None where they share none.
    """
    named = [one for one in files if one.table is not None]
    yield from _ids(named)
    if join is None:
        return
    yield from _overlap(named, join, data)
    yield from _order(named)
    yield from _empty(named, join, data)
    yield from _panel(join, data)


def _ids(named: Sequence[FileSummary]) -> Iterator[CheckRow]:
    kinds: dict[str, list[str]] = defaultdict(list)
    examples: dict[str, str] = {}
    for one in named:
        assert one.table is not None, "files with gene names only"
        kind, _, shown = describe_ids(one.table.ids).partition(" (")
        versions = ", versions dropped" if one.n_versioned else ""
        place = "" if one.table.source == "var_names" else f" in {one.table.source}"
        words = f"{kind}{place}{versions}"
        kinds[words].append(one.name)
        examples.setdefault(words, shown.rstrip(")"))
    for words, names in kinds.items():
        where = some_of(names, len(named))
        yield CheckRow("ok", "genes", "gene ids", f"{words}{where}: {examples[words]}")


def _overlap(
    named: Sequence[FileSummary], join: GeneJoin, data: DataSettings
) -> Iterator[CheckRow]:
    if len(named) < 2:
        return
    n_joined = len(join.panel)
    n_poor = 0
    for one, columns in zip(named, join.columns, strict=True):
        n_genes = len(columns)
        if data.join == "union":
            is_poor, what = n_genes < _KEPT * n_joined, "has"
            finding = (
                f"{one.name}: {what} {n_genes:,} of the {n_joined:,} genes of all files; the "
                f"others are zero in its cells, as if measured"
            )
            fix = "set data.join = 'intersection', or leave the file out"
        else:
            kept = int(np.sum(columns >= 0))
            is_poor = kept < _KEPT * n_genes
            finding = (
                f"{one.name}: {kept:,} of its {n_genes:,} genes ({percentage(kept, n_genes)}) are in "
                f"all files; the others are left out"
            )
            fix = "set data.join = 'union', leave out the file with few genes, or train apart"
        if is_poor:
            n_poor += 1
            yield CheckRow("warn", "genes", "gene overlap", finding, fix, one.name)
    if not n_poor:
        largest = max(len(columns) for columns in join.columns)
        whose = "any file has" if data.join == "union" else "all files have"
        yield CheckRow(
            "ok",
            "genes",
            "gene overlap",
            f"{n_joined:,} genes that {whose} (the largest file has {largest:,})",
        )


def _order(named: Sequence[FileSummary]) -> Iterator[CheckRow]:
    tables = [one.table.ids for one in named if one.table is not None]
    reordered = [
        one.name
        for one, ids in zip(named, tables, strict=True)
        if ids != tables[0] and len(ids) == len(tables[0]) and set(ids) == set(tables[0])
    ]
    if reordered:
        yield CheckRow(
            "ok",
            "genes",
            "gene order",
            f"{files_of(reordered)}: the same genes in another order; they are joined by id",
        )


def _empty(named: Sequence[FileSummary], join: GeneJoin, data: DataSettings) -> Iterator[CheckRow]:
    cells: NDArray[np.int64] = np.zeros(len(join.panel), dtype=np.int64)
    for one, columns in zip(named, join.columns, strict=True):
        if one.expression is None:
            return
        kept = columns >= 0
        np.add.at(cells, columns[kept], one.expression.cells_per_gene[kept])
    n_empty = int(np.sum(cells == 0))
    n_genes = len(join.panel)
    is_complete = all(one.is_complete for one in named)
    where = "any cell" if is_complete else "any cell looked at"
    n_panel = min(data.genes, n_genes)
    if n_empty == n_genes and is_complete:
        message = (
            f"{named[0].name}: every value of the {n_genes} genes the files share is zero; check "
            f"data.matrix and data.join"
        )
        yield fault_row("genes", "empty genes", message)
    elif not n_empty:
        yield CheckRow("ok", "genes", "empty genes", f"each of {n_genes:,} genes is in some cell")
    elif is_complete and n_panel - (n_genes - n_empty) > _EMPTY_PANEL * n_panel:
        yield CheckRow(
            "warn",
            "genes",
            "empty genes",
            f"{n_empty:,} of {n_genes:,} genes are in no cell, so that a panel of {n_panel:,} "
            f"would hold genes that teach nothing",
            f"set data.genes to {n_genes - n_empty} or fewer, or add cells",
        )
    else:
        yield CheckRow(
            "ok",
            "genes",
            "empty genes",
            f"{n_empty:,} of {n_genes:,} genes are not in {where}; they rank last",
        )


def _panel(join: GeneJoin, data: DataSettings) -> Iterator[CheckRow]:
    n_genes = len(join.panel)
    if n_genes > _SHORT_INDEX:
        yield CheckRow(
            "ok",
            "genes",
            "wide index",
            f"{n_genes:,} genes are more than two bytes can number; the store uses four",
        )
    for name in data.include_genes:
        if join.panel.index_of(name) is None:
            near = join.panel.nearest(name)
            yield CheckRow(
                "fail",
                "genes",
                "included genes",
                f"data.include_genes names '{name}', which is none of the {n_genes:,} genes",
                f"did you mean {', '.join(near)}?" if near else "use an id or symbol they have",
            )


def check_model_genes(files: Sequence[FileSummary], panel: GenePanel) -> Iterator[CheckRow]:
    """Judge how many of a model's genes each file has.

    Parameters
    ----------
    files
        Those without gene names are left aside.
    panel
        The genes that the model knows.
    """
    found_well: list[float] = []
    for one in files:
        if one.table is None:
            continue
        known = {panel.index_of(gene) for gene in one.table.ids}
        if len(known - {None}) < _MOST_FOUND * len(panel):
            known |= {panel.index_of(symbol) for symbol in one.table.symbols}
        n_found = len(known - {None})
        found = n_found / len(panel)
        if found >= _MOST_FOUND:
            found_well.append(found)
            continue
        lost = [panel.symbols[index] for index in range(len(panel)) if index not in known]
        few = found < _LEAST_FOUND
        yield CheckRow(
            "fail" if few else "warn",
            "genes",
            "model genes",
            f"{one.name}: {n_found:,} of the model's {len(panel):,} genes ({percentage(n_found, len(panel))}) "
            f"are in the file ({describe_ids(one.table.ids)}); not found: {listed(lost)}",
            "set data.gene_ids to the column of the model's kind of ids, or use a model of these genes"
            if few
            else "its answers for these cells are less sure; add the genes if they were removed",
            one.name,
        )
    if found_well:
        worst = round(min(found_well) * len(panel))
        yield CheckRow(
            "ok",
            "genes",
            "model genes",
            f"{percentage(worst, len(panel))} or more of the model's {len(panel):,} genes are in "
            f"{len(found_well):,} {'file' if len(found_well) == 1 else 'files'}",
        )
