"""Filters of cells: ``--where`` and ``data.where``, parsed and applied to label columns.

    sex=female,tissue=lung        both conditions
    tissue=lung,liver             either value: a piece without "=" is one more value
    tissue!=lung                  all other cells, those without a tissue included
    disease=none  or  disease=    cells without a value ([NO_DISEASE])
    cell_type='T cell, CD4'       a value with commas, quoted
    split=test, donor=D1, source=cells_1.h5ad

Only labels are read, never expression.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.cells.spelling import is_missing, match_label, suggest
from core.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

_QUOTES = ("'", '"')
#: What is between two commas outside quotes: a name and "=", if any, and a value, quoted or bare. A quote
#: counts where a value begins: the apostrophe of "Crohn's disease" is a letter.
_PIECE = re.compile(
    r"""\s*+(?:(?!['"])([^,=]*)=)?\s*+(?:(['"])((?:(?!\2).)*)\2\s*(?=,|\Z)|([^,]*))""", re.DOTALL
)


@dataclass(frozen=True)
class Condition:
    """One condition on the labels of a cell; a cell must have one of `values`, or none if excluded."""

    #: A phenotype, or "split", "donor", "source".
    name: str
    #: As the user wrote them; "" means that the label is missing.
    values: tuple[str, ...]
    excluded: bool = False

    def __str__(self) -> str:
        """Write the condition as the user would."""
        return f"{self.name}{'!=' if self.excluded else '='}" + ",".join(map(_quote, self.values))

    def mask(
        self, labels: "Mapping[str, pd.Categorical[str]]", store: str, *, where: str
    ) -> NDArray[np.bool_]:
        """(cells,), whether each cell meets the condition; see `CellFilter.mask`."""
        if self.name not in labels:
            raise ConfigurationError(
                f"{where} {self}: {store} has no phenotype '{self.name}'; {suggest(self.name, labels)}"
            )
        column = labels[self.name]
        known = list(column.categories)
        # The last entry is for code -1: no value.
        wanted = np.zeros(len(known) + 1, dtype=bool)
        for label in self.values:
            wanted[self._code(label, known, store, where=where)] = True
        mask: NDArray[np.bool_] = wanted[column.codes] != self.excluded
        return mask

    def _code(self, label: str, known: list[str], store: str, *, where: str) -> int:
        bare = label.strip().removeprefix("[").removesuffix("]")
        value = match_label(label, known)  # "none" may be a label
        if value is None and (is_missing(label) or bare.casefold() == f"no_{self.name}".casefold()):
            return -1
        if value is None and self.name == "source":
            named = [one for one in known if label in (PurePath(one).name, PurePath(one).stem)]
            value = named[0] if len(named) == 1 else None
        if value is None:
            hint = suggest(label, known)
            if "," in hint and self.name not in ("split", "source"):
                hint += " (quote a value that has commas)"
            raise ConfigurationError(
                f"{where} {self}: {store} has no {self.name} '{label}'; {hint}"
            )
        return known.index(value)


@dataclass(frozen=True)
class CellFilter:
    """Conditions that a cell must all meet; without conditions every cell does.

    Every method raises ConfigurationError if a text is no condition, or if there is no such label column
    or value; the message names the nearest.
    """

    conditions: tuple[Condition, ...] = ()
    #: How the filter was given ("--where", "data.where"), for messages.
    where: str = "filter"

    @classmethod
    def parse(cls, texts: str | Sequence[str], *, where: str = "filter") -> "CellFilter":
        """Read filters as users write them; several texts add conditions."""
        texts = [texts] if isinstance(texts, str) else texts
        return cls(tuple(one for text in texts for one in _parse(text, where=where)), where)

    def __str__(self) -> str:
        """Write the filter as the user would."""
        return ",".join(map(str, self.conditions))

    def __bool__(self) -> bool:
        """Whether there is a condition."""
        return bool(self.conditions)

    def mask(
        self, labels: "Mapping[str, pd.Categorical[str]]", n_cells: int, store: str
    ) -> NDArray[np.bool_]:
        """(cells,), whether each cell meets every condition; `store` is its name for messages."""
        mask = np.ones(n_cells, dtype=bool)
        for condition in self.conditions:
            mask &= condition.mask(labels, store, where=self.where)
        return mask

    def describe_no_match(
        self, labels: "Mapping[str, pd.Categorical[str]]", among: NDArray[np.integer[Any]]
    ) -> str:
        """Count the cells among some rows that meet each condition, if none meets all."""
        found = [
            f"{np.count_nonzero(one.mask(labels, '', where='')[among]):,} match {one}"
            for one in self.conditions
        ]
        return f"of {len(among):,}, " + " and ".join(found)


def _parse(text: str, *, where: str) -> list[Condition]:
    conditions: list[Condition] = []
    position = 0
    while position <= len(text):
        piece = _PIECE.match(text, position)
        assert piece is not None, "every part of it may be empty"
        before, _, quoted, bare = piece.groups()
        value = bare.strip() if quoted is None else quoted
        problem = ""
        if quoted is None and value.startswith(_QUOTES):
            opening = text.index(value[0], piece.start(4))
            problem = f"the quote at character {opening + 1} is not closed at the end of its value"
        elif before is not None:
            name = before.strip().removesuffix("!").strip()
            conditions.append(Condition(name, (value,), excluded=before.strip().endswith("!")))
            if not name:
                problem = f"'={value}' lacks a name; write NAME=VALUE"
        elif conditions and value:
            conditions[-1] = replace(conditions[-1], values=(*conditions[-1].values, value))
        else:
            example = "sex=female,tissue=lung,liver"
            problem = f"'{value}' is no condition; write NAME=VALUE, as in {example}"
        if problem:
            raise ConfigurationError(f"{where} '{text}': {problem}")
        position = piece.end() + 1
    return conditions


def _quote(value: str) -> str:
    if "," not in value and "=" not in value and not value.startswith(_QUOTES):
        return value or "none"
    return f'"{value}"' if "'" in value else f"'{value}'"
