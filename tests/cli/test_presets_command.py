import tomllib

import pytest

from core.presets import catalogue
from core.presets.loading import ResolvedPreset, resolve_preset
from tests.cells.examples import make_adata, write

MINIMAL = '# Cells of a tower\n[data]\nfiles = "builtin:atlas"\n[train]\nseed = 1\n'


@pytest.fixture
def bundled(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("bundled")
    (folder / "tower.toml").write_text(MINIMAL, encoding="utf-8")
    monkeypatch.setattr(catalogue.resources, "files", lambda _package: folder)
    return folder


def test_list_names_the_bundled_presets(tfx, bundled):
    result = tfx("presets", "list")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].split("  ")[0] == "tower"
    assert "Cells of a tower" in result.stdout
    document = tfx("presets", "list", "--json").json
    assert document["schema"] == "tfx.presets.list/1"
    assert document["presets"] == [
        {"name": "tower", "title": "Cells of a tower", "path": str(bundled / "tower.toml")}
    ]


def test_show_prints_a_preset_with_the_source_of_every_value(tfx, bundled, tmp_path, monkeypatch):
    (tmp_path / "o.toml").write_text("[train]\nbatch_size = 4\n", encoding="utf-8")
    monkeypatch.setenv("TFX_TRAIN__LOG_STEPS", "7")
    arguments = ("presets", "show", "tower", "--config", "o.toml", "--set", "model.layers=2")
    shown = tfx(*arguments)
    assert shown.code == 0
    assert "batch_size = 4  # o.toml:2" in shown.stdout
    assert "layers = 2  # --set" in shown.stdout
    assert "log_steps = 7  # TFX_TRAIN__LOG_STEPS" in shown.stdout
    (tmp_path / "shown.toml").write_text(shown.stdout, encoding="utf-8")
    document = tfx(*arguments, "--json").json
    again = resolve_preset(tmp_path / "shown.toml").preset
    assert again.model_dump(mode="json") == document["preset"]
    assert document["origins"]["model.layers"] == "--set"


def test_validate_passes_a_good_preset(tfx, bundled):
    assert tfx("presets", "validate", "tower").stdout == "tower: valid\n"
    assert tfx("presets", "validate", "tower", "--json").json == {
        "schema": "tfx.presets.validate/1",
        "name": "tower",
        "valid": True,
    }


def test_validate_names_all_that_is_wrong(tfx, tmp_path):
    (tmp_path / "mine.toml").write_text("[data]\nfilez = 1\ngenes = 0\n", encoding="utf-8")
    result = tfx("presets", "validate", "mine.toml")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "Error:",
        "mine.toml:1: data.files: is missing; it must be a string or a list of strings",
        "mine.toml:2: data.filez: unknown key; did you mean 'files'?",
        "mine.toml:3: data.genes: must be at least 1 (got 0)",
    ]


def test_an_unknown_preset_names_the_nearest(tfx, bundled):
    result = tfx("presets", "show", "towre")
    assert result.code == 2
    assert "did you mean 'tower'?" in result.stderr


def test_the_schema_is_a_page_or_json_schema(tfx):
    assert tfx("presets", "schema").stdout.startswith("# Preset keys\n")
    assert "properties" in tfx("presets", "schema", "--format", "json").json
    document = tfx("presets", "schema", "--json").json
    assert document["schema"] == "tfx.presets.schema/1"
    assert "train" in document["json_schema"]["properties"]


def test_ctrl_c_ends_a_command_with_130(tfx, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "list_presets", interrupt)
    result = tfx("presets", "list")
    assert (result.code, result.stdout, result.stderr) == (130, "", "Interrupted.\n")


def test_what_is_shown_of_the_default_preset_is_toml(tfx, bundled):
    assert tomllib.loads(tfx("presets", "show", "tower").stdout)["train"]["seed"] == 1


