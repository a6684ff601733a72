"""The commands of tfx as functions: files or AnnData in, AnnData out. Nothing prints or draws.

``model`` is a `CellModel`, or the path of a run or of a model folder. ``cells`` is an AnnData object with
counts or log values and genes in any order, a file or folder of cells (docs/formats.md), "soma://PATH", or
"builtin:NAME".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core.cells.cell_filter import CellFilter
from core.cells.prepare import ensure_store
from core.cells.reading import load_whole
from core.evaluation.baselines import QUICK_BASELINES
from core.evaluation.held_out import evaluate_held_out
from core.files import file_text
from core.generation.cell_generator import generate_cells
from core.generation.comparison import find_training_store, open_training_store
from core.generation.request import GenerationRequest, cells_to_generate, changed_settings
from core.inference.annotate import (
    embed_cells,
    predict_phenotypes_of,
    prediction_table,
    resolve_position,
)
from core.inference.edited_cells import edit_cells
from core.inference.query_cells import open_query_cells, read_hint
from core.interactions.cells import Reader, file_reader, store_reader
from core.interactions.network import find_interactions
from core.interactions.output import edge_table
from core.interactions.perturbation import Change, PerturbRequest
from core.interactions.perturbation_output import perturbed_anndata, screen_table, source_labels
from core.interactions.request import Request
from core.interactions.responses import perturb_cells
from core.interactions.screen import screen_genes
from core.model.calibration import unsure_rules
from core.model.folder import CellModel
from core.presets.loading import ResolvedPreset, resolve_preset
from core.progress import Listener, ignore_progress
from core.published.weights import check_start_shape, convert_start
from core.runlog.ownership import owned_run
from core.runlog.schema import CONFIG_FILE
from core.training.engine import train as train_model
from core.training.processes import meet_processes
from core.training.run_setup import check_preset
from core.training.start_weights import take_shape_of_start

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from core.cells.store import Store
    from core.evaluation.report.records import EvaluationReport

Model = CellModel | str | Path


def train(
    preset: str | Path,
    folder: str | Path,
    settings: Mapping[str, object] | None = None,
    *,
    on_progress: Listener = ignore_progress,
) -> CellModel:
    """Train a model, as `tfx train`, and return it; its cells are prepared first.

    ``preset`` is a TOML file or the name of a bundled preset; ``settings`` are keys of it to change, as in
    ``{"data.files": "cells.h5ad", "train.max_steps": 100}``. An interrupted run in ``folder`` continues from
    its last checkpoint.
    """
    resolved = take_shape_of_start(resolve_preset(Path(preset), options=settings))
    check_preset(resolved.preset)
    check_start_shape(resolved.preset)
    meet_processes()
    with owned_run(Path(folder)):
        store = ensure_store(resolved.preset.data, resolved.name, on_progress=on_progress)
        result = train_model(
            resolved,
            store,
            Path(folder),
            is_owned=True,
            convert_weights=convert_start,
            on_progress=on_progress,
        )
    return CellModel.load(Path(result.model))


def evaluate(
    run: str | Path,
    *,
    split: Literal["test", "validation"] = "test",
    baselines: Sequence[str] = QUICK_BASELINES,
    max_cells: int | None = None,
    unsure_at: float | None = None,
    on_progress: Listener = ignore_progress,
) -> "EvaluationReport":
    """Score the model of a run on held-out cells beside baselines, as `tfx eval`; return the report.

    ``report.phenotypes["cell_type"]["model"].accuracy`` is a score; docs/evaluation.md explains all of them.

    Raises
    ------
    DataError
        The store of the run is gone or changed.
    """
    folder = Path(run)
    model = CellModel.load(folder / "model")
    store = find_training_store(model)
    config = folder / CONFIG_FILE
    preset = ResolvedPreset.from_toml(file_text(config), where=str(config)).preset
    trained_where = CellFilter.parse(preset.data.where, where="data.where")
    report, _ = evaluate_held_out(
        model,
        store,
        split,
        loss=preset.loss,
        where=trained_where,
        trained_where=trained_where,
        baselines=baselines,
        max_cells=max_cells,
        unsure_at=unsure_at,
        on_progress=on_progress,
    )
    return report


def predict(
    model: Model,
    cells: "AnnData | str | Path",
    *,
    given: Sequence[str] = (),
    unsure_at: float | None = None,
    unsure_below: float | None = None,
    prefix: str = "tfx_",
    on_progress: Listener = ignore_progress,
) -> "AnnData":
    """Return a copy of the cells with predicted phenotypes in obs, as `tfx predict`.

    ``given`` are phenotypes that are known: "tissue", or "tissue=organ" for the obs column organ. Predictions
    that are not unsure were right in a fraction ``unsure_at`` (default 0.95) of validation cells; ``unsure_below``
    is a probability instead. ConfigurationError if both are given, or ``unsure_at`` for a model that was not
    calibrated.
    """
    model, labelled = _loaded(model), _in_memory(cells)
    rules = unsure_rules(
        model.calibration, model.config.predicted, at=unsure_at, below=unsure_below
    )
    with open_query_cells(labelled, model.panel) as query:
        hints = [read_hint(query.source, model, one) for one in given]
        predictions = predict_phenotypes_of(model, query, hints, on_progress=on_progress)
    names = labelled.obs_names
    table = prediction_table(predictions, names, rules=rules, prefix=prefix)
    for name in table:
        labelled.obs[name] = table[name]
    return labelled


def embed(
    model: Model,
    cells: "AnnData | str | Path",
    *,
    place: str = "cls",
    key: str = "X_tfx",
    given: Sequence[str] = (),
    on_progress: Listener = ignore_progress,
) -> "AnnData":
    """Return a copy of the cells with (cells, hidden size) embeddings in obsm, as `tfx embed`.

    ``place`` is the output position of the embedding: "cls", "mean" (over all tokens), or a phenotype.
    """
    model, embedded = _loaded(model), _in_memory(cells)
    position = resolve_position(model.config, place)
    found = np.empty((embedded.n_obs, model.config.hidden_size), dtype=np.float32)
    with open_query_cells(embedded, model.panel) as query:
        hints = [read_hint(query.source, model, one) for one in given]
        write = found.__setitem__
        embed_cells(model, query, write, position=position, hints=hints, on_progress=on_progress)
    embedded.obsm[key] = found
    return embedded


def generate(
    model: Model,
    phenotypes: Mapping[str, str] | None = None,
    n_cells: int | None = None,
    *,
    seed: int = 0,
    unspecified: Literal["sample", "none"] = "sample",
    balance: str | None = None,
    library_size: float | None = None,
    on_progress: Listener = ignore_progress,
    **sampling: Any,  # noqa: ANN401 - keys of [generate]
) -> "AnnData":
    """Generate cells, as `tfx generate`: X (cells, genes), log1p of counts per 10,000.

    ``phenotypes`` is name -> value, as in ``{"sex": "female", "tissue": "lung"}``; ``n_cells`` is by default
    200, or the number that fills up ``balance``. ``sampling`` are keys of ``[generate]`` of a preset, as in
    ``steps=64, decode="counts"``. ``uns["tfx_generation"]`` records the request, and notes that you should read.
    """
    model = _loaded(model)
    requested = phenotypes or {}
    request = GenerationRequest(
        requested,
        cells_to_generate(model, requested, n_cells, balance),
        settings=changed_settings(model.generate, sampling),
        unspecified=unspecified,
        seed=seed,
        library_size=library_size,
        balance=balance,
    )
    return generate_cells(model, request, on_progress=on_progress)[0]


def edit(
    model: Model,
    cells: "AnnData | str | Path",
    values: Mapping[str, str],
    *,
    labels: Sequence[str] = (),
    seed: int = 0,
    on_progress: Listener = ignore_progress,
    **sampling: Any,  # noqa: ANN401 - keys of [generate]
) -> "AnnData":
    """Set phenotypes of real cells, as `tfx generate --from`; their genes change with them.

    ``values`` is phenotype -> value to set, as in ``{"disease": "normal"}``. ``labels`` name the obs columns of
    the cells' own phenotypes, as in ``["tissue=organ"]``, where they are not those of training. X holds the changed cells,
    ``layers["before"]`` the cells as they were.
    """
    model = _loaded(model)
    settings = changed_settings(model.generate, {"decode": "sample", **sampling})
    with open_query_cells(cells, model.panel) as query:
        return edit_cells(
            model,
            query,
            values,
            labels=labels,
            settings=settings,
            seed=seed,
            on_progress=on_progress,
        ).cells


def interactions(
    model: Model,
    cells: "AnnData | str | Path | None" = None,
    *,
    where: str | Sequence[str] = (),
    contrast: tuple[str, str, str] | None = None,
    genes: Sequence[str] = (),
    regulators: Sequence[str] = (),
    weight: str = "auto",
    error: float = 0.1,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> "pd.DataFrame":
    """Find interactions of genes in a context, as `tfx interactions`: a row per context and ordered pair.

    ``cells`` are by default those of the store that the model was trained on. ``contrast`` is a phenotype and
    two values, as in ``("sex", "female", "male")``; ``genes`` are both ends of every edge, ``regulators`` the
    sources alone. docs/interactions.md says what each column means.
    """
    model = _loaded(model)
    request = Request(
        where=CellFilter.parse(where, where="where"), contrast=contrast, genes=genes,
        regulators=regulators, weight=weight, error=error, seed=seed,
    )  # fmt: skip
    store, _, read = _reader(model, cells, seed)
    is_simulated = str(cells).startswith("builtin:atlas")
    if cells is None:
        is_simulated = store is not None and store.truth is not None
    found = find_interactions(
        model, read, request, store=store, simulated=is_simulated, on_progress=on_progress
    )
    return edge_table(found)


def perturb(
    model: Model,
    cells: "AnnData | str | Path | None" = None,
    *,
    knock_out: Sequence[str] = (),
    over_express: Sequence[str] = (),
    set_gene: Mapping[str, int] | None = None,
    where: str | Sequence[str] = (),
    n_cells: int = 500,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> "AnnData":
    """Set genes of real cells, as `tfx perturb`: the cells before and after, responses in var.

    ``cells`` are by default those of the store that the model was trained on; ``set_gene`` is gene -> bin.
    ``obs["target_gene"]`` says which cells are perturbed, and ``uns["tfx_phenotype_shifts"]`` is the table of the predicted
    phenotypes. docs/perturb.md says what each column means.
    """
    model = _loaded(model)
    request = PerturbRequest(
        Change(knock_out, over_express, set_gene or {}),
        where=CellFilter.parse(where, where="where"), n_cells=n_cells, seed=seed,
    )  # fmt: skip
    store, file, read = _reader(model, cells, seed)
    found = perturb_cells(model, read, request, store=store, on_progress=on_progress)
    name = file if isinstance(file, str) else "the AnnData"
    name = str(store.path) if file is None and store is not None else name
    return perturbed_anndata(found, model, request, source_labels(file, store, found), name)


def screen(
    model: Model,
    cells: "AnnData | str | Path | None" = None,
    *,
    phenotype: str,
    value: str,
    over_express: bool = False,
    where: str | Sequence[str] = (),
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> "pd.DataFrame":
    """Rank all genes by their effect on a phenotype, as `tfx perturb --screen`: a row per gene."""
    model = _loaded(model)
    request = PerturbRequest(Change(), where=CellFilter.parse(where, where="where"), seed=seed)
    _, _, read = _reader(model, cells, seed)
    found = screen_genes(
        model, read, (phenotype, value), request,
        over_express=over_express, on_progress=on_progress,
    )  # fmt: skip
    return screen_table(found, model)


def _reader(
    model: CellModel, cells: "AnnData | str | Path | None", seed: int
) -> "tuple[Store | None, AnnData | str | None, Reader]":
    """Return the store of training if it is there, the cells, and what reads them."""
    if cells is None:
        found = find_training_store(model)
        return found, None, store_reader(model, found, seed=seed)
    file = str(cells) if isinstance(cells, Path) else cells
    return open_training_store(model), file, file_reader(model, [file], seed=seed)


def _loaded(model: Model) -> CellModel:
    if isinstance(model, CellModel):
        return model
    folder = Path(model)
    return CellModel.load(folder / "model" if (folder / "model").is_dir() else folder)


def _in_memory(cells: "AnnData | str | Path") -> "AnnData":
    """Read the cells, or copy them."""
    import anndata  # 400 ms

    if isinstance(cells, anndata.AnnData):
        return cells.to_memory() if cells.isbacked else cells.copy()
    return load_whole(str(cells))
