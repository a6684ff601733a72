"""The labels of a store's cells as tables, and any subset of its cells as AnnData."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.genes import GenePanel

if TYPE_CHECKING:
    from anndata import AnnData

    from core.cells.store import Store

__all__ = ["LabelColumn", "make_anndata", "make_phenotype_table"]


@dataclass(frozen=True)
class LabelColumn:
    """One label of each cell of a store.

    Attributes
    ----------
    codes
        (cells,), integers into `values`, -1 where missing; read-only.
    values
        In the order of their codes.
    """

    codes: NDArray[np.integer[Any]]
    values: Sequence[str]

    def categorical(self, rows: NDArray[np.integer[Any]] | None = None) -> "pd.Categorical[str]":
        """Labels of some cells, or of all, as a pandas categorical with all values."""
        codes = np.asarray(self.codes if rows is None else self.codes[rows])
        return pd.Categorical.from_codes(codes, pd.Index(list(self.values)))


def make_phenotype_table(
    store: "Store", rows: NDArray[np.integer[Any]] | None = None
) -> pd.DataFrame:
    """See `Store.phenotype_table`."""
    index = np.arange(store.n_cells) if rows is None else rows
    return pd.DataFrame(
        {name: store.labels(name).categorical(rows) for name in store.phenotypes},
        index=pd.Index(index, name="row"),
    )


def make_anndata(
    store: "Store",
    rows: NDArray[np.int64],
    panel: GenePanel,
    values: Literal["log1p", "counts"],
) -> "AnnData":
    """See `Store.to_anndata`."""
    from anndata import AnnData  # 400 ms that reading batches does without

    obs: dict[str, Any] = {name: store.labels(name).categorical(rows) for name in store.phenotypes}
    for name in ("donor", "split", "source"):
        if name != "donor" or store.donors is not None:
            obs[f"tfx_{name}"] = store.own_labels(name).categorical(rows)
    obs["tfx_row"] = store.origins[rows, 1]
    return AnnData(
        X=store.read(rows, panel) if values == "log1p" else store.read_counts(rows, panel),
        obs=pd.DataFrame(obs, index=_cell_names(store.origins[rows])),
        var=pd.DataFrame({"gene_symbol": list(panel.symbols)}, index=pd.Index(panel.ids)),
        uns={
            "tfx": {
                "store": store.manifest.key,
                "values": "counts" if values == "counts" else "log1p counts per 10,000",
            }
        },
    )


def _cell_names(origins: NDArray[np.int64]) -> "pd.Index[str]":
    """(cells,) SOURCE-ROW by number; a cell that comes again gets -1, -2 and so on behind it."""
    names = pd.Series([f"{source}-{row}" for source, row in origins.tolist()], dtype=object)
    again = names.groupby(names).cumcount()
    return pd.Index(names.where(again == 0, names + "-" + again.astype(str)), dtype=object)
