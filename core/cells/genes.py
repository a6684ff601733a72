"""Genes: their ids and symbols, the ordered panel of a model, and where a file keeps them.

An Ensembl id is read without its version ("ENSG00000229807.13" and "ENSG00000229807" are one gene), and a name
without its genome ("GRCh38_CD4" is CD4).
"""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.cells.gene_names import ENSEMBL, drop_genomes
from core.cells.phenotypes import check_lengths
from core.cells.spelling import suggest
from core.errors import DataError
from core.wording import listed

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(r"\d+")

#: var columns that hold Ensembl ids, most specific first; the names in CELLxGENE, Cell Ranger
#: (scanpy's ``read_10x_h5``), scvi-tools and the common loaders.
_ID_COLUMNS = ["ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "gene_ids", "gene_id"]
_ID_COLUMNS += ["feature_id", "feature_ids", "ENSEMBL", "id", "ids"]
_SYMBOL_COLUMNS = ["feature_name", "gene_name", "gene_names", "gene_symbol", "gene_symbols"]
_SYMBOL_COLUMNS += ["symbol", "symbols", "hgnc_symbol", "gene_short_name", "gene", "name"]
_SYMBOL_COLUMNS += ["Symbol", "SYMBOL", "Gene", "GeneSymbol", "GeneName", "external_gene_name"]
#: What stands for a missing name in a column that was text before it was read.
_NO_NAME = {"nan", "NaN", "None", "<NA>"}

#: A column counts as Ensembl ids when at least this fraction of it looks so (files carry a few
#: spike-ins or transgenes).
_MOSTLY = 0.5


@dataclass(frozen=True)
class GenePanel:
    """Genes in a fixed order."""

    #: (genes,), unique.
    ids: tuple[str, ...]
    #: (genes,), the id for a gene without a known symbol; not necessarily unique.
    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the invariants."""
        assert len(self.ids) == len(self.symbols), "one symbol per gene"
        assert len(set(self.ids)) == len(self.ids), "gene ids are unique"

    def __len__(self) -> int:
        """Return the number of genes."""
        return len(self.ids)

    @cached_property
    def hash(self) -> str:
        """sha256 of the ids in order: two panels with one hash mean the same columns."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()

    @cached_property
    def _positions(self) -> dict[str, int]:
        positions: dict[str, int] = {}
        for names in (self.ids, self.symbols):  # an id wins over an equal symbol
            for index, name in enumerate(names):
                positions.setdefault(name, index)
        return positions

    def index_of(self, name: str) -> int | None:
        """Position of a gene by id (with or without version) or symbol; None if absent.

        A symbol that several genes have means the first of them.
        """
        index = self._positions.get(name)
        return self._positions.get(strip_version(name)) if index is None else index

    def nearest(self, name: str) -> list[str]:
        """Up to three known ids and symbols that look most like `name`, best first."""
        by_folded = {known.casefold(): known for known in reversed(self._positions)}
        found = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.6)
        return [by_folded[folded] for folded in found]

    def take(self, positions: Sequence[int] | np.ndarray) -> "GenePanel":
        """Return the panel of the genes at `positions`, in that order."""
        return GenePanel(
            ids=tuple(self.ids[int(position)] for position in positions),
            symbols=tuple(self.symbols[int(position)] for position in positions),
        )


#: var columns that say what kind of features a matrix with several kinds has (Cell Ranger, muon).
_KIND_COLUMNS = ("feature_types", "feature_type", "modality", "modalities")
#: Kinds that are genes; others beside them are not. Where no kind is one of these, as where CELLxGENE
#: names biotypes ("protein_coding"), all features but the second list are genes.
_GENE_KINDS = {"gene expression", "gene", "genes", "gex", "rna", "mrna", "transcriptome"}
_OTHER_KINDS = {"antibody capture", "crispr guide capture", "multiplexing capture", "custom"}
_OTHER_KINDS |= {"peaks", "peak", "atac", "chromatin accessibility", "antigen capture"}
_OTHER_KINDS |= {"adt", "hto", "prot", "protein", "protein expression", "antibody", "cite"}
_OTHER_KINDS |= {"vdj", "vdj-t", "vdj-b", "cell hashing", "hashtag"}


