"""Phenotypes of cells: their obs columns, their labels, and the vocabularies that give labels codes.

A label without information ("unknown", "na", NaN) is missing: code -1, later the token `[NO_...]`. A
vocabulary is learnt from training cells alone, or given as a JSON file in our own or the published form:
`{"cell_type": ["[T_cell]", "[B_cell]"], "sex": ["female", "male"]}`.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import DataError
from core.files import file_json
from core.presets.schema import LONGEST_NAME, STANDARD_PHENOTYPES, DataSettings

#: Code of a missing label.
MISSING = -1
#: Cells counted at a time.
_BLOCK_CELLS = 2**20
#: What authors write for an unknown label, case folded.
_MISSING_LABEL = re.compile(
    r"-{0,2}|\?|<na>|na|#?n/a|nan|none|null|missing|unknown|unspecified|unassigned"
    r"|not (?:specified|available|applicable|collected|provided|reported|determined)"
)
#: A numeric column with more values than this is a measurement, not a phenotype. (Ages in years,
#: clusters and plate numbers stay below.)
_MOST_NUMERIC_VALUES = 200
_SPACES = re.compile(r"[\s_]+")
_NOT_SPECIFIED = re.compile(r"\[?NO_[A-Z0-9_]+\]?")

#: "73", "73.0", "73y", "73 years", "73-year-old stage", "80 year-old and over human stage".
_YEARS = re.compile(r"(\d+(?:\.\d+)?)[\s-]*(?:(?:years?|yrs?|yo|y)\b.*)?", re.IGNORECASE)
#: After birth only: "10th week post-fertilization" is a stage of its own.
_YOUNGER = re.compile(r"(\d+(?:\.\d+)?)[\s-]*(month|week|day)s?[\s-]*old\b.*", re.IGNORECASE)
_PER_YEAR = {"month": 12.0, "week": 365.25 / 7, "day": 365.25}
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
#: CELLxGENE: "fifth decade human stage" is the years 40 to 49.
_DECADE = re.compile(rf"({_ORDINALS}) decade\b.*", re.IGNORECASE)
_FIRST_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OLDEST = 130.0


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


@dataclass(frozen=True)
class CodedPhenotype:
    """A phenotype of all cells in the model's codes."""

    #: (cells,), index into `values` or `MISSING`, as of `Labels`.
    codes: NDArray[np.signedinteger]
    #: In the order of the codes.
    values: list[str]
    #: Text of a missing label -> cells.
    missing: dict[str, int]
    #: Labels outside the vocabulary -> cells: outside the given file, or, of a learnt vocabulary, found
    #: only in validation or test cells.
    unmapped: dict[str, int]


# Labels of a file -----------------------------------------------------------------------------------


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


def group_age_labels(files: Sequence[Labels | None]) -> list[Labels | None]:
    """Put the ages of all files into decades, deciding on the labels of all of them together."""
    values = sorted({value for labels in files if labels for value in labels.values})
    groups = dict(zip(values, group_ages(values), strict=True))

    def grouped(labels: Labels) -> Labels:
        of_decades = _to_labels(labels.codes, [groups[value] for value in labels.values])
        return replace(of_decades, missing=labels.missing)

    return [labels and grouped(labels) for labels in files]


def _code_type(n_values: int) -> "np.dtype[np.signedinteger]":
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


def is_missing(label: str) -> bool:
    """Whether a label is one of those that mean "not known"."""
    return _MISSING_LABEL.fullmatch(label.strip().casefold()) is not None


def _to_labels(codes: NDArray[np.integer], texts: list[str]) -> Labels:
    """Merge equal texts and set those that mean "not known" aside."""
    counts = dict[str, int]()
    if n_empty := int(np.sum(codes < 0)):
        counts["nan"] = n_empty
    for text, count in zip(texts, count_codes(codes, len(texts)).tolist(), strict=True):
        if count:
            counts[text] = counts.get(text, 0) + count
    missing = {text: count for text, count in counts.items() if is_missing(text)}
    values = sorted(counts.keys() - missing)
    place = {value: code for code, value in enumerate(values)}
    kind = _code_type(len(values))
    recode = np.array([place.get(text, MISSING) for text in texts] + [MISSING], dtype=kind)
    return Labels(recode[codes], tuple(values), missing)


def _text(value: object) -> str:
    """Write a label as text: whole numbers without ".0", no surrounding blanks."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return str(value).strip()


# Spelling -------------------------------------------------------------------------------------------


def label_token(label: str) -> str:
    """Spell a label as a control token: "T cell" -> "[T_cell]"."""
    return f"[{_SPACES.sub('_', label.strip())}]"


def match_label(label: str, values: Iterable[str]) -> str | None:
    """Find the value that a label means.

    The same text wins; else the same token ("[T_cell]", "T_cell", "T cell"); else the same token
    in any case, if only one value has it.
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


def nearest(label: str, values: Iterable[str]) -> list[str]:
    """Up to three values that look most like a label, best first, for messages."""
    folded: dict[str, str] = {}
    for value in values:
        folded.setdefault(_bare(value).casefold(), value)
    wanted = _bare(label).casefold()
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    # A part of the name ("T cell" for "regulatory T cell") scores low by edit distance.
    parts = [name for name in folded if wanted and (wanted in name or name in wanted)]
    return [folded[name] for name in dict.fromkeys([*close, *parts])][:3]


