"""The model folder: one self-contained directory that loads offline, on CPU, without the store.

    model.safetensors, config.json   weights and shapes (transformers' own format)
    genes.json                       the panel: ids and symbols in order
    encoding.json, encoding.safetensors   kind of encoding; edges; values per bin
    reference.safetensors            joint phenotype counts and mean profiles of training cells
    tfx.json                         format version, transform, provenance, generation defaults, sha256
    README.md                        the model card

No pickle. It is written beside its place and renamed, so that a reader never sees half a folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from core.cells.genes import GenePanel
from core.encoding.batches import BatchEncoder
from core.encoding.values import ValueEncoder, ValueTable
from core.errors import DataError, MachineError
from core.model.card import model_card
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.folder_checks import (
    FORMAT_VERSION,
    check_arrays,
    check_weights,
    read_config,
    read_genes,
    read_json,
    read_record,
)
from core.model.reference import Reference, current_reference
from core.presets.schema import GenerateSettings, MaskingSettings
from core.renamed import current_tensors

_JSON_FILES = ("config.json", "genes.json", "encoding.json")
_CHECKED = ("model.safetensors", *_JSON_FILES, "encoding.safetensors", "reference.safetensors")


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
        return BatchEncoder(config.tokens, self.values, max_length=config.longest_sequence)

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
            message = f"model folder {folder} cannot be written ({reason})"
            raise MachineError(message) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        # Not save_pretrained: it draws a progress bar of its own and shards by size.
        weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
        save_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
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
        card = model_card(self.config, self.panel, self.reference, self.masking, self.provenance)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_json(
            folder / "tfx.json",
            {
                "format_version": FORMAT_VERSION,
                "transform": "log1p of counts per 10,000 over all genes of the cell's file",
                "masking": self.masking.model_dump(),
                "generate": self.generate.model_dump(),
                "provenance": self.provenance,
                "sha256": {name: _sha256(folder / name) for name in _CHECKED},
            },
        )

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str = "cpu") -> "CellModel":
        """Read a model folder; a `DataError` if a file is missing or altered, or its format is newer."""
        folder = Path(folder)
        record = read_record(folder)
        for name in _CHECKED:
            if not (folder / name).is_file():
                message = f"{folder}: {name} is missing; copy the whole model folder again"
                raise DataError(message)
            if record.sha256.get(name) != _sha256(folder / name):
                message = f"{folder}: {name} was altered or damaged (its checksum differs); copy the model folder again"
                raise DataError(message)
        config = read_config(folder)
        panel = read_genes(folder)
        weights = folder / "model.safetensors"
        check_weights(weights, config)
        try:
            kind = read_json(folder / "encoding.json", folder).get("kind")
            encoding = load_file(folder / "encoding.safetensors")
            reference = current_reference(load_file(folder / "reference.safetensors"))
            check_arrays(
                folder,
                config,
                n_genes=len(panel),
                kind=kind,
                encoding=encoding,
                reference=reference,
            )
            # Not from_pretrained: it draws a progress bar of its own.
            network = TfxModel(config)
            network.load_state_dict(current_tensors(load_tensors(weights)))
            for name, tensor in network.state_dict().items():
                if not torch.isfinite(tensor).all():
                    message = f"{folder}: the weights '{name}' hold NaN or infinity; train the model again"
                    raise DataError(message)
            return cls(
                network=network.to(device).eval(),
                panel=panel,
                values=ValueEncoder(config.kind, encoding["edges"]),
                table=ValueTable(encoding["quantiles"], encoding["means"]),
                reference=Reference(**reference),
                masking=record.masking,
                generate=record.generate,
                provenance=record.provenance,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            message = f"{folder}: the model folder cannot be read ({error}); copy it again"
            raise DataError(message) from error


def read_outline(folder: Path) -> tuple[TfxConfig, GenePanel]:
    """Read a model's configuration and genes, and nothing heavier; a `DataError` if it cannot."""
    read_json(folder / "tfx.json", folder)
    return read_config(folder), read_genes(folder)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