def other_features(var: "pd.DataFrame") -> tuple[NDArray[np.bool_], list[str]]:
    """Find features that are not genes by `var` (features, columns): a mask (features,), and their kinds."""
    for column in filter(var.columns.__contains__, _KIND_COLUMNS):
        kinds = np.array([text.strip() for text in _texts(var[column])], dtype=object)
        folded = np.array([kind.casefold().replace("_", " ") for kind in kinds], dtype=object)
        is_other = np.isin(folded, list(_OTHER_KINDS))
        if (is_gene := np.isin(folded, list(_GENE_KINDS))).any():
            is_other = ~is_gene & (folded != "")
        if is_other.any():
            return is_other, sorted(set(kinds[is_other].tolist()))
    return np.zeros(len(var), dtype=bool), []


class GeneTable(NamedTuple):
    """The genes of one file's matrix, in file order, and where their names were found.

    ``n_versioned`` ids carry an Ensembl version in the file. ``note`` says which genes have a name of
    another column, because theirs is missing or occurs twice.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    source: str
    n_versioned: int = 0
    note: str = ""


def strip_version(gene_id: str) -> str:
    """Drop the version of an Ensembl gene id; leave every other name alone.

    The copy of a pseudo-autosomal gene on Y ("ENSG00000182378.15_PAR_Y") is a gene of its own and
    keeps its suffix.
    """
    match = ENSEMBL.fullmatch(gene_id)
    return match[1] + match[2] + (match[4] or "") if match else gene_id


def choose_gene_ids(var: "pd.DataFrame", gene_ids: str, where: str) -> GeneTable:
    """Find the ids (without version, unique) and symbols of a file's genes, (genes, columns) in `var`.

    `gene_ids` is "var_names", the name of a var column, or "auto": Ensembl ids from var_names or a
    column, else symbols from var_names (unless these are mere numbers) or a column; genes whose name there
    is missing or repeated have that of another column. `where` is the file and matrix, for messages.
    DataError if the column is absent, nothing looks like gene names, or ids are missing or duplicated.
    """
    key = _content(var, gene_ids)
    if key not in _KNOWN_TABLES:
        if len(_KNOWN_TABLES) >= _MOST_KNOWN_TABLES:
            _KNOWN_TABLES.clear()
        _KNOWN_TABLES[key] = _choose_gene_ids(var, gene_ids, where)
    return _KNOWN_TABLES[key]


#: The shards of a dataset have one and the same table of genes, which is worked out once.
_KNOWN_TABLES: dict[str, GeneTable] = {}
_MOST_KNOWN_TABLES = 8


def _content(var: "pd.DataFrame", gene_ids: str) -> str:
    import pandas as pd

    names = repr((gene_ids, var.index.name, list(var.columns))).encode()
    return hashlib.sha256(names + pd.util.hash_pandas_object(var).to_numpy().tobytes()).hexdigest()


def _choose_gene_ids(var: "pd.DataFrame", gene_ids: str, where: str) -> GeneTable:
    note = ""
    if gene_ids == "auto":
        names, source = _choose_automatically(var, where)
        names, note = _with_other_names(names, source, var)
    elif gene_ids == "var_names":
        names, source = _texts(var.index), "var_names"
    elif gene_ids in var.columns:
        names, source = _texts(var[gene_ids]), f"var column '{gene_ids}'"
    else:
        raise DataError(
            f"{where}: data.gene_ids names the var column '{gene_ids}', which does not exist; "
            f"{suggest(gene_ids, map(str, var.columns))} (or use 'var_names' or 'auto')"
        )
    if "" in names:
        raise DataError(
            f"{where}: {names.count('')} of {len(names)} genes have no name in {source} (the first "
            f"is gene {names.index('')}); fill it or set data.gene_ids to another column"
        )
    ids = [strip_version(name) for name in names]
    if len(set(ids)) < len(ids):
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        raise DataError(
            f"{where}: {len(repeated)} gene ids in {source} occur more than once "
            f"({listed(repeated)}); sum or drop the duplicates, or set data.gene_ids to a column of "
            f"unique ids"
        )
    symbols = _choose_symbols(var, ids)
    check_lengths([*ids, *symbols], f"{where}: the name of a gene in {source}")
    n_versioned = sum(name != gene for name, gene in zip(names, ids, strict=True))
    return GeneTable(tuple(ids), tuple(symbols), source, n_versioned, note)


def _choose_automatically(var: "pd.DataFrame", where: str) -> tuple[list[str], str]:
    index = _texts(var.index)
    if are_ensembl(index):
        return index, "var_names"
    for column in filter(var.columns.__contains__, _ID_COLUMNS):
        values = _texts(var[column])
        if are_ensembl(values):
            return values, f"var column '{column}'"
    if not all(map(_NUMBER.fullmatch, index)):
        return index, "var_names"
    for column in filter(var.columns.__contains__, _SYMBOL_COLUMNS):
        values = _texts(var[column])
        if not all(map(_NUMBER.fullmatch, values)):
            return values, f"var column '{column}'"
    columns = ", ".join(map(str, var.columns)) or "none"
    raise DataError(
        f"{where}: var_names are numbers ({', '.join(index[:3])}, ...) and no var column holds "
        f"gene names; set data.gene_ids to the column that does (columns: {columns})"
    )


def _with_other_names(names: list[str], source: str, var: "pd.DataFrame") -> tuple[list[str], str]:
    """Give genes whose name is missing or repeated their name in another column; say so in a note."""
    count = Counter(map(strip_version, names))
    unfit = [gene for gene, name in enumerate(names) if not name or count[strip_version(name)] > 1]
    if not unfit:
        return names, ""
    columns = [name for name in (*_SYMBOL_COLUMNS, *_ID_COLUMNS) if name in var.columns]
    others = {f"var column '{name}'": _texts(var[name]) for name in columns}
    others["var_names"] = _texts(var.index)
    others.pop(source, None)
    new = list(names)
    taken = set(map(strip_version, names))
    used: dict[str, list[str]] = {}
    for place, values in others.items():
        occurs = Counter(map(strip_version, values))
        for gene in [gene for gene in unfit if new[gene] == names[gene]]:
            name = strip_version(values[gene])
            if name and occurs[name] == 1 and name not in taken and not _NUMBER.fullmatch(name):
                new[gene] = name
                taken.add(name)
                used.setdefault(place, []).append(name)
    if not used:
        return names, ""
    missing = sum(not names[gene] for gene in unfit)
    why = " or ".join(["no name"] * (missing > 0) + ["a repeated name"] * (missing < len(unfit)))
    shown = listed([name for found in used.values() for name in found])
    note = f"{len(unfit):,} of {len(names):,} genes have {why} in {source}; their names in {' and '.join(used)} are used ({shown})"
    return new, note


def _choose_symbols(var: "pd.DataFrame", ids: list[str]) -> list[str]:
    """Symbols from a var column, or from var_names if ids came from a column; else the ids."""
    if not are_ensembl(ids):
        return ids
    candidates = [_texts(var[name]) for name in _SYMBOL_COLUMNS if name in var.columns]
    for values in [*candidates, _texts(var.index)]:
        if not are_ensembl(values) and not all(map(_NUMBER.fullmatch, values)):
            return [value or gene_id for value, gene_id in zip(values, ids, strict=True)]
    return ids


def _texts(values: "pd.Index[str] | pd.Series[str]") -> list[str]:
    """Names as stripped strings without their genome, "" where missing."""
    missing = np.asarray(values.isna())
    names = [
        "" if gone else str(value).strip() for value, gone in zip(values, missing, strict=True)
    ]
    return drop_genomes("" if name in _NO_NAME else name for name in names)


def are_ensembl(names: Sequence[str]) -> bool:
    """Whether the names are Ensembl ids, all but a few."""
    found = sum(ENSEMBL.fullmatch(name) is not None for name in names)
    return found >= _MOSTLY * max(len(names), 1)


@lru_cache(maxsize=8)
def describe_ids(ids: tuple[str, ...]) -> str:
    """Describe in a few words what a file's gene ids look like, for messages about joining."""
    if are_ensembl(ids):
        kind = "Ensembl ids"
    elif all(map(_NUMBER.fullmatch, ids)):
        kind = "numbers"
    else:
        kind = "symbols or other names"
    return f"{kind} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
