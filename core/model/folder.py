"""The model folder: one self-contained directory that loads offline, on CPU, without the store.

    model.safetensors, config.json   weights and shapes (transformers' own format)
    genes.json                       the panel: ids and symbols in order
    encoding.json, encoding.safetensors   kind of encoding; edges; values per bin
    reference.safetensors            joint phenotype counts and mean profiles of training cells
    tfx.json                         format version, transform, provenance, calibration, generation
                                     defaults, sha256
    README.md                        the model card

No pickle. It is written beside its place and renamed, so that a reader never sees half a folder. JSON
files must have the right types, ranges and names, arrays and weights the shapes that those promise;
weights are judged by the header of their file, so that one that promises terabytes costs nothing.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from core.cells.genes import GenePanel
from core.encoding.batches import BatchEncoder
from core.encoding.values import ValueEncoder, ValueTable
from core.errors import ConfigurationError, DataError, MachineError
from core.files import file_json, open_file, sha256_of, share_as_folder
from core.folders import read_settled
from core.model.calibration import PhenotypeCalibration
from core.model.card import model_card
from core.model.cell_model import TfxModel
from core.model.configuration import REQUIRED_FIELDS, ModelRecord, Name, TfxConfig
from core.model.reference import SIZE_QUANTILES, Reference, current_reference
from core.presets.schema import GenerateSettings, MaskingSettings
from core.renamed import current_model_record, current_section, current_tensors
from core.wording import first_line

_JSON_FILES = ("config.json", "genes.json", "encoding.json")
CHECKED_FILES = ("model.safetensors", *_JSON_FILES, "encoding.safetensors", "reference.safetensors")


@dataclass(repr=False)
class CellModel:
    """A network with everything needed to use it on cells."""

    network: TfxModel
    #: Genes, in the order of the network.
    panel: GenePanel
    values: ValueEncoder
    table: ValueTable
    reference: Reference
    #: How it was trained: a fixed-rate model makes a poor generator.
    masking: MaskingSettings
    #: Defaults of generation.
    generate: GenerateSettings
    #: Facts for the card: data, splits, step, metrics, versions.
    provenance: dict[str, Any] = field(default_factory=dict)
    #: Phenotype -> its temperature and thresholds; empty if it was not calibrated.
    calibration: dict[str, PhenotypeCalibration] = field(default_factory=dict)
    #: Where it was loaded from; None for a model that was made here.
    folder: Path | None = None

    def __repr__(self) -> str:
        """Describe the model in a few lines."""
        config, facts = self.config, self.provenance
        phenotypes = ", ".join(f"{name} ({len(v)})" for name, v in config.phenotypes.items())
        bins = f"{config.n_bins} bins" if config.kind == "binned" else "log values"
        encoder = f"{config.layers} layers of width {config.hidden_size}"
        log_linear = "" if self.network.log_linear is None else "log-linear part"
        parts = " + ".join(part for part in (encoder if config.layers else "", log_linear) if part)
        n_weights = sum(tensor.numel() for tensor in self.network.parameters())
        simulated = " (simulated)" if facts.get("simulated") else ""
        return (
            f"CellModel {facts.get('name', 'without a name')}, step {facts.get('step', 0)}\n"
            f"  genes       {config.n_genes:,} ({', '.join(self.panel.symbols[:3])}, ...)\n"
            f"  phenotypes  {phenotypes or 'none'}\n"
            f"  encoding    {config.kind}, {bins}, {config.layout} layout\n"
            f"  network     {parts}, {n_weights:,} weights\n"
            f"  trained on  {self.reference.n_cells({}):,} cells{simulated}"
        )

    @property
    def config(self) -> TfxConfig:
        """The network's configuration."""
        config: TfxConfig = self.network.config
        return config

    @property
    def batches(self) -> BatchEncoder:
        """An encoder of cells into this model's batches."""
        config = self.config
        return BatchEncoder(
            config.tokens,
            self.values,
            max_length=config.longest_sequence,
            with_library_size=config.library_size,
        )

    def save(self, folder: Path, *, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write the folder, replacing an older one only when the new one is complete.

        ``weights`` are whole weights and buffers, where the network holds shards of them. If the folder
        cannot be written, an older one stays, and MachineError is raised.
        """
        folder = Path(folder)
        partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self._write(partial, self.network.state_dict() if weights is None else weights)
            outgoing = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            if folder.exists():
                folder.rename(outgoing)
            partial.rename(folder)
            shutil.rmtree(outgoing, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MachineError(f"model folder {folder} cannot be written ({reason})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        # Not save_pretrained: it draws a progress bar of its own and shards by size.
        weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
        save_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
        share_as_folder(folder / "model.safetensors")
        self.config.architectures = [type(self.network).__name__]
        self.config.save_pretrained(folder)
        genes = {"ids": list(self.panel.ids), "symbols": list(self.panel.symbols)}
        _write_json(folder / "genes.json", genes)
        encoding = {"kind": self.values.kind, "n_bins": self.values.n_bins}
        _write_json(folder / "encoding.json", encoding)
        arrays = {
            "edges": self.values.edges,
            "quantiles": self.table.quantiles,
            "means": self.table.means,
        }
        _save_arrays(arrays, folder / "encoding.safetensors")
        names = [one.name for one in fields(Reference)]
        arrays = {name: getattr(self.reference, name) for name in names}
        _save_arrays(arrays, folder / "reference.safetensors")
        card = model_card(
            self.config, self.panel, self.reference, self.masking, self.provenance, self.calibration
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_json(
            folder / "tfx.json",
            {
                "format_version": FORMAT_VERSION,
                "transform": "log1p of counts per 10,000 over all genes of the cell's file",
                "masking": self.masking.model_dump(),
                "generate": self.generate.model_dump(),
                "provenance": self.provenance,
                "calibration": {name: one.model_dump() for name, one in self.calibration.items()},
                "sha256": {name: sha256_of(folder / name) for name in CHECKED_FILES},
            },
        )

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str = "cpu") -> "CellModel":
        """Read a model folder; a `DataError` if a file is missing or altered, or its format is newer."""
        return read_settled(Path(folder), lambda place: cls._load(place, device))

    @classmethod
    def _load(cls, folder: Path, device: torch.device | str) -> "CellModel":
        record = read_record(folder)
        for name in CHECKED_FILES:
            if not (folder / name).is_file():
                raise DataError(f"{folder}: {name} is missing; copy the whole model folder again")
            if record.sha256.get(name) != sha256_of(folder / name):
                raise DataError(
                    f"{folder}: {name} was altered or damaged (its checksum differs); copy the model folder again"
                )
        config = read_config(folder)
        if unknown := record.calibration.keys() - config.predicted.keys():
            _fail(folder, f"tfx.json calibrates '{min(unknown)}', which the model does not predict")
        panel = read_genes(folder)
        weights = folder / "model.safetensors"
        check_weights(weights, config)
        try:
            kind = read_json(folder / "encoding.json", folder).get("kind")
            encoding = load_file(folder / "encoding.safetensors")
            reference = current_reference(load_file(folder / "reference.safetensors"))
            check_arrays(folder, config, len(panel), kind, encoding, reference)
            # Not from_pretrained: it draws a progress bar of its own.
            network = TfxModel(config)
            network.load_state_dict(current_tensors(load_tensors(weights)))
            for name, tensor in network.state_dict().items():
                if not torch.isfinite(tensor).all():
                    raise DataError(
                        f"{folder}: the weights '{name}' hold NaN or infinity; train the model again"
                    )
            return cls(
                network=network.to(device).eval(),
                panel=panel,
                values=ValueEncoder(config.kind, encoding["edges"]),
                table=ValueTable(encoding["quantiles"], encoding["means"]),
                reference=Reference(**reference),
                masking=record.masking,
                generate=record.generate,
                provenance=record.provenance,
                calibration=record.calibration,
                folder=folder,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise DataError(
                f"{folder}: the model folder cannot be read ({error}); copy it again"
            ) from error


def read_outline(folder: Path) -> tuple[TfxConfig, GenePanel]:
    """Read a model's configuration and genes, and nothing heavier; a `DataError` if it cannot."""

    def read(place: Path) -> tuple[TfxConfig, GenePanel]:
        read_json(place / "tfx.json", place)
        return read_config(place), read_genes(place)

    return read_settled(folder, read)


def put_back_model(folder: Path) -> None:
    """Put the older model folder back if a process was killed after moving it away."""
    outgoing = sorted(folder.parent.glob(f".{folder.name}.old-*"))
    if outgoing and not folder.exists():
        outgoing[-1].rename(folder)


def _write_json(path: Path, record: object) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_arrays(arrays: Mapping[str, NDArray[Any] | None], path: Path) -> None:
    """Save the arrays that are there."""
    present = {name: np.ascontiguousarray(one) for name, one in arrays.items() if one is not None}
    save_file(present, path)
    share_as_folder(path)


# -- checks of a folder, which may come from a stranger, before anything is built of it


#: Of the folders that this tfx writes; it reads all earlier ones, too.
FORMAT_VERSION = 2
_COPY = "copy the model folder again"
#: Bytes, as the safetensors format itself allows.
_LARGEST_HEADER = 10**8
_AnyRecord = TypeVar("_AnyRecord", bound=BaseModel)
_Array = NDArray[Any]


class _GenesRecord(BaseModel):
    """``genes.json``: the panel, in the order of the network."""

    ids: list[Name] = Field(min_length=1)
    symbols: list[Name]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.ids) != len(self.symbols):
            raise ValueError(f"{len(self.ids)} ids but {len(self.symbols)} symbols")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("a gene occurs twice")
        return self


