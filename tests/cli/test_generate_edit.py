"""`tfx generate --from FILE --set NAME=VALUE` through its entry point."""

import json
import re

import anndata
import numpy as np
import pytest

from core.cells.builtin import load_builtin


@pytest.fixture(scope="module")
def patients():
    """Cells of the atlas that the tiny run has not been trained on, half of them lung."""
    cells = load_builtin("builtin:atlas?cells=120&seed=7")
    return cells[:60].copy()


@pytest.fixture
def patients_file(patients, tmp_path):
    patients.write_h5ad(tmp_path / "patients.h5ad")
    return tmp_path / "patients.h5ad"


def test_setting_the_sex_moves_its_genes_and_keeps_what_did_not_move(
    tfx, tiny_run, tmp_path, patients_file, patients
):
    result = tfx("generate", "--from", "patients.h5ad", "--set", "sex=female", "--json")
    assert result.code == 0, result.stderr
    document = result.json
    assert document["schema"] == "tfx.generate.edit/1"
    is_male = (patients.obs["sex"] == "male").to_numpy()
    assert (document["cells"], document["changed_cells"]) == (60, is_male.sum())
    assert document["set"] == {"sex": "female"}
    change = {gene["gene"]: gene for gene in document["genes"]}
    assert change["XIST"]["change"] > 0.3
    assert change["RPS4Y1"]["change"] < -0.3
    assert document["genes"][0]["gene"] in ("XIST", "RPS4Y1")

    cells = anndata.read_h5ad(tmp_path / "generated.h5ad")
    assert list(cells.obs_names) == list(patients.obs_names)
    assert (cells.obs["sex"] == "female").all()
    assert list(cells.obs["donor_id"]) == list(patients.obs["donor_id"])
    np.testing.assert_array_equal(cells.obs["synthetic"], is_male)
    after, before = cells.X.toarray(), cells.layers["before"].toarray()
    np.testing.assert_array_equal(after[~is_male], before[~is_male])  # they were female already
    assert 0 < (after != before).mean() < 0.4
    facts = cells.uns["tfx_generation"]
    assert facts["set"] == {"sex": "female"}
    assert facts["edited_from"].endswith("patients.h5ad")


def test_the_report_for_people_names_the_genes_that_moved(tfx, tiny_run, patients_file, tmp_path):
    result = tfx(
        "generate",
        "--from",
        "patients.h5ad",
        "--set",
        "sex=male",
        "-o",
        "men.h5ad",
        "--plot",
        "men.pdf",
    )
    assert result.code == 0, result.stderr
    assert (tmp_path / "men.pdf").read_bytes().startswith(b"%PDF")
    assert "runs/tiny: sex = male: " in result.stdout
    (agrees,) = re.findall(
        r"of the file that have the value already: .* r = (\S+)\.$", result.stdout, re.M
    )
    assert float(agrees) > 0.8
    assert "sex = male:" in result.stdout
    assert "RPS4Y1" in result.stdout
    assert "men.h5ad: 60 cells" in result.stderr


def test_a_phenotype_set_to_not_specified_has_no_label(tfx, tiny_run, tmp_path, patients_file):
    result = tfx("generate", "--from", "patients.h5ad", "--set", "sex=[NO_SEX]")
    assert result.code == 0, result.stderr
    assert anndata.read_h5ad(tmp_path / "generated.h5ad").obs["sex"].isna().all()


def test_labels_come_from_the_column_of_training_or_from_the_named_one(
    tfx, tiny_run, tmp_path, patients
):
    """The file has the labels elsewhere, and other ones where CELLxGENE has them."""
    renamed = patients.copy()
    renamed.obs["my_labels"] = renamed.obs["cell_type"]
    renamed.obs["cell_type"] = renamed.obs["cell_type"].to_numpy()[::-1]
    patients.write_h5ad(tmp_path / "plain.h5ad")
    renamed.write_h5ad(tmp_path / "renamed.h5ad")

    def edited(file, *options):
        change = ["--from", file, "--set", "tissue=lung", "-o", "out.h5ad", "--overwrite"]
        result = tfx("-q", "generate", *change, *options)
        assert result.code == 0, result.stderr
        return anndata.read_h5ad(tmp_path / "out.h5ad").X.toarray()

    def scored(*options):
        result = tfx("-q", "eval", "tiny", *options, "--baselines", "none", "--json")
        assert result.code == 0, result.stderr
        return result.json["phenotypes"]["cell_type"]

    right, of_files = edited("plain.h5ad"), scored("plain.h5ad")
    assert (edited("renamed.h5ad") != right).any()
    np.testing.assert_array_equal(edited("renamed.h5ad", "--label", "cell_type=my_labels"), right)
    record = tiny_run / "model" / "tfx.json"
    document = json.loads(record.read_text())
    assert document["provenance"]["columns"]["cell_type"] == "cell_type"
    document["provenance"]["columns"]["cell_type"] = "my_labels"
    record.write_text(json.dumps(document))
    np.testing.assert_array_equal(edited("renamed.h5ad"), right)
    np.testing.assert_array_equal(edited("plain.h5ad"), right)  # it has CELLxGENE's column alone
    assert scored("renamed.h5ad") == of_files
