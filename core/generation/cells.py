"""Generated cells as AnnData: decoded values, labels, and where they come from.

Values are log1p of counts per 10,000 (0 and 1 for binary models), never called counts. Every cell
is marked ``obs["synthetic"]``, and ``uns["tfx_generation"]`` says which model, request and seed
made it.
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core import __version__
from core.generation.request import GenerationRequest, draw_codes, resolve_phenotypes
from core.generation.sampler import CellChance, check_can_generate, sample_cells
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["GENERATION_KEY", "generate_cells", "write_cells"]

#: Where an AnnData says how its cells were generated.
GENERATION_KEY = "tfx_generation"


def generate_cells(
    model: CellModel,
    request: GenerationRequest,
    *,
    batch_size: int = 128,
    on_progress: Listener = ignore_progress,
) -> "tuple[AnnData, list[str]]":
    """Generate cells.

    Parameters
    ----------
    model
        With the ranked layout.
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

    notes = check_can_generate(model)
    if request.settings.order == "confidence":
        notes.append(
            "confidence order reveals the surest genes first, which are zeros: expect nearly empty "
            "cells; use order = 'random'"
        )
    codes, more = draw_codes(model, request)
    notes += more
    steps = min(request.settings.steps, model.config.n_genes)
    n_batches = -(-request.n_cells // batch_size)
    parts = []
    for number in range(n_batches):
        cells = range(number * batch_size, min((number + 1) * batch_size, request.n_cells))
        chance = CellChance.draw(request.seed, cells, model.config.n_genes)

        def report(step: int, before: int = cells.start, n: int = len(cells)) -> None:
            on_progress(
                ProgressEvent("generating cells", before + n * step // steps, request.n_cells)
            )

        drawn = sample_cells(
            model, codes[cells.start : cells.stop], request.settings, chance, on_step=report
        )
        parts.append(sparse.csr_matrix(_decode(model, drawn, request, cells)))
    names = [f"tfx-{request.seed}-{cell}" for cell in range(request.n_cells)]
    generated = AnnData(
        X=sparse.vstack(parts, format="csr"),
        obs=pd.DataFrame(_labels(model, codes), index=pd.Index(names)),
        var=pd.DataFrame(
            {"gene_symbol": list(model.panel.symbols)}, index=pd.Index(model.panel.ids)
        ),
        uns={GENERATION_KEY: _provenance(model, request, notes)},
    )
    return generated, notes


def write_cells(cells: "AnnData", path: Path) -> None:
    """Write an .h5ad file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        cells.write_h5ad(partial, compression="gzip")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _decode(
    model: CellModel,
    drawn: NDArray[Any],
    request: GenerationRequest,
    cells: range,
) -> NDArray[np.float32]:
    """Bins to values, each cell with its own generator; continuous and binary models need none."""
    if model.config.kind != "binned":
        return drawn.astype(np.float32)
    values = np.empty(drawn.shape, dtype=np.float32)
    for place, cell in enumerate(cells):
        rng = np.random.default_rng([request.seed, cell, 31])
        values[place] = model.table.decode(
            drawn[place : place + 1], how=request.settings.decode, rng=rng
        )[0]
    return values


def _labels(model: CellModel, codes: NDArray[np.int32]) -> dict[str, Any]:
    labels: dict[str, Any] = {
        name: pd.Categorical.from_codes(codes[:, slot].tolist(), pd.Index(values))
        for slot, (name, values) in enumerate(model.config.phenotypes.items())
    }
    labels["synthetic"] = np.ones(len(codes), dtype=bool)
    return labels


def _provenance(model: CellModel, request: GenerationRequest, notes: list[str]) -> dict[str, Any]:
    """Plain values only: h5ad has no None."""
    wanted = resolve_phenotypes(model.config, request.phenotypes)
    origin = model.origin
    values = "on (1) or off (0)" if model.config.kind == "binary" else "log1p of counts per 10,000"
    if request.settings.decode == "bins" and model.config.kind == "binned":
        values = "bin numbers"
    return {
        "synthetic": True,
        "simulated_training_data": bool(origin.get("simulated", False)),
        "values": values,
        "request": dict(request.phenotypes),
        "unspecified": request.unspecified,
        "training_cells_of_request": model.reference.n_cells(wanted),
        "n_cells": request.n_cells,
        "seed": request.seed,
        **request.settings.model_dump(),
        "steps": min(request.settings.steps, model.config.n_genes),
        "model_name": str(origin.get("name", "")),
        "model_step": int(origin.get("step", 0)),
        "model_genes_sha256": model.panel.hash,
        "training_store": str(origin.get("store_key", "")),
        "training_sources": list(origin.get("sources", [])),
        "tfx_version": __version__,
        "torch_version": version("torch"),
        "notes": list(notes),
    }
