"""Phenotypes of cells: their obs columns, and their labels.

`read_labels` reads the labels of one file as they are written. `join_labels` decides, on the labels of
all files, what is missing (code -1, later the token `[NO_...]`) and which spellings are one label.
`core.cells.vocabularies` gives the labels codes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.ages import age_key, column_unit, group_ages, is_age_name
from core.cells.ontology import term_id, term_name
from core.cells.spelling import (
    ALWAYS_PRESENT,
    bare,
    folded,
    is_missing,
    never_label,
    spelling_rank,
    suggest,
    term_or_sex,
    tidy,
)
from core.errors import DataError
from core.presets.phenotype_names import LONGEST_NAME, STANDARD_PHENOTYPES
from core.presets.schema import DataSettings
from core.wording import listed

#: What to do where obs has no columns.
NO_COLUMNS = "obs has no columns (files of 10x have none): add labels in scanpy, and write an .h5ad"
#: Code of a missing label.
MISSING = -1
#: Cells counted at a time.
_BLOCK_CELLS = 2**20
#: Fraction of the cells from which on "none" is a label.
_COMMON = 0.05
#: A numeric column with more values than this is a measurement, not a phenotype. (Ages in years,
#: clusters and plate numbers stay below.)
_MOST_NUMERIC_VALUES = 200
#: Labels whose spellings a message names.
_MOST_JOINED = 6


@dataclass(frozen=True)
class PhenotypeColumn:
    """A phenotype and the obs column it is read from; `explicit` if the preset names it."""

    name: str
    column: str
    explicit: bool


@dataclass(frozen=True)
class Labels:
    """Labels of the cells of one file."""

    #: (cells,), index into `values` or `MISSING`, in the smallest type that holds them: there may be
    #: many millions.
    codes: NDArray[np.signedinteger]
    #: Distinct labels in sorted order.
    values: tuple[str, ...]
    #: Text of a missing label ("unknown", "nan") -> number of cells.
    missing: dict[str, int]
    #: Label -> its other spellings in the file -> number of cells.
    joined: dict[str, dict[str, int]] = field(default_factory=dict)

    def cells(self) -> list[int]:
        """(values,), number of cells of each."""
        counts: list[int] = count_codes(self.codes, len(self.values)).tolist()
        return counts


def requested_phenotypes(data: DataSettings) -> list[PhenotypeColumn]:
    """Phenotypes of a preset in header order: the standard five, then the user's own."""
    columns: dict[str, str | bool] = {**STANDARD_PHENOTYPES, **data.phenotypes}
    return [
        PhenotypeColumn(name, column, explicit=name in data.phenotypes)
        for name, column in columns.items()
        if isinstance(column, str)
    ]


def read_labels(obs: pd.DataFrame, phenotype: PhenotypeColumn, *, where: str) -> Labels | None:
    """Read a phenotype's labels from an obs table; None if a column the preset does not name is absent.

    ``obs.attrs["columns"]`` may list columns that the table leaves out; `where` is the file, for
    messages. DataError if a column that the preset names is absent, or if the column holds a
    measurement rather than labels.
    """
    if phenotype.column not in obs.columns:
        if not phenotype.explicit:
            return None
        known = obs.attrs.get("columns", [str(name) for name in obs.columns])
        raise DataError(
            f"{where}: data.phenotypes.{phenotype.name} names the obs column '{phenotype.column}', "
            f"which does not exist; {suggest(phenotype.column, known)}"
        )
    column = obs[phenotype.column]
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, distinct = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, distinct = pd.factorize(column.astype(object), use_na_sentinel=True)
    if pd.api.types.is_float_dtype(column.dtype) and len(distinct) > _MOST_NUMERIC_VALUES:
        raise DataError(
            f"{where}: the obs column '{phenotype.column}' of data.phenotypes.{phenotype.name} holds "
            f"{len(distinct)} different numbers; a phenotype has labels, so group the values first "
            f"or set data.phenotypes.{phenotype.name} = false"
        )
    texts = [_text(value) for value in distinct]
    check_lengths(texts, f"{where}: a label of the obs column '{phenotype.column}'")
    return _to_labels(codes, texts)


def join_labels(
    files: Sequence[Labels | None], phenotype: PhenotypeColumn, *, decades: bool = False
) -> list[Labels | None]:
    """Decide on the labels of all files together: what is missing, and which spellings are one label.

    "none" is missing where it is rare or cannot be a label. Spellings are joined where their meaning
    cannot differ: Unicode forms, kinds of blanks and underscores, dashes; case, in the standard
    phenotypes; "M" and "male"; the id and the name of an ontology term; spellings of one age. The most
    frequent spelling remains. `decades`: ages become decades.
    """
    counts: Counter[str] = Counter()
    for labels in files:
        if labels is not None:
            counts.update(dict(zip(labels.values, labels.cells(), strict=True)))
    n_cells = sum(len(labels.codes) for labels in files if labels is not None)
    missing = _missing_of(counts, n_cells, phenotype.name)
    known = [text for text in sorted(counts) if text not in missing]
    decade_of: dict[str, str] = {}
    if decades and phenotype.name == "age":
        names = [term_name(text) or text for text in known]
        groups = group_ages(names, column_unit(phenotype.column))
        decade_of = {
            text: group
            for text, name, group in zip(known, names, groups, strict=True)
            if name != group
        }
    spellings: dict[str, list[str]] = defaultdict(list)
    for text in known:
        if text not in decade_of:
            spellings[_meaning(text, phenotype)].append(text)
    label_of = dict(decade_of)
    joined: dict[str, list[str]] = {}
    has_names = any(term_id(text) is None for text in known)
    for same in spellings.values():
        label = max(same, key=lambda text: (*spelling_rank(text), counts[text], text))
        label = tidy((has_names and term_name(label)) or label)  # an id beside names becomes one
        label_of |= dict.fromkeys(same, label)
        if len(same) > 1 or term_name(same[0]) == label:
            joined[label] = [text for text in same if text != label]
    return [labels and _relabelled(labels, label_of, joined) for labels in files]


