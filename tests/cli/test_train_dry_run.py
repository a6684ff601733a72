"""`tfx train --dry-run`: a forecast of what a run would be, and nothing written."""

import json

import pytest


def everything(folder):
    """Return all there is in a folder: names, contents, and when each was last changed."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


@pytest.fixture
def small(tmp_path):
    """Return a preset whose cells are not prepared."""
    (tmp_path / "small.toml").write_text(
        '[data]\nfiles = "builtin:atlas?cells=600&seed=0"\ngenes = 32\n'
        "[model]\nlayers = 1\nhidden_size = 32\n[train]\nmax_steps = 30\ndevice = 'cpu'\n"
    )
    return "small.toml"


def test_cells_that_are_not_prepared_are_not_prepared(tfx, small, tmp_path):
    result = tfx("train", small, "--dry-run")
    assert result.code == 0, result.stderr
    assert list(everything(tmp_path)) == [small]
    for words in ("a forecast; nothing was written", "for training", "parameters", "AdamW",
                  "memory and disk suffice", "the cells are not prepared yet", "store"):  # fmt: skip
        assert words in result.stdout
    lines = result.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("note: ")] == []


def test_the_store_that_is_there_is_used_and_the_json_is_complete(tfx, tiny_preset_file, tmp_path):
    before = everything(tmp_path)
    result = tfx("-q", "train", tiny_preset_file, "--dry-run", "--json", "--steps", 70)
    assert (result.code, result.stderr) == (0, "")
    document = result.json
    assert document["schema"] == "tfx.train-forecast/1"
    assert document["run"] == "runs/tiny"
    assert document["cells_from"].startswith("store ")
    assert document["tokens"]["steps"] == 70
    assert document["machine"]["device"] == "cpu"
    assert "store" not in document["files"]
    assert everything(tmp_path) == before


def test_what_is_left_of_a_run_is_forecast(tfx, tiny_run, tmp_path):
    status = json.loads((tiny_run / "status.json").read_text())
    (tiny_run / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    before = everything(tmp_path)
    result = tfx("-q", "train", "runs/tiny", "--dry-run", "--steps", 80, "--json")
    assert result.code == 0, result.stderr
    assert (result.json["tokens"]["steps"], result.json["tokens"]["steps_done"]) == (80, 30)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--set", "train.precision=fp16"], 3, "needs a CUDA device"),
        (["--set", "train.tokens_per_batch=30"], 2, "has no room for a cell"),
        (["--set", "loss.kind=bce", "--set", "data.files=none.h5ad"], 2, "does not fit"),
        (["--set", "data.files=none.h5ad"], 4, "none.h5ad: no such file"),
        (["--processes", "3"], 2, "cannot be shared equally by 3 virtual ranks"),
        (["--set", "train.learning_rate=-1"], 2, "must be greater than 0"),
    ],
)
def test_what_cannot_run_is_refused(tfx, small, tmp_path, change, code, words):
    before = everything(tmp_path)
    result = tfx("-q", "train", small, "--dry-run", *change)
    assert (result.code, result.stdout) == (code, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert everything(tmp_path) == before


def test_a_run_whose_store_is_another_now_is_refused(tfx, tiny_run, tmp_path):
    record = json.loads((tiny_run / "run.json").read_text())
    (tiny_run / "run.json").write_text(json.dumps(record | {"store_key": "another"}))
    before = everything(tmp_path)
    result = tfx("-q", "train", "runs/tiny", "--dry-run", "--steps", 80)
    assert (result.code, result.stdout) == (4, "")
    assert "was prepared again after runs/tiny began" in result.stderr
    assert everything(tmp_path) == before


def test_a_run_that_does_not_fit_is_told_so_and_is_no_failure(tfx, tiny_preset_file, monkeypatch):
    monkeypatch.setattr("core.training.forecast.free_space", lambda path: (path, 1e5))
    result = tfx("-q", "train", tiny_preset_file, "--dry-run")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.endswith("this does not fit\n")
    assert "--set train.keep_checkpoints=1 writes less" in result.stdout
