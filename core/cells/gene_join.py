"""The join of genes: of the files of a store, and of a file with the genes of a model.

Genes meet by id, else by symbol, else by the table of gene names (`core.cells.gene_names`). A name that may
mean several genes joins none of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.cells.gene_names import GeneNames, NameKind, drop_genomes, gene_names, species_of
from core.cells.genes import GenePanel, GeneTable, are_ensembl, describe_ids
from core.errors import DataError
from core.wording import listed

#: Least fraction of a model's genes that a file must have.
LEAST_FOUND = 0.5


@dataclass
class GeneMatch:
    """Where the genes of a panel are in a file."""

    #: (panel,), column of each gene in the file, -1 where the file lacks it.
    column_of: NDArray[np.int64]
    #: The kind of names that found most: "ids", "symbols" or "translated names".
    joined_by: str = "ids"
    #: Of the table that translated names.
    species: str = ""
    #: Name in the file -> name in the panel.
    translated: dict[str, str] = field(default_factory=dict)
    #: Names that spreadsheets made, among those translated.
    dates: list[str] = field(default_factory=list)
    #: Names of the file that fit several genes, one of them a gene of the panel that is not found.
    ambiguous: list[str] = field(default_factory=list)

    @property
    def n_found(self) -> int:
        """Genes of the panel that the file has."""
        return int((self.column_of >= 0).sum())

    @property
    def translation(self) -> str:
        """What was translated, with examples; "" if nothing was."""
        if not self.translated:
            return ""
        pairs = [f"{name} is {gene}" for name, gene in self.translated.items()]
        return (
            f"{len(pairs):,} genes have other names here, and are joined by the table of "
            f"{self.species} gene names ({listed(pairs)})"
        )

    @property
    def doubts(self) -> str:
        """Names that fit several genes, and those a spreadsheet changed; "" if there are none."""
        found = []
        if self.dates:
            pairs = [f"{name} as {self.translated[name]}" for name in self.dates]
            found.append(
                f"names that a spreadsheet turned into dates are read as genes ({listed(pairs)})"
            )
        if self.ambiguous:
            is_one = len(self.ambiguous) == 1
            fit = "name fits several genes and is" if is_one else "names fit several genes and are"
            found.append(f"{len(self.ambiguous):,} {fit} not used ({listed(self.ambiguous)})")
        return "; ".join(found)


def match_genes(panel: GenePanel, table: GeneTable) -> GeneMatch:
    """Find the genes of a panel in a file, by id, then by symbol, then by the table of gene names."""
    match = GeneMatch(np.full(len(panel), -1, dtype=np.int64))
    known = _without_genomes(panel)
    used: set[int] = set()
    of_ids = set(known.ids)
    # Symbols of several genes are left to the table, which knows whose they are.
    repeated = _repeated(known.symbols) | _repeated(table.symbols)

    def take(names: Iterable[str]) -> int:
        before = len(used)
        for column, name in enumerate(names):
            gene = None if name in repeated and name not in of_ids else known.index_of(name)
            if gene is not None and column not in used and match.column_of[gene] < 0:
                match.column_of[gene] = column
                used.add(column)
        return len(used) - before

    n_found = {"ids": take(table.ids)}
    n_symbols = sum(table.ids[column] not in of_ids for column in used)
    n_found["symbols"] = n_symbols + take(table.symbols)
    n_found["ids"] -= n_symbols
    species = {species_of(panel.ids), species_of(table.ids)}
    if len(used) < len(panel) and len(species) == 1 and (one := species.pop()) is not None:
        _translate(match, known, table, used, gene_names(one))
    n_found["translated names"] = len(match.translated)
    match.joined_by = max(n_found, key=n_found.__getitem__)
    return match


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _without_genomes(panel: GenePanel) -> GenePanel:
    ids, symbols = tuple(drop_genomes(panel.ids)), tuple(drop_genomes(panel.symbols))
    return panel if (ids, symbols) == (panel.ids, panel.symbols) else GenePanel(ids, symbols)


def _translate(
    match: GeneMatch, panel: GenePanel, table: GeneTable, used: set[int], names: GeneNames
) -> None:
    """Join what is left by the Ensembl id that either name means."""
    match.species = names.species
    genes: dict[str, list[tuple[NameKind, int]]] = defaultdict(list)
    for gene in np.flatnonzero(match.column_of < 0).tolist():
        ids, kind = _find(names, panel.ids[gene], panel.symbols[gene])
        if len(ids) == 1:
            genes[ids[0]].append((kind, gene))
    columns: dict[str, list[tuple[NameKind, int]]] = defaultdict(list)
    unclear: list[tuple[int, list[str]]] = []
    for column, (gene_id, symbol) in enumerate(zip(table.ids, table.symbols, strict=True)):
        ids, kind = _find(names, gene_id, symbol)
        if len(ids) == 1:
            columns[ids[0]].append((kind, column))
        elif ids:
            unclear.append((column, ids))
    for column, ids in unclear:
        name = table.ids[column]
        if names.find(name)[1] == NameKind.DATE:
            # Of MARCH1 and MARC1, one is a date: the one that the file has under no other name.
            ids = [one for one in ids if one not in columns]
            has_twin = any(f"{name}{end}" in table.ids for end in ("-1", ".1"))
            if ids and not has_twin:
                columns[ids[0]].append((NameKind.DATE, column))
                continue
        if not set(ids).isdisjoint(genes):
            match.ambiguous.append(name)
    for gene_id, wanted in genes.items():
        found = columns.get(gene_id, ())
        at, place = _surest(wanted), _surest(found)
        if len(at) == 1 and len(place) == 1 and place[0] not in used:
            (gene,), (column,) = at, place
            match.column_of[gene] = column
            used.add(column)
            name = table.ids[column]
            match.translated[name] = panel.ids[gene]
            if names.find(name)[1] == NameKind.DATE:
                match.dates.append(name)
        elif len(place) > 1:
            match.ambiguous += [table.ids[column] for column in place]


def _find(names: GeneNames, gene_id: str, symbol: str) -> tuple[list[str], NameKind]:
    """Return what an id means; if the table lacks it, what the symbol means."""
    ids, kind = names.find(gene_id)
    if symbol != gene_id and not (ids and ids[0] in names.symbols):
        by_symbol, kind_of_symbol = names.find(symbol)
        if by_symbol:
            return by_symbol, kind_of_symbol
    return ids, kind


def _surest(found: Sequence[tuple[NameKind, int]]) -> list[int]:
    best = min((kind for kind, _ in found), default=None)
    return [place for kind, place in found if kind == best]


# ------------------------------------------------------------------------------- the files of a store
@dataclass(frozen=True)
class GeneJoin:
    """The genes of a store and where each file's columns go."""

    #: In the order of the first file; with "union", then the genes each later file adds.
    panel: GenePanel
    #: For each file (genes of the file,): column in `panel`, -1 where the gene is left out.
    columns: list[NDArray[np.int32]]
    #: What was translated, a sentence for each file concerned.
    notes: list[str] = field(default_factory=list)


