import csv
import io
import json

import pytest

from core.errors import ConfigurationError, MachineError
from core.runlog import export
from core.runlog.export import format_of, metrics_table, to_bytes, write_export

RECORDS = [
    {"step": 5, "t": 1.5, "split": "train", "loss": 2.0, "lr": 0.1},
    {
        "step": 5,
        "t": 1.6,
        "split": "validation",
        "loss": None,
        "acc/a,b": 0.5,
        "nonfinite": ["loss"],
    },
]


def test_a_wide_table_has_a_row_per_line_and_a_column_per_metric():
    assert metrics_table(RECORDS) == (
        ["step", "t", "split", "loss", "lr", "acc/a,b"],
        [[5, 1.5, "train", 2.0, 0.1, None], [5, 1.6, "validation", None, None, 0.5]],
    )


def test_a_long_table_has_a_row_per_value():
    assert metrics_table(RECORDS, form="long") == (
        ["step", "t", "split", "metric", "value"],
        [
            [5, 1.5, "train", "loss", 2.0],
            [5, 1.5, "train", "lr", 0.1],
            [5, 1.6, "validation", "loss", None],
            [5, 1.6, "validation", "acc/a,b", 0.5],
        ],
    )


def test_csv_reads_back(tmp_path):
    content = to_bytes(*metrics_table(RECORDS), "csv").decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert rows[0] == {
        "step": "5", "t": "1.5", "split": "train", "loss": "2.0", "lr": "0.1", "acc/a,b": "",
    }  # fmt: skip
    assert (rows[1]["loss"], rows[1]["acc/a,b"]) == ("", "0.5")
    assert "\r" not in content


def test_json_and_json_lines_read_back():
    columns, rows = metrics_table(RECORDS)
    expected = [dict(zip(columns, row, strict=True)) for row in rows]
    assert json.loads(to_bytes(columns, rows, "json")) == expected
    lines = to_bytes(columns, rows, "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_no_metrics_are_an_empty_table(form):
    content = to_bytes(*metrics_table([]), form)
    assert content == {"csv": b"step,t,split\n", "json": b"[]\n", "jsonl": b""}[form]


def test_parquet_reads_back_as_numbers(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    records = [*RECORDS, {"step": 6, "split": "train", "loss": "odd", "lr": [1]}]
    frame = pd.read_parquet(io.BytesIO(to_bytes(*metrics_table(records), "parquet")))
    assert frame["step"].tolist() == [5, 5, 6]
    assert frame["loss"].isna().tolist() == [False, True, True]
    assert (str(frame["lr"].dtype), frame["split"].tolist()[1]) == ("float64", "validation")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"needs pyarrow, .*; run pip install pyarrow, or write"):
        to_bytes(*metrics_table(RECORDS), "parquet")


def test_the_name_of_a_file_says_the_format(tmp_path):
    assert format_of(tmp_path / "a.b.CSV") == "csv"
    with pytest.raises(ConfigurationError, match=r"one of \.csv, \.json, \.jsonl, \.parquet"):
        format_of(tmp_path / "a.xlsx")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("old")
    write_export(path, b"new")
    assert path.read_text() == "new"

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(
        MachineError, match=r"a\.csv' cannot be written \(No space left on device\)"
    ):
        write_export(path, b"newer")
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.csv"]