class _Provenance(BaseModel):
    """Facts for the card; those that code reads have a type."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: str = ""
    step: int = Field(0, ge=0)
    total_steps: int = Field(0, ge=0)
    sources: list[str] = Field(default_factory=list)
    simulated: bool = False
    store: str = ""
    store_key: str = ""
    split: str = ""
    #: Phenotype -> obs column of its labels.
    columns: dict[str, str] = Field(default_factory=dict)
    validation: dict[str, float | None] = Field(default_factory=dict)


class FolderRecord(BaseModel):
    """``tfx.json``."""

    model_config = ConfigDict(frozen=True)

    masking: MaskingSettings
    generate: GenerateSettings
    provenance: dict[str, Any]
    #: Older folders have none.
    calibration: dict[Name, PhenotypeCalibration] = Field(default_factory=dict)
    #: Of every file that is read.
    sha256: dict[str, str]


def read_record(folder: Path) -> FolderRecord:
    """Read ``tfx.json``; a `DataError` if it is missing, of a later format, or wrong."""
    path = folder / "tfx.json"
    record = read_json(path, folder)
    version = record.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise DataError(
            f"{folder}: model format {version!r}, this tfx reads up to {FORMAT_VERSION}; use the tfx that wrote it"
        )
    found = _checked(FolderRecord, current_model_record(record), path)
    _checked(_Provenance, found.provenance, path, strict=True)
    return found


def read_config(folder: Path) -> TfxConfig:
    """Read ``config.json``; a `DataError` if it does not describe a model of cells.

    Its keys of other kinds, which may name code to run, are ignored.
    """
    path = folder / "config.json"
    record = current_section("model", read_json(path, folder))
    for name in sorted(REQUIRED_FIELDS - record.keys()):
        raise DataError(f"{path}: {name}: field required; {_COPY}")
    checked = _checked(ModelRecord, record, path, strict=True)
    return TfxConfig(**checked.model_dump(exclude={"model_type", "start_from"}))


def read_genes(folder: Path) -> GenePanel:
    """Read ``genes.json``; a `DataError` if it does not list genes."""
    path = folder / "genes.json"
    record = _checked(_GenesRecord, read_json(path, folder), path, strict=True)
    return GenePanel(tuple(record.ids), tuple(record.symbols))


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder; a `DataError` if it is missing, unreadable, or no object."""
    try:
        record = file_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder}: not a model folder ({path.name} is missing); give a run or the model folder inside it"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_COPY}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object; {_COPY}")
    return record


