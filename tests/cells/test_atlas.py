"""The simulated atlas: labels, expressed genes and correlations follow its truth."""

import hashlib
import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from core.cells.atlas.biology import FIBROTIC, FLARE, NORMAL, atlas_biology
from core.cells.atlas.simulation import N_DONORS, simulate_atlas, simulate_cells
from core.errors import ConfigurationError
from tests.tiny_atlas import expected_log1p

N_GENES = 720
CD8 = "CD8-positive, alpha-beta T cell"
TRUTH = atlas_biology()


@pytest.fixture(scope="module")
def atlas():
    return simulate_atlas(4000, seed=0)


def log_values(adata):
    """(cells, genes) frame of log1p counts per 10k."""
    totals = np.asarray(adata.X.sum(axis=1))
    return pd.DataFrame(np.log1p(adata.X.toarray() * 1e4 / totals), columns=adata.var_names)


@cache
def correlations(**condition):
    """Gene-gene correlations within a condition, without donor differences."""
    cells = simulate_cells(1500, seed=7, n_donors=1, age=50, sex="male", **condition)
    values = log_values(cells)
    centred = values.to_numpy() - values.to_numpy().mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-9)
    return pd.DataFrame(centred.T @ centred, index=values.columns, columns=values.columns)


def test_counts_are_whole_non_negative_csr_float32(atlas):
    assert sparse.issparse(atlas.X)
    assert atlas.X.format == "csr"
    assert atlas.X.dtype == np.float32
    assert atlas.X.has_sorted_indices
    assert (atlas.X.data > 0).all()
    assert (atlas.X.data == np.round(atlas.X.data)).all()
    assert atlas.shape == (4000, N_GENES)
    assert atlas.var_names.is_unique
    assert atlas.obs_names.is_unique


def test_everything_says_simulated(atlas):
    assert atlas.uns["tfx_simulated"] is True
    assert atlas.obs["simulated"].all()
    assert atlas.var["simulated"].all()
    assert set(atlas.obs["assay"]) == {"simulated"}
    assert atlas.obs["donor_id"].str.startswith("sim-").all()
    assert json.loads(atlas.uns["tfx_truth"])["simulated"] is True


def test_obs_has_the_cellxgene_columns_and_all_values(atlas):
    columns = "sex tissue cell_type development_stage disease donor_id assay simulated"
    assert list(atlas.obs.columns) == columns.split()
    assert set(atlas.obs["sex"]) == {"female", "male"}
    assert set(atlas.obs["tissue"]) == set(TRUTH.values("tissue"))
    assert set(atlas.obs["disease"]) == {NORMAL, FLARE, FIBROTIC}
    cell_types = TRUTH.values("cell_type")
    assert set(atlas.obs["cell_type"]) <= set(cell_types)
    assert len(set(atlas.obs["cell_type"])) >= len(cell_types) - 1  # one type is very rare
    assert atlas.obs["development_stage"].str.fullmatch(r"\d\d-year-old stage").all()


def test_a_donor_has_one_sex_age_and_disease(atlas):
    assert atlas.obs["donor_id"].nunique() == N_DONORS >= 40
    per_donor = atlas.obs.groupby("donor_id", observed=True)
    for column in ("sex", "development_stage", "disease"):
        assert (per_donor[column].nunique() == 1).all()
    assert per_donor["tissue"].nunique().max() > 1


def test_library_sizes_and_dropout_are_realistic(atlas):
    totals = np.asarray(atlas.X.sum(axis=1)).ravel()
    detected = np.diff(atlas.X.indptr) / N_GENES
    assert 2000 < np.median(totals) < 3000
    assert np.quantile(totals, 0.95) / np.quantile(totals, 0.05) > 3
    assert ((detected > 0.15) & (detected < 0.35)).mean() > 0.75
    by_type = pd.Series(totals).groupby(atlas.obs["cell_type"].to_numpy()).median()
    assert by_type["hepatocyte"] > 1.3 * by_type[CD8]


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the state under test)
    simulate_atlas(50, seed=1)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("left_out", TRUTH.left_out, ids=str)
def test_left_out_combinations_are_absent_but_their_parts_exist(atlas, left_out):
    obs = atlas.obs
    assert not np.logical_and.reduce([obs[name] == value for name, value in left_out.items()]).any()
    for name in left_out:
        others = [obs[other] == value for other, value in left_out.items() if other != name]
        assert np.logical_and.reduce(others).any()


