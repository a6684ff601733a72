"""Checkpoints: whole ones load, damaged ones are passed over, old ones go."""

import logging

import pytest
import torch
from torch import nn

from core.errors import DataError
from core.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 2)


def save(folder, *steps, keep=10):
    for step in steps:
        state = {"random": torch.arange(4), "best_loss": float("inf"), "figures": {"acc": 0.5}}
        save_checkpoint(folder, step=step, network=network(step), state=state, keep=keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_weights_and_state_come_back(tmp_path):
    save(tmp_path, 7)
    fresh = network(0)
    state = load_checkpoint(latest_checkpoint(tmp_path), fresh)
    assert state["step"] == 7
    assert state["random"].tolist() == [0, 1, 2, 3]
    assert state["best_loss"] == float("inf")
    assert state["figures"] == {"acc": 0.5}
    assert torch.equal(fresh.weight, network(7).weight)


def test_the_newest_is_the_one_of_the_highest_step(tmp_path):
    save(tmp_path, 5, 100, 99)
    assert latest_checkpoint(tmp_path).name == "step-00000100"


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000003"]


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


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def fail(*_, **__):
        message = "disk full"
        raise OSError(message)

    monkeypatch.setattr("core.training.checkpoints.torch.save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 10)
    assert names(tmp_path) == ["step-00000005"]


def test_weights_of_other_shapes_are_refused(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(DataError, match="does not fit the preset's model; resume with the run's"):
        load_checkpoint(tmp_path / "step-00000005", nn.Linear(4, 2))
