"""Vocabularies: the values of a phenotype, whose places are the codes of labels.

A vocabulary is learnt from training cells alone, or given as a JSON file in our own or the published form:
`{"cell_type": ["[T_cell]", "[B_cell]"], "sex": ["female", "male"]}`.
"""

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
    check_lengths,
    code_type,
    count_codes,
    count_joined,
    count_missing,
)
from core.cells.spelling import match_ages, match_labels, never_label
from core.errors import DataError
from core.files import file_json

_NOT_SPECIFIED = re.compile(r"\[?NO_[A-Z0-9_]+\]?")


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
            parts.append(np.full(n, MISSING, dtype=code_type(len(found))))
            continue
        places = [place[value] for value in labels.values] + [MISSING]
        recode = np.array(places, dtype=code_type(len(found)))
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
    new_code: NDArray[np.signedinteger] = np.array([*final, MISSING], code_type(len(values)))
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
        if not _NOT_SPECIFIED.fullmatch(value) and not never_label(value)
    ]
    return list(dict.fromkeys(group_ages(plain) if decades else plain))
