"""Checkpoints: whole ones load, damaged ones are passed over, old ones go."""

import logging

import pytest
import torch
from torch import nn

from core.errors import MachineError
from core.training.checkpoints import (
    discard_checkpoints_after,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 2)


def save(folder, *steps):
    for step in steps:
        state = {"random": torch.arange(4), "best_loss": float("inf"), "metrics": {"acc": 0.5}}
        save_checkpoint(folder, step=step, weights=network(step).state_dict(), state=state)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_weights_and_state_come_back(tmp_path):
    save(tmp_path, 7)
    weights, state = load_checkpoint(latest_checkpoint(tmp_path))
    assert state["step"] == 7
    assert state["random"].tolist() == [0, 1, 2, 3]
    assert state["best_loss"] == float("inf")
    assert state["metrics"] == {"acc": 0.5}
    assert torch.equal(weights["weight"], network(7).weight)


def test_the_newest_is_the_one_of_the_highest_step(tmp_path):
    save(tmp_path, 5, 100, 99)
    assert latest_checkpoint(tmp_path).name == "step-00000100"


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize(("best", "kept"), [(0, [3, 4]), (2, [2, 3, 4]), (4, [3, 4])])
def test_the_newest_are_kept_and_the_best(tmp_path, best, kept):
    save(tmp_path, 1, 2, 3, 4)
    prune_checkpoints(tmp_path, keep=2, best=best)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


def test_a_whole_checkpoint_is_never_replaced(tmp_path):
    save(tmp_path, 3)
    before = (tmp_path / "step-00000003" / "state.pt").stat().st_ino
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000003"]
    assert (tmp_path / "step-00000003" / "state.pt").stat().st_ino == before


def test_a_damaged_checkpoint_is_replaced(tmp_path):
    save(tmp_path, 3)
    damage(tmp_path / "step-00000003", "flipped")
    save(tmp_path, 3)
    assert latest_checkpoint(tmp_path).name == "step-00000003"


@pytest.mark.parametrize("again", [False, True])
def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path, again):
    save(tmp_path, 3)
    (tmp_path / ".step-00000006.partial-17").mkdir()
    (tmp_path / ".step-00000002.old-17").mkdir()
    if again:  # it could not be removed when the run was resumed
        prune_checkpoints(tmp_path, keep=2, best=3)
    else:
        remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000003"]


def test_later_checkpoints_than_the_resumed_one_are_removed(tmp_path):
    save(tmp_path, 3, 6, 9)
    discard_checkpoints_after(tmp_path, 6)
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


def damage(path, how):
    if how == "truncated":
        (path / "weights.safetensors").write_bytes(b"half")
    elif how == "flipped":
        content = bytearray((path / "state.pt").read_bytes())
        content[-1] ^= 1
        (path / "state.pt").write_bytes(content)
    elif how == "file gone":
        (path / "state.pt").unlink()
    elif how == "no marker":
        (path / "complete.json").unlink()
    else:
        (path / "complete.json").write_text(how, encoding="utf-8")


@pytest.mark.parametrize(
    "how", ["truncated", "flipped", "file gone", "no marker", "{", "null", "[]", '{"sha256": 1}']
)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, how):
    save(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010", how)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).name == "step-00000005"
    assert "step-00000010 is damaged: using the one before" in caplog.text


def test_all_damaged_is_none(tmp_path):
    save(tmp_path, 5, 10)
    for path in tmp_path.iterdir():
        damage(path, "no marker")
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write failed: disk full")]
)
def test_a_save_that_fails_says_so_and_leaves_what_was(tmp_path, monkeypatch, error):
    save(tmp_path, 5)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("core.training.checkpoints.torch.save", fail)
    with pytest.raises(MachineError, match=r"step-00000010 cannot be written \(.*(space|full)"):
        save(tmp_path, 10)
    assert names(tmp_path) == ["step-00000005"]


def test_each_damaged_one_is_reported(tmp_path):
    save(tmp_path, 5, 10, 15)
    damage(tmp_path / "step-00000010", "flipped")
    damage(tmp_path / "step-00000015", "truncated")
    found = []
    assert latest_checkpoint(tmp_path, on_damage=found.append).name == "step-00000005"
    assert [path.name for path in found] == ["step-00000015", "step-00000010"]
