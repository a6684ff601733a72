"""Vocabularies: which values of each phenotype a model knows, and the code of each.

Learnt from training cells alone, or given as a JSON file, the originals' or our own:
`{"cell_type": ["[T_cell]", "[B_cell]"], "sex": ["female", "male"]}`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.cells.ages import age_sort_key, group_ages
from core.cells.phenotypes import (
    MISSING,
    Labels,
    PhenotypeColumn,
    code_type,
    count_codes,
    is_missing,
    match_label,
)
from core.errors import DataError

__all__ = ["CodedPhenotype", "code_phenotype", "load_vocabulary", "vocabulary_entry"]

_NOT_SPECIFIED = re.compile(r"\[?NO_[A-Z0-9_]+\]?")


@dataclass(frozen=True)
class CodedPhenotype:
    """A phenotype of all cells in the model's codes.

    Attributes
    ----------
    codes
        (cells,), index into `values` or `MISSING`; see `core.cells.phenotypes.Labels`.
    values
        In the order of the codes.
    missing
        Labels that say nothing -> cells.
    unmapped
        Labels outside the vocabulary -> cells: outside the given file, or, of a learnt
        vocabulary, met only in validation or test cells.
    """

    codes: NDArray[np.signedinteger]
    values: list[str]
    missing: dict[str, int]
    unmapped: dict[str, int]


def load_vocabulary(path: Path) -> dict[str, list[str]]:
    """Read a vocabulary file.

    Returns
    -------
    Phenotype name or obs column -> values, as they stand in the file.

    Raises
    ------
    DataError
        The file is missing, not JSON, or not lists of names by phenotype; or values repeat.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{path}: no such file; data.vocabulary must name a JSON file of phenotype values"
        raise DataError(message) from None
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); check data.vocabulary"
        raise DataError(message) from error
    except ValueError as error:
        message = f"{path}: not valid JSON ({error}); correct the vocabulary"
        raise DataError(message) from error
    well_formed = isinstance(record, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) for value in values)
        for values in record.values()
    )
    if not well_formed:
        message = f'{path}: a vocabulary has the form {{"cell_type": ["T cell", ...], ...}}'
        raise DataError(message)
    for name, values in record.items():
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            message = f"{path}: '{name}' lists {repeated[0]!r} more than once; keep it once"
            raise DataError(message)
    return {str(name): list(values) for name, values in record.items()}


def vocabulary_entry(
    vocabulary: dict[str, list[str]], phenotype: PhenotypeColumn
) -> list[str] | None:
    """Values that a file gives for a phenotype, by its name or by its obs column."""
    for key in (phenotype.name, phenotype.column):
        if key in vocabulary:
            return vocabulary[key]
    return None


def code_phenotype(
    files: Sequence[Labels | None],
    n_cells: Sequence[int],
    in_training: NDArray[np.bool_],
    *,
    given: Sequence[str] | None = None,
    ages: bool = False,
    decades: bool = False,
) -> CodedPhenotype:
    """Give every cell the code of its label.

    Parameters
    ----------
    files
        Labels of each file, None where the file lacks the column.
    n_cells
        Cells of each file.
    in_training
        (cells of all files,).
    given
        Values of a vocabulary file; None to learn them.
    ages, decades
        Whether values are ages (numeric order), and grouped.

    Returns
    -------
    Codes in the order of files and cells. A learnt vocabulary is sorted; a given one keeps the
    order of its file, in the spelling of the cells where they have the value.
    """
    found = sorted({value for labels in files if labels for value in labels.values})
    place = {value: index for index, value in enumerate(found)}
    missing: Counter[str] = Counter()
    parts = []
    for labels, n in zip(files, n_cells, strict=True):
        if labels is None:
            parts.append(np.full(n, MISSING, dtype=code_type(len(found))))
            missing["(no such column)"] += n
            continue
        missing.update(labels.missing)
        places = [place[value] for value in labels.values] + [MISSING]
        recode = np.array(places, dtype=code_type(len(found)))
        parts.append(recode[labels.codes])
    codes = np.concatenate(parts)
    per_label = count_codes(codes, len(found))
    if given is None:
        trained = count_codes(codes[in_training], len(found))
        known = [value for value, count in zip(found, trained, strict=True) if count]
        values = sorted(known, key=age_sort_key) if ages else known
        meaning = {value: value for value in values}
    else:
        values, meaning = _adopt(_ready(given, decades=decades), found)
    code_of = {value: code for code, value in enumerate(values)}
    final = [code_of[meaning[value]] if value in meaning else MISSING for value in found]
    unmapped = {
        value: int(count)
        for value, count in zip(found, per_label, strict=True)
        if value not in meaning
    }
    new_code: NDArray[np.signedinteger] = np.array([*final, MISSING], code_type(len(values)))
    return CodedPhenotype(new_code[codes], values, dict(sorted(missing.items())), unmapped)


def _ready(given: Sequence[str], *, decades: bool) -> list[str]:
    """Values of a file without those that stand for "not specified", ages grouped."""
    values = [
        value for value in given if not _NOT_SPECIFIED.fullmatch(value) and not is_missing(value)
    ]
    plain = [_plain(value) for value in values]
    return list(dict.fromkeys(group_ages(plain) if decades else plain))


def _adopt(given: list[str], found: list[str]) -> tuple[list[str], dict[str, str]]:
    """Spell given values as the cells do, and map the cells' labels to them."""
    meaning: dict[str, str] = {}
    spelling: dict[str, str] = {}
    for label in found:
        value = match_label(label, given)
        if value is not None:
            meaning[label] = spelling.setdefault(value, label)
    return [spelling.get(value, value) for value in given], meaning


def _plain(value: str) -> str:
    """Turn "[T_cell]" into "T cell"; a name without brackets stays."""
    if value.startswith("[") and value.endswith("]"):
        return value[1:-1].replace("_", " ")
    return value
