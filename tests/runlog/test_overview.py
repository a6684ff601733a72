import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runlog import RunReader, RunWriter
from core.runlog.history import LatestMetrics, phenotype_accuracies, read_latest_metrics
from core.runlog.json_lines import number_in
from core.runlog.overview import best_values, overview, run_row, seconds_trained, setting_sources
from tests.runlog.run_folders import write_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "base")


def row_of(folder, now=None):
    return run_row(RunReader(folder).summary(now=now))


def test_a_row_has_the_metrics_of_the_weights_that_are_kept(folder):
    row = row_of(folder)
    assert (row.name, row.state, row.step, row.total) == ("base", "finished", 15, 15)
    assert (row.loss, row.validation_loss, row.best_step) == (2.0, 2.0, 10)
    assert row.accuracies == {"sex": 0.6, "age": 0.25}
    assert row.accuracy == pytest.approx(0.425)
    assert row.eta is None


def test_the_weights_that_are_kept_are_those_of_the_best_score(tmp_path):
    lines = [  # equal scores: the lower loss; not finite, not trained: never
        {"step": 0, "loss": 0.1, "score": 0.9},
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0, "score": 0.5},
        {"step": 3, "loss": 1.5, "score": 0.5},
        {"step": 4, "loss": 1.2, "score": 0.4},
        {"step": 5, "loss": None, "score": 0.9},
    ]
    validations = tuple({"split": "validation", **line} for line in lines)
    assert LatestMetrics(None, validations).kept["step"] == 3
    assert LatestMetrics(None, validations[:2]).kept["step"] == 1
    assert LatestMetrics(None, validations[5:]).kept is None


def test_only_live_runs_have_a_time_left(tmp_path):
    with RunWriter(tmp_path / "run", run={}, clock=lambda: 100.0) as writer:
        writer.status("running", step=1, total=9, eta=30.0)
    assert row_of(tmp_path / "run", now=110.0).eta == 30.0
    assert row_of(tmp_path / "run", now=120.0).state == "stale"
    assert row_of(tmp_path / "run", now=120.0).eta == 30.0
    assert row_of(tmp_path / "run", now=1e6).state == "crashed"
    assert row_of(tmp_path / "run", now=1e6).eta is None


def test_a_run_that_has_written_nothing_yet_is_a_row_of_nothing(tmp_path):
    with RunWriter(tmp_path / "run", run={}):
        pass
    row = row_of(tmp_path / "run")
    assert (row.state, row.loss, row.validation_loss, row.accuracies) == ("unknown", None, None, {})


def test_without_a_status_the_step_is_that_of_the_metrics(folder):
    (folder / "status.json").unlink()
    assert (row_of(folder).step, row_of(folder).state) == (15, "unknown")


def test_an_overview_has_everything(folder):
    found = overview(RunReader(folder), n_events=3)
    assert found.run["parameters"] == 12_345
    assert found.status["state"] == "finished"
    assert found.sources == {"base.toml": 2, "name of the file": 1, "--set": 1, "default": 2}
    assert (found.train["step"], found.last["step"], found.kept["step"]) == (15, 15, 10)
    assert (found.best["loss"].value, found.best["loss"].step) == (2.0, 10)
    assert (found.best["acc/sex"].value, found.best["acc/sex"].step) == (0.7, 15)
    assert (found.best["acc/age"].value, found.best["acc/age"].step) == (0.25, 5)
    assert [(one.name, one.is_best, one.is_whole) for one in found.checkpoints] == [
        ("step-00000005", False, True),
        ("step-00000010", True, True),
        ("step-00000015", False, True),
    ]
    assert {one.size for one in found.checkpoints} == {1002}
    assert found.model_size == 2000
    assert [event["event"] for event in found.events] == ["eval", "checkpoint", "end"]
    assert found.n_events == 8
    ((_, machine),) = found.machines.items()
    assert machine["cpu_percent"] == 50.0
    assert found.bad_lines == 0


def test_no_events_may_be_requested(folder):
    assert overview(RunReader(folder), n_events=0).events == []


def test_a_checkpoint_without_its_marker_is_not_whole(folder):
    (folder / "checkpoints" / "step-00000015" / "complete.json").unlink()
    (folder / "checkpoints" / "step-other").mkdir()
    assert [one.is_whole for one in overview(RunReader(folder)).checkpoints] == [True, True, False]


def test_time_between_a_stop_and_a_resume_is_not_training():
    events = [{"event": "start", "t": 100.0}, {"event": "resume", "t": 9000.0}]
    metrics = [{"step": 1, "t": 130.0}, {"step": 2, "t": 9005.0}, {"step": 3, "t": None}]
    assert seconds_trained(events, metrics) == 35.0
    assert seconds_trained([], []) == 0.0


def test_sources_are_read_from_the_comments_of_a_preset(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('# a = 1  # x\na = "#"  # b.toml:3\n[t]  # no\nb = 1\nc = 2  # b.toml:12\n')
    assert setting_sources(tmp_path)["b.toml"] == 2
    assert setting_sources(tmp_path / "none") == {}


def test_numbers_are_finite_numbers():
    values = {"a": 1, "b": True, "c": "1", "d": float("nan"), "e": None, "f": 10**400, "g": 2.5}
    assert {name: number_in(values, name) for name in values if number_in(values, name)} == {
        "a": 1.0,
        "g": 2.5,
    }
    assert number_in(None, "a") is None


def test_the_accuracies_of_phenotypes_leave_genes_out():
    record = {"acc/genes": 0.9, "acc/genes_baseline": 0.8, "acc/sex": 0.5, "acc/age": None}
    assert phenotype_accuracies(record) == {"sex": 0.5}


def test_best_values_go_in_the_direction_of_each_metric():
    records = [
        {"step": 1, "loss": 2.0, "acc/sex": 0.9, "epoch": 1.0, "acc/age": None},
        {"step": 2, "loss": 1.0, "acc/sex": 0.5, "epoch": 2.0},
    ]
    assert {name: (best.value, best.step) for name, best in best_values(records).items()} == {
        "loss": (1.0, 2),
        "acc/sex": (0.9, 1),
    }


LINES = st.one_of(
    st.builds(
        lambda split, step, loss: json.dumps({"step": step, "split": split, "loss": loss}),
        st.sampled_from(["train", "validation", "test"]),
        st.integers(0, 9) | st.just("1"),
        st.floats(),
    ),
    st.builds(lambda step: json.dumps({"event": "resume", "from_step": step}), st.integers(0, 9)),
    st.sampled_from(["", "{", '["train"]', '{"event":"resume"}', '{"split":"validation"}', "\x00"]),
)


@given(st.lists(LINES, max_size=25), st.sampled_from(["", '{"step": 3, "split": "tra']))
def test_the_quick_look_equals_the_whole_reading(tmp_path_factory, lines, torn):
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text('{"format": 1}')
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines) + torn)
    quick, whole = read_latest_metrics(folder), LatestMetrics.of(RunReader(folder).metrics())
    assert repr(quick) == repr(whole)  # NaN is not itself
