"""`tfx generate` through its entry point."""

import json

import anndata
import numpy as np
import pytest

from tests.cli.refusals import refused


def test_a_request_becomes_an_h5ad_and_a_json_report(tfx, tiny_run, tmp_path):
    result = tfx("generate", "--sex", "Female", "--tissue", "lung", "-n", 30, "--json")
    assert result.code == 0, result.stderr
    document = result.json
    assert document["schema"] == "tfx.generate/1"
    assert (document["output"], document["cells"]) == ("generated.h5ad", 30)
    assert document["request"] == {"sex": "Female", "tissue": "lung"}
    assert (document["model"], document["simulated"]) == ("runs/tiny/model", True)
    assert document["training_cells"] > 0
    genes = {marker["gene"]: marker for marker in document["markers"]}
    assert genes["XIST"]["generated_detection"] > 0.8  # of 30 cells
    assert genes["RPS4Y1"]["generated_detection"] < 0.3
    assert document["fidelity"]["n_generated"] == 30
    assert document["compared_with"] in ("held-out", "training and held-out")
    assert document["run"] == "runs/tiny"
    assert genes["XIST"]["beside"] == "lung, another sex"
    assert genes["XIST"]["matching_mean"] > 1 > genes["XIST"]["beside_mean"]
    agreement = document["agreement"]
    assert agreement["n_cells"] <= 30
    assert agreement["real"]["gene_mean_r"] > 0.8
    assert document["notes"] == []

    cells = anndata.read_h5ad(tmp_path / "generated.h5ad")
    assert cells.n_obs == 30
    assert (cells.obs["sex"] == "female").all()
    assert (cells.obs["tissue"] == "lung").all()
    assert cells.obs["synthetic"].all()
    assert cells.uns["tfx_generation"]["request"] == {"sex": "Female", "tissue": "lung"}
    assert cells.uns["tfx_generation"]["model_name"] == "tiny"
    assert set(cells.obs["cell_type"].dropna()) <= set(cells.obs["cell_type"].cat.categories)


@pytest.mark.usefixtures("drawn_figures")
def test_the_report_for_people_goes_to_stdout_and_the_rest_to_stderr(tfx, tiny_run, tmp_path):
    (tiny_run.parent / "older").mkdir()
    earlier = json.loads((tiny_run / "run.json").read_text()) | {"started": 1.0}
    (tiny_run.parent / "older" / "run.json").write_text(json.dumps(earlier))
    result = tfx(
        "generate", "--sex", "male", "-n", 25, "-o", "new/cells.h5ad", "--plot", "cells.svg"
    )
    assert result.code == 0, result.stderr
    assert "runs/tiny is used, the newest of 2 runs; --run names another" in result.stderr
    assert "runs/tiny: 25 synthetic cells; " in result.stdout
    assert "<text" in (tmp_path / "cells.svg").read_text()  # which can be edited
    assert ">real: mean log1p per 10k</text>" in (tmp_path / "cells.svg").read_text()
    assert result.stdout.startswith("The model was trained on simulated cells")
    assert "genes that set the request apart" in result.stdout
    assert "RPS4Y1" in result.stdout
    assert "new/cells.h5ad: 25 synthetic cells x" in result.stderr
    assert "new/cells.h5ad" not in result.stdout