def suggest(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest known, or all of them."""
    known = list(known)
    close = nearest(name, known)
    if close:
        return "did you mean " + " or ".join(repr(value) for value in close) + "?"
    return "it has " + (", ".join(known[:20]) or "none") + (", ..." if len(known) > 20 else "")


def _bare(label: str) -> str:
    """Strip the brackets of a label's token."""
    text = label.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _SPACES.sub("_", text)


# Ages -----------------------------------------------------------------------------------------------


def parse_years(label: str) -> float | None:
    """Age in years that a label gives, or None.

    Months, weeks and days after birth are parts of a year; a decade gives its first year.
    """
    text = label.strip().replace("_", " ")
    years = math.inf
    if match := _YEARS.fullmatch(text):
        years = float(match[1])
    elif match := _YOUNGER.fullmatch(text):
        years = float(match[1]) / _PER_YEAR[match[2].lower()]
    elif match := _DECADE.fullmatch(text):
        years = 10.0 * _ORDINALS.split("|").index(match[1].lower())
    return years if years <= _OLDEST else None


def group_ages(labels: Sequence[str]) -> list[str]:
    """Decade ("70-79") of each label that gives an age; other labels stay as they are.

    If no label gives its age in years (a mouse file in weeks), all stay.
    """
    if not any(_YEARS.fullmatch(label.strip().replace("_", " ")) for label in labels):
        return list(labels)
    grouped = []
    for label in labels:
        years = parse_years(label)
        start = 0 if years is None else int(years // 10) * 10
        grouped.append(label if years is None else f"{start}-{start + 9}")
    return grouped


def age_sort_key(label: str) -> tuple[float, str]:
    """Sort by age: years given, else the first number ("30-39"), else last by name."""
    years = parse_years(label)
    if years is None:
        number = _FIRST_NUMBER.search(label)
        years = float(number[0]) if number else math.inf
    return years, label


# Vocabularies ---------------------------------------------------------------------------------------


def load_vocabulary(path: Path) -> dict[str, list[str]]:
    """Read a vocabulary file: phenotype name or obs column -> values as written there."""
    try:
        record = file_json(path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; data.vocabulary must name a JSON file of phenotype values"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check data.vocabulary"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); correct the vocabulary") from error
    well_formed = isinstance(record, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) for value in values)
        for values in record.values()
    )
    if not well_formed:
        raise DataError(f'{path}: a vocabulary has the form {{"cell_type": ["T cell", ...], ...}}')
    for name, values in record.items():
        check_lengths(values, f"{path}: a value of '{name[:40]}'")
        for value, count in Counter(values).items():
            if count > 1:
                raise DataError(f"{path}: '{name}' lists {value!r} more than once; keep it once")
    return {str(name): list(values) for name, values in record.items()}


def vocabulary_entry(
    vocabulary: dict[str, list[str]], phenotype: PhenotypeColumn
) -> list[str] | None:
    """Values that a file gives for a phenotype, by its name or by its obs column."""
    return vocabulary.get(phenotype.name, vocabulary.get(phenotype.column))


def code_phenotype(
    files: Sequence[Labels | None],
    n_cells: Sequence[int],
    in_training: NDArray[np.bool_] | None,
    *,
    given: Sequence[str] | None = None,
    ages: bool = False,
    decades: bool = False,
) -> CodedPhenotype:
    """Give every cell the code of its label, files and cells in their order.

    `files` are the labels of each file, None if it lacks the column. Values are learnt, sorted, from the
    cells `in_training`, (cells of all files,), or all; those `given` in a vocabulary file keep their
    order, in the spelling of the cells. Values may be `ages` (numeric order), and in `decades`.
    """
    found = sorted({value for labels in files if labels for value in labels.values})
    place = {value: index for index, value in enumerate(found)}
    missing: Counter[str] = Counter()
    parts = []
    for labels, n in zip(files, n_cells, strict=True):
        if labels is None:
            parts.append(np.full(n, MISSING, dtype=_code_type(len(found))))
            missing["(no such column)"] += n
            continue
        missing.update(labels.missing)
        places = [place[value] for value in labels.values] + [MISSING]
        recode = np.array(places, dtype=_code_type(len(found)))
        parts.append(recode[labels.codes])
    codes = np.concatenate(parts)
    per_label = count_codes(codes, len(found))
    if given is None:
        trained = codes if in_training is None else codes[in_training]
        counts = count_codes(trained, len(found))
        known = [value for value, count in zip(found, counts, strict=True) if count]
        values = sorted(known, key=age_sort_key) if ages else known
        meaning = {value: value for value in values}
    else:
        usable = _usable(given, decades=decades)
        # Given values are spelled as the cells do, and mean the cells' labels.
        means = {label: value for label in found if (value := match_label(label, usable))}
        spelling = {value: label for label, value in reversed(means.items())}
        values = [spelling.get(value, value) for value in usable]
        meaning = {label: spelling[value] for label, value in means.items()}
    code_of = {value: code for code, value in enumerate(values)}
    final = [code_of[meaning[value]] if value in meaning else MISSING for value in found]
    unmapped = {
        value: int(count)
        for value, count in zip(found, per_label, strict=True)
        if value not in meaning
    }
    new_code: NDArray[np.signedinteger] = np.array([*final, MISSING], _code_type(len(values)))
    return CodedPhenotype(new_code[codes], values, dict(sorted(missing.items())), unmapped)


def _usable(given: Sequence[str], *, decades: bool) -> list[str]:
    """Values of a file without those that mean "not specified" and without brackets, ages grouped."""
    plain = [
        value[1:-1].replace("_", " ") if value.startswith("[") and value.endswith("]") else value
        for value in given
        if not _NOT_SPECIFIED.fullmatch(value) and not is_missing(value)
    ]
    return list(dict.fromkeys(group_ages(plain) if decades else plain))
