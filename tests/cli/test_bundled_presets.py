"""The published presets: each is sound and forecasts a run; one of each kind trains on simulated shards."""

import re
import tomllib

import anndata
import pytest

from core.cells.builtin import load_builtin
from core.presets.catalogue import list_presets
from core.presets.loading import resolve_preset
from core.training.forecast import forecast_run, outline_of_store
from core.training.run_setup import check_preset

PUBLISHED = {p.name: p.path for p in list_presets() if p.is_published}
#: One of each kind, in the order: genes in bins, expressed or not, one phenotype, tokens of expressed genes,
#: phenotypes alone, and both kinds of classifier.
TRAINED = (
    "polygene-512-binned", "polygene-258-binary", "polygene-only-tissue",
    "perturbgene-10000-base-4gpu", "perturbgene-1024-large-gene000", "polygene-classify-130",
    "perturbgene-classify-lung",
)  # fmt: skip
#: The presets' own shapes take minutes here; what they mean does not depend on the size.
SMALL = {
    "model.layers": 1, "model.hidden_size": 32, "model.heads": 4, "model.intermediate_size": 64,
    "data.genes": 64, "train.batch_size": 16, "train.device": "cpu", "train.precision": "fp32",
    "train.eval_cells": 16,
}  # fmt: skip


def options(**changes):
    settled = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for key, value in settled.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Write simulated cells into files of the published names."""
    folder = tmp_path_factory.mktemp("TabulaSapiens")
    cells = load_builtin("builtin:atlas?cells=600&seed=0")[:, :200]
    numbers = [*range(44), 44, 45, 46, 47]
    for number in numbers:
        part = cells[number * 12 : (number + 1) * 12].copy()
        part.write_h5ad(folder / f"Tabula_Sapiens_ranked_{number}.h5ad")
    return folder


@pytest.fixture
def in_shards(tfx, shards, monkeypatch):
    """Run a command line in the folder of the shards."""
    monkeypatch.chdir(shards)
    return tfx


def test_all_that_were_promised_are_there():
    promised = {f"polygene-{n}-{k}" for n in (130, 258, 512, 2432) for k in ("binary", "binned")}
    promised |= {
        f"perturbgene-{length}-{size}{masked}"
        for length in (128, 1024, 10000)
        for size in ("base", "large")
        for masked in ("", "-gene000")
    }
    promised |= {
        f"polygene-{what}-{phenotype}"
        for what in ("phenotypes", "only")
        for phenotype in ("sex", "tissue", "cell-type", "age", "disease")
    }
    promised |= {"polygene-phenotypes-all", "perturbgene-10000-base-4gpu"}
    promised |= {"perturbgene-classify-tissue", "perturbgene-classify-lung"}
    promised |= {f"polygene-classify-{n}" for n in (130, 258, 2434)}
    assert set(PUBLISHED) == promised


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_sound_and_names_an_option_for_every_key(name):
    preset = resolve_preset(PUBLISHED[name]).preset
    check_preset(preset)
    assert preset.data.files == ["Tabula_Sapiens_ranked_{0..43}.h5ad"]
    text = PUBLISHED[name].read_text(encoding="utf-8")
    tomllib.loads(text)
    for line in text.splitlines():
        has_key = re.match(r"(\w+) = .*[^\[]$", line)
        if has_key and has_key[1] not in ("extends", "kind", "phenotype_weight", "layout"):
            bare = re.fullmatch(r"(cell_type|age|disease) = false", line)
            assert "#" in line or bare, line


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_forecasts_its_run(name, tiny_store, tmp_path):
    preset = resolve_preset(PUBLISHED[name], assignments=options()[1::2]).preset
    forecast = forecast_run(preset, outline_of_store(preset, tiny_store), tmp_path / "run")
    assert forecast.verdict == "ok"
    assert forecast.tokens["steps"] > 0


@pytest.mark.parametrize("name", ["polygene-phenotypes-all", "perturbgene-128-base-gene000"])
def test_a_preset_forecasts_its_run_from_its_files(name, in_shards):
    result = in_shards("train", name, *options(), "--dry-run", "--json")
    assert result.code == 0, result.stderr
    assert result.json["cells"]["training"] == 44 * 12


@pytest.mark.parametrize("name", TRAINED)
def test_a_preset_trains_on_simulated_shards(name, in_shards):
    trained = in_shards("train", name, *options(train__max_steps=2), "--json")
    assert trained.code == 0, trained.stderr
    assert trained.json["steps"] == 2


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
