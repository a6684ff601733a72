"""Donors and conditions of simulated cells, and the AnnData that they become.

`simulate_atlas` makes the data set ``builtin:atlas``; `simulate_cells` draws more cells of any
condition of the same world, combinations that the data set leaves out included.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.atlas.biology import AtlasTruth, Donor, atlas_biology
from core.cells.atlas.sampling import PHENOTYPES, CellTable, sample_counts
from core.errors import ConfigurationError

if TYPE_CHECKING:
    from anndata import AnnData

N_DONORS = 48
_MAX_CELLS = 5_000_000  # several GB: more is likelier a typing error than a wish


def simulate_atlas(n_cells: int, *, seed: int = 0, version: int = 1) -> "AnnData":
    """Simulate the atlas data set, without the left-out combinations.

    The seed determines donors, cells and counts; biology and number of donors are always the same. Version 2
    of the biology has directed regulation (`core.cells.atlas.biology`).
    Returns raw counts in ``X`` (CSR float32); obs with sex, tissue, cell_type, development_stage,
    disease, donor_id, assay and simulated; ``uns["tfx_simulated"]`` and ``uns["tfx_truth"]`` (JSON).
    """
    if not 1 <= n_cells <= _MAX_CELLS:
        raise ConfigurationError(
            f"the number of simulated cells must be between 1 and {_MAX_CELLS:,}, not {n_cells:,}; "
            f"change 'cells'"
        )
    truth = atlas_biology(version)
    rng = np.random.default_rng(seed)
    donors = _draw_donors(truth, rng)
    weights = np.stack([_donor_weights(truth, donor, rng) for donor in donors])
    weights *= rng.gamma(6.0, size=(len(donors), 1))  # donors contribute unequal numbers of cells
    tissues, cell_types = truth.values("tissue"), truth.values("cell_type")
    pairs = np.array(
        [
            (tissues.index(tissue), cell_types.index(cell_type))
            for tissue, parts in truth.composition.items()
            for cell_type in parts
        ]
    )
    people = np.array(
        [
            (truth.values("sex").index(donor.sex), truth.values("disease").index(donor.disease))
            for donor in donors
        ]
    )
    cell_donors, cell_pairs = _deal_cells(weights, n_cells, rng)
    sexes, diseases = people[cell_donors].T
    table = CellTable(
        conditions=np.column_stack([sexes, pairs[cell_pairs], diseases]).astype(np.int64),
        donors=cell_donors,
        ages=np.array([donor.age for donor in donors], dtype=float),
        severities=np.array([donor.severity for donor in donors]),
    )
    names = [donor.donor_id for donor in donors]
    adata = _to_anndata(truth, table, names, "sim", rng)
    adata.uns["tfx_truth"] = dataclasses.replace(truth, donors=donors).to_json()
    return adata


def simulate_cells(
    n: int,
    *,
    seed: int,
    age: int | None = None,
    include_left_out: bool = True,
    n_donors: int = 24,
    version: int = 1,
    silenced: Sequence[str] = (),
    **condition: str,
) -> "AnnData":
    """Draw ``n`` new cells of a condition from new donors, for scoring.

    ``condition`` gives sex, tissue, cell_type or disease; unspecified ones, and the age in years,
    are drawn as frequently as they occur in the simulated population. Returns an AnnData as of
    `simulate_atlas`, without ``uns["tfx_truth"]``. ``silenced`` are genes that are knocked out in all
    cells (`core.cells.atlas.sampling.sample_counts`).
    """
    truth = atlas_biology(version)
    if unknown := [gene for gene in silenced if gene not in truth.genes]:
        raise ConfigurationError(
            f"the simulated atlas has no gene '{unknown[0]}'; choose one of its genes"
        )
    allowed, weights = _allowed_conditions(truth, condition, include_left_out=include_left_out)
    rng = np.random.default_rng(seed)
    n_donors = max(1, min(n, n_donors))

    # donors first (sex and disease belong to people), then the tissue and type of their cells
    people, group_of = np.unique(allowed[:, [0, 3]], axis=0, return_inverse=True)
    group_of = group_of.ravel()
    group_weights = np.bincount(group_of, weights=weights)
    donor_group = rng.choice(len(people), n_donors, p=group_weights / group_weights.sum())
    by_donor = np.where(group_of[None, :] == donor_group[:, None], weights[None, :], 0.0)
    by_donor /= by_donor.sum(axis=1, keepdims=True)
    cell_donors, cell_conditions = _deal_cells(by_donor, n, rng)
    ages = _ages(truth, n_donors, rng) if age is None else np.full(n_donors, age)
    table = CellTable(
        conditions=allowed[cell_conditions],
        donors=cell_donors,
        ages=ages.astype(float),
        severities=_severities(truth, n_donors, rng),
    )
    names = [f"sim-new-donor-{index:04d}" for index in range(1, n_donors + 1)]
    return _to_anndata(truth, table, names, "sim-new", rng, silenced=silenced)


def _ages(truth: AtlasTruth, n_donors: int, rng: np.random.Generator) -> NDArray[np.int64]:
    low, high = int(truth.parameters["age_min"]), int(truth.parameters["age_max"])
    return rng.integers(low, high + 1, n_donors)


def _severities(truth: AtlasTruth, n_donors: int, rng: np.random.Generator) -> NDArray[np.float64]:
    shape = truth.parameters["severity_shape"]
    return rng.gamma(shape, 1.0 / shape, n_donors).round(4)


def _draw_donors(truth: AtlasTruth, rng: np.random.Generator) -> tuple[Donor, ...]:
    """Draw the people of the data set, disease and sex in fixed proportions."""
    people: list[tuple[str, str]] = []
    cumulated = np.cumsum(list(truth.disease_weights.values()))
    per_disease = np.diff(np.round(N_DONORS * cumulated / cumulated[-1]), prepend=0)
    for disease, n_patients in zip(truth.disease_weights, per_disease.astype(int), strict=True):
        n_women = round(truth.sex_weights[disease]["female"] * n_patients)
        people += [("female", disease)] * n_women + [("male", disease)] * (n_patients - n_women)
    people = [people[index] for index in rng.permutation(len(people))]
    ages = _ages(truth, len(people), rng)
    severities = _severities(truth, len(people), rng)
    tissues = truth.values("tissue")
    weights = np.array([truth.tissue_weights[tissue] for tissue in tissues])
    donors = []
    for index, (sex, disease) in enumerate(people):
        n_tissues = int(rng.integers(2, 6))
        chosen = rng.choice(len(tissues), n_tissues, replace=False, p=weights / weights.sum())
        sampled = [
            tissues[code]
            for code in sorted(chosen)
            if not truth.is_left_out({"sex": sex, "tissue": tissues[code], "disease": disease})
        ]
        donors.append(
            Donor(
                donor_id=f"sim-donor-{index + 1:02d}",
                sex=sex,
                age=int(ages[index]),
                disease=disease,
                severity=float(severities[index]),
                tissues=tuple(sampled or ["blood"]),
            )
        )
    return tuple(donors)


def _donor_weights(
    truth: AtlasTruth, donor: Donor, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(pairs of tissue and cell type,) fractions of a donor's cells; 0 for left-out combinations."""
    weights = []
    for tissue, parts in truth.composition.items():
        for cell_type, fraction in parts.items():
            values = (donor.sex, tissue, cell_type, donor.disease)
            condition = dict(zip(PHENOTYPES, values, strict=True))
            absent = tissue not in donor.tissues or truth.is_left_out(condition)
            weights.append(0.0 if absent else truth.tissue_weights[tissue] * fraction)
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
    truth: AtlasTruth, request: dict[str, str], *, include_left_out: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """List the conditions that match a request, (conditions, 4) codes, with population weights."""
    known = [truth.values(phenotype) for phenotype in PHENOTYPES]
    codes, weights = [], []
    for disease, disease_weight in truth.disease_weights.items():
        for sex, sex_weight in truth.sex_weights[disease].items():
            for tissue, parts in truth.composition.items():
                for cell_type, fraction in parts.items():
                    values = (sex, tissue, cell_type, disease)
                    condition = dict(zip(PHENOTYPES, values, strict=True))
                    if not request.items() <= condition.items():
                        continue
                    if not include_left_out and truth.is_left_out(condition):
                        continue
                    codes.append(
                        [names.index(value) for names, value in zip(known, values, strict=True)]
                    )
                    weights.append(
                        disease_weight * sex_weight * truth.tissue_weights[tissue] * fraction
                    )
    if not codes:
        requested = ", ".join(f"{name}={value}" for name, value in request.items())
        raise ConfigurationError(
            f"the simulated atlas has no cells with {requested}; choose another combination"
        )
    return np.array(codes, dtype=np.int64), np.array(weights)


def _to_anndata(
    truth: AtlasTruth,
    cells: CellTable,
    donor_names: list[str],
    prefix: str,
    rng: np.random.Generator,
    *,
    silenced: Sequence[str] = (),
) -> "AnnData":
    """Sample the counts and label everything as simulated."""
    from anndata import AnnData  # 600 ms: pandas and h5py come with it

    counts = sample_counts(truth, cells, rng, silenced=silenced)
    n_cells = len(cells.donors)
    labels = {
        phenotype: _categorical(codes, truth.values(phenotype))
        for phenotype, codes in zip(PHENOTYPES, cells.conditions.T, strict=True)
    }
    stage_names, stage_codes = np.unique(
        [f"{int(age)}-year-old stage" for age in cells.ages], return_inverse=True
    )
    obs = pd.DataFrame(
        {
            "sex": labels["sex"],
            "tissue": labels["tissue"],
            "cell_type": labels["cell_type"],
            "development_stage": _categorical(
                stage_codes[cells.donors], tuple(map(str, stage_names))
            ),
            "disease": labels["disease"],
            "donor_id": _categorical(cells.donors, tuple(donor_names)),
            "assay": pd.Categorical(["simulated"] * n_cells),
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
