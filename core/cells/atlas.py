"""The simulated human atlas: people, tissues, cell types, diseases and genes of known truth.

`simulate_atlas` gives the data set behind ``builtin:atlas``; `simulate_cells` draws further cells
of any condition of the same world, the left-out combinations included; `expected_log1p` gives the
mean profile of a condition. These are NOT real cells: the AnnData says so in obs, var and uns.
Marker genes are real names (`atlas_genes`); the rest is invented (`atlas_design`), and all of it is
recorded in the `AtlasTruth` that travels in ``uns["tfx_truth"]``.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.atlas_biology import atlas_biology
from core.cells.atlas_sampling import PHENOTYPES, CellTable, sample_counts
from core.cells.atlas_truth import AtlasTruth, Donor
from core.errors import ConfigurationError
from core.wording import did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["N_DONORS", "expected_log1p", "simulate_atlas", "simulate_cells"]

N_DONORS = 48
_MAX_CELLS = 5_000_000  # several GB: beyond this a typing error is likelier than a wish
_AGE_LABEL = re.compile(r"(\d{1,3})(-year-old(?: human)? stage)?")

_SEX, _TISSUE, _CELL_TYPE, _DISEASE = range(4)


def simulate_atlas(n_cells: int = 12_000, *, seed: int = 0) -> "AnnData":
    """Simulate the atlas data set, the left-out combinations absent.

    Parameters
    ----------
    n_cells
        Cells of the data set; the number of donors does not depend on it.
    seed
        Decides donors, cells and counts; the biology is always the same.

    Returns
    -------
    Raw counts in ``X`` (CSR float32); obs with sex, tissue, cell_type, development_stage, disease,
    donor_id, assay and simulated; ``uns["tfx_simulated"]`` and ``uns["tfx_truth"]`` (JSON).

    Raises
    ------
    ConfigurationError
        The number of cells is below one or absurdly large.
    """
    _check_n_cells(n_cells)
    rng = np.random.default_rng(seed)
    truth = atlas_biology()
    donors = _atlas_donors(truth, rng)
    truth = dataclasses.replace(truth, donors=donors)
    weights = np.stack([_donor_weights(truth, donor, rng) for donor in donors])
    weights *= rng.gamma(6.0, size=(len(donors), 1))  # donors give unequal numbers of cells
    pairs = _tissue_type_pairs(truth)
    cell_donors, cell_pairs = _deal_cells(weights, n_cells, rng)
    conditions = np.column_stack(
        [
            [truth.values("sex").index(donors[d].sex) for d in cell_donors],
            pairs[cell_pairs, 0],
            pairs[cell_pairs, 1],
            [truth.values("disease").index(donors[d].disease) for d in cell_donors],
        ]
    )
    table = CellTable(
        conditions=conditions.astype(np.int64),
        donors=cell_donors,
        ages=np.array([donor.age for donor in donors], dtype=float),
        severities=np.array([donor.severity for donor in donors]),
    )
    names = [donor.donor_id for donor in donors]
    adata = _to_anndata(truth, table, names, "sim", rng)
    adata.uns["tfx_truth"] = truth.to_json()
    return adata


def simulate_cells(
    n: int,
    *,
    seed: int,
    sex: str | None = None,
    tissue: str | None = None,
    cell_type: str | None = None,
    age: int | str | None = None,
    disease: str | None = None,
    include_left_out: bool = True,
    n_donors: int = 24,
    truth: AtlasTruth | None = None,
) -> "AnnData":
    """Draw new cells of a condition from new donors, for scoring.

    Parameters
    ----------
    n
        Cells to draw.
    seed
        Decides donors, cells and counts.
    sex, tissue, cell_type, age, disease
        What is asked for; what is None is drawn as often as the simulated population has it. Age in
        years or as "34-year-old stage".
    include_left_out
        Whether combinations that the data set lacks on purpose may be drawn.
    n_donors
        New people the cells come from (at most one per cell).
    truth
        A truth read back from a file; default: the current one.

    Returns
    -------
    As `simulate_atlas`, without ``uns["tfx_truth"]``.

    Raises
    ------
    ConfigurationError
        An unknown value (with the nearest), or a combination that does not exist in the simulated
        world.
    """
    _check_n_cells(n)
    truth = atlas_biology() if truth is None else truth
    request = {"sex": sex, "tissue": tissue, "cell_type": cell_type, "disease": disease}
    allowed, weights = _allowed_conditions(truth, request, include_left_out=include_left_out)
    years = None if age is None else _parse_age(truth, age)
    rng = np.random.default_rng(seed)
    n_donors = max(1, min(n, n_donors))

    # donors first (sex and disease belong to people), then the tissue and type of their cells
    people, group_of = np.unique(allowed[:, [_SEX, _DISEASE]], axis=0, return_inverse=True)
    group_of = group_of.ravel()
    group_weights = np.bincount(group_of, weights=weights)
    donor_group = rng.choice(len(people), n_donors, p=group_weights / group_weights.sum())
    by_donor = np.where(group_of[None, :] == donor_group[:, None], weights[None, :], 0.0)
    by_donor /= by_donor.sum(axis=1, keepdims=True)
    cell_donors, cell_conditions = _deal_cells(by_donor, n, rng)
    low, high = int(truth.parameters["age_min"]), int(truth.parameters["age_max"])
    ages = rng.integers(low, high + 1, n_donors) if years is None else np.full(n_donors, years)
    table = CellTable(
        conditions=allowed[cell_conditions],
        donors=cell_donors,
        ages=ages.astype(float),
        severities=_severities(truth, n_donors, rng),
    )
    names = [f"sim-new-donor-{index:04d}" for index in range(1, n_donors + 1)]
    return _to_anndata(truth, table, names, "sim-new", rng)


def expected_log1p(
    context: Mapping[str, str],
    *,
    truth: AtlasTruth | None = None,
    n_cells: int = 4000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Estimate the true mean log1p counts-per-10k profile of a condition.

    The mean is over `n_cells` sampled cells of as many donors, depth and noise included: it is what
    the mean of ever more real cells of the condition would tend to. The standard error of a gene is
    its standard deviation / sqrt(n_cells), at most about 0.03 at the default.

    Parameters
    ----------
    context
        Phenotype -> value for any of sex, tissue, cell_type, age, disease.
    truth, n_cells, seed
        As in `simulate_cells`.

    Returns
    -------
    (genes,), in the order of ``truth.genes``.
    """
    known = (*PHENOTYPES, "age")
    unknown = sorted(set(context) - set(known))
    if unknown:
        message = f"the simulated atlas has no phenotype {unknown[0]!r}; it has {', '.join(known)}"
        raise ConfigurationError(message)
    cells = simulate_cells(
        n_cells,
        seed=seed,
        sex=context.get("sex"),
        tissue=context.get("tissue"),
        cell_type=context.get("cell_type"),
        age=context.get("age"),
        disease=context.get("disease"),
        n_donors=n_cells,
        truth=truth,
    )
    counts = cells.X
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    scaled = counts.multiply(1e4 / totals[:, None]).tocsr()
    mean: NDArray[np.float64] = np.asarray(scaled.log1p().mean(axis=0), dtype=float).ravel()
    return mean


