"""Known labels of new cells, to show to a model: ``tissue`` from an obs column, in its spelling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.cells.phenotypes import (
    PhenotypeColumn,
    group_ages,
    match_label,
    nearest,
    read_labels,
    suggest,
)
from core.cells.reading import CellSource
from core.errors import ConfigurationError, DataError
from core.model.configuration import TfxConfig
from core.presets.schema import STANDARD_PHENOTYPES


@dataclass(frozen=True)
class Hint:
    """Known labels of one phenotype, read from an obs column.

    ``codes`` are (cells,), the model's, -1 where the label is missing or unknown to the model;
    ``unknown`` maps labels that the model does not know to numbers of cells.
    """

    name: str
    slot: int
    column: str
    codes: NDArray[np.int32]
    unknown: dict[str, int]


def read_hint(source: CellSource, config: TfxConfig, wanted: str) -> Hint:
    """Read the labels of one phenotype.

    Parameters
    ----------
    wanted
        "tissue", or "tissue=my_column"; the default column is that of the CELLxGENE schema, else the
        phenotype's name.

    Raises
    ------
    ConfigurationError
        The model has no such phenotype.
    DataError
        The column does not exist, or the model knows none of its labels.
    """
    name, _, column = wanted.partition("=")
    if name not in config.phenotypes:
        message = f"--given {wanted}: the model has no phenotype '{name}'; {suggest(name, config.phenotypes)}"
        raise ConfigurationError(message)
    if config.classified is not None and name not in (config.classified, *config.given):
        known = ", ".join(config.given) or "it knows none"
        message = (
            f"--given {wanted}: this classifier of {config.classified} was not trained with {name} "
            f"given ({known})"
        )
        raise ConfigurationError(message)
    slot = config.phenotype_names.index(name)
    if not column:
        candidates = [STANDARD_PHENOTYPES.get(name, name), name]
        present = source.obs_columns(candidates).columns
        column = next((one for one in candidates if one in present), candidates[0])
    wanted_column = PhenotypeColumn(name, column, explicit=True)
    labels = read_labels(source.obs_columns([column]), wanted_column, where=source.name)
    assert labels is not None, "an explicit column exists, or read_labels raises"
    values = config.phenotypes[name]
    found = _codes(labels.values, values)
    if config.positive is not None and name == config.classified:
        found[found < 0] = 1  # any other label is "not" the one
    if len(labels.values) and (found < 0).all():
        near = nearest(labels.values[0], values)
        message = (
            f"{source.name}: the model knows none of the labels of '{column}' as {name} "
            f"({_first(labels.values)}); it knows {_first(values)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
        raise DataError(message)
    codes = np.append(found, -1).astype(np.int32)[labels.codes]
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.values))
    unknown = {
        label: int(n)
        for label, code, n in zip(labels.values, found, counts, strict=True)
        if code < 0
    }
    return Hint(name, slot, column, codes, unknown)


def _codes(labels: Sequence[str], values: Sequence[str]) -> NDArray[np.int64]:
    """(labels,), the code of each; ages also by their decade."""
    known = list(values)
    codes = []
    for label, group in zip(labels, group_ages(labels), strict=True):
        match = match_label(label, known) or match_label(group, known)
        codes.append(known.index(match) if match is not None else -1)
    return np.array(codes, dtype=np.int64)


def _first(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:4])) + (", ..." if len(values) > 4 else "")
