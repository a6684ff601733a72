"""Generated cells beside real ones: matching real cells, agreement, markers, numbers to draw."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh

from core.cells.genes import GenePanel
from core.cells.store import SPLITS, NoStoreError, Store, places_of_store
from core.errors import ConfigurationError, DataError
from core.evaluation.fidelity.measures import compare_cells, gene_means
from core.model.folder import CellModel
from core.random_streams import sample_rows
from core.wording import listed

logger = logging.getLogger(__name__)

#: Measures of an `Agreement`.
MEASURES = ("gene_mean_r", "detection_mae", "correlation_r", "correlation_slope")
#: Held-out real cells are preferred when there are at least this many.
ENOUGH_HELD_OUT = 50
#: Most cells of either side that are compared.
MAX_COMPARED = 5_000
#: Genes whose means a profile holds, those of highest mean first.
MAX_GENES = 2_000
#: Cells of each side whose genes per cell and place in the plane a profile holds.
MAX_POINTS = 500
#: Real cells that the plane is fitted to.
_FITTED_CELLS = 1_000
#: Genes of largest difference, and values of each, in a profile.
_TOP_GENES, _TOP_VALUES = 12, 200
#: Random exchanges from which the noise floor of paired cells is estimated, and the chance that any gene
#: exceeds it where the change has no effect.
_EXCHANGES, _CHANCE = 1_000, 0.05
#: Random halves of the real cells whose mean agreement is printed, and the fewest cells of a half.
_SPLITS, _LEAST_HALF = 5, 10
#: Fewer training cells than this are no group to compare with.
_LEAST_GROUP = 5

FloatArray = NDArray[np.floating[Any]]


def find_training_store(model: CellModel, place: Path | None = None) -> Store:
    """Open the store that a model was trained on: in ``place``, else in its own or beside the model.

    NoStoreError if it is gone or was prepared again, DataError if it is damaged.
    """
    facts = model.provenance
    store, run = str(facts.get("store", "")), str(facts.get("run", ""))
    if place is not None:
        places = [place]
    elif model.folder is None:
        places = [Path(store)] if store else []
    else:
        relative = os.path.relpath(store, run) if store and run else ""
        places = places_of_store(store, model.folder.parent, relative)
    owner = "the model" if model.folder is None else str(model.folder)
    return Store.of_key(str(facts.get("store_key", "")), places, owner=owner)


def open_training_store(model: CellModel) -> Store | None:
    """Open the store that a model was trained on; None if it is gone, and with a warning if it is damaged."""
    try:
        return find_training_store(model)
    except NoStoreError:
        return None
    except DataError as error:
        logger.warning("%s; there is no comparison with its cells", error)
        return None


def read_real_cells(
    model: CellModel, store: Store, wanted: dict[int, int]
) -> tuple[sparse.csr_matrix, str] | None:
    """Read real cells of the requested phenotypes, held-out ones where there are enough.

    Returns (cells, genes) as the model sees them (0 and 1 for a binary model), and which cells they are;
    None where no real cell matches.
    """
    matching = _has(model, store, wanted)
    held_out = np.flatnonzero(matching & (store.split_codes != SPLITS.index("train")))
    rows, which = held_out, "held-out"
    if len(held_out) < ENOUGH_HELD_OUT:
        rows, which = np.flatnonzero(matching), "training and held-out"
    return (_read(model, store, rows), which) if len(rows) else None


def _has(model: CellModel, store: Store, wanted: Mapping[int, int]) -> NDArray[np.bool_]:
    """(cells of the store,), those that a run may train and validate on, with all wanted codes."""
    matching = store.where(model.provenance.get("where") or [])
    for slot, code in wanted.items():
        matching &= np.asarray(store.phenotype_codes[:, slot]) == code
    return matching


def _read(model: CellModel, store: Store, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """Read cells as the model sees them, at most `MAX_COMPARED` of them."""
    cells = store.read(sample_rows(rows, MAX_COMPARED, np.random.default_rng(0)), model.panel)
    if model.config.kind == "binary":
        cells.data = (cells.data >= model.values.edges[0]).astype(np.float32)
        cells.eliminate_zeros()
    return cells


@dataclass(frozen=True)
class Agreement:
    """Measures of `compare_cells` between equal numbers of cells; means over random halves of the real cells.

    ``real`` compares one half with the other: what a perfect generator would score. ``generated`` compares
    the same half with as many generated cells.
    """

    n_cells: int
    real: dict[str, float]
    generated: dict[str, float]


def agreement_beside_real(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, panel: GenePanel
) -> Agreement | None:
    """Compare generated cells, and other real cells, with real cells; None where these are too few to be halved.

    Both are (cells, genes) of one condition, log1p counts per 10,000, in panel order.
    """
    n = min(real.shape[0] // 2, generated.shape[0])
    if n < _LEAST_HALF:
        return None
    scores: dict[str, list[tuple[float, ...]]] = {"real": [], "generated": []}
    for seed in range(_SPLITS):
        rng = np.random.default_rng(seed)
        order = rng.permutation(real.shape[0])
        others = {
            "real": real[order[n : 2 * n]],
            "generated": generated[rng.permutation(generated.shape[0])[:n]],
        }
        for side, cells in others.items():
            found = compare_cells(real[order[:n]], cells, panel)
            scores[side].append(tuple(getattr(found, name) for name in MEASURES))
    means = {
        side: dict(zip(MEASURES, np.mean(values, axis=0).tolist(), strict=True))
        for side, values in scores.items()
    }
    return Agreement(n, **means)


@dataclass(frozen=True)
class MarkerCheck:
    """One gene that distinguishes a requested value in the training cells.

    ``training_mean`` and ``other_mean`` are mean log1p values of training cells with the value and
    over all training cells; ``generated_mean`` that of the generated cells. ``matching_mean`` is that of
    training cells of the whole request, ``beside_mean`` that of those which differ in this value only, and
    ``beside`` says which these are; without the store they are as training and other.
    """

    phenotype: str
    value: str
    gene: str
    training_mean: float
    other_mean: float
    generated_mean: float
    generated_detection: float
    matching_mean: float
    beside_mean: float
    beside: str


def check_markers(
    model: CellModel,
    generated: sparse.csr_matrix,
    wanted: dict[int, int],
    *,
    store: Store | None = None,
    genes: Sequence[int] = (),
    n_each: int = 3,
) -> list[MarkerCheck]:
    """Look up the genes that most raise and lower each requested value among cells that are else the same.

    ``generated`` is (cells, genes), ``wanted`` slot -> code. With ``store`` training cells of the request are
    compared with those of another value of one phenotype and the same values of the others, else cells with
    the value with all training cells. There are ``n_each`` genes raised, and ``n_each`` lowered, per phenotype,
    or those of ``genes``, columns of the panel.
    """
    means = np.asarray(generated.mean(axis=0)).ravel()
    # Not the sparse mean, which multiplies by 1 / n: 1.0000000000000002 is no fraction of cells.
    detection = np.asarray((generated > 0).sum(axis=0)).ravel() / generated.shape[0]
    names = list(model.config.phenotypes)
    starts = np.cumsum([0, *model.config.phenotype_sizes])
    checks: list[MarkerCheck] = []
    everything = {} if wanted or not genes or not names else {0: -1}
    for slot, code in (wanted or everything).items():
        of_phenotype = model.reference.means[starts[slot] : starts[slot + 1]]
        n_cells = model.reference.value_counts(slot, len(of_phenotype))
        sizes = np.array(n_cells, dtype=float)
        overall = (of_phenotype * sizes[:, None]).sum(axis=0) / max(sizes.sum(), 1.0)
        found = None if store is None or not wanted else _beside(model, store, wanted, slot)
        of_value = of_phenotype[code] if wanted else overall
        with_it, without, beside = found or (of_value, overall, "all training cells")
        order = np.argsort(with_it - without)
        name, value = "", "all cells"
        if wanted:
            name, value = names[slot], model.config.phenotypes[names[slot]][code]
        checks += [
            MarkerCheck(
                phenotype=name,
                value=value,
                gene=model.panel.symbols[gene],
                training_mean=float(of_value[gene]),
                other_mean=float(overall[gene]),
                generated_mean=float(means[gene]),
                generated_detection=float(detection[gene]),
                matching_mean=float(with_it[gene]),
                beside_mean=float(without[gene]),
                beside=beside,
            )
            for gene in genes or [*order[::-1][:n_each], *order[:n_each]]
        ]
    return checks


def _beside(
    model: CellModel, store: Store, wanted: Mapping[int, int], slot: int
) -> tuple[FloatArray, FloatArray, str] | None:
    """(genes,) means of training cells of a request, and of those that differ in one phenotype only.

    None where either are too few.
    """
    is_training = store.split_codes == SPLITS.index("train")
    others = {one: code for one, code in wanted.items() if one != slot}
    same = _has(model, store, others) & is_training
    codes = np.asarray(store.phenotype_codes[:, slot])
    groups = same & (codes == wanted[slot]), same & (codes >= 0) & (codes != wanted[slot])
    rows = [np.flatnonzero(group) for group in groups]
    if min(map(len, rows)) < _LEAST_GROUP:
        return None
    with_it, without = (gene_means(_read(model, store, some)) for some in rows)
    names = list(model.config.phenotypes)
    kept = [model.config.phenotypes[names[one]][code] for one, code in others.items()]
    name = names[slot]
    return with_it, without, ", ".join([*kept, f"another {name}"])


def shown_genes(panel: GenePanel, names: Sequence[str]) -> list[int]:
    """Return the columns of the named genes that the panel has, with a warning about others.

    ConfigurationError if it has none of them.
    """
    found = {name: panel.index_of(name) for name in names}
    lacking = [name for name, index in found.items() if index is None]
    if lacking:
        near = panel.nearest(lacking[0])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        text = f"{len(lacking):,} of {len(found):,} marker genes are no genes of the model: {listed(lacking)}{hint}"
        if len(lacking) == len(found):
            raise ConfigurationError(text)
        logger.warning("%s", text)
    return list(dict.fromkeys(index for index in found.values() if index is not None))


def profile_cells(
    generated: sparse.csr_matrix, real: sparse.csr_matrix | None, panel: GenePanel
) -> dict[str, Any]:
    """Describe generated cells beside real ones by numbers that any screen can draw.

    Both are (cells, genes) in panel order, log1p counts per 10,000 (0 and 1 for binary models); without
    real cells the real side is null. Returns JSON values of bounded size, by the names of
    docs/generate-serve.md. Cells beyond the bounds are left out evenly, not at random, so that the same
    cells give the same profile.
    """
    mean_generated = gene_means(generated)
    mean_real = None if real is None else gene_means(real)
    highest = mean_generated if mean_real is None else np.maximum(mean_real, mean_generated)
    shown = np.sort(np.argsort(-highest, kind="stable")[:MAX_GENES])
    profile: dict[str, Any] = {
        "genes": {
            "names": [panel.symbols[gene] for gene in shown],
            "real_mean": None if mean_real is None else _rounded(mean_real[shown]),
            "generated_mean": _rounded(mean_generated[shown]),
        },
        "detected_genes": {
            "real": None if real is None else _detected(real),
            "generated": _detected(generated),
        },
        "embedding": None,
        "fidelity": None,
        "top_genes": [],
    }
    if real is None or mean_real is None:
        return profile
    fitted, at_real, at_generated, explained = principal_plane(real, generated)
    profile["embedding"] = {
        "method": f"PCA of {fitted:,} real cells",
        "explained": _rounded(explained),
        "real": _rounded(at_real),
        "generated": _rounded(at_generated),
    }
    difference = mean_generated - mean_real
    profile["top_genes"] = [
        {
            "gene": panel.symbols[gene],
            "real_mean": round(float(mean_real[gene]), 4),
            "generated_mean": round(float(mean_generated[gene]), 4),
            "difference": round(float(difference[gene]), 4),
            "real_values": _gene_values(real, int(gene)),
            "generated_values": _gene_values(generated, int(gene)),
        }
        for gene in np.argsort(-np.abs(difference), kind="stable")[:_TOP_GENES]
    ]
    return profile


def compare_pairs(
    before: sparse.csr_matrix, after: sparse.csr_matrix, again: sparse.csr_matrix, panel: GenePanel
) -> dict[str, Any]:
    """Compare cells with the same cells after a change, gene by gene, with a noise floor.

    All are (cells, genes) in panel order, log1p counts per 10,000. Row i of ``before`` and ``after`` is one
    cell, drawn with the same random numbers; ``again`` repeats ``before`` with other random numbers. Returns
    JSON values, by the names of docs/generate-serve.md. The floor of a gene is what the means of two draws
    without a change differ by, in so far that with probability 95 % no gene exceeds its floor.

    Notes
    -----
    Of two draws of the same request the cells of a pair could be exchanged: 1,000 random exchanges give
    the distribution of the largest |sum d| / sqrt(sum d^2) over all genes, where d is the difference within
    a pair (Westfall and Young 1993). The changed pairs give a second floor, which counts where it is higher:
    of a handful of cells nothing exceeds it.
    """
    mean_before, mean_after = gene_means(before), gene_means(after)
    highest = np.maximum(mean_before, mean_after)
    shown = np.sort(np.argsort(-highest, kind="stable")[:MAX_GENES])
    change, noise = (
        (other[:, shown] - before[:, shown]).toarray().astype(np.float64)
        for other in (after, again)
    )
    return {
        "names": [panel.symbols[gene] for gene in shown],
        "before_mean": _rounded(mean_before[shown]),
        "after_mean": _rounded(mean_after[shown]),
        "change": _rounded(change.mean(axis=0)),
        "floor": _rounded(np.maximum(_chance_floor(noise), _chance_floor(change))),
        "cells": len(change),
    }


def _chance_floor(differences: FloatArray) -> FloatArray:
    """(genes,) mean differences that random signs of (pairs, genes) exceed in any gene with `_CHANCE`."""
    scale = np.sqrt((differences**2).sum(axis=0))
    unit = np.divide(differences, scale, out=np.zeros_like(differences), where=scale > 0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_EXCHANGES, len(differences)))
    largest = np.abs(signs @ unit).max(axis=1, initial=0.0)
    limit = float(np.quantile(largest, 1 - _CHANCE, method="higher"))
    return limit * scale / max(len(differences), 1)


def principal_plane(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, *, max_points: int = MAX_POINTS
) -> tuple[int, FloatArray, FloatArray, FloatArray]:
    """Place cells in the plane of the first two principal components of the real cells.

    Returns the number of real cells fitted; (points, 2) of real and of generated cells; the fraction of
    the real cells' variance along each axis. Where the real cells span less than a plane, the rest is 0.
    """
    fitted = real[_evenly(real.shape[0], _FITTED_CELLS)].toarray()
    centre = fitted.mean(axis=0)
    centred = fitted.astype(np.float64) - centre
    # By the cells' inner products: there are fewer cells than genes, and only two axes are needed.
    products = centred @ centred.T
    total = max(float(np.trace(products)), 1e-12)
    first = max(len(products) - 2, 0)
    power, vectors = eigh(products, subset_by_index=(first, len(products) - 1))
    power, vectors = power[::-1].clip(min=0), vectors[:, ::-1]
    axes = np.zeros((2, centred.shape[1]))
    for axis, strength in enumerate(power):
        if strength > 1e-9 * total:
            axes[axis] = vectors[:, axis] @ centred / np.sqrt(strength)
    at_real, at_generated = (
        (cells[_evenly(cells.shape[0], max_points)].toarray() - centre) @ axes.T
        for cells in (real, generated)
    )
    return len(fitted), at_real, at_generated, np.pad(power, (0, 2 - len(power))) / total


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of n row numbers, evenly spaced."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _detected(cells: sparse.csr_matrix) -> list[int]:
    some = cells[_evenly(cells.shape[0], MAX_POINTS)]
    return np.asarray((some > 0).sum(axis=1)).ravel().tolist()


def _gene_values(cells: sparse.csr_matrix, gene: int) -> list[float]:
    some = cells[_evenly(cells.shape[0], _TOP_VALUES)]
    return _rounded(some[:, [gene]].toarray().ravel())


def _rounded(values: FloatArray) -> list[Any]:
    """Four digits: more than a screen shows, and a third of the bytes."""
    return np.round(values.astype(np.float64), 4).tolist()
