"""The manifest of a store: what its arrays mean, in one versioned JSON file.

The arrays themselves belong to `store`; how they come about to `prepare`.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import DataError

__all__ = ["FORMAT_VERSION", "MANIFEST_NAME", "Manifest", "SourceRecord"]

#: Raised by one whenever an older reader would misread a newer store.
FORMAT_VERSION = 2
#: Formats that are read: 1 had no checksums, and another random order.
_READABLE = (1, 2)
MANIFEST_NAME = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceRecord(_Record):
    """One file or built-in dataset that went into the store.

    ``role`` is "all" where the split dealt its cells, else the split the preset gave it to.
    """

    name: str
    role: Literal["all", "train", "validation", "test"]
    n_cells: int
    n_genes: int
    matrix: str
    state: str
    gene_ids: str
    fingerprint: str


class Manifest(_Record):
    """Everything about a store that is not an array.

    Attributes
    ----------
    format_version
        Of the folder's layout, see `FORMAT_VERSION`.
    key
        Hash of the settings and sources the store was prepared from: equal keys, equal stores.
    n_cells, n_values
        Rows and stored (non-zero) values.
    value_kind
        "counts" (lossless integers) or "log1p" (log1p of counts per 10,000, float32).
    gene_ids, gene_symbols, genes_hash
        Columns in the order of the arrays, and the sha256 of the ids.
    phenotypes
        Ordered: the standard five first. Values in the order of their codes.
    donors
        Names behind the donor codes, or None where no donor column was found.
    sources
        In the order of the preset.
    settings
        The store-relevant part of the preset's data section.
    seed
        Of split and permutation.
    versions
        Of the libraries that wrote the store.
    report
        What `prepare` found and decided, as nested plain values.
    checksums
        sha256 of every file but the manifest, by name; empty in format 1.
    """

    format_version: int
    key: str
    n_cells: int
    n_values: int
    value_kind: Literal["counts", "log1p"]
    gene_ids: list[str]
    gene_symbols: list[str]
    genes_hash: str
    phenotypes: dict[str, list[str]]
    donors: list[str] | None
    sources: list[SourceRecord]
    settings: dict[str, Any]
    seed: int
    versions: dict[str, str]
    report: dict[str, Any]
    checksums: dict[str, str] = {}

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read ``manifest.json`` of a store.

        Raises
        ------
        DataError
            The folder is not a store, the manifest is damaged, or a newer tfx wrote it.
        """
        path = folder / MANIFEST_NAME
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            message = (
                f"{folder}: not a store (no {MANIFEST_NAME}); make one with 'tfx prepare', or give "
                f"the folder it wrote"
            )
            raise DataError(message) from None
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}); check the file's permissions"
            raise DataError(message) from error
        except ValueError as error:
            message = f"{path}: damaged manifest ({error}); prepare the store again"
            raise DataError(message) from error
        version = record.get("format_version") if isinstance(record, dict) else None
        if version not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            message = (
                f"{path}: store format {version!r}, this tfx reads {readable}; prepare the store "
                f"again or use the tfx that wrote it"
            )
            raise DataError(message)
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = f"{path}: damaged manifest ({place}: {first['msg']}); prepare the store again"
            raise DataError(message) from error

    def to_json(self) -> str:
        """Return the text of ``manifest.json``, the same for the same store."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
