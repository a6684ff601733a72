"""Phenotypes of cells: their obs columns, their labels, and the vocabularies that give labels codes.

`read_labels` reads the labels of one file as they are written. `join_labels` decides, on the labels of
all files, what is missing (code -1, later the token `[NO_...]`) and which spellings are one label;
`match_labels` finds the values of a model that labels mean. Nothing else makes these decisions. A
vocabulary is learnt from training cells alone, or given as a JSON file in our own or the published form:
`{"cell_type": ["[T_cell]", "[B_cell]"], "sex": ["female", "male"]}`.
"""

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.ages import age_key, age_sort_key, column_unit, group_ages, is_age_name
from core.cells.ontology import term_id, term_name
from core.errors import DataError
from core.files import file_json
from core.presets.schema import LONGEST_NAME, STANDARD_PHENOTYPES, DataSettings
from core.wording import listed

#: What to do where obs has no columns.
NO_COLUMNS = "obs has no columns (files of 10x have none): add labels in scanpy, and write an .h5ad"
#: Code of a missing label.
MISSING = -1
#: Cells counted at a time.
_BLOCK_CELLS = 2**20
#: What authors write for an unknown label, case folded, underscores as blanks.
_MISSING_LABEL = re.compile(
    r"|\.|-{1,3}|\?|<na>|n\.?a\.?|#?n/a|n/d|nan|missing|undetermined|undefined"
    r"|unlabell?ed|unannotated|no data"
    r"|[<(\[]?(?:unknown|unspecified|unassigned)[>)\]]?"
    r"|not (?:specified|available|applicable|collected|provided|reported|determined|known|recorded"
    r"|annotated|assigned)"
)
#: These may be a label ("none": no disease, untreated) or say that there is none.
_PERHAPS_MISSING = re.compile(r"none|null")
#: Properties that every cell has, so that "none" says that it is not known.
_ALWAYS_PRESENT = {"sex", "tissue", "cell_type", "age", "donor"}
#: Fraction of the cells from which on "none" is a label.
_COMMON = 0.05
#: A numeric column with more values than this is a measurement, not a phenotype. (Ages in years,
#: clusters and plate numbers stay below.)
_MOST_NUMERIC_VALUES = 200
#: Labels whose spellings a message names.
_MOST_JOINED = 6
_SPACES = re.compile(r"[\s_]+")
#: Characters that no reader sees.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
#: Characters that look like another: dashes, apostrophes, the micro sign.
_LOOK_ALIKE = (
    dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
    | dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u00b4"), "'")
    | {ord("\u00b5"): "\u03bc"}
)
_SEXES = {
    **dict.fromkeys(("m", "male", "males", "man", "men"), "male"),
    **dict.fromkeys(("f", "female", "females", "woman", "women"), "female"),
}
_NOT_SPECIFIED = re.compile(r"\[?NO_[A-Z0-9_]+\]?")


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
    #: Label -> its other spellings -> cells.
    joined: dict[str, dict[str, int]]


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
        label = max(same, key=lambda text: (*_preference(text), counts[text], text))
        label = _tidy((has_names and term_name(label)) or label)  # an id beside names becomes one
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
    return set() if is_common and name not in _ALWAYS_PRESENT else perhaps


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
        np.array([*codes, MISSING], dtype=_code_type(len(values)))[labels.codes],
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
            f"{ascii(text) if _tidy(text) == label else repr(text)} ({n:,} cells)"
            for text, n in spellings.items()
        ]
        texts.append(f"{label!r} also as {listed(others)}")
    return "; ".join(texts[:_MOST_JOINED]) + ("; ..." if len(texts) > _MOST_JOINED else "")


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
    """Whether a label can mean "not known"; "none" may be a label all the same, see `join_labels`."""
    text = _folded(label)
    return any(one.fullmatch(text) for one in (_MISSING_LABEL, _PERHAPS_MISSING))


def may_be_label(label: str, phenotype: str) -> bool:
    """Whether a label that was taken as not known may be one: "none", of what not every cell has."""
    return bool(_PERHAPS_MISSING.fullmatch(_folded(label))) and phenotype not in _ALWAYS_PRESENT


def _to_labels(codes: NDArray[np.integer], texts: list[str]) -> Labels:
    """Merge equal texts and set those that always mean "not known" aside."""
    counts = dict[str, int]()
    if n_empty := int(np.sum(codes < 0)):
        counts["nan"] = n_empty
    for text, count in zip(texts, count_codes(codes, len(texts)).tolist(), strict=True):
        if count:
            counts[text] = counts.get(text, 0) + count
    missing = {
        text: count for text, count in counts.items() if _MISSING_LABEL.fullmatch(_folded(text))
    }
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


