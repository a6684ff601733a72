"""What generated cells are held against: the marker genes of a request, and matching real cells."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.store import SPLITS, Store
from core.errors import DataError
from core.model.folder import CellModel

__all__ = [
    "MAX_COMPARED",
    "MarkerCheck",
    "check_markers",
    "open_training_store",
    "read_real_cells",
]

#: Real cells from beyond training are preferred when there are at least this many.
ENOUGH_HELD_OUT = 50
#: Most cells of either side that are compared.
MAX_COMPARED = 5_000


@dataclass(frozen=True)
class MarkerCheck:
    """One gene that sets a requested value apart in the training cells.

    ``training_mean`` and ``other_mean`` are mean log1p values of training cells with the value and
    over all training cells; ``generated_mean`` that of the generated cells.
    """

    phenotype: str
    value: str
    gene: str
    training_mean: float
    other_mean: float
    generated_mean: float
    generated_detection: float


def check_markers(
    model: CellModel, generated: sparse.csr_matrix, wanted: dict[int, int], *, n_each: int = 3
) -> list[MarkerCheck]:
    """Look up the genes that most raise and lower each requested value, from the model alone.

    Parameters
    ----------
    model
        Its reference profiles name the genes.
    generated
        (cells, genes).
    wanted
        Slot -> code.
    n_each
        Genes raised, and genes lowered, per phenotype.
    """
    means = np.asarray(generated.mean(axis=0)).ravel()
    # Not the sparse mean, which multiplies by 1 / n: 1.0000000000000002 is no share of cells.
    detection = np.asarray((generated > 0).sum(axis=0)).ravel() / generated.shape[0]
    names = list(model.config.phenotypes)
    starts = np.cumsum([0, *model.config.phenotype_sizes])
    checks: list[MarkerCheck] = []
    for slot, code in wanted.items():
        of_phenotype = model.reference.means[starts[slot] : starts[slot + 1]]
        sizes = np.array(
            [model.reference.n_cells({slot: other}) for other in range(len(of_phenotype))],
            dtype=float,
        )
        overall = (of_phenotype * sizes[:, None]).sum(axis=0) / max(sizes.sum(), 1.0)
        order = np.argsort(of_phenotype[code] - overall)
        value = model.config.phenotypes[names[slot]][code]
        checks += [
            MarkerCheck(
                phenotype=names[slot],
                value=value,
                gene=model.panel.symbols[gene],
                training_mean=float(of_phenotype[code, gene]),
                other_mean=float(overall[gene]),
                generated_mean=float(means[gene]),
                generated_detection=float(detection[gene]),
            )
            for gene in [*order[::-1][:n_each], *order[:n_each]]
        ]
    return checks


def open_training_store(model: CellModel) -> Store | None:
    """Open the store the model was trained on, if it is still where it was and unchanged."""
    try:
        store = Store.open(model.provenance.get("store", ""))
    except DataError:
        return None
    return store if store.manifest.key == model.provenance.get("store_key") else None


def read_real_cells(
    model: CellModel, store: Store, wanted: dict[int, int]
) -> tuple[sparse.csr_matrix, str] | None:
    """Read real cells of the requested phenotypes, held-out ones where there are enough.

    Returns
    -------
    (cells, genes) in the model's own terms (on or off for a binary model), and which cells they
    are; None where no real cell matches.
    """
    matching = np.ones(store.n_cells, dtype=bool)
    for slot, code in wanted.items():
        matching &= np.asarray(store.phenotype_codes[:, slot]) == code
    held_out = np.flatnonzero(matching & (store.split_codes != SPLITS.index("train")))
    rows, which = held_out, "held-out"
    if len(held_out) < ENOUGH_HELD_OUT:
        rows, which = np.flatnonzero(matching), "training and held-out"
    if len(rows) == 0:
        return None
    if len(rows) > MAX_COMPARED:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_COMPARED, replace=False))
    real = store.read(rows, model.panel)
    if model.config.kind == "binary":
        real = _as_binary(real, model.values.edges)
    return real, which


def _as_binary(expression: sparse.csr_matrix, edges: NDArray[np.float32]) -> sparse.csr_matrix:
    """On or off, as a binary model sees them."""
    on = expression.copy()
    on.data = (on.data >= edges[0]).astype(np.float32)
    on.eliminate_zeros()
    return on