def _check_n_cells(n_cells: int) -> None:
    if not 1 <= n_cells <= _MAX_CELLS:
        message = (
            f"the simulated atlas needs between 1 and {_MAX_CELLS:,} cells, {n_cells:,} were asked "
            "for; set cells accordingly"
        )
        raise ConfigurationError(message)


def _severities(truth: AtlasTruth, n_donors: int, rng: np.random.Generator) -> NDArray[np.float64]:
    shape = truth.parameters["severity_shape"]
    return rng.gamma(shape, 1.0 / shape, n_donors).round(4)


def _atlas_donors(truth: AtlasTruth, rng: np.random.Generator) -> tuple[Donor, ...]:
    """Draw the people of the data set, disease and sex in fixed proportions."""
    people: list[tuple[str, str]] = []
    shares_so_far = np.cumsum(list(truth.disease_weights.values()))
    per_disease = np.diff(np.round(N_DONORS * shares_so_far / shares_so_far[-1]), prepend=0)
    for disease, n_patients in zip(truth.disease_weights, per_disease.astype(int), strict=True):
        n_women = round(truth.sex_weights[disease]["female"] * n_patients)
        people += [("female", disease)] * n_women + [("male", disease)] * (n_patients - n_women)
    people = [people[index] for index in rng.permutation(len(people))]
    ages = rng.integers(
        int(truth.parameters["age_min"]), int(truth.parameters["age_max"]) + 1, len(people)
    )
    severities = _severities(truth, len(people), rng)
    tissues = truth.values("tissue")
    shares = np.array([truth.tissue_weights[tissue] for tissue in tissues])
    donors = []
    for index, (sex, disease) in enumerate(people):
        n_tissues = int(rng.integers(2, 6))
        chosen = rng.choice(len(tissues), n_tissues, replace=False, p=shares / shares.sum())
        given = [tissues[code] for code in sorted(chosen)]
        given = [
            tissue
            for tissue in given
            if not truth.is_left_out({"sex": sex, "tissue": tissue, "disease": disease})
        ]
        donors.append(
            Donor(
                donor_id=f"sim-donor-{index + 1:02d}",
                sex=sex,
                age=int(ages[index]),
                disease=disease,
                severity=float(severities[index]),
                tissues=tuple(given or ["blood"]),
            )
        )
    return tuple(donors)


