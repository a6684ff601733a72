"""The whole path, with the base preset: simulated cells held against their truth, and real cells."""

from pathlib import Path

import anndata
import numpy as np
import pytest

from core.presets.catalogue import find_preset
from core.presets.loading import resolve_preset
from tests.cells.examples import real_file
from tests.cli.conftest import run_in
from tests.figures import blank_figures
from tests.tiny_atlas import expected_log1p

pytestmark = pytest.mark.slow

#: The base preset in about a minute on a laptop's CPU, instead of five.
SHORT = (
    "data.files=builtin:atlas?cells=5000&seed=0",
    "data.genes=128",
    "train.max_steps=500",
    "train.eval_steps=500",
    "train.eval_cells=400",
    "train.device=cpu",
    "train.precision=fp32",
)


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    with blank_figures():
        yield


def tfx(folder, *arguments):
    """Run a command line in a folder; return its JSON result."""
    result = run_in(folder, *arguments, "--json")
    assert result.code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.json


def options(changes):
    return [part for change in changes for part in ("--set", change)]


# ------------------------------------------------------------------------------------ the atlas
@pytest.fixture(scope="module")
def atlas_run(tmp_path_factory):
    """Train the shortened base preset; return the folder and the result."""
    folder = tmp_path_factory.mktemp("atlas")
    return folder, tfx(folder, "train", "base", *options(SHORT))


@pytest.fixture(scope="module")
def lung(atlas_run):
    """Generate female lung cells: (genes,) means by symbol, and the report."""
    folder, _ = atlas_run
    report = tfx(folder, "generate", "--sex", "female", "--tissue", "lung", "-n", 300)
    cells = anndata.read_h5ad(folder / report["output"])
    means = np.asarray(cells.X.mean(axis=0)).ravel()
    return dict(zip(cells.var["gene_symbol"], means, strict=True)), report


@pytest.fixture(scope="module")
def scores(atlas_run):
    """Evaluate the run: the report."""
    return tfx(atlas_run[0], "eval")


def test_the_model_knows_cells_about_as_well_as_logistic_regression(scores):
    """The strict comparison is that of the whole preset; this one is a tenth as long."""
    assert scores["facts"]["n_cells"] > 300
    for phenotype in ("sex", "tissue", "cell_type"):
        methods = scores["phenotypes"][phenotype]
        model, baseline, majority = (
            methods[name]["accuracy"] for name in ("model", "logistic_regression", "majority")
        )
        assert model >= baseline - 0.01, phenotype
        assert model > majority + 0.2, phenotype


def test_masked_genes_are_predicted_better_than_by_their_most_common_bin(scores):
    genes = scores["genes"]
    assert genes["accuracy"] > genes["baseline_accuracy"]


def test_female_cells_express_xist_and_no_gene_of_the_y_chromosome(lung):
    means, report = lung
    assert means["XIST"] > 3
    assert means["RPS4Y1"] < 0.4
    markers = {marker["gene"]: marker for marker in report["markers"]}
    assert markers["XIST"]["generated_detection"] > 0.9
    assert markers["RPS4Y1"]["generated_detection"] < 0.15


def test_lung_markers_are_those_of_the_simulated_lung(lung):
    means, _ = lung
    order = [str(gene) for gene in _truth_genes()]
    of_lung = dict(zip(order, expected_log1p(4000, sex="female", tissue="lung"), strict=True))
    of_all = dict(zip(order, expected_log1p(4000, sex="female"), strict=True))
    top = sorted(means, key=lambda gene: of_lung[gene] - of_all[gene], reverse=True)[:6]
    for gene in top:
        assert of_lung[gene] > of_all[gene] + 0.2, "the panel must hold markers of the lung"
        assert abs(means[gene] - of_lung[gene]) < abs(means[gene] - of_all[gene]), gene


def _truth_genes():
    from core.cells.atlas.biology import atlas_biology

    return atlas_biology().genes


def test_generated_lung_cells_resemble_real_ones(lung):
    _, report = lung
    fidelity = report["fidelity"]
    assert fidelity["gene_mean_r"] > 0.98
    assert fidelity["detection_mae"] < 0.05
    real, generated = (fidelity[f"genes_per_cell_{side}_mean"] for side in ("real", "generated"))
    assert generated == pytest.approx(real, rel=0.1)
    assert fidelity["correlation_r"] > 0.4


# ------------------------------------------------------------------------------------ real cells
@pytest.mark.parametrize(
    ("name", "scored", "request_options"),
    [
        ("onek1k_blood.h5ad", {"sex", "cell_type", "age"}, ["--sex", "female"]),
        ("mouse_brain_cellxgene.h5ad", {"tissue", "cell_type"}, []),
    ],
)
def test_real_cells_train_are_scored_and_generated_by_naming_the_file(
    tmp_path, name, scored, request_options
):
    path = real_file(name)
    trained = tfx(
        tmp_path, "train", "base", *options([f"data.files={path}", "data.genes=64",
        "train.max_steps=10", "train.device=cpu", "train.precision=fp32"]), "--run", "real",
    )  # fmt: skip
    assert trained["steps"] == 10
    report = tfx(tmp_path, "eval", "--max-cells", 300)
    assert not report["facts"]["simulated"]
    assert set(report["phenotypes"]) == scored
    for phenotype in scored:
        assert report["phenotypes"][phenotype]["model"]["n_cells"] > 50
    cell_type = report["phenotypes"]["cell_type"]
    assert cell_type["model"]["accuracy"] > cell_type["majority"]["accuracy"]
    generated = tfx(tmp_path, "generate", *request_options, "-n", 100, "--steps", 8)
    assert not generated["simulated"]
    assert generated["fidelity"]["gene_mean_r"] > 0.7
    cells = anndata.read_h5ad(tmp_path / generated["output"])
    assert cells.shape == (100, 64)
    assert all(str(gene).startswith("ENS") for gene in cells.var_names)
    assert np.isfinite(cells.X.data).all()
    values = cells.obs["cell_type"].cat.categories
    assert set(cells.obs["cell_type"].dropna()) <= set(values)


def test_the_base_preset_is_what_this_shortens():
    """A key that the preset gives up would make the tests above something else."""
    preset = resolve_preset(Path(find_preset("base"))).preset
    assert preset.data.files == ["builtin:atlas"]
    assert preset.masking.genes == "uniform"
    assert preset.model.log_linear
