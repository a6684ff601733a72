"""A store in which a phenotype has two values: one of its own, and the rest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.spelling import match_label, suggest
from core.cells.store import Store
from core.errors import ConfigurationError


def values_of_one(positive: str) -> list[str]:
    """Return the two values of a one-vs-rest phenotype, in the order of their codes."""
    return [positive, f"not {positive}"]


class OneVsRest(Store):
    """A store whose `phenotype` has the value `positive` (code 0) or not (1); -1 stays missing.

    Nothing is written, and filters still know all values. `positive` may have any spelling that
    `match_label` accepts; ConfigurationError if the phenotype has no such value.
    """

    def __init__(self, store: Store, phenotype: str, positive: str) -> None:
        self.__dict__.update(store.__dict__)
        values = store.phenotypes[phenotype]
        value = match_label(positive, values)
        if value is None:
            raise ConfigurationError(
                f"classification.positive = {positive!r} is no value of {phenotype} in "
                f"{store.path}; {suggest(positive, values)}"
            )
        self.phenotypes = {**store.phenotypes, phenotype: values_of_one(value)}
        recode = np.ones(len(values) + 1, dtype=np.int32)
        recode[values.index(value)], recode[-1] = 0, -1
        column = list(store.phenotypes).index(phenotype)
        codes: Any = _RecodedColumn(store.phenotype_codes, column, recode)
        self.phenotype_codes = codes


class _RecodedColumn:
    """(cells, phenotypes) codes, one column of which is translated as it is read."""

    def __init__(self, codes: NDArray[np.int32], column: int, recode: NDArray[np.int32]) -> None:
        self.codes, self.column, self.recode = codes, column, recode
        self.shape = codes.shape

    def __getitem__(self, key: Any) -> NDArray[np.int32]:  # noqa: ANN401 (whatever numpy takes)
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        found = np.array(self.codes[rows])
        found[..., self.column] = self.recode[found[..., self.column]]
        return found[..., columns]