def _tissue_type_pairs(truth: AtlasTruth) -> NDArray[np.int64]:
    """(pairs, 2) codes of the tissue and cell type of every pair that exists."""
    cell_types = truth.values("cell_type")
    return np.array(
        [
            (code, cell_types.index(name))
            for code, tissue in enumerate(truth.values("tissue"))
            for name in truth.composition[tissue]
        ],
        dtype=np.int64,
    )


def _donor_weights(
    truth: AtlasTruth, donor: Donor, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(pairs,) how the cells of a donor fall on tissue and type; left-out combinations get none."""
    weights = []
    for tissue, parts in truth.composition.items():
        for cell_type, share in parts.items():
            condition = {
                "sex": donor.sex,
                "tissue": tissue,
                "cell_type": cell_type,
                "disease": donor.disease,
            }
            absent = tissue not in donor.tissues or truth.is_left_out(condition)
            weights.append(0.0 if absent else truth.tissue_weights[tissue] * share)
    spread = np.exp(0.3 * rng.standard_normal(len(weights)))  # donors differ in composition
    given: NDArray[np.float64] = np.array(weights) * spread
    given /= given.sum()
    return given


def _deal_cells(
    weights: NDArray[np.float64], n_cells: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal cells to the entries of a (rows, columns) table of weights, in random order."""
    counts = rng.multinomial(n_cells, (weights / weights.sum()).ravel())
    flat = rng.permutation(np.repeat(np.arange(weights.size), counts))
    rows, columns = np.divmod(flat, weights.shape[1])
    return rows.astype(np.int64), columns.astype(np.int64)


def _allowed_conditions(
    truth: AtlasTruth, request: Mapping[str, str | None], *, include_left_out: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """List the conditions that meet a request, (conditions, 4) codes, with population weights."""
    for phenotype, value in request.items():
        if value is not None and value not in truth.values(phenotype):
            message = (
                f"the simulated atlas has no {phenotype} {value!r}; "
                f"{_nearest(value, truth.values(phenotype))}"
            )
            raise ConfigurationError(message)
    conditions, weights = [], []
    for disease, disease_weight in truth.disease_weights.items():
        for sex, sex_weight in truth.sex_weights[disease].items():
            for tissue, parts in truth.composition.items():
                for cell_type, share in parts.items():
                    condition = dict(
                        zip(PHENOTYPES, (sex, tissue, cell_type, disease), strict=True)
                    )
                    if any(value not in (None, condition[p]) for p, value in request.items()):
                        continue
                    if not include_left_out and truth.is_left_out(condition):
                        continue
                    conditions.append([truth.values(p).index(condition[p]) for p in PHENOTYPES])
                    weights.append(
                        disease_weight * sex_weight * truth.tissue_weights[tissue] * share
                    )
    if not conditions:
        _refuse_impossible(truth, request)
    return np.array(conditions, dtype=np.int64), np.array(weights)


def _refuse_impossible(truth: AtlasTruth, request: Mapping[str, str | None]) -> None:
    tissue, cell_type = request["tissue"], request["cell_type"]
    if tissue and cell_type and cell_type not in truth.composition[tissue]:
        homes = [name for name, parts in truth.composition.items() if cell_type in parts]
        message = (
            f"the simulated atlas has no {cell_type!r} in {tissue!r}; choose a tissue that has "
            f"them: {', '.join(homes)}"
        )
    else:
        asked = ", ".join(f"{name}={value}" for name, value in request.items() if value)
        message = (
            f"{asked} is left out of the simulated atlas on purpose; allow it with "
            "include_left_out=True"
        )
    raise ConfigurationError(message)


def _parse_age(truth: AtlasTruth, age: int | str) -> int:
    """Read 34, "34" or "34-year-old stage"."""
    match = _AGE_LABEL.fullmatch(str(age).strip())
    low, high = int(truth.parameters["age_min"]), int(truth.parameters["age_max"])
    if match is None or not low <= int(match[1]) <= high:
        message = (
            f"the simulated atlas cannot draw age {age!r}; give years from {low} to {high} or "
            "'34-year-old stage'"
        )
        raise ConfigurationError(message)
    return int(match[1])


def _nearest(value: str, known: tuple[str, ...]) -> str:
    return did_you_mean(value, known, n=3, cutoff=0.5) or f"choose {', '.join(known)}"


def _to_anndata(
    truth: AtlasTruth,
    cells: CellTable,
    donor_names: list[str],
    prefix: str,
    rng: np.random.Generator,
) -> "AnnData":
    """Sample the counts and label everything as simulated."""
    from anndata import AnnData  # 600 ms: pandas and h5py come with it

    counts = sample_counts(truth, cells, rng)
    n_cells = len(cells.donors)

    def labels(column: int) -> "pd.Categorical[str]":
        return _categorical(cells.conditions[:, column], truth.values(PHENOTYPES[column]))

    stages = [f"{int(age)}-year-old stage" for age in cells.ages]
    stage_names = sorted(set(stages))
    stage_codes = np.array([stage_names.index(stage) for stage in stages])
    obs = pd.DataFrame(
        {
            "sex": labels(_SEX),
            "tissue": labels(_TISSUE),
            "cell_type": labels(_CELL_TYPE),
            "development_stage": _categorical(stage_codes[cells.donors], tuple(stage_names)),
            "disease": labels(_DISEASE),
            "donor_id": _categorical(cells.donors, tuple(donor_names)),
            "assay": _categorical(np.zeros(n_cells, dtype=np.int64), ("simulated",)),
            "simulated": np.ones(n_cells, dtype=bool),
        },
        index=pd.Index([f"{prefix}-cell-{index:07d}" for index in range(n_cells)]),
    )
    var = pd.DataFrame({"simulated": True}, index=pd.Index(list(truth.genes)))
    adata = AnnData(X=counts, obs=obs, var=var)
    adata.uns["tfx_simulated"] = True
    return adata


def _categorical(codes: NDArray[np.int64], names: tuple[str, ...]) -> "pd.Categorical[str]":
    """Return a categorical without unused categories, as h5ad files from CELLxGENE have it."""
    used = np.unique(codes)
    return pd.Categorical.from_codes(
        np.searchsorted(used, codes), categories=pd.Index([names[code] for code in used])
    )
