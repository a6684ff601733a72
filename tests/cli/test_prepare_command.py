import shutil

import pytest

from core.cells.store import Store
from tests.cli.conftest import run_in

CELLS = "builtin:atlas?cells=300&seed=0"
PRESET = f'[data]\nfiles = "{CELLS}"\ngenes = 50\n'


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A store made by the command line, with what it printed."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "small.toml").write_text(PRESET, encoding="utf-8")
    result = run_in(folder, "prepare", folder / "small.toml", "-o", folder / "store")
    assert result.code == 0, result.stderr
    return folder, result.stdout, result.stderr


@pytest.fixture
def made(prepared, tmp_path):
    folder, stdout, stderr = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    return tmp_path, stdout, stderr


def test_a_preset_becomes_a_store_and_a_report(made):
    folder, stdout, stderr = made
    assert Store.open(folder / "store").n_cells == 300
    assert "300 cells x" in stdout.splitlines()[0]
    for words in ("builtin:atlas", "cell_type", "train", "validation"):
        assert words in stdout
    assert "writing cells: 100 % (300 of 300)" in stderr
    assert stderr.splitlines()[-1].endswith("store: written")


def test_a_store_that_is_there_is_kept_and_reported_as_json(tfx, made):
    result = tfx("prepare", "small.toml", "-o", "store", "--json")
    document = result.json
    assert result.code == 0
    assert (document["schema"], document["reused"]) == ("tfx.prepare/1", True)
    assert (document["store"], document["cells"], document["values"]) == ("store", 300, "counts")
    assert document["report"]["split"]["cells"]["train"] > 0
    assert result.stderr == "store: exists, kept\n"


def test_files_can_be_given_in_place_of_a_preset(tfx, made):
    result = tfx("prepare", CELLS, "-o", "store", "--set", "data.genes=50", "--json")
    assert result.code == 0, result.stderr
    assert result.json["reused"] is True


def test_a_store_of_other_settings_is_replaced_only_when_asked(tfx, made):
    arguments = ("prepare", "small.toml", "-o", "store", "--set", "data.split.seed=1", "--json")
    refused = tfx(*arguments)
    assert (refused.code, refused.stdout) == (2, "")
    assert "store of other cells or settings" in refused.stderr
    replaced = tfx("-q", *arguments, "--overwrite")
    assert (replaced.code, replaced.stderr) == (0, "")
    assert replaced.json["report"]["split"]["seed"] == 1


def test_a_store_is_verified_by_its_folder_or_its_preset(tfx, made):
    folder, _, _ = made
    result = tfx("prepare", "store", "--verify")
    assert result.code == 0
    assert "are as they were prepared" in result.stdout
    assert tfx("prepare", "small.toml", "-o", "store", "--verify", "--json").json["verified"]
    with (folder / "store" / "genes.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    result = tfx("prepare", "store", "--verify")
    assert result.code == 4
    assert "genes.npy changed" in result.stderr
    assert result.stdout == ""


def test_a_dask_scheduler_that_does_not_answer_is_told(tfx, made, monkeypatch):
    monkeypatch.setattr("core.cells.prepare.runners._SCHEDULER_SECONDS", 0.5)
    result = tfx("prepare", "small.toml", "-o", "new", "--dask", "tcp://127.0.0.1:1")
    assert result.code == 3
    assert "no Dask scheduler answers there" in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 300
    assert not list(made[0].glob("new*"))


def test_stores_are_listed_with_their_runs_and_deleted(tfx, tiny_run, tiny_store_folder, tmp_path):
    shutil.copytree(tiny_store_folder, tmp_path / "stores" / "cells")
    (tmp_path / "stores" / "other.preparing" / "parts").mkdir(parents=True)
    listed = {one["path"]: one for one in tfx("stores", "list", "--json").json["stores"]}
    whole, unfinished = listed["stores/cells"], listed["stores/other.preparing"]
    assert (whole["state"], whole["cells"], whole["runs"]) == ("whole", 600, ["runs/tiny"])
    assert unfinished["state"] == "unfinished"
    assert whole["n_bytes"] == sum(
        path.stat().st_size for path in tiny_store_folder.rglob("*") if path.is_file()
    )
    refused = tfx("stores", "delete", "cells")
    assert refused.code == 2
    assert "add --yes to delete stores/cells (" in refused.stderr
    status = tiny_run / "status.json"
    ended = status.read_text()
    status.write_text(
        ended.replace('"finished"', '"running"').replace('"heartbeat": ', '"heartbeat": 9')
    )
    assert tfx("stores", "delete", "cells", "--yes").code == 3  # a run trains on it
    status.write_text(ended)
    gone = tfx("stores", "delete", "cells", "stores/other.preparing", "--yes", "--json").json
    assert gone["deleted"] == ["stores/cells", "stores/other.preparing"]
    assert not any((tmp_path / "stores").iterdir())
