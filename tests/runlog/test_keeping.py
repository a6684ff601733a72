"""Renaming, tagging and deleting runs."""

import pytest

from core.errors import ConfigurationError, MachineError
from core.runlog import list_runs
from core.runlog.keeping import delete_run, rename_run, tag_run
from core.runlog.ownership import owned_run
from core.runlog.work import work_on

from .run_folders import write_run


def names(root):
    return sorted(run.name for run in list_runs(root))


def test_a_run_is_renamed_unless_the_name_is_taken_or_the_run_is_in_use(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    assert rename_run(tmp_path / "a", "c") == tmp_path / "c"
    assert names(tmp_path) == ["b", "c"]
    for name, words in (("b", "exists; choose another"), ("../x", "cannot name a run")):
        with pytest.raises(ConfigurationError, match=words):
            rename_run(tmp_path / "c", name)
    with owned_run(tmp_path / "c"), pytest.raises(MachineError, match="is being trained"):
        rename_run(tmp_path / "c", "d")
    with work_on(tmp_path / "c", "evaluating"), pytest.raises(MachineError, match="is evaluating"):
        delete_run(tmp_path / "c")
    assert names(tmp_path) == ["b", "c"]


def test_a_deleted_run_is_in_the_trash_and_can_come_back(tmp_path):
    for number in (1, 2):
        folder = write_run(tmp_path / "a", rate=number)
        moved = delete_run(folder)
        assert names(tmp_path) == []
    assert moved == tmp_path / ".trash" / "a-2"
    moved.rename(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert f"learning_rate = {2}" in (tmp_path / "a" / "config.toml").read_text()


def test_tags_are_kept_in_order_and_removed(tmp_path):
    folder = write_run(tmp_path / "a")
    tag_run(folder, ["paper", "seed 3", "paper"])
    (run,) = list_runs(tmp_path)
    assert run.tags == ("paper", "seed 3")
    for wrong in ("a,b", "", "x" * 41, "a\nb"):
        with pytest.raises(ConfigurationError, match="cannot be a tag"):
            tag_run(folder, [wrong])
    tag_run(folder, [])
    assert list_runs(tmp_path)[0].tags == ()
    tag_run(folder, [])
