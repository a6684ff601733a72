"""The manifest of a store: what its arrays mean, in one versioned JSON file, and their checksums.

``manifest.sha256`` beside it holds its own checksum, in the form of sha256sum.
"""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import DataError, MachineError, TfxError
from core.files import file_bytes

#: Raised by one whenever an older reader would misread a newer store.
FORMAT_VERSION = 2
#: Formats that are read: 1 had no checksums, and another random order.
_READABLE = (1, 2)
MANIFEST_NAME = "manifest.json"
MANIFEST_SUM_NAME = "manifest.sha256"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceRecord(_Record):
    """One file or built-in dataset of a store; `role` is "all" if the split divided its cells."""

    name: str
    role: Literal["all", "train", "validation", "test"]
    n_cells: int
    n_genes: int
    matrix: str
    state: str
    gene_ids: str
    fingerprint: str


class Manifest(_Record):
    """Everything about a store that is not an array."""

    format_version: int
    #: Hash of the settings and sources: equal keys, equal stores.
    key: str
    n_cells: int
    n_values: int
    #: Lossless integers, or log1p of counts per 10,000 in float32.
    value_kind: Literal["counts", "log1p"]
    #: Columns in the order of the arrays, and the sha256 of the ids.
    gene_ids: list[str]
    gene_symbols: list[str]
    genes_hash: str
    #: Ordered: the standard five first. Values in the order of their codes.
    phenotypes: dict[str, list[str]]
    #: Names of the donor codes, or None where no donor column was found.
    donors: list[str] | None
    sources: list[SourceRecord]
    #: The part of the preset's data section that the store depends on.
    settings: dict[str, Any]
    #: Of split and permutation.
    seed: int
    #: Of the libraries that wrote the store.
    versions: dict[str, str]
    #: What `prepare` found and decided, as nested plain values.
    report: dict[str, Any]
    #: sha256 of every file but the manifest, by name; empty in format 1.
    checksums: dict[str, str] = {}

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read ``manifest.json``; DataError if it is absent or damaged, or if a newer tfx wrote it."""
        path = folder / MANIFEST_NAME
        try:
            text = file_bytes(path)
            record = json.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: not a store (no {MANIFEST_NAME}); make one with 'tfx prepare', or give "
                f"the folder it wrote"
            ) from None
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:
            raise DataError(
                f"{path}: damaged manifest ({error}); prepare the store again"
            ) from error
        version = record.get("format_version") if isinstance(record, dict) else None
        if version not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            raise DataError(
                f"{path}: store format {version!r}, this tfx reads {readable}; prepare the store "
                f"again or use the tfx that wrote it"
            )
        try:
            manifest = cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}: damaged manifest ({place}: {first['msg']}); prepare the store again"
            ) from error
        sum_path = folder / MANIFEST_SUM_NAME
        if sum_path.exists() and sum_path.read_text(errors="replace") != _sum_line(text):
            raise DataError(
                f"{path}: damaged, it is not as {MANIFEST_SUM_NAME} says; prepare the store again, or copy "
                f"it again from where it is whole"
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` and its checksum, the same for the same store."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST_NAME).write_bytes(text.encode())
        (folder / MANIFEST_SUM_NAME).write_text(_sum_line(text.encode()), encoding="utf-8")


def unreadable(path: Path, error: OSError) -> TfxError:
    """Return the error of a file of a store that cannot be opened: of the machine, if that lacks something."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return MachineError(
            f"{path}: cannot be opened ({error.strerror}); close other programs, or raise the limit "
            f"(ulimit -n for open files)"
        )
    return DataError(f"{path}: cannot be read ({error.strerror}); check the file's permissions")


def _sum_line(text: bytes) -> str:
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST_NAME}\n"