def _missing_of(counts: Counter[str], n_cells: int, name: str) -> set[str]:
    """Find the texts that mean "not known" among the labels of a phenotype (label -> cells)."""
    perhaps = {text for text in counts if is_missing(text)}
    others = sorted(n for text, n in counts.items() if text not in perhaps)
    n_perhaps = sum(counts[text] for text in perhaps)
    # A label: common among the cells, or as frequent as half of the labels ("none" beside 100 drugs).
    typical = others[len(others) // 2] if others else 0
    is_common = n_perhaps >= min(_COMMON * n_cells, typical)
    return set() if is_common and name not in ALWAYS_PRESENT else perhaps


def _relabelled(labels: Labels, label_of: dict[str, str], joined: dict[str, list[str]]) -> Labels:
    """Give the cells of a file their final labels; texts without one are missing."""
    counts = dict(zip(labels.values, labels.cells(), strict=True))
    values = sorted({label_of[text] for text in counts if text in label_of})
    place = {value: code for code, value in enumerate(values)}
    codes = [place[label_of[text]] if text in label_of else MISSING for text in counts]
    missing = {text: n for text, n in counts.items() if text not in label_of}
    spelled = {
        label: {text: counts[text] for text in texts if text in counts}
        for label, texts in joined.items()
    }
    return Labels(
        np.array([*codes, MISSING], dtype=code_type(len(values)))[labels.codes],
        tuple(values),
        labels.missing | missing,
        {label: texts for label, texts in spelled.items() if texts},
    )


def count_missing(files: Sequence[Labels | None]) -> dict[str, int]:
    """Count the cells of each text that means "not known"."""
    counts: Counter[str] = Counter()
    for labels in files:
        counts.update({} if labels is None else labels.missing)
    return dict(counts)


def count_joined(files: Sequence[Labels | None]) -> dict[str, dict[str, int]]:
    """Count the cells of the other spellings of each label."""
    joined: dict[str, Counter[str]] = defaultdict(Counter)
    for labels in files:
        for label, spellings in ({} if labels is None else labels.joined).items():
            joined[label].update(spellings)
    return {label: dict(spellings) for label, spellings in sorted(joined.items())}


def describe_joined(joined: Mapping[str, Mapping[str, int]]) -> str:
    """Name labels with their other spellings, for messages."""
    texts = []
    for label, spellings in joined.items():
        # Escapes show the difference where letters look the same.
        others = [
            f"{ascii(text) if tidy(text) == label else repr(text)} ({n:,} cells)"
            for text, n in spellings.items()
        ]
        texts.append(f"{label!r} also as {listed(others)}")
    return "; ".join(texts[:_MOST_JOINED]) + ("; ..." if len(texts) > _MOST_JOINED else "")


def code_type(n_values: int) -> "np.dtype[np.signedinteger]":
    """Smallest type of codes below `n_values` and of `MISSING`."""
    return np.min_scalar_type(-max(n_values, 1))


def count_codes(codes: NDArray[np.integer[Any]], n_codes: int) -> NDArray[np.int64]:
    """(n_codes,) number of cells of each code; missing labels are left out."""
    counts = np.zeros(n_codes + 1, dtype=np.int64)
    for first in range(0, len(codes), _BLOCK_CELLS):  # bincount makes its own int64 copy
        block = codes[first : first + _BLOCK_CELLS] + np.int64(1)
        counts += np.bincount(block, minlength=n_codes + 1)
    return counts[1:]


def check_lengths(names: Iterable[str], what: str) -> None:
    """Raise a DataError if a name is too long for a model folder; ``what`` says whose name."""
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        raise DataError(
            f"{what} has {len(longest):,} characters ('{longest[:40]}...'), and at most "
            f"{LONGEST_NAME:,} are possible; shorten it"
        )


def _to_labels(codes: NDArray[np.integer], texts: list[str]) -> Labels:
    """Merge equal texts and set those that always mean "not known" aside."""
    counts = dict[str, int]()
    if n_empty := int(np.sum(codes < 0)):
        counts["nan"] = n_empty
    for text, count in zip(texts, count_codes(codes, len(texts)).tolist(), strict=True):
        if count:
            counts[text] = counts.get(text, 0) + count
    missing = {text: count for text, count in counts.items() if never_label(text)}
    values = sorted(counts.keys() - missing)
    place = {value: code for code, value in enumerate(values)}
    kind = code_type(len(values))
    recode = np.array([place.get(text, MISSING) for text in texts] + [MISSING], dtype=kind)
    return Labels(recode[codes], tuple(values), missing)


def _text(value: object) -> str:
    """Write a label as text: whole numbers without ".0", no surrounding blanks."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return str(value).strip()


def _meaning(label: str, phenotype: PhenotypeColumn) -> str:
    """Return a text that is equal for all spellings of one label of a phenotype."""
    if is_age_name(phenotype.name):
        return age_key(term_name(label) or label, column_unit(phenotype.column))
    if phenotype.name in ("sex", "gender"):
        return term_or_sex(label)
    text = term_name(label) or label
    return folded(text) if phenotype.name in STANDARD_PHENOTYPES or is_missing(text) else bare(text)