@pytest.mark.parametrize("left_out", TRUTH.left_out, ids=str)
def test_left_out_combinations_can_be_drawn_for_scoring(left_out):
    cells = simulate_cells(20, seed=0, **left_out)
    for name, value in left_out.items():
        assert (cells.obs[name] == value).all()
    with pytest.raises(ConfigurationError, match="no cells with"):
        simulate_cells(20, seed=0, include_left_out=False, **left_out)


def test_partial_requests_skip_left_out_combinations_on_request():
    request = {"seed": 2, "tissue": "lung", "disease": FIBROTIC}
    assert set(simulate_cells(200, **request).obs["sex"]) == {"female", "male"}
    kept = simulate_cells(200, include_left_out=False, **request)
    assert set(kept.obs["sex"]) == {"male"}


def shifted_genes(effect):
    """Genes that an effect of the truth shifts, as "sex: female" or "tissue: lung"."""
    (found,) = [one for one in TRUTH.effects if one.name == effect]
    return found.shifts


def test_sex_genes_are_expressed_in_one_sex_only(atlas):
    female = (atlas.obs["sex"] == "female").to_numpy()
    male_genes = [gene for gene, shift in shifted_genes("sex: female").items() if shift < -1]
    female_genes = list(shifted_genes("sex: male"))
    assert (len(male_genes), len(female_genes)) == (9, 2)
    expressed = pd.DataFrame(atlas.X.toarray() > 0, columns=atlas.var_names)
    assert expressed.loc[female, "XIST"].mean() > 0.95
    assert expressed.loc[female, male_genes].mean().max() < 0.02
    assert expressed.loc[~female, ["RPS4Y1", "DDX3Y"]].mean().min() > 0.9
    assert expressed.loc[~female, female_genes].mean().max() < 0.02


@pytest.mark.parametrize(
    ("cell_type", "marker"),
    [
        ("B cell", "MS4A1"),
        ("plasma cell", "MZB1"),
        (CD8, "CD8A"),
        ("natural killer cell", "GNLY"),
        ("mast cell", "TPSAB1"),
        ("endothelial cell", "PECAM1"),
        ("fibroblast", "DCN"),
        ("hepatocyte", "ALB"),
        ("pulmonary alveolar type 2 cell", "SFTPC"),
        ("cardiac muscle cell", "TNNT2"),
    ],
)
def test_markers_are_expressed_in_their_type_and_low_elsewhere(atlas, cell_type, marker):
    mine = (atlas.obs["cell_type"] == cell_type).to_numpy()
    values = log_values(atlas)[marker]
    assert (values[mine] > 0).mean() > 0.7
    assert values[mine].mean() > 4 * values[~mine].mean()


def test_tissue_genes_show_in_every_type_of_the_tissue(atlas):
    values = log_values(atlas)
    t_cells = atlas.obs["cell_type"].str.contains("T cell").to_numpy()
    for tissue in TRUTH.values("tissue"):
        genes = list(shifted_genes(f"tissue: {tissue}"))
        here = (atlas.obs["tissue"] == tissue).to_numpy() & t_cells
        elsewhere = (atlas.obs["tissue"] != tissue).to_numpy() & t_cells
        assert values.loc[here, genes].mean().mean() > 1.5 * (
            values.loc[elsewhere, genes].mean().mean()
        )


def test_diseases_raise_their_genes():
    profiles = {
        disease: expected_log1p(800, cell_type="fibroblast", disease=disease)
        for disease in (NORMAL, FLARE, FIBROTIC)
    }
    isg, collagen = TRUTH.genes.index("ISG15"), TRUTH.genes.index("POSTN")
    assert profiles[FLARE][isg] > profiles[NORMAL][isg] + 0.5
    assert profiles[FIBROTIC][collagen] > profiles[NORMAL][collagen] + 0.3
    assert abs(profiles[FIBROTIC][isg] - profiles[NORMAL][isg]) < 0.3


def test_age_moves_its_genes_weakly():
    young, old = (expected_log1p(1500, age=age, tissue="blood") for age in (25, 80))
    difference = dict(zip(TRUTH.genes, old - young, strict=True))
    assert difference["SIM-AGE-01"] > 0.2
    assert difference["SIM-AGE-07"] < -0.2
    assert abs(difference["ACTB"]) < 0.2