def test_sampling_options_reach_the_provenance(tfx, tiny_run, tmp_path):
    result = tfx(
        "generate", "-n", 3, "--seed", 4, "--steps", 2, "--gene-steps", 7, "--temperature",
        0.005, "--depth", "none", "--guidance", 1.5, "--guidance-ramp", "none", "--schedule", "cosine", "--decode", "mean", "--unspecified", "none", "--phenotype",
        "sex=male",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    cells = anndata.read_h5ad(tmp_path / "generated.h5ad")
    facts = cells.uns["tfx_generation"]
    for name, value in {
        "seed": 4, "steps": 2, "gene_steps": 7, "temperature": 0.005, "guidance": 1.5, "genes_per_cell": "none",
        "guidance_ramp": "none", "schedule": "cosine", "decode": "mean", "unspecified": "none",
    }.items():  # fmt: skip
        assert facts[name] == value
    assert "warning: --depth is now called --genes-per-cell; the old name works" in result.stderr
    assert cells.obs["tissue"].isna().all()


def test_the_same_seed_gives_the_same_cells(tfx, tiny_run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert tfx("-q", "generate", "-n", 8, "--seed", seed, "-o", f"{name}.h5ad").code == 0
    a, b, c = (anndata.read_h5ad(tmp_path / f"{name}.h5ad").X.toarray() for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_balancing_writes_as_many_cells_as_the_rare_values_lack(tfx, tiny_run, tmp_path):
    from core.generation.request import lacking_cells
    from core.model.folder import CellModel

    lacking = lacking_cells(CellModel.load(tiny_run / "model"), {}, "disease")
    result = tfx("generate", "--balance", "disease", "--json", "--markers", "RPS4Y1,NONE")
    assert result.code == 0, result.stderr
    n_cells = f"{sum(lacking.values()):,} cells of "
    assert result.stderr.index(f"--balance disease: {n_cells}") < result.stderr.index("generating")
    assert "1 of 2 marker genes are no genes of the model: NONE" in result.stderr
    assert [marker["gene"] for marker in result.json["markers"]] == ["RPS4Y1"]
    assert result.json["cells"] == sum(lacking.values())
    found = anndata.read_h5ad(tmp_path / "generated.h5ad").obs["disease"].value_counts()
    for value, n in lacking.items():
        assert abs(found[value] - n) <= 5 * (n**0.5)


def test_a_model_folder_alone_is_enough(tfx, tiny_run, tmp_path):
    (tiny_run / "model").rename(tmp_path / "copied")
    path = tmp_path / "copied" / "tfx.json"
    record = json.loads(path.read_text())
    record["provenance"]["store"] = "gone"
    path.write_text(json.dumps(record))
    result = tfx("generate", "--run", "copied", "-n", 3, "--json")
    assert result.code == 0, result.stderr
    assert result.json["fidelity"] is None
    assert result.json["compared_with"] is None
    assert anndata.read_h5ad(tmp_path / "generated.h5ad").n_obs == 3


def test_a_combination_that_training_lacked_is_composed_with_a_warning(tfx, tiny_run):
    from core.cells.atlas.biology import atlas_biology

    left_out = atlas_biology().left_out[0]
    options = [part for pair in left_out.items() for part in ("--phenotype", "=".join(pair))]
    result = tfx("generate", *options, "-n", 3, "--json")
    assert result.code == 0, result.stderr
    assert result.json["training_cells"] == 0
    assert "warning: no training cell has" in result.stderr
    assert "composes" in result.json["notes"][0]


# ------------------------------------------------------------------------------------ refusals
def test_an_output_that_exists_is_kept_unless_told_otherwise(tfx, tiny_run, tmp_path):
    (tmp_path / "cells.h5ad").write_bytes(b"precious")
    arguments = ("-q", "generate", "-n", 2, "-o", "cells.h5ad")
    refused(tfx(*arguments), 2, "--output cells.h5ad exists", "--overwrite")
    assert (tmp_path / "cells.h5ad").read_bytes() == b"precious"
    assert tfx(*arguments, "--overwrite").code == 0
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").n_obs == 2


def test_a_model_of_the_expressed_layout_generates(tfx, tiny_preset_file, tmp_path):
    trained = tfx(
        "train", tiny_preset_file, "--steps", 1, "--set", "encoding.layout=expressed", "--json"
    )
    assert trained.code == 0, trained.stderr
    result = tfx("generate", "-n", 20, "--json")
    assert result.code == 0, result.stderr
    cells = anndata.read_h5ad(tmp_path / "generated.h5ad")
    assert cells.n_obs == 20
    assert (cells.X > 0).sum() > 20
    refused(tfx("-q", "generate", "--method", "gibbs", "-o", "b.h5ad"), 2, "expressed layout")


def test_every_sampling_key_of_a_preset_is_an_option_and_a_key_of_served_requests():
    import inspect

    from core.presets.schema import GenerateSettings
    from tfx_cli.command_line import with_groups
    from tfx_cli.generate_command import generate
    from tfx_cli.generate_service import _checked

    settings = GenerateSettings().model_dump()
    assert set(settings) <= set(inspect.signature(with_groups(generate)).parameters)
    assert _checked({"id": 1, **settings})[1] == settings


def test_a_model_of_a_fixed_mask_rate_generates_with_a_warning(tfx, tiny_preset_file, tmp_path):
    tfx("train", tiny_preset_file, "--steps", 1, "--set", "masking.genes=0.15")
    result = tfx("generate", "-n", 2)
    assert result.code == 0
    assert "warning: this model was trained with a fixed mask rate (0.15)" in result.stderr
    assert anndata.read_h5ad(tmp_path / "generated.h5ad").n_obs == 2
