"""Phenotypes of cells: which obs columns they stand in, and what their labels are.

A label that says nothing ("unknown", "na", NaN) is missing: code -1, later the token `[NO_...]`.
Which values a model knows belongs to `vocabulary`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.ages import group_ages
from core.errors import DataError
from core.presets.schema import STANDARD_PHENOTYPES, DataSettings

__all__ = [
    "MISSING",
    "Labels",
    "PhenotypeColumn",
    "group_age_labels",
    "is_missing",
    "label_token",
    "match_label",
    "nearest",
    "read_labels",
    "requested_phenotypes",
    "suggest",
]

#: Code of a missing label.
MISSING = -1
#: Cells counted at a time.
_BLOCK_CELLS = 2**20
#: What authors write where they do not know, case folded.
_MISSING_LABELS = frozenset({
    "", "-", "--", "?", "<na>", "na", "n/a", "#n/a", "nan", "none", "null", "missing", "unknown",
    "unspecified", "not specified", "unassigned", "not available", "not applicable",
    "not collected", "not provided", "not reported", "not determined",
})  # fmt: skip
#: A numeric column with more values than this is a measurement, not a phenotype. (Ages in years,
#: clusters and plate numbers stay below.)
_MOST_NUMERIC_VALUES = 200
_SPACES = re.compile(r"[\s_]+")


@dataclass(frozen=True)
class PhenotypeColumn:
    """A phenotype and the obs column it is read from; `explicit` if the preset names it."""

    name: str
    column: str
    explicit: bool


@dataclass(frozen=True)
class Labels:
    """Labels of the cells of one file.

    Attributes
    ----------
    codes
        (cells,), index into `values` or `MISSING`, in the smallest type that holds them: there
        may be many millions.
    values
        Distinct labels in sorted order.
    missing
        What stood where the label is missing ("unknown", "nan") -> number of cells.
    """

    codes: NDArray[np.signedinteger]
    values: tuple[str, ...]
    missing: dict[str, int]


def requested_phenotypes(data: DataSettings) -> list[PhenotypeColumn]:
    """Phenotypes a preset asks for, in header order: the standard five, then the user's own."""
    columns: dict[str, str | bool] = {**STANDARD_PHENOTYPES, **data.phenotypes}
    return [
        PhenotypeColumn(name, column, explicit=name in data.phenotypes)
        for name, column in columns.items()
        if isinstance(column, str)
    ]


def read_labels(obs: pd.DataFrame, phenotype: PhenotypeColumn, *, where: str) -> Labels | None:
    """Read a phenotype's labels from an obs table.

    Parameters
    ----------
    obs
        (cells, columns); ``attrs["columns"]`` may list columns that it leaves out.
    phenotype
        What to read.
    where
        The file, for messages.

    Returns
    -------
    The labels; None if a column that the preset does not name is absent.

    Raises
    ------
    DataError
        A column that the preset names is absent (the message names the nearest), or holds a
        measurement rather than labels.
    """
    if phenotype.column not in obs.columns:
        if not phenotype.explicit:
            return None
        known = obs.attrs.get("columns", [str(name) for name in obs.columns])
        message = (
            f"{where}: data.phenotypes.{phenotype.name} names the obs column '{phenotype.column}', "
            f"which does not exist; {suggest(phenotype.column, known)}"
        )
        raise DataError(message)
    column = obs[phenotype.column]
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, distinct = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, distinct = pd.factorize(column.astype(object), use_na_sentinel=True)
    if pd.api.types.is_float_dtype(column.dtype) and len(distinct) > _MOST_NUMERIC_VALUES:
        message = (
            f"{where}: the obs column '{phenotype.column}' of data.phenotypes.{phenotype.name} holds "
            f"{len(distinct)} different numbers; a phenotype has labels, so group the values first "
            f"or set data.phenotypes.{phenotype.name} = false"
        )
        raise DataError(message)
    return _to_labels(codes, [_text(value) for value in distinct])


