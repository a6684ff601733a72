"""Small seeded cells and files of every shape, for the tests of this folder."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from core.presets.schema import DataSettings

REPOSITORY = Path(__file__).parents[2]
REAL_CELLS = Path(os.environ.get("TFX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def real_file(name: str) -> str:
    path = REAL_CELLS / name
    if not path.exists():
        pytest.skip(f"{name} is not there; set TFX_TEST_DATA to the folder of real test cells")
    return str(path)


def ensembl(n: int, first: int = 0) -> list[str]:
    return [f"ENSG{number:011d}" for number in range(first, first + n)]


def make_counts(n_cells: int = 60, n_genes: int = 40, seed: int = 0) -> np.ndarray:
    """(cells, genes) integers as float32; gene means differ, no cell and no gene is empty."""
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 3.0, size=n_genes)
    counts = rng.poisson(means * rng.gamma(3.0, 0.4, size=(n_cells, 1))).astype(np.float32)
    counts[:, 0] += 1
    counts[np.arange(n_genes) % n_cells, np.arange(n_genes)] += 1
    return counts


def make_obs(n_cells: int = 60, n_donors: int = 6, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed + 1)
    donor = np.arange(n_cells) % n_donors
    return pd.DataFrame(
        {
            "donor_id": [f"D{number}" for number in donor],
            "sex": np.where(donor % 2, "male", "female"),
            "tissue": rng.choice(["lung", "liver", "blood"], n_cells),
            "cell_type": rng.choice(["T cell", "B cell", "monocyte"], n_cells),
            "development_stage": [f"{30 + 10 * (number % 3)}-year-old stage" for number in donor],
            "disease": rng.choice(["normal", "asthma"], n_cells),
        },
        index=[f"cell{number}" for number in range(n_cells)],
    )


def make_adata(
    n_cells: int = 60, n_genes: int = 40, *, seed: int = 0, n_donors: int = 6
) -> AnnData:
    """Raw counts in CSR, Ensembl ids, symbols in var.feature_name, CELLxGENE obs columns."""
    return AnnData(
        sparse.csr_matrix(make_counts(n_cells, n_genes, seed)),
        obs=make_obs(n_cells, n_donors, seed),
        var=pd.DataFrame(
            {"feature_name": [f"GENE{number}" for number in range(n_genes)]}, index=ensembl(n_genes)
        ),
    )


def write(adata: AnnData, folder: Path, name: str = "cells.h5ad") -> str:
    path = folder / name
    adata.write_h5ad(path)
    return str(path)


def settings(files: str | list[str], **others: object) -> DataSettings:
    return DataSettings.model_validate({"files": files, **others})


def log_normalised(counts: np.ndarray, total: float = 1e4) -> np.ndarray:
    """(cells, genes) natural log of one plus counts per `total`, in float64."""
    sums = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts.astype(np.float64) * total / np.where(sums == 0, 1, sums))
