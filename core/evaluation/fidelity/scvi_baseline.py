"""scVI as a generator of cells: the deep baseline that the field uses, from the extra ``scvi``.

Lopez et al. 2018, Nature Methods 15:1053; the package is scvi-tools, at its defaults. scVI decodes real
cells. For new cells, each class has a Gaussian over the latent points of its training cells, from which
new points are drawn. Each new cell has the library size of a training cell of its class.
"""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.cells.normalisation import TARGET_SUM
from core.errors import DataError, MachineError
from core.evaluation.fidelity.measures import Codes, FloatArray
from core.evaluation.fidelity.protocol import Draw
from core.progress import Listener, ProgressEvent, ignore_progress

#: A class of fewer cells has the latent covariance of all classes.
_FEW_CELLS = 30
_EPOCHS = 400
#: Loggers that report seeds, devices and other products.
_CHATTY = ("scvi", "lightning", "pytorch_lightning")
#: With many cells there are fewer epochs, so that about this number of cells is seen.
_CELLS_SEEN = 2_000_000


def check_scvi() -> None:
    """Raise a MachineError if scvi-tools is not installed."""
    if find_spec("scvi") is None:
        raise MachineError(
            "the package scvi-tools is not installed: pip install 'transformerics[scvi]', or leave "
            "--baselines all out"
        )


def fit_scvi(
    counts: sparse.csr_matrix,
    totals: FloatArray,
    classes: Codes,
    *,
    on_progress: Listener = ignore_progress,
) -> Draw:
    """Train scVI, fit a Gaussian per class over its latent space, and return what draws new cells.

    ``counts`` are (cells, genes) whole numbers; ``totals`` (cells,), counts of all genes, by which values are
    normalised. Cells without a class (-1) train scVI, and no Gaussian. Raises a MachineError if scvi-tools is
    not installed.
    """
    check_scvi()
    library = np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1.0)
    on_progress(ProgressEvent("training scVI", 0, 1))
    with _quiet():
        model = _train(counts, int(np.clip(_CELLS_SEEN // max(len(totals), 1), 10, _EPOCHS)))
        latent = np.asarray(model.get_latent_representation(give_mean=False), np.float64)
    on_progress(ProgressEvent("training scVI", 1, 1))
    known = classes >= 0
    centred = latent[known].copy()
    rows_of = {code: np.flatnonzero(classes == code) for code in np.unique(classes[known]).tolist()}
    means = {code: latent[rows].mean(axis=0) for code, rows in rows_of.items()}
    for code, mean in means.items():
        centred[classes[known] == code] -= mean
    pooled = np.cov(centred, rowvar=False)
    factors = {
        code: _factor(np.cov(latent[rows], rowvar=False) if len(rows) >= _FEW_CELLS else pooled)
        for code, rows in rows_of.items()
    }

    def draw(wanted: Codes, rng: np.random.Generator) -> NDArray[np.float32]:
        """(cells, genes) log1p of counts per 10,000 of new cells of classes that training cells have."""
        points = np.empty((len(wanted), latent.shape[1]))
        of_cell = np.empty(len(wanted), dtype=np.int64)
        for code in np.unique(wanted).tolist():
            if code not in rows_of:
                raise DataError(f"no training cell has class {code}; leave its cells out")
            at = np.flatnonzero(wanted == code)
            normal = rng.standard_normal((len(at), points.shape[1]))
            points[at] = means[code] + normal @ factors[code].T
            of_cell[at] = rng.choice(rows_of[code], len(at))
        drawn = _decode(model.module, points, library[of_cell], int(rng.integers(2**31)))
        scale = TARGET_SUM / np.asarray(totals, dtype=np.float64)[of_cell]
        return np.log1p(drawn * scale[:, None]).astype(np.float32)

    return draw


@torch.inference_mode()
def _decode(module: Any, points: FloatArray, library: FloatArray, seed: int) -> FloatArray:  # noqa: ANN401 - untyped
    """(cells, genes) counts drawn from scVI's distribution for latent points and library sizes."""
    device = next(module.parameters()).device
    log_library = torch.as_tensor(np.log(library), dtype=torch.float32, device=device)
    with _quiet():
        torch.manual_seed(seed)
        outputs = module.generative(
            z=torch.as_tensor(points, dtype=torch.float32, device=device),
            library=log_library[:, None],
            batch_index=torch.zeros(len(points), 1, dtype=torch.long, device=device),
        )
        return np.asarray(outputs["px"].sample().cpu().numpy(), dtype=np.float64)


def _train(counts: sparse.csr_matrix, n_epochs: int) -> Any:  # noqa: ANN401 - untyped
    import scvi
    from anndata import AnnData

    cells = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
        model.train(max_epochs=n_epochs, **quiet)
    return model


def _factor(covariance: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    factor: FloatArray = vectors * np.sqrt(np.maximum(values, 0.0))
    return factor


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep messages of lightning and scvi from the user's screen, and their seeds from other draws."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002 - scvi seeds them
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scvi  # noqa: F401 - 10 s; it sets up the loggers

        names = [one for one in logging.root.manager.loggerDict if one.startswith(_CHATTY)]
        levels = {name: logging.getLogger(name).level for name in names}
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
