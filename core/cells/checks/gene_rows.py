"""Checks of the genes: ids, overlap between files and with a model, genes without counts."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from core.cells.checks.report import CheckRow, Rows, fault_row
from core.cells.checks.survey import FileSummary
from core.cells.gene_join import LEAST_FOUND, GeneJoin, join_genes, match_genes
from core.cells.genes import GenePanel, GeneTable, describe_ids
from core.cells.store import gene_index_type
from core.errors import DataError
from core.presets.schema import DataSettings
from core.wording import files_of, listed, percentage, some_of

#: A file that keeps less than this fraction of its genes in the join loses too much.
_KEPT = 0.5
#: Fraction of a model's genes below which it warns; below `LEAST_FOUND` it fails.
_MOST_FOUND = 0.9
#: Fraction of a model's panel that may be genes without counts.
_EMPTY_PANEL = 0.05

#: Genes of data.include_genes that get a row of their own.
_MOST_NAMED = 5
#: Files whose genes could be named.
Named = Sequence[tuple[FileSummary, GeneTable]]


def check_genes(
    files: Sequence[FileSummary], data: DataSettings, model_genes: GenePanel | None
) -> tuple[GeneJoin | None, list[CheckRow]]:
    """Join the genes of files as `tfx prepare` does, and check them.

    Files without gene names are skipped. ``model_genes`` are those of a model that the cells are
    meant for. The join is None if the files share no gene.
    """
    rows = Rows("genes")
    named = [(one, one.table) for one in files if one.table is not None]
    join = None
    if named:
        _ids(rows, named)
        try:
            tables, names = [table for _, table in named], [one.name for one, _ in named]
            join = join_genes(tables, names, data.join)
        except DataError as error:
            rows.append(fault_row("genes", "gene overlap", error))
    if join is not None:
        for note in join.notes:
            rows.warn(
                "gene names", note, "set data.gene_ids to a column of the same ids in all files"
            )
        _overlap(rows, named, join, data)
        _order(rows, named)
        _empty(rows, named, join, data)
        _panel(rows, join, data)
    if model_genes is not None:
        _model_genes(rows, named, model_genes)
    return join, rows


def _ids(rows: Rows, named: Named) -> None:
    kinds: dict[str, list[str]] = defaultdict(list)
    examples: dict[str, str] = {}
    for one, table in named:
        kind, _, shown = describe_ids(table.ids).partition(" (")
        versions = ", versions dropped" if table.n_versioned else ""
        place = "" if table.source == "var_names" else f" in {table.source}"
        words = f"{kind}{place}{versions}"
        kinds[words].append(one.name)
        examples.setdefault(words, shown.rstrip(")"))
    for words, names in kinds.items():
        rows.ok("gene ids", f"{words}{some_of(names, len(named))}: {examples[words]}")
    for one, table in named:
        if table.note:
            fix = "set data.gene_ids to a column of unique ids, or correct the names"
            rows.warn("gene ids", table.note, fix, one.name)


def _overlap(rows: Rows, named: Named, join: GeneJoin, data: DataSettings) -> None:
    if len(named) < 2:
        return
    n_joined = len(join.panel)
    for (one, _), columns in zip(named, join.columns, strict=True):
        n_genes, n_kept = len(columns), int(np.sum(columns >= 0))
        if data.join == "union" and n_genes < _KEPT * n_joined:
            finding = (
                f"has {n_genes:,} of the {n_joined:,} genes of all files; the others are zero in "
                f"its cells, as if measured"
            )
            fix = "set data.join = 'intersection', or leave the file out"
            rows.warn("gene overlap", finding, fix, one.name)
        elif data.join != "union" and n_kept < _KEPT * n_genes:
            kept = f"{n_kept:,} of its {n_genes:,} genes ({percentage(n_kept, n_genes)})"
            finding = f"{kept} are in all files; the others are left out"
            fix = "set data.join = 'union', leave out the file with few genes, or train separately"
            rows.warn("gene overlap", finding, fix, one.name)
    if not rows.has_warned("gene overlap"):
        largest = max(len(columns) for columns in join.columns)
        whose = "any file has" if data.join == "union" else "all files have"
        finding = f"{n_joined:,} genes that {whose} (the largest file has {largest:,})"
        rows.ok("gene overlap", finding)


def _order(rows: Rows, named: Named) -> None:
    first = named[0][1].ids
    reordered = [
        one.name
        for one, table in named
        if table.ids != first and len(table.ids) == len(first) and set(table.ids) == set(first)
    ]
    if reordered:
        finding = f"{files_of(reordered)}: the same genes in another order; they are joined by id"
        rows.ok("gene order", finding)


def _empty(rows: Rows, named: Named, join: GeneJoin, data: DataSettings) -> None:
    cells = np.zeros(len(join.panel), dtype=np.int64)
    for (one, _), columns in zip(named, join.columns, strict=True):
        if one.expression is None:
            return
        kept = columns >= 0
        np.add.at(cells, columns[kept], one.expression.cells_per_gene[kept])
    n_genes, n_empty = len(cells), int(np.sum(cells == 0))
    n_panel = min(data.genes, n_genes)
    is_complete = all(one.is_complete for one, _ in named)
    empty = f"{n_empty:,} of {n_genes:,} genes are"
    if n_empty == n_genes and is_complete:
        first = named[0][0].name
        finding = f"{first}: every value of the {n_genes} genes that the files share is zero"
        rows.fail("empty genes", finding, "check data.matrix and data.join")
    elif not n_empty:
        rows.ok("empty genes", f"each of {n_genes:,} genes is in some cell")
    elif is_complete and n_panel - (n_genes - n_empty) > _EMPTY_PANEL * n_panel:
        contains = f"a panel of {n_panel:,} would contain genes without information"
        fix = f"set data.genes to {n_genes - n_empty} or fewer, or add cells"
        rows.warn("empty genes", f"{empty} in no cell, so that {contains}", fix)
    else:
        where = "any cell" if is_complete else "any cell that was read"
        rows.ok("empty genes", f"{empty} not in {where}; they rank last")


def _panel(rows: Rows, join: GeneJoin, data: DataSettings) -> None:
    n_genes = len(join.panel)
    if gene_index_type(n_genes) != np.uint16:
        finding = f"{n_genes:,} genes need four bytes per gene index in the store instead of two"
        rows.ok("wide index", finding)
    absent = [name for name in data.include_genes if join.panel.index_of(name) is None]
    for name in absent[:_MOST_NAMED]:
        near = join.panel.nearest(name)
        finding = f"data.include_genes names '{name}', which is none of the {n_genes:,} genes"
        fix = f"did you mean {', '.join(near)}?" if near else "use an id or symbol of the files"
        rows.fail("included genes", finding, fix)
    if more := len(absent[_MOST_NAMED:]):
        finding = f"data.include_genes names {more:,} more genes that are none of the {n_genes:,}"
        rows.fail("included genes", finding, "use ids or symbols of the files")


def _model_genes(rows: Rows, named: Named, panel: GenePanel) -> None:
    found_well: list[int] = []
    for one, table in named:
        match = match_genes(panel, table)
        if match.translation:
            rows.ok("model genes", match.translation, one.name)
        if match.doubts:
            rows.warn("model genes", match.doubts, "correct the names of these genes", one.name)
        if match.n_found >= _MOST_FOUND * len(panel):
            found_well.append(match.n_found)
            continue
        missing = [panel.symbols[gene] for gene in np.flatnonzero(match.column_of < 0)]
        finding = (
            f"{match.n_found:,} of the model's {len(panel):,} genes "
            f"({percentage(match.n_found, len(panel))}) are in the file ({describe_ids(table.ids)}); "
            f"missing: {listed(missing)}"
        )
        if match.n_found < LEAST_FOUND * len(panel):
            fix = "set data.gene_ids to a column with the model's kind of ids, or use another model"
            rows.fail("model genes", finding, fix, one.name)
        else:
            fix = "its predictions for these cells are less reliable; add the genes if you can"
            rows.warn("model genes", finding, fix, one.name)
    if found_well:
        fraction = percentage(min(found_well), len(panel))
        files = f"{len(found_well):,} {'file' if len(found_well) == 1 else 'files'}"
        finding = f"{fraction} or more of the model's {len(panel):,} genes are in {files}"
        rows.ok("model genes", finding)