def match_labels(labels: Iterable[str], values: Iterable[str]) -> dict[str, str]:
    """Find the value that each label means; a label that means none, or several, is left out.

    The same text wins; else the same token ("[T_cell]", "T_cell", "T cell"); else the same token in any
    case; else the same sex ("M", "male") or ontology term ("CL:0000236", "B cell").
    """
    labels, values = list(dict.fromkeys(labels)), list(values)
    keys: tuple[Callable[[str], str], ...] = (str, _bare, _folded, _term_or_sex)
    found: dict[str, str] = {}
    for key in keys:
        if len(found) == len(labels):
            break
        of_key: dict[str, list[str]] = defaultdict(list)
        for value in values:
            of_key[key(value)].append(value)
        for label in labels:
            same = of_key.get(key(label), [])
            if label not in found and len(same) == 1:
                found[label] = same[0]
    return found


def match_label(label: str, values: Iterable[str]) -> str | None:
    """Find the value that a label means, as `match_labels`; None if there is none."""
    return match_labels([label], values).get(label)


def match_ages(labels: Sequence[str], values: Iterable[str], *, unit: str = "y") -> dict[str, str]:
    """Find the value that each age means: as `match_labels`, else the same age or its decade.

    `unit` is that of plain numbers among the labels, see `core.cells.ages.column_unit`.
    """
    values = list(values)
    found = match_labels(labels, values)
    names = [term_name(label) or label for label in labels]
    of_age = {age_key(term_name(value) or value): value for value in reversed(values)}
    groups = group_ages(names, unit)
    of_group = match_labels(groups, values)
    for label, name, group in zip(labels, names, groups, strict=True):
        value = of_age.get(age_key(name, unit)) or of_group.get(group)
        if label not in found and value is not None:
            found[label] = value
    return found


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


def _tidy(label: str) -> str:
    """Write a label in composed characters, with single plain blanks."""
    return " ".join(unicodedata.normalize("NFC", label.translate(_INVISIBLE)).split())


def _bare(label: str) -> str:
    """Strip the brackets of a label's token, and differences between signs that look alike."""
    text = _tidy(label).translate(_LOOK_ALIKE)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _SPACES.sub("_", text)


def _folded(label: str) -> str:
    return unicodedata.normalize("NFC", _bare(label).casefold()).replace("_", " ").strip()


def _term_or_sex(label: str) -> str:
    text = _folded(term_name(label) or label)
    return _SEXES.get(text, text)


def _meaning(label: str, phenotype: PhenotypeColumn) -> str:
    """Return a text that is equal for all spellings of one label of a phenotype."""
    if is_age_name(phenotype.name):
        return age_key(term_name(label) or label, column_unit(phenotype.column))
    if phenotype.name in ("sex", "gender"):
        return _term_or_sex(label)
    text = term_name(label) or label
    return (
        _folded(text) if phenotype.name in STANDARD_PHENOTYPES or is_missing(text) else _bare(text)
    )


def _preference(label: str) -> tuple[bool, bool]:
    """Rank spellings of one label: names before ids, "male" before "M"."""
    text = _folded(label)
    return term_id(label) is None, _SEXES.get(text) == text


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
    parts = []
    for labels, n in zip(files, n_cells, strict=True):
        if labels is None:
            parts.append(np.full(n, MISSING, dtype=_code_type(len(found))))
            continue
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
        means = (match_ages if ages else match_labels)(found, usable)
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
    missing = count_missing(files)
    if lacking := sum(n for labels, n in zip(files, n_cells, strict=True) if labels is None):
        missing["(no such column)"] = lacking
    return CodedPhenotype(
        new_code[codes], values, dict(sorted(missing.items())), unmapped, count_joined(files)
    )


def _usable(given: Sequence[str], *, decades: bool) -> list[str]:
    """Values of a file without those that mean "not specified" and without brackets, ages grouped."""
    plain = [
        value[1:-1].replace("_", " ") if value.startswith("[") and value.endswith("]") else value
        for value in given
        if not _NOT_SPECIFIED.fullmatch(value) and not _MISSING_LABEL.fullmatch(_folded(value))
    ]
    return list(dict.fromkeys(group_ages(plain) if decades else plain))
