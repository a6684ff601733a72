"""Generated cells as AnnData: decoded values, labels, and where they come from.

Values are log1p of counts per 10,000 (0 and 1 for binary models); counts are made of them where they
are asked for (`core.generation.counts`), and called so nowhere else. Every cell is marked
``obs["synthetic"]``, and ``uns["tfx_generation"]`` says which model, request and seed made it.
`core.generation.cells_file` writes as many as the disk holds.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from core import __version__
from core.errors import ConfigurationError
from core.generation.counts import COUNTS, sample_counts
from core.generation.depth import DepthDraw
from core.generation.plan import CellPlan
from core.generation.request import GenerationRequest, PhenotypeDraw
from core.generation.sampler import (
    check_can_generate,
    needs_normal,
    plan_for,
    sample_cells,
)
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "BATCH_SIZE",
    "BIN_NUMBERS",
    "GENERATION_KEY",
    "CellBlock",
    "CellSource",
    "generate_cells",
]

#: Where an AnnData says how its cells were generated.
GENERATION_KEY = "tfx_generation"
#: What provenance says of values that no real cell can be compared with.
BIN_NUMBERS = "bin numbers"
#: Cells drawn at once; it changes speed and memory, not the cells.
BATCH_SIZE = 128


@dataclass(frozen=True)
class CellBlock:
    """Some cells of a request, in order.

    Attributes
    ----------
    cells
        Their numbers.
    codes
        (cells, phenotypes), -1 for [NO_*].
    expression
        (cells, genes), float32.
    library_size
        (cells,), float32, counts of the training cells whose depth they got; 0 where not known.
    """

    cells: range
    codes: NDArray[np.int32]
    expression: sparse.csr_matrix
    library_size: NDArray[np.float32]


class CellSource:
    """The cells of a request, made block by block from any one on.

    Parameters
    ----------
    model
        The model.
    request
        What is wanted.
    batch_size
        Cells of a block.

    Attributes
    ----------
    notes
        Sentences that the user should read.
    phenotypes
        Which every cell gets.

    Raises
    ------
    ConfigurationError
        The request names what the model does not know, or the model cannot generate.
    """

    def __init__(
        self, model: CellModel, request: GenerationRequest, *, batch_size: int = BATCH_SIZE
    ) -> None:
        self.model, self.request, self.batch_size = model, request, batch_size
        self.notes = check_can_generate(model, request.settings)
        self.phenotypes = PhenotypeDraw(model, request)
        self.notes += self.phenotypes.notes
        depth = DepthDraw(model, request.seed, request.library_size)
        self._depth = (
            depth if depth.is_known and request.settings.genes_per_cell == "sample" else None
        )
        self.has_library_size = self._depth is not None and self._depth.has_counts
        if request.settings.decode == "counts":
            self._check_counts()

    def blocks(
        self, *, start: int = 0, on_progress: Listener = ignore_progress
    ) -> Iterator[CellBlock]:
        """Make the cells from number ``start`` on, a multiple of the batch size."""
        model, request = self.model, self.request
        plan = plan_for(model, request.settings)
        steps = len(plan.ends)
        for first in range(start, request.n_cells, self.batch_size):
            cells = range(first, min(first + self.batch_size, request.n_cells))
            codes = self.phenotypes.codes(cells)
            chance = CellPlan.draw(request.seed, cells, plan, needs_normal=needs_normal(model))

            def report(step: int, before: int = first, n: int = len(cells)) -> None:
                on_progress(
                    ProgressEvent("generating cells", before + n * step // steps, request.n_cells)
                )

            wanted, counts = (
                (None, np.zeros(len(cells), np.float32))
                if self._depth is None
                else self._depth.draw(cells, codes)
            )
            drawn = sample_cells(
                model, codes, request.settings, chance, wanted_genes=wanted, on_step=report
            )
            expression = sparse.csr_matrix(_decode(model, drawn, request, cells, counts))
            yield CellBlock(cells, codes, expression, counts)

    def _check_counts(self) -> None:
        if self.model.config.kind == "binary":
            message = (
                "a binary model knows on and off alone, no counts; leave decode = 'counts' out"
            )
            raise ConfigurationError(message)
        if not self.has_library_size:
            reason = (
                "genes_per_cell = 'none' leaves them open"
                if self.request.settings.genes_per_cell == "none"
                else "this model keeps no counts of its training cells; train again from counts"
            )
            message = f"decode = 'counts' needs library sizes, and {reason}"
            raise ConfigurationError(message)

    def cell_names(self, cells: range) -> list[str]:
        """Return the obs names of the cells."""
        return [f"tfx-{self.request.seed}-{cell}" for cell in cells]

    def genes(self) -> pd.DataFrame:
        """Return var."""
        panel = self.model.panel
        return pd.DataFrame({"gene_symbol": list(panel.symbols)}, index=pd.Index(panel.ids))

    def provenance(self) -> dict[str, Any]:
        """Return ``uns["tfx_generation"]``: plain values only, h5ad has no None."""
        model, request = self.model, self.request
        origin = model.provenance
        values = "log1p of counts per 10,000"
        if model.config.kind == "binary":
            values = "on (1) or off (0)"
        elif request.settings.decode == "bins" and model.config.kind == "binned":
            values = BIN_NUMBERS
        elif request.settings.decode == "counts":
            values = COUNTS
        return {
            "synthetic": True,
            "simulated_training_data": bool(origin.get("simulated", False)),
            "values": values,
            "request": dict(request.phenotypes),
            "unspecified": request.unspecified,
            "balance": request.balance or "",
            "training_cells_of_request": self.phenotypes.n_training,
            "n_cells": request.n_cells,
            "seed": request.seed,
            "library_size": "as training cells"
            if request.library_size is None
            else request.library_size,
            **request.settings.model_dump(),
            "steps": min(request.settings.steps, model.config.n_genes),
            "model_name": str(origin.get("name", "")),
            "model_step": int(origin.get("step", 0)),
            "model_sha256": _weights_hash(model),
            "model_genes_sha256": model.panel.hash,
            "training_store": str(origin.get("store_key", "")),
            "training_sources": list(origin.get("sources", [])),
            "tfx_version": __version__,
            "torch_version": version("torch"),
            "notes": list(self.notes),
        }


def generate_cells(
    model: CellModel,
    request: GenerationRequest,
    *,
    batch_size: int = BATCH_SIZE,
    on_progress: Listener = ignore_progress,
) -> "tuple[AnnData, list[str]]":
    """Generate cells in memory.

    Parameters
    ----------
    model
        Of either layout.
    request
        What is wanted.
    batch_size
        Cells drawn at once; it changes speed and memory, not the cells.

    Returns
    -------
    The cells, (cells, panel genes), and sentences that the user should read.

    Raises
    ------
    ConfigurationError
        The request names what the model does not know, or the model cannot generate.
    """
    from anndata import AnnData  # 400 ms that sampling does without

    source = CellSource(model, request, batch_size=batch_size)
    blocks = list(source.blocks(on_progress=on_progress))
    labels = _labels(model, np.concatenate([block.codes for block in blocks]))
    if source.has_library_size:
        labels["library_size"] = np.concatenate([block.library_size for block in blocks])
    generated = AnnData(
        X=sparse.vstack([block.expression for block in blocks], format="csr"),
        obs=pd.DataFrame(labels, index=pd.Index(source.cell_names(range(request.n_cells)))),
        var=source.genes(),
        uns={GENERATION_KEY: source.provenance()},
    )
    return generated, source.notes


def _decode(
    model: CellModel,
    drawn: NDArray[Any],
    request: GenerationRequest,
    cells: range,
    library_size: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Bins to values, and these to counts if asked for, each cell with its own generator."""
    how, is_binned = request.settings.decode, model.config.kind == "binned"
    values = drawn.astype(np.float32)
    if not is_binned and how != "counts":
        return values
    for place, cell in enumerate(cells):
        rng = generator(request.seed, cell, Stream.DECODING)
        if is_binned:
            of_bin = "sample" if how == "counts" else how
            values[place] = model.table.decode(drawn[place : place + 1], how=of_bin, rng=rng)[0]
        if how == "counts":
            values[place] = sample_counts(values[place], float(library_size[place]), rng)
    return values


def _labels(model: CellModel, codes: NDArray[np.int32]) -> dict[str, Any]:
    labels: dict[str, Any] = {
        name: pd.Categorical.from_codes(codes[:, slot].tolist(), pd.Index(values))
        for slot, (name, values) in enumerate(model.config.phenotypes.items())
    }
    labels["synthetic"] = np.ones(len(codes), dtype=bool)
    return labels


def _weights_hash(model: CellModel) -> str:
    """Name the weights that made the cells, whatever folder they lie in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
