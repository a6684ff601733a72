"""`tfx init`: a preset that `tfx train` runs as it is."""

import pytest

from core.presets.loading import ResolvedPreset
from tests.cells.examples import make_adata, write

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
    result = tfx("init", "cells.h5ad", "-o", "new/my preset.toml", "--device", "cpu")
    assert result.code == 0
    for words in (
        "new/my preset.toml: 60 cells x 40 genes, counts",
        "age         development_stage",
        "split by donor_id: 6 donors",
        "next: tfx train 'new/my preset.toml' --dry-run",
    ):
        assert words in result.stdout
    assert "warning: " in result.stderr  # 60 cells are few of each label
    assert "\n# - " in (tmp_path / "new/my preset.toml").read_text()


@pytest.mark.parametrize("output", ["mine.toml", "mine.txt", "folder"])
def test_a_place_that_is_taken_or_odd_is_refused_before_looking(tfx, tmp_path, output):
    (tmp_path / "mine.toml").write_text("precious")
    (tmp_path / "folder").mkdir()
    result = tfx("init", "there-is-none.h5ad", "-o", output)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: --output {output}")
    assert "--overwrite" not in result.stderr
    assert (tmp_path / "mine.toml").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2