def test_every_edge_has_its_sign_in_simulated_cells():
    """Averaged per programme variant: single pairs of rare genes drown in count noise."""
    wrong = []
    for programme in TRUTH.programmes:
        for variant in programme.variants:
            request = {name: values[0] for name, values in variant.context.items()}
            request.setdefault("disease", NORMAL)
            if "cell_type" not in request:
                request["cell_type"] = "classical monocyte"
            matrix = correlations(**request)
            signed = [
                np.sign(load_a * load_b) * matrix.loc[gene_a, gene_b]
                for gene_a, load_a in variant.loadings.items()
                for gene_b, load_b in variant.loadings.items()
                if gene_a < gene_b
            ]
            if not np.mean(signed) > 0.05:
                wrong.append((programme.name, variant.context, float(np.mean(signed))))
    assert wrong == []


def test_programmes_are_many_of_stated_size_and_without_common_genes():
    members = [
        {gene for variant in programme.variants for gene in variant.loadings}
        for programme in TRUTH.programmes
    ]
    assert len(members) >= 8
    assert all(6 <= len(genes) <= 13 for genes in members)
    together = set().union(*members)
    assert sum(map(len, members)) == len(together)
    assert together <= set(TRUTH.genes)


def test_truth_names_the_donors_and_genes_of_the_data_set(atlas):
    truth = json.loads(atlas.uns["tfx_truth"])
    assert truth["genes"] == list(atlas.var_names)
    assert len(truth["donors"]) == N_DONORS
    by_donor = atlas.obs.drop_duplicates("donor_id").set_index("donor_id")
    for donor in truth["donors"]:
        row = by_donor.loc[donor["donor_id"]]
        assert row["disease"] == donor["disease"]
        assert row["development_stage"] == f"{donor['age']}-year-old stage"


def test_the_atlas_is_byte_for_byte_what_stores_and_golden_losses_were_made_of():
    adata = simulate_atlas(600, seed=0)
    digest = hashlib.sha256(adata.uns["tfx_truth"].encode())
    for part in (adata.X.data, adata.X.indices, adata.X.indptr):
        digest.update(part.tobytes())
    digest.update(adata.obs.to_csv().encode())
    assert digest.hexdigest() == "7b9201b7b1bf68a1b32e034b76c7753df86d0cc4dac73c79c99d454e87923f49"


def test_impossible_requests_are_errors():
    for request in (
        {"tissue": "lungs"},
        {"cell_type": "hepatocyte", "tissue": "lung"},
        {"organ": "x"},
    ):
        with pytest.raises(ConfigurationError, match="has no cells with"):
            simulate_cells(5, seed=0, **request)


@pytest.mark.parametrize("n_cells", [0, -1, 10**9])
def test_absurd_numbers_of_cells_are_errors(n_cells):
    with pytest.raises(ConfigurationError, match="between 1 and"):
        simulate_atlas(n_cells)


def test_one_cell_is_enough():
    assert simulate_atlas(1, seed=0).n_obs == 1
    assert simulate_cells(1, seed=0).n_obs == 1


MACROPHAGE = {"cell_type": "macrophage", "tissue": "lung", "disease": NORMAL, "sex": "female"}
INFLAMMATION = {"CXCL8": -1, "CCL3": -1, "CXCL2": -1, "CD163": 1, "MRC1": 1}


def knock_out_shift(gene, version):
    """Mean change of log values in macrophages when a gene is silenced."""
    drawn = {"seed": 3, "n_donors": 1, "age": 50, "version": version, **MACROPHAGE}
    before, after = (
        log_values(simulate_cells(800, silenced=one, **drawn)).mean() for one in ((), (gene,))
    )
    return after - before


@pytest.mark.parametrize("version", [1, 2])
def test_a_silenced_gene_is_gone_and_those_of_its_programme_follow_with_their_signs(version):
    shift = knock_out_shift("IL1B", version)
    assert shift["IL1B"] < -1
    assert (np.sign(shift[list(INFLAMMATION)]) == pd.Series(INFLAMMATION)).all()
    assert shift[list(INFLAMMATION)].abs().min() > 0.15
    assert shift[["FOS", "JUN", "RPL3", "C1QA"]].abs().max() < 0.15


def test_with_directed_regulation_a_target_that_is_silenced_changes_no_other_gene():
    assert knock_out_shift("CXCL8", 1)[["IL1B", "CCL3"]].max() < -0.3
    directed = knock_out_shift("CXCL8", 2)
    assert directed["CXCL8"] < -1
    assert directed[["IL1B", "CCL3", "CXCL2", "CD163", "MRC1"]].abs().max() < 0.15
    truth = json.loads(simulate_atlas(20, version=2).uns["tfx_truth"])
    assert truth["regulators"]["inflammation"] == "IL1B"
    with pytest.raises(ConfigurationError, match="no gene 'IL1Z'"):
        simulate_cells(20, seed=0, silenced=("IL1Z",))