def _checked(
    kind: type[_AnyRecord], record: dict[str, Any], path: Path, *, strict: bool = False
) -> _AnyRecord:
    try:
        return kind.model_validate(record, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"{path}: {f'{where}: ' if where else ''}{what[:1].lower()}{what[1:]}; {_COPY}"
        ) from None


def check_weights(path: Path, config: TfxConfig) -> None:
    """Raise a `DataError` if a file of weights, by its header, lacks the tensors of a configuration."""
    found = current_tensors(_read_shapes(path))
    # A layer has weights: building more of them than there are tensors would take for ever.
    if config.layers > len(found):
        raise DataError(
            f"{path}: too few tensors for the {config.layers:,} layers of config.json; {_COPY}"
        )
    expected = _promised_shapes(config, path)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise DataError(
                f"{path}: '{name[:100]}' is {_shape(found.get(name))}, config.json makes it "
                f"{_shape(expected.get(name))}; {_COPY}"
            )


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the header names."""
    try:
        with open_file(path) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size - 8):
                raise ValueError
            header = json.loads(stream.read(length))
        return {
            name: tuple(int(side) for side in entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise DataError(f"{path}: not a safetensors file; {_COPY}") from None


def _promised_shapes(config: TfxConfig, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):  # shapes without memory
            network = TfxModel(config)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    except (ConfigurationError, RuntimeError, ValueError, OverflowError) as error:
        reason = first_line(error)[:200]
        raise DataError(
            f"{path.parent}: config.json describes no model ({reason}); {_COPY}"
        ) from error


def check_arrays(
    folder: Path,
    config: TfxConfig,
    n_genes: int,
    kind: object,
    encoding: Mapping[str, _Array],
    reference: Mapping[str, _Array],
) -> None:
    """Raise a `DataError` for the first array that does not fit the configuration.

    ``n_genes`` and ``kind`` are those of ``genes.json`` and ``encoding.json``; ``encoding`` and
    ``reference`` are the arrays of ``encoding.safetensors`` and ``reference.safetensors``.
    """
    if n_genes != config.n_genes:
        _fail(folder, f"genes.json has {n_genes:,} genes, config.json {config.n_genes:,}")
    if kind != config.kind:
        _fail(folder, f"encoding.json says '{kind}', config.json '{config.kind}'")
    n_values, n_phenotypes = sum(config.phenotype_sizes), len(config.phenotype_sizes)
    n_combinations = len(reference.get("counts", ()))
    edges = encoding.get("edges", np.empty(0))
    per_gene = (n_genes,) if edges.ndim == 2 else ()
    of_bins, of_values = (n_genes, config.n_bins), (n_values, n_genes)
    n_quantiles = encoding["quantiles"].shape[-1] if "quantiles" in encoding else 0
    promised: list[tuple[Mapping[str, _Array], str, tuple[int, ...], str]] = [
        (encoding, "edges", (*per_gene, config.n_bins - 1), "f"),
        (encoding, "quantiles", (*of_bins, max(n_quantiles, 1)), "f"),
        (encoding, "means", of_bins, "f"),
        (reference, "counts", (max(n_combinations, 1),), "i"),
        (reference, "combinations", (n_combinations, n_phenotypes), "i"),
        (reference, "bin_counts", of_bins, "i"),
        (reference, "detection", of_values, "f"),
        (reference, "means", of_values, "f"),
    ]
    sizes = ("genes_per_cell", "library_size")
    if not reference.keys().isdisjoint(sizes):  # older folders lack them
        promised += [(reference, name, (n_combinations, SIZE_QUANTILES), "f") for name in sizes]
    for arrays, name, shape, letter in promised:
        _check_array(folder, name, arrays.get(name), shape, letter)
        if name in ("edges", *sizes) and np.any(np.diff(arrays[name], axis=-1) < 0):
            _fail(folder, f"the numbers of '{name}' decrease")
    codes = reference["combinations"]
    if np.any(codes < -1) or np.any(codes >= np.array(config.phenotype_sizes, dtype=np.int64)):
        _fail(folder, "a combination of phenotypes names a value that the model does not have")
    if np.any(reference["counts"] < 0) or np.any(reference["bin_counts"] < 0):
        _fail(folder, "cells are counted below zero")


def _check_array(
    folder: Path, name: str, array: _Array | None, shape: tuple[int, ...], letter: str
) -> None:
    kind = {"f": "decimal", "i": "whole"}[letter]
    if array is None or array.shape != shape or array.dtype.kind != letter:
        found = None if array is None else array.shape
        _fail(folder, f"'{name}' is {_shape(found)}, and must be {_shape(shape)} {kind} numbers")
    elif letter == "f" and not np.isfinite(array).all():
        _fail(folder, f"'{name}' holds NaN or infinity")


def _fail(folder: Path, problem: str) -> NoReturn:
    raise DataError(f"{folder}: {problem}; {_COPY}")


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "not there"
    return " x ".join(f"{side:,}" for side in shape) or "one number"
