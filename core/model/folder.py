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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from core.model.folder_records import (
    FORMAT_VERSION,
    read_config,
    read_genes,
    read_json,
    read_record,
)
from core.model.folder_shapes import check_arrays, check_weights
from core.model.reference import Reference, current_reference
from core.presets.schema import GenerateSettings, MaskingSettings
from core.renamed import current_tensors

__all__ = ["FORMAT_VERSION", "CellModel", "put_back_model", "read_outline"]

_CHECKED = (
    "model.safetensors", "config.json", "genes.json", "encoding.json", "encoding.safetensors",
    "reference.safetensors",
)  # fmt: skip


@dataclass
class CellModel:
    """A network with everything needed to use it on cells.

    Attributes
    ----------
    network
        The weights.
    panel
        Genes, in the order of the network.
    values, table
        Bins, and what values look like within them.
    reference
        What the training cells were.
    masking
        How it was trained: a fixed-rate model makes a poor generator.
    generate
        Defaults of generation.
    provenance
        Facts for the card and for provenance: data, splits, step, figures, versions.
    """

    network: TfxModel
    panel: GenePanel
    values: ValueEncoder
    table: ValueTable
    reference: Reference
    masking: MaskingSettings
    generate: GenerateSettings
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> TfxConfig:
        """The network's configuration."""
        config: TfxConfig = self.network.config
        return config

    @property
    def batches(self) -> BatchEncoder:
        """An encoder of cells into this model's batches."""
        return BatchEncoder(
            self.config.tokens, self.values, max_length=self.config.longest_sequence
        )

    def save(self, folder: Path, *, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write the folder, replacing an older one only when the new one is complete.

        Parameters
        ----------
        folder
            Where to.
        weights
            Whole weights and buffers, where the network holds shards of them.

        Raises
        ------
        MachineError
            It cannot be written, because the disk is full, say; an older one stays.
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
        _write_json(
            folder / "genes.json",
            {"ids": list(self.panel.ids), "symbols": list(self.panel.symbols)},
        )
        _write_json(
            folder / "encoding.json", {"kind": self.values.kind, "n_bins": self.values.n_bins}
        )
        save_file(
            {
                "edges": np.ascontiguousarray(self.values.edges),
                "quantiles": np.ascontiguousarray(self.table.quantiles),
                "means": np.ascontiguousarray(self.table.means),
            },
            folder / "encoding.safetensors",
        )
        reference = self.reference
        save_file(
            {
                "combinations": np.ascontiguousarray(reference.combinations),
                "counts": np.ascontiguousarray(reference.counts),
                "means": np.ascontiguousarray(reference.means),
                "detection": np.ascontiguousarray(reference.detection),
                "bin_counts": np.ascontiguousarray(reference.bin_counts),
                **{
                    name: np.ascontiguousarray(quantiles)
                    for name in ("genes_per_cell", "library_size")
                    if (quantiles := getattr(reference, name)) is not None
                },
            },
            folder / "reference.safetensors",
        )
        (folder / "README.md").write_text(
            model_card(self.config, self.panel, reference, self.masking, self.provenance),
            encoding="utf-8",
        )
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
        """Read a model folder.

        Raises
        ------
        DataError
            It is no model folder, a file is missing or altered, or its format is newer.
        """
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
        check_weights(folder / "model.safetensors", config)
        try:
            kind = read_json(folder / "encoding.json", folder).get("kind")
            arrays = load_file(folder / "encoding.safetensors")
            reference = current_reference(load_file(folder / "reference.safetensors"))
            check_arrays(
                folder, config,
                n_genes=len(panel), kind=str(kind), encoding=arrays, reference=reference,
            )  # fmt: skip
            # Not from_pretrained: it draws a progress bar of its own.
            network = TfxModel(config)
            network.load_state_dict(current_tensors(load_tensors(folder / "model.safetensors")))
            _refuse_nonfinite(network, folder)
            return cls(
                network=network.to(device).eval(),
                panel=panel,
                values=ValueEncoder(config.kind, arrays["edges"]),
                table=ValueTable(arrays["quantiles"], arrays["means"]),
                reference=Reference(**reference),
                masking=record.masking,
                generate=record.generate,
                provenance=record.provenance,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            message = f"{folder}: the model folder cannot be read ({error}); copy it again"
            raise DataError(message) from error


def _refuse_nonfinite(network: TfxModel, folder: Path) -> None:
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            message = f"{folder}: the weights '{name}' hold NaN or infinity; train the model again"
            raise DataError(message)


def read_outline(folder: Path) -> tuple[TfxConfig, GenePanel]:
    """Read a model's configuration and genes, and nothing heavier.

    Raises
    ------
    DataError
        It is no model folder, or a file cannot be read.
    """
    read_json(folder / "tfx.json", folder)
    return read_config(folder), read_genes(folder)


def put_back_model(folder: Path) -> None:
    """Put the older model folder back where a process was killed between taking it away and the new one."""
    outgoing = sorted(folder.parent.glob(f".{folder.name}.old-*"))
    if outgoing and not folder.exists():
        outgoing[-1].rename(folder)


def _write_json(path: Path, record: object) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
