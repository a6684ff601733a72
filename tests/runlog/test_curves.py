import json
import math

import hypothesis.strategies as st
from hypothesis import given

from core.runlog.history import RunCurves, SplitCurves
from core.runlog.reader import RunReader


def write(folder, *records):
    with (folder / "metrics.jsonl").open("a") as file:
        for record in records:
            file.write((record if isinstance(record, str) else json.dumps(record)) + "\n")


def line(step, split="train", **metrics):
    return {"step": step, "t": 100.0 + step, "split": split, **metrics}


def test_curves_are_columns_by_split(tmp_path):
    write(tmp_path, line(1, loss=3.0), line(2, loss=2.0, lr=0.1), line(2, "validation", loss=2.5))
    curves = RunCurves(tmp_path)
    assert curves.poll()
    assert list(curves.splits["train"].steps) == [1, 2]
    assert list(curves.splits["train"].columns["loss"]) == [3.0, 2.0]
    assert math.isnan(curves.splits["train"].columns["lr"][0])
    assert list(curves.splits["validation"].columns["loss"]) == [2.5]
    assert list(curves.splits) == ["train", "validation"]
    assert not curves.poll()


def test_a_file_that_was_replaced_starts_over(tmp_path):
    write(tmp_path, line(1, loss=3.0), line(2, loss=2.0), "not json")
    curves = RunCurves(tmp_path)
    curves.poll()
    assert curves.bad_lines == 1
    (tmp_path / "metrics.jsonl").unlink()
    write(tmp_path, line(1, loss=9.0))
    curves.poll()
    assert list(curves.splits["train"].columns["loss"]) == [9.0]
    assert curves.bad_lines == 0


def test_a_history_longer_than_one_reading_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("core.runlog.history._CHUNK_BYTES", 50)
    long = line(3, loss=1.0, note="x" * 500)
    write(tmp_path, line(1, loss=3.0), "bad " * 60, line(2, loss=2.0), long, line(4, loss=0.5))
    curves = RunCurves(tmp_path)
    curves.poll()
    assert list(curves.splits["train"].steps) == [1, 2, 3, 4]
    assert curves.bad_lines == 1


records = st.one_of(
    st.builds(
        lambda step, split, loss: line(step, split, loss=loss),
        st.integers(0, 20),
        st.sampled_from(["train", "validation"]),
        st.one_of(st.none(), st.floats(-5, 5)),
    ),
    st.builds(lambda step: {"event": "resume", "t": 1.0, "from_step": step}, st.integers(0, 20)),
    st.sampled_from(["{", "[]", '{"step": true, "split": "train"}', '{"split": "train"}']),
)


@given(st.lists(records, max_size=30), st.integers(0, 30))
def test_curves_have_the_lines_of_the_reader(tmp_path_factory, lines, cut):
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text('{"format": 1}')
    curves = RunCurves(folder)
    for part in (lines[:cut], lines[cut:]):
        write(folder, *part)
        curves.poll()
    reader = RunReader(folder)
    for split in ("train", "validation"):
        expected = [r for r in reader.metrics(split) if not isinstance(r["step"], bool)]
        found = curves.splits.get(split, SplitCurves())
        assert list(found.steps) == [record["step"] for record in expected]
        column = found.columns.get("loss", [])
        assert [None if math.isnan(value) else value for value in column] == [
            record.get("loss") for record in expected
        ]