def group_age_labels(files: Sequence[Labels | None]) -> list[Labels | None]:
    """Put the ages of all files into decades, deciding on the labels of all of them together."""
    values = sorted({value for labels in files if labels for value in labels.values})
    groups = dict(zip(values, group_ages(values), strict=True))
    return [None if labels is None else _regroup(labels, groups) for labels in files]


def code_type(n_values: int) -> type[np.int8] | type[np.int16] | type[np.int32]:
    """Smallest type of codes below `n_values` and of `MISSING`."""
    if n_values <= np.iinfo(np.int8).max:
        return np.int8
    return np.int16 if n_values <= np.iinfo(np.int16).max else np.int32


def count_codes(codes: NDArray[np.integer[Any]], n_codes: int) -> NDArray[np.int64]:
    """Count the cells of each code below `n_codes`, unknown ones left out; (n_codes,)."""
    counts = np.zeros(n_codes + 1, dtype=np.int64)
    for first in range(0, len(codes), _BLOCK_CELLS):  # bincount makes its own int64 copy
        block = codes[first : first + _BLOCK_CELLS] + np.int64(1)
        counts += np.bincount(block, minlength=n_codes + 1)
    return counts[1:]


def label_token(label: str) -> str:
    """Spell a label as the originals do: "T cell" -> "[T_cell]"."""
    return f"[{_SPACES.sub('_', label.strip())}]"


def match_label(label: str, values: Iterable[str]) -> str | None:
    """Find the value that a label means.

    The same text wins; else the same token ("[T_cell]", "T_cell", "T cell"); else the same token
    whatever the case, where only one value has it.
    """
    values = list(values)
    if label in values:
        return label
    wanted = _bare(label)
    for fold in (str, str.casefold):
        found = [value for value in values if fold(_bare(value)) == fold(wanted)]
        if len(found) == 1:
            return found[0]
    return None


def nearest(label: str, values: Iterable[str], *, n: int = 3) -> list[str]:
    """Values that look most like a label, best first, for messages."""
    folded: dict[str, str] = {}
    for value in values:
        folded.setdefault(_bare(value).casefold(), value)
    wanted = _bare(label).casefold()
    close = difflib.get_close_matches(wanted, folded, n=n, cutoff=0.5)
    # A part of the name ("T cell" for "regulatory T cell") scores low by edit distance.
    parts = [name for name in folded if wanted and (wanted in name or name in wanted)]
    return [folded[name] for name in dict.fromkeys([*close, *parts])][:n]


def suggest(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest known, or all of them."""
    known = list(known)
    close = nearest(name, known)
    if close:
        return "did you mean " + " or ".join(repr(value) for value in close) + "?"
    return "it has " + (", ".join(known[:20]) or "none") + (", ..." if len(known) > 20 else "")


def _regroup(labels: Labels, groups: dict[str, str]) -> Labels:
    regrouped = _to_labels(labels.codes, [groups[value] for value in labels.values])
    return Labels(regrouped.codes, regrouped.values, labels.missing)


def _to_labels(codes: NDArray[np.integer], texts: list[str]) -> Labels:
    """Merge equal texts and set those that say nothing aside."""
    counts = count_codes(codes, len(texts))
    missing: dict[str, int] = {}
    if n_empty := int(np.sum(codes < 0)):
        missing["nan"] = n_empty
    known: set[str] = set()
    for text, count in zip(texts, counts, strict=True):
        if is_missing(text):
            if count:
                missing[text] = missing.get(text, 0) + int(count)
        elif count:
            known.add(text)
    values = sorted(known)
    place = {value: code for code, value in enumerate(values)}
    kind = code_type(len(values))
    recode = np.array([place.get(text, MISSING) for text in texts] + [MISSING], dtype=kind)
    return Labels(recode[codes], tuple(values), missing)


def is_missing(label: str) -> bool:
    """Whether a label says that nothing is known."""
    return label.strip().casefold() in _MISSING_LABELS


def _text(value: object) -> str:
    """Write a label as text: whole numbers without ".0", no surrounding blanks."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return str(value).strip()


def _bare(label: str) -> str:
    """Strip the brackets of a label's token."""
    text = label.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _SPACES.sub("_", text)