def join_genes(
    tables: Sequence[GeneTable], names: Sequence[str], how: Literal["intersection", "union"]
) -> GeneJoin:
    """Join the genes of files by id; DataError if the files share no gene.

    Symbols of a file are translated to Ensembl ids if the first file has these, and the other way round.
    """
    # Shards of one dataset come with one and the same table.
    first = tables[0]
    translated: dict[int, GeneTable] = {}
    notes = []
    for table, name in zip(tables, names, strict=True):
        if id(table) not in translated:
            translated[id(table)], note = _named_like(first, table)
            notes += [f"{name}: {note}"] if note else []
    tables = [translated[id(table)] for table in tables]
    different = list({id(table): table for table in tables}.values())
    shared = set(first.ids).intersection(*(table.ids for table in different[1:]))
    # A union is checked too: files of two naming schemes would hold every gene twice.
    n_files = Counter(gene for table in different for gene in table.ids)
    overlap = [any(n_files[gene] > 1 for gene in table.ids) for table in different]
    if not (len(different) == 1 or all(overlap) if how == "union" else shared):
        looks = {describe_ids(table.ids): name for table, name in zip(tables, names, strict=True)}
        shown = "; ".join(f"{name}: {look}" for look, name in list(looks.items())[:4])
        raise DataError(
            f"the {len(tables)} files share no gene ({shown}); set data.gene_ids to a column of "
            f"the same kind of ids in all of them"
        )
    symbols: dict[str, str] = {}
    for table in different:
        for gene, symbol in zip(table.ids, table.symbols, strict=True):
            # A later file may know the symbol.
            if (how == "union" or gene in shared) and symbols.get(gene, gene) == gene:
                symbols[gene] = symbol
    panel = GenePanel(tuple(symbols), tuple(symbols.values()))
    place = {gene: column for column, gene in enumerate(panel.ids)}
    columns = {
        id(table): np.array([place.get(gene, -1) for gene in table.ids], dtype=np.int32)
        for table in different
    }
    return GeneJoin(panel, [columns[id(table)] for table in tables], notes)


def _named_like(first: GeneTable, table: GeneTable) -> tuple[GeneTable, str]:
    """Return a table with the ids of the first file where they mean the same genes, and a note."""
    if are_ensembl(first.ids) == are_ensembl(table.ids):
        return table, ""
    match = match_genes(GenePanel(first.ids, first.symbols), table)
    ids = list(table.ids)
    for gene, column in enumerate(match.column_of.tolist()):
        if column >= 0:
            ids[column] = first.ids[gene]
    if len(set(ids)) < len(ids):
        return table, ""
    renamed = {old: new for old, new in zip(table.ids, ids, strict=True) if old != new}
    if not renamed:
        return table, ""
    pairs = listed([f"{old} is {new}" for old, new in renamed.items()])
    note = (
        f"{len(renamed):,} of {len(ids):,} genes have other names than in the first file ({pairs})"
    )
    return table._replace(ids=tuple(ids)), "; ".join(filter(None, [note, match.doubts]))
