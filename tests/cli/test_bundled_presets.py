"""Every preset that comes with tfx trains and, where it is a generator, generates."""

import anndata
import pytest

from core.presets.catalogue import list_presets
from core.presets.loading import resolve_preset

#: The atlas in small; other built-in data sets are small already.
SMALL_ATLAS = "builtin:atlas?cells=300&seed=0"


@pytest.mark.parametrize("name", [one.name for one in list_presets() if not one.is_published])
def test_a_bundled_preset_trains_and_generates(tfx, tmp_path, name):
    (summary,) = [preset for preset in list_presets() if preset.name == name]
    assert summary.title, "the first line of a preset says what it is for"
    preset = resolve_preset(summary.path).preset
    changes = ["train.max_steps=1", "train.device=cpu", "train.precision=fp32"]
    if any(file.startswith("builtin:atlas") for file in preset.data.files):
        changes.append(f"data.files={SMALL_ATLAS}")
    if preset.encoding.max_length is None:  # else the panel and the length belong together
        changes.append(f"data.genes={min(preset.data.genes, 64)}")
    options = [part for change in changes for part in ("--set", change)]
    trained = tfx("train", name, *options, "--json")
    assert trained.code == 0, trained.stderr
    assert (trained.json["steps"], trained.json["run"]) == (1, f"runs/{name}")
    generated = tfx("generate", "--run", name, "-n", 1, "--steps", 2, "--json")
    if preset.classified is not None:
        assert generated.code == 2
        assert "generates nothing" in generated.stderr
    elif preset.encoding.layout == "ranked":
        assert generated.code == 0, generated.stderr
        assert anndata.read_h5ad(tmp_path / "generated.h5ad").n_obs == 1
