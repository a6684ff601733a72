"""Genes: their ids and symbols, the ordered panel a model knows, and where a file keeps them.

A gene is joined across files by its id, never by its position. An Ensembl id is compared without
its version ("ENSG00000229807.13" and "ENSG00000229807" are one gene).
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

from core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GenePanel", "GeneTable", "choose_gene_ids", "describe_ids", "strip_version"]

#: Ensembl stable gene ids: "ENS", a species code of none or more letters, "G", digits, a version.
#: (Fly, worm and yeast ids of Ensembl follow their own model-organism databases.)
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d{6,})(\.\d+)?(_PAR_Y)?")
_NUMBER = re.compile(r"\d+")

#: var columns that hold Ensembl ids, most specific first; the names in CELLxGENE, Cell Ranger
#: (scanpy's ``read_10x_h5``), scvi-tools and the common loaders.
_ID_COLUMNS = (
    "ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "gene_ids", "gene_id",
    "feature_id", "feature_ids", "ENSEMBL", "id", "ids",
)  # fmt: skip
_SYMBOL_COLUMNS = (
    "feature_name", "gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "symbols",
    "hgnc_symbol", "gene_short_name", "gene", "name",
)  # fmt: skip

#: A column counts as Ensembl ids when at least this share of it looks so (files carry a few
#: spike-ins or transgenes).
_MOSTLY = 0.5


@dataclass(frozen=True)
class GenePanel:
    """Genes in a fixed order.

    Attributes
    ----------
    ids
        (genes,), unique.
    symbols
        (genes,), equal to the id where no symbol is known; not necessarily unique.
    """

    ids: tuple[str, ...]
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

        A symbol that several genes share stands for the first of them.
        """
        index = self._positions.get(name)
        return self._positions.get(strip_version(name)) if index is None else index

    def nearest(self, name: str, *, n: int = 3) -> list[str]:
        """Known ids and symbols that look most like `name`, best first."""
        by_folded = {known.casefold(): known for known in reversed(self._positions)}
        found = difflib.get_close_matches(name.casefold(), by_folded, n=n, cutoff=0.6)
        return [by_folded[folded] for folded in found]

    def take(self, positions: Sequence[int] | np.ndarray) -> "GenePanel":
        """Return the panel of the genes at `positions`, in that order."""
        return GenePanel(
            ids=tuple(self.ids[int(position)] for position in positions),
            symbols=tuple(self.symbols[int(position)] for position in positions),
        )


class GeneTable(NamedTuple):
    """The genes of one file's matrix, in file order, and where their names were found.

    ``n_versioned`` ids carry an Ensembl version in the file.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    source: str
    n_versioned: int = 0


def strip_version(gene_id: str) -> str:
    """Drop the version of an Ensembl gene id; leave every other name alone.

    The copy of a pseudo-autosomal gene on Y ("ENSG00000182378.15_PAR_Y") is a gene of its own and
    keeps its suffix.
    """
    match = _ENSEMBL.fullmatch(gene_id)
    return match[1] + (match[3] or "") if match else gene_id


def choose_gene_ids(var: "pd.DataFrame", gene_ids: str, where: str) -> GeneTable:
    """Find the ids and symbols of a file's genes.

    Parameters
    ----------
    var
        (genes, columns), the file's table of genes.
    gene_ids
        "var_names", the name of a var column, or "auto": Ensembl ids from var_names or a column,
        else symbols from var_names (unless these are mere numbers) or a column.
    where
        The file and matrix, for messages.

    Returns
    -------
    Ids without version, unique; symbols; and the source in words.

    Raises
    ------
    DataError
        The column is absent, nothing looks like gene names, or ids are missing or duplicated.
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
    if gene_ids == "auto":
        names, source = _choose_automatically(var, where)
    elif gene_ids == "var_names":
        names, source = _texts(var.index), "var_names"
    elif gene_ids in var.columns:
        names, source = _texts(var[gene_ids]), f"var column '{gene_ids}'"
    else:
        close = difflib.get_close_matches(gene_ids, [str(name) for name in var.columns], n=3)
        message = (
            f"{where}: data.gene_ids names the var column '{gene_ids}', which does not exist; "
            f"{_or_list(close or [str(name) for name in var.columns])}use 'var_names' or 'auto'"
        )
        raise DataError(message)
    _refuse_missing(names, source, where)
    ids = [strip_version(name) for name in names]
    _refuse_duplicates(ids, source, where)
    n_versioned = sum(name != gene for name, gene in zip(names, ids, strict=True))
    return GeneTable(tuple(ids), tuple(_choose_symbols(var, ids)), source, n_versioned)