def test_import_turns_a_configuration_into_a_preset(tfx, tmp_path):
    (tmp_path / "run.json").write_text(
        '{"train_data_path": "file:///cells_{0..3}.h5ad", "n_highly_variable_genes": 128, '
        '"max_length": 136, "device": "cuda"}',
        encoding="utf-8",
    )
    printed = tfx("presets", "import", "run.json")
    assert (printed.code, printed.stderr) == (0, "")
    assert tomllib.loads(printed.stdout)["data"]["genes"] == 128
    assert "#   device: not read there" in printed.stdout
    written = tfx("presets", "import", "run.json", "-o", "mine.toml", "--json")
    assert written.json["system"] == "PolyGene"
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == printed.stdout
    assert tfx("presets", "validate", "mine.toml").code == 0
    again = tfx("presets", "import", "run.json", "-o", "mine.toml")
    assert again.code == 2
    assert "--overwrite" in again.stderr


def test_import_takes_a_command_line(tfx):
    words = ["python", "-m", "perturbgene.main", "--bin_edges", "0.1", "2", "--num_top_genes", "64"]
    words += ["mlm", "--train_data_paths", "cells.h5ad", "--gene_mask_prob", "0.3"]
    result = tfx("presets", "import", "--json", "--", *words)
    assert result.code == 0, result.stderr
    preset = result.json["preset"]
    assert (preset["encoding"]["edges"], preset["masking"]["genes"]) == ([0.1, 2.0], 0.3)
    bad = tfx("presets", "import", "--", *words, "--gene_mask_prb", "0.1")
    assert (bad.code, bad.stdout) == (2, "")
    assert "did you mean 'gene_mask_prob'?" in bad.stderr
    assert tfx("presets", "import").code == 2


#: Only to be quick; every other value is the draft's.
FEW_STEPS = ("--steps", "2")


def test_train_runs_the_preset_unchanged(tfx, tmp_path):
    adata = make_adata(n_cells=120)
    adata.obs["treatment"] = ["ctrl", "drug"] * 60
    write(adata, tmp_path, "my cells.h5ad")
    result = tfx("-q", "init", "my cells.h5ad", "--device", "cpu", "--json")
    assert (result.code, result.stderr) == (0, "")
    assert result.json["schema"] == "tfx.init/1"
    assert result.json["phenotypes"]["treatment"] == "treatment"
    preset = ResolvedPreset.from_toml((tmp_path / "preset.toml").read_text()).preset
    assert (preset.data.genes, preset.data.files) == (40, ["my cells.h5ad"])
    assert tfx("-q", "check", "preset.toml", "--quick").code == 0
    trained = tfx("-q", "train", "preset.toml", *FEW_STEPS, "--json")
    assert (trained.code, trained.stderr) == (0, "")
    assert trained.json["run"] == "runs/preset"
    generated = tfx("-q", "generate", "--phenotype", "treatment=drug", "-n", "3", "-o", "x.h5ad")
    assert generated.code == 0


def test_the_result_says_what_was_found_and_what_to_do_next(tfx, tmp_path):
    write(make_adata(), tmp_path)
    (tmp_path / "genes.txt").write_text("ENSG00000000003\n")
    result = tfx(
        "init", "cells.h5ad", "-o", "new/my preset.toml", "--device", "cpu", "--genes", "genes.txt",
        "--set", "train.epochs=3", "--set", "data.phenotypes.batch=donor_id",
    )  # fmt: skip
    assert result.code == 0
    for words in (
        "new/my preset.toml: 60 cells x 40 genes, counts",
        "age         development_stage",
        "split by donor_id: 6 donors",
        "next: tfx train 'new/my preset.toml' --dry-run",
    ):
        assert words in result.stdout
    assert "warning: " in result.stderr  # 60 cells are few of each label
    text = (tmp_path / "new/my preset.toml").read_text()
    assert "\n# - " in text
    draft = resolve_preset(tmp_path / "new/my preset.toml").preset
    assert (draft.train.epochs, draft.train.max_steps) == (3, None)
    assert draft.data.phenotypes["batch"] == "donor_id"
    assert draft.data.include_genes == ["ENSG00000000003"]
    assert 'genes_file = "genes.txt" # --genes' in text


def test_the_values_of_a_model_are_what_can_be_requested(tfx, tiny_run):
    document = tfx("presets", "values", "tiny", "--json").json
    cells = document["phenotypes"]
    assert set(cells["sex"]) == {"female", "male"}
    assert sum(cells["sex"].values()) == document["training_cells"]
    shown = tfx("presets", "values").stdout
    assert "runs/tiny/model: what you can request of it" in shown
    assert "female" in shown
