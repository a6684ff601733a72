"""What the JSON files of a model folder may say, held against it before anything is built of them.

A model folder may come from a stranger. Types, ranges and names are checked here; that arrays and
weights have the shapes which these records promise is `folder_shapes`' business.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from core.cells.genes import GenePanel
from core.errors import DataError
from core.model.configuration import TfxConfig
from core.presets.schema import GenerateSettings, MaskingSettings
from core.renamed import current_model_record, current_section

__all__ = [
    "FORMAT_VERSION",
    "FolderRecord",
    "read_config",
    "read_genes",
    "read_json",
    "read_record",
]

FORMAT_VERSION = 2
_COPY = "copy the model folder again"
_Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_AnyRecord = TypeVar("_AnyRecord", bound=BaseModel)
_Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class _ConfigRecord(_Record):
    """``config.json``: the arguments of `TfxConfig`. Other keys are transformers' own, and skipped."""

    model_type: Literal["tfx"]
    phenotype_names: list[_Name]
    phenotype_values: list[list[_Name]]
    n_genes: int = Field(ge=1, le=10**7)
    n_bins: int = Field(ge=2, le=256)
    kind: Literal["binary", "binned", "continuous"]
    layout: Literal["ranked", "expressed"]
    longest_sequence: int = Field(ge=1, le=10**8)
    hidden_size: int = Field(ge=1, le=10**6)
    layers: int = Field(ge=0, le=10**4)
    heads: int = Field(ge=1, le=10**6)
    intermediate_size: int = Field(ge=1, le=10**7)
    dropout: _Share
    attention_dropout: _Share
    norm: Literal["post", "pre"]
    activation: Literal["gelu", "geglu"]
    attention: Literal["auto", "varlen", "flash", "sdpa", "cpu", "eager"]
    head: Literal["split", "joint"]
    log_linear: bool
    log_linear_rank: int = Field(ge=0, le=10**7)
    cell_states: int = Field(0, ge=0, le=10**5)
    cell_summary: bool = False
    cls_reconstruction: bool = False
    cls_contrast: bool = False
    classified: _Name | None = None
    given: list[_Name] = []
    positive: _Name | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        complaint = ""
        if len(self.phenotype_names) != len(self.phenotype_values):
            complaint = "phenotype_names and phenotype_values differ in number"
        elif len(set(self.phenotype_names)) != len(self.phenotype_names):
            complaint = "a phenotype occurs twice"
        elif any(len(set(values)) != len(values) for values in self.phenotype_values):
            complaint = "a value of a phenotype occurs twice"
        elif not all(self.phenotype_values):
            complaint = "a phenotype has no values"
        elif self.hidden_size % self.heads:
            complaint = "hidden_size is no multiple of heads"
        elif {*self.given, *filter(None, [self.classified])} - set(self.phenotype_names):
            complaint = "a classifier's phenotype is none of the phenotypes"
        if complaint:
            raise ValueError(complaint)
        return self


class _GenesRecord(_Record):
    """``genes.json``: the panel, in the order of the network."""

    ids: list[_Name] = Field(min_length=1)
    symbols: list[_Name]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.ids) != len(self.symbols):
            message = f"{len(self.ids)} ids but {len(self.symbols)} symbols"
            raise ValueError(message)
        if len(set(self.ids)) != len(self.ids):
            message = "a gene occurs twice"
            raise ValueError(message)
        return self


class _Provenance(_Record):
    """Facts for the card and for provenance; those that code reads have a type."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)

    name: str = ""
    step: int = Field(0, ge=0)
    total_steps: int = Field(0, ge=0)
    sources: list[str] = []
    simulated: bool = False
    store: str = ""
    store_key: str = ""
    split: str = ""
    validation: dict[str, float | None] = {}


class FolderRecord(BaseModel):
    """``tfx.json``.

    Attributes
    ----------
    masking, generate
        How the model was trained, and defaults of generation.
    provenance
        Data, splits, step, figures, versions.
    sha256
        Of every file that is read.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    masking: MaskingSettings
    generate: GenerateSettings
    provenance: dict[str, Any]
    sha256: dict[str, str]


def read_record(folder: Path) -> FolderRecord:
    """Read ``tfx.json``.

    Raises
    ------
    DataError
        It is missing, of another format, or does not say what it must.
    """
    path = folder / "tfx.json"
    record = read_json(path, folder)
    version = record.get("format_version")
    if version not in (1, FORMAT_VERSION):
        message = f"{folder}: model format {version!r}, this tfx reads up to {FORMAT_VERSION}; use the tfx that wrote it"
        raise DataError(message)
    record = current_model_record(record)
    found = _checked(FolderRecord, record, path)
    _checked(_Provenance, found.provenance, path)
    return found


def read_config(folder: Path) -> TfxConfig:
    """Read ``config.json``; its keys of other kinds, which may name code to run, are not looked at.

    Raises
    ------
    DataError
        It does not describe a model of cells.
    """
    path = folder / "config.json"
    record = _checked(_ConfigRecord, current_section("model", read_json(path, folder)), path)
    return TfxConfig(**record.model_dump(exclude={"model_type"}))


def read_genes(folder: Path) -> GenePanel:
    """Read ``genes.json``.

    Raises
    ------
    DataError
        It does not list genes.
    """
    path = folder / "genes.json"
    record = _checked(_GenesRecord, read_json(path, folder), path)
    return GenePanel(tuple(record.ids), tuple(record.symbols))


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises
    ------
    DataError
        It is missing, unreadable, or no object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        message = f"{folder}: not a model folder ({path.name} is missing); give a run or the model folder inside it"
        raise DataError(message) from None
    except RecursionError:
        message = f"{path}: nested too deeply for a model folder; {_COPY}"
        raise DataError(message) from None
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error}); {_COPY}"
        raise DataError(message) from error
    if not isinstance(record, dict):
        message = f"{path}: expected a JSON object; {_COPY}"
        raise DataError(message)
    return record


def _checked(kind: type[_AnyRecord], record: dict[str, Any], path: Path) -> _AnyRecord:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        message = f"{path}: {f'{where}: ' if where else ''}{said[:1].lower()}{said[1:]}; {_COPY}"
        raise DataError(message) from None
