"""Which cells are meant: ``--where`` and ``data.where``, read and applied to a store's labels.

    sex=female,tissue=lung        both conditions
    tissue=lung,spleen            either value: a piece without "=" is one more value
    tissue!=lung                  all other cells, those without a tissue included
    disease=none  or  disease=    cells without a value ([NO_DISEASE])
    cell_type='T cell, CD4'       a value with commas in quotes
    split=test, donor=D1, source=cells_1.h5ad

Only labels are read, never expression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.cells.phenotypes import is_missing, match_label, suggest
from core.errors import ConfigurationError

if TYPE_CHECKING:
    from core.cells.store import Store

__all__ = ["CellFilter", "Condition", "describe_no_match"]

_QUOTES = ("'", '"')


@dataclass(frozen=True)
class Condition:
    """One condition on the labels of a cell.

    Attributes
    ----------
    name
        A phenotype, or "split", "donor", "source".
    values
        Labels as the user wrote them, one of which a cell must have; "" is none.
    excluded
        A cell must have none of the values instead.
    """

    name: str
    values: tuple[str, ...]
    excluded: bool = False

    def __str__(self) -> str:
        """Write the condition as the user would."""
        return f"{self.name}{'!=' if self.excluded else '='}" + ",".join(map(_quote, self.values))

    def mask(self, store: "Store", *, where: str) -> NDArray[np.bool_]:
        """(cells,), cells of the store that meet the condition.

        Parameters
        ----------
        store
            Whose labels are looked up.
        where
            How the filter was given, for messages.

        Raises
        ------
        ConfigurationError
            The store has no such name or value; the nearest are named.
        """
        names = store.label_names
        if self.name not in names:
            message = (
                f"{where} {self}: {store.path} has no phenotype '{self.name}'; "
                f"{suggest(self.name, names)}"
            )
            raise ConfigurationError(message)
        column = store.labels(self.name)
        # The last place is for code -1: no value.
        wanted = np.zeros(len(column.values) + 1, dtype=bool)
        for label in self.values:
            wanted[self._code(label, column.values, store, where=where)] = True
        return wanted[column.codes] != self.excluded

    def _code(self, label: str, values: Sequence[str], store: "Store", *, where: str) -> int:
        bare = label.strip().removeprefix("[").removesuffix("]")
        if is_missing(label) or bare.casefold() == f"no_{self.name}".casefold():
            return -1
        value = match_label(label, values)
        if value is None and self.name == "source":
            named = [one for one in values if label in (PurePath(one).name, PurePath(one).stem)]
            value = named[0] if len(named) == 1 else None
        if value is None:
            hint = suggest(label, values)
            if "," in hint and self.name not in ("split", "source"):
                hint += " (a value with commas stands in quotes)"
            message = f"{where} {self}: {store.path} has no {self.name} '{label}'; {hint}"
            raise ConfigurationError(message)
        return list(values).index(value)


@dataclass(frozen=True)
class CellFilter:
    """Conditions that a cell must meet, all of them; without conditions every cell does.

    Attributes
    ----------
    conditions
        In the order given.
    where
        How the filter was given ("--where", "data.where"), for messages.
    """

    conditions: tuple[Condition, ...] = ()
    where: str = "filter"

    @classmethod
    def parse(cls, texts: str | Sequence[str], *, where: str = "filter") -> "CellFilter":
        """Read filters as users write them; several texts add conditions.

        Raises
        ------
        ConfigurationError
            A text is no condition: it lacks a name or a value, or a quote is not closed.
        """
        texts = [texts] if isinstance(texts, str) else texts
        return cls(
            tuple(condition for text in texts for condition in _parse(text, where=where)), where
        )

    def __str__(self) -> str:
        """Write the filter as the user would."""
        return ",".join(map(str, self.conditions))

    def __bool__(self) -> bool:
        """Say whether there is a condition."""
        return bool(self.conditions)

    def mask(self, store: "Store") -> NDArray[np.bool_]:
        """(cells,), cells of the store that meet every condition; errors as `Condition.mask`."""
        mask = np.ones(store.n_cells, dtype=bool)
        for condition in self.conditions:
            mask &= condition.mask(store, where=self.where)
        return mask


def describe_no_match(store: "Store", cells: CellFilter, among: NDArray[np.integer[Any]]) -> str:
    """Say how many cells meet each condition, for the message that none meets all.

    Parameters
    ----------
    store, cells
        The store and the filter that leaves nothing of it.
    among
        Rows the filter chose from.
    """
    found = [
        f"{np.count_nonzero(condition.mask(store, where=cells.where)[among]):,} match {condition}"
        for condition in cells.conditions
    ]
    return f"of {len(among):,}, " + " and ".join(found)


def _parse(text: str, *, where: str) -> list[Condition]:
    conditions: list[Condition] = []
    for before, value in _pieces(text, where=where):
        if before is None:
            if not conditions or value == "":
                message = (
                    f"{where} '{text}': '{value}' is no condition; write NAME=VALUE, as in "
                    f"sex=female,tissue=lung,spleen"
                )
                raise ConfigurationError(message)
            last = conditions.pop()
            conditions.append(Condition(last.name, (*last.values, value), last.excluded))
        else:
            name, excluded = before.removesuffix("!").strip(), before.endswith("!")
            if not name:
                message = f"{where} '{text}': '={value}' lacks a name; write NAME=VALUE"
                raise ConfigurationError(message)
            conditions.append(Condition(name, (value,), excluded))
    return conditions


def _pieces(text: str, *, where: str) -> list[tuple[str | None, str]]:
    """Cut at the commas outside quotes: (what stands before "=", or None, and the value).

    A quote counts where a value begins: the apostrophe of "Crohn's disease" is a letter.
    """
    pieces: list[tuple[str | None, str]] = []
    position = 0
    while position <= len(text):
        stop = _end(text, position)
        name: str | None = None
        if not text[position:stop].lstrip().startswith(_QUOTES) and "=" in text[position:stop]:
            name = text[position : text.index("=", position)]
            position += len(name) + 1
        value = text[position:stop].strip()
        if value.startswith(_QUOTES):
            opening = text.index(value[0], position)
            closing = text.find(value[0], opening + 1)
            stop = _end(text, closing)
            if closing < 0 or text[closing + 1 : stop].strip():
                message = (
                    f"{where} '{text}': the quote at character {opening + 1} is not closed at the "
                    f"end of its value"
                )
                raise ConfigurationError(message)
            value = text[opening + 1 : closing]
        pieces.append((None if name is None else name.strip(), value))
        position = stop + 1
    return pieces


def _end(text: str, position: int) -> int:
    comma = text.find(",", position)
    return len(text) if comma < 0 else comma


def _quote(value: str) -> str:
    if "," not in value and "=" not in value and not value.startswith(_QUOTES):
        return value or "none"
    return f'"{value}"' if "'" in value else f"'{value}'"
