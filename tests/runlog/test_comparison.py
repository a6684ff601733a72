import pytest

from core.runlog import RunReader
from core.runlog.overview import compare_runs
from tests.runlog.run_folders import write_run


def compared(*folders):
    return compare_runs([RunReader(folder) for folder in folders])


def metric_of(found, name, at):
    (one,) = (one for one in found.metrics if (one.name, one.at) == (name, at))
    return one


def test_only_what_differs_in_the_presets_is_told(tmp_path):
    found = compared(write_run(tmp_path / "a", rate=0.001), write_run(tmp_path / "b", rate=0.01))
    assert found.settings == {"train.learning_rate": (0.001, 0.01)}
    assert [row.name for row in found.runs] == ["a", "b"]


def test_a_key_that_one_preset_lacks_is_not_set_there(tmp_path):
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    path = other / "config.toml"
    path.write_text(path.read_text().replace("batch_size", "tokens_per_batch"))
    assert compared(one, other).settings == {
        "train.batch_size": (32, None),
        "train.tokens_per_batch": (None, 32),
    }


def test_the_best_figures_are_marked_in_their_own_direction(tmp_path):
    found = compared(
        write_run(tmp_path / "a", losses=(3.0, 2.0), accuracies=(0.5, 0.6)),
        write_run(tmp_path / "b", losses=(3.0, 1.5), accuracies=(0.5, 0.55)),
        write_run(tmp_path / "c", losses=(1.5, 4.0), accuracies=(0.4, 0.9)),
    )
    loss = metric_of(found, "loss", "kept")
    assert (loss.values, loss.best) == ((2.0, 1.5, 1.5), (1, 2))
    assert metric_of(found, "loss", "last").values == (2.0, 1.5, 4.0)
    accuracy = metric_of(found, "acc/sex", "kept")
    assert (accuracy.values, accuracy.best) == ((0.6, 0.55, 0.4), (0,))
    assert metric_of(found, "step", "kept").values == (10, 10, 5)
    assert metric_of(found, "acc/age", "kept").best == (0, 1, 2)
    assert found.notes == ()


def test_losses_of_other_questions_are_not_compared(tmp_path):
    found = compared(write_run(tmp_path / "a", mask=0.15), write_run(tmp_path / "b", mask=0.3))
    assert metric_of(found, "loss", "kept").best == ()
    assert metric_of(found, "acc/genes", "kept").best == ()
    assert metric_of(found, "acc/sex", "kept").best == (0, 1)
    assert "losses and accuracies of genes are not marked" in found.notes[0]


def test_nothing_is_compared_across_stores(tmp_path):
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", store="k2"))
    assert all(one.best == () for one in found.metrics)
    assert "not trained on one store" in found.notes[0]


@pytest.mark.parametrize("content", [None, "= broken", "\x00", "a = " + "[" * 10_000])
def test_a_preset_that_cannot_be_read_counts_as_empty(tmp_path, content):
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (other / "config.toml").unlink()
    if content is not None:
        (other / "config.toml").write_text(content)
    assert compared(one, other).settings["train.batch_size"] == (32, None)


def test_figures_that_no_run_has_are_left_out(tmp_path):
    folders = [write_run(tmp_path / name) for name in "ab"]
    for folder in folders:
        (folder / "metrics.jsonl").unlink()
    assert {one.name for one in compared(*folders).metrics} == {"parameters", "seconds"}
