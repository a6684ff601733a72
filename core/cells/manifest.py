"""The manifest of a store: what its arrays mean, in one versioned JSON file, and their checksums."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import DataError
from core.files import file_json, sha256_of
from core.progress import Listener, ProgressEvent, ignore_progress

#: Raised by one whenever an older reader would misread a newer store.
FORMAT_VERSION = 2
#: Formats that are read: 1 had no checksums, and another random order.
_READABLE = (1, 2)
MANIFEST_NAME = "manifest.json"


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
            record = file_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: not a store (no {MANIFEST_NAME}); make one with 'tfx prepare', or give "
                f"the folder it wrote"
            ) from None
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); check the file's permissions"
            ) from error
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
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}: damaged manifest ({place}: {first['msg']}); prepare the store again"
            ) from error

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, the same for the same store."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def verify_store(path: Path, *, on_progress: Listener = ignore_progress) -> int:
    """Compare every file of a store with the checksum in its manifest; return the number of files.

    Raises
    ------
    DataError
        The folder is no store, has no checksums (format 1), or files are missing or were changed;
        the message names them.
    """
    manifest = Manifest.load(path)
    if not manifest.checksums:
        raise DataError(
            f"{path}: a store of format {manifest.format_version}, which has no checksums; prepare "
            f"it again to get them"
        )
    missing = [name for name in manifest.checksums if not (path / name).exists()]
    sizes = {
        name: (path / name).stat().st_size for name in manifest.checksums if name not in missing
    }
    changed = []
    done, total = 0, sum(sizes.values())
    for name, n_bytes in sizes.items():
        on_progress(ProgressEvent("verifying", done, total))
        if sha256_of(path / name) != manifest.checksums[name]:
            changed.append(name)
        done += n_bytes
    on_progress(ProgressEvent("verifying", done, total))
    faults = [f"{', '.join(changed)} changed since it was prepared"] if changed else []
    faults += [f"{', '.join(missing)} missing"] if missing else []
    if faults:
        raise DataError(
            f"{path}: damaged store ({'; '.join(faults)}); delete it and prepare it again, or copy "
            f"it again from where it is whole"
        )
    return len(manifest.checksums)
