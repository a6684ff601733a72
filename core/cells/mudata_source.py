"""The RNA of a MuData file (.h5mu): its modality "rna", with the obs columns of the whole file."""

from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING

from core.cells.stored_source import StoredSource
from core.errors import DataError

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

_MODALITY = "rna"


class RnaSource(StoredSource):
    """Cells of the modality "rna" of an open file; a DataError if there is none.

    An obs column of the whole file counts where the modality has none of its name. Copies of the columns of
    modalities ("rna:cell_type") are left out.
    """

    def __init__(self, file: "h5py.File", name: str) -> None:
        modalities = list(file["mod"])
        if _MODALITY not in modalities:
            raise DataError(
                f"{name}: a MuData file without the modality 'rna' (it has {', '.join(modalities)}); write the "
                f"modality with the genes to an .h5ad file (mdata['NAME'].write_h5ad)"
            )
        super().__init__(file[f"mod/{_MODALITY}"], name, close=file.close)
        self._whole = StoredSource(file, name)
        self._prefixes = tuple(f"{modality}:" for modality in modalities)

    @cached_property
    def obs(self) -> "pd.DataFrame":
        own: pd.DataFrame = super().obs
        return own.join(self._of_whole(self._whole.obs, list(own.columns)))

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        table = super().obs_columns(names)
        own = table.attrs["columns"]
        whole = self._whole.obs_columns(set(names) - set(own))
        others = [name for name in whole.attrs["columns"] if self._counts(name, own)]
        if len(whole.columns):
            whole.index = self._whole.obs_names
            for name, column in self._of_whole(whole, own).items():
                table[name] = column.array
        table.attrs["columns"] = [*own, *others]
        return table

    def to_memory(self) -> "AnnData":
        """Load the modality, with all obs columns."""
        from anndata.io import read_elem

        with self._readable("rna"):
            adata: AnnData = read_elem(self._group)
        adata.obs = self.obs
        return adata

    def _counts(self, column: str, own: Collection[str]) -> bool:
        return column not in own and not column.startswith(self._prefixes)

    def _of_whole(self, table: "pd.DataFrame", own: Collection[str]) -> "pd.DataFrame":
        """Take the rows of the modality's cells, and the columns that it has not."""
        with self._readable("obs"):
            rows = self._whole.obs_names.get_indexer(self.obs_names)
            if (rows < 0).any():
                raise DataError(f"{self.name}: obs of the file lacks cells of its modality 'rna'")
            kept = [name for name in table.columns if self._counts(str(name), own)]
            taken = table[kept].iloc[rows]
            taken.index = self.obs_names
        return taken
