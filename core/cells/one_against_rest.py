"""A store seen with one phenotype of two values: the one that is asked for, and "not" that.

Nothing is written: the store serves every question. Filters and groups still know all values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.phenotypes import match_label, suggest
from core.cells.store import Store
from core.cells.store_tables import LabelColumn
from core.errors import ConfigurationError

__all__ = ["OneAgainstRest", "values_of_one"]


def values_of_one(positive: str) -> list[str]:
    """Return the two values, in the order of their codes."""
    return [positive, f"not {positive}"]


class OneAgainstRest(Store):
    """A store whose ``phenotype`` has the value ``positive`` (code 0), or not (1); -1 stays missing.

    Parameters
    ----------
    store
        All values.
    phenotype
        One of its phenotypes.
    positive
        One of the phenotype's values, in any spelling that `match_label` brings to it.

    Raises
    ------
    ConfigurationError
        The phenotype has no such value.
    """

    def __init__(self, store: Store, phenotype: str, positive: str) -> None:
        self.__dict__.update(store.__dict__)
        self._all_values = store
        values = store.phenotypes[phenotype]
        value = match_label(positive, values)
        if value is None:
            message = (
                f"classification.positive = {positive!r} is no value of {phenotype} in "
                f"{store.path}; {suggest(positive, values)}"
            )
            raise ConfigurationError(message)
        self.manifest = store.manifest.model_copy(
            update={"phenotypes": {**store.phenotypes, phenotype: values_of_one(value)}}
        )
        recode = np.ones(len(values) + 1, dtype=np.int32)
        recode[values.index(value)], recode[-1] = 0, -1
        slot = list(store.phenotypes).index(phenotype)
        codes: Any = _RecodedColumn(store.phenotype_codes, slot, recode)
        self.phenotype_codes = codes

    def labels(self, name: str) -> LabelColumn:
        """Labels of all cells, as `Store.labels` gives them, with all values."""
        return self._all_values.labels(name)


class _RecodedColumn:
    """(cells, phenotypes) codes, one column of which is translated as it is read."""

    def __init__(self, codes: NDArray[np.int32], slot: int, recode: NDArray[np.int32]) -> None:
        self.codes, self.slot, self.recode = codes, slot, recode
        self.shape = codes.shape

    def __getitem__(self, key: Any) -> NDArray[np.int32]:  # noqa: ANN401 (whatever numpy takes)
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        found = np.array(self.codes[rows])
        found[..., self.slot] = self.recode[found[..., self.slot]]
        return found[..., columns]