def describe_ids(ids: Sequence[str]) -> str:
    """Say in a few words what a file's gene ids look like, for messages about joining."""
    return _describe_ids(tuple(ids))


@lru_cache(maxsize=8)
def _describe_ids(ids: tuple[str, ...]) -> str:
    if _share_ensembl(ids) >= _MOSTLY:
        kind = "Ensembl ids"
    elif all(_NUMBER.fullmatch(name) for name in ids):
        kind = "numbers"
    else:
        kind = "symbols or other names"
    examples = ", ".join(ids[:3])
    return f"{kind} ({examples}{', ...' if len(ids) > 3 else ''})"


def _choose_automatically(var: "pd.DataFrame", where: str) -> tuple[list[str], str]:
    index = _texts(var.index)
    if _share_ensembl(index) >= _MOSTLY:
        return index, "var_names"
    for column in _present(var, _ID_COLUMNS):
        values = _texts(var[column])
        if _share_ensembl(values) >= _MOSTLY:
            return values, f"var column '{column}'"
    if not all(_NUMBER.fullmatch(name) for name in index):
        return index, "var_names"
    for column in _present(var, _SYMBOL_COLUMNS):
        values = _texts(var[column])
        if not all(_NUMBER.fullmatch(name) for name in values):
            return values, f"var column '{column}'"
    columns = ", ".join(map(str, var.columns)) or "none"
    message = (
        f"{where}: var_names are numbers ({', '.join(index[:3])}, ...) and no var column holds "
        f"gene names; set data.gene_ids to the column that does (columns: {columns})"
    )
    raise DataError(message)


def _choose_symbols(var: "pd.DataFrame", ids: list[str]) -> list[str]:
    """Symbols from a var column, or from var_names where ids came from a column; else the ids."""
    if _share_ensembl(ids) < _MOSTLY:
        return ids
    candidates = [_texts(var[column]) for column in _present(var, _SYMBOL_COLUMNS)]
    candidates.append(_texts(var.index))
    for values in candidates:
        if _share_ensembl(values) < _MOSTLY and not all(map(_NUMBER.fullmatch, values)):
            return [value or gene_id for value, gene_id in zip(values, ids, strict=True)]
    return ids


def _refuse_missing(names: list[str], source: str, where: str) -> None:
    if "" in names:
        message = (
            f"{where}: {names.count('')} of {len(names)} genes have no name in {source} (the first "
            f"is gene {names.index('')}); fill it or set data.gene_ids to another column"
        )
        raise DataError(message)


def _refuse_duplicates(ids: list[str], source: str, where: str) -> None:
    if len(set(ids)) == len(ids):
        return
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    shown = ", ".join(repeated[:3]) + (", ..." if len(repeated) > 3 else "")
    message = (
        f"{where}: {len(repeated)} gene ids in {source} occur more than once ({shown}); sum or drop "
        f"the duplicates, or set data.gene_ids to a column of unique ids"
    )
    raise DataError(message)


def _present(var: "pd.DataFrame", wanted: tuple[str, ...]) -> list[str]:
    return [column for column in wanted if column in var.columns]


def _texts(values: "pd.Index[str] | pd.Series[str]") -> list[str]:
    """Names as stripped strings, "" where missing."""
    missing = np.asarray(values.isna())
    return ["" if gone else str(value).strip() for value, gone in zip(values, missing, strict=True)]


def _share_ensembl(names: Sequence[str]) -> float:
    return sum(_ENSEMBL.fullmatch(name) is not None for name in names) / max(len(names), 1)


def _or_list(names: list[str]) -> str:
    return f"did you mean {', '.join(repr(name) for name in names[:5])}? Or " if names else ""
