"""The metrics of a run as a table for other programs: CSV, JSON, JSON lines, Parquet."""

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from core.errors import ConfigurationError, MachineError
from core.files import csv_bytes, plain_json, replace_file
from core.runlog.json_lines import finite_number, to_line
from core.runlog.schema import RESERVED_METRIC_KEYS, MetricRecord
from core.wording import naming_write_errors

ExportFormat = Literal["csv", "json", "jsonl", "parquet"]
#: wide: a row per line of metrics and a column per metric; long: a row per value.
TableForm = Literal["wide", "long"]
_KEYS = ("step", "t", "split")
_WORDS = ("split", "metric")


def format_of(path: Path) -> ExportFormat:
    """Return the format that a file's ending names; raise ConfigurationError if it names none."""
    known: tuple[ExportFormat, ...] = get_args(ExportFormat)
    for name in known:
        if path.suffix.lower() == f".{name}":
            return name
    raise ConfigurationError(
        f"'{path}': its ending must name the format, one of .{', .'.join(known)}"
    )


def metrics_table(
    records: Sequence[MetricRecord], *, form: TableForm = "wide"
) -> tuple[list[str], list[list[Any]]]:
    """Return column names, and rows of metrics (None: not written, or not finite).

    ``wide``: step, t, split, then each metric in the order first written; ``long``: step, t, split,
    metric, value.
    """
    if form == "long":
        return [*_KEYS, "metric", "value"], [
            [*(record.get(key) for key in _KEYS), name, value]
            for record in records
            for name, value in record.items()
            if name not in RESERVED_METRIC_KEYS
        ]
    names = dict.fromkeys(name for record in records for name in record)
    columns = [*_KEYS, *(name for name in names if name not in RESERVED_METRIC_KEYS)]
    return columns, [[record.get(name) for name in columns] for record in records]


def to_bytes(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: ExportFormat) -> bytes:
    """Write a table in a format; raise MachineError for Parquet without pyarrow."""
    if form == "parquet":
        return _parquet(columns, rows)
    if form == "csv":
        return csv_bytes([columns, *rows])
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if form == "jsonl":
        return b"".join(to_line(one) for one in objects)
    return json.dumps(plain_json(objects), indent=1, allow_nan=False).encode() + b"\n"


def _parquet(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    if importlib.util.find_spec("pyarrow") is None:
        raise MachineError(
            "Parquet needs pyarrow, which is not installed; run pip install pyarrow, or write .csv"
        )
    import pandas as pd  # 400 ms

    frame = pd.DataFrame(list(rows), columns=list(columns), dtype=object)
    for name, column in frame.items():
        if name in _WORDS:
            frame[name] = [None if value is None else str(value) for value in column]
        else:
            kind = "int64" if name == "step" else "float64"
            frame[name] = pd.Series([finite_number(value) for value in column], dtype=kind)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def write_export(path: Path, content: bytes) -> None:
    """Replace a file at once; raise MachineError if it cannot be written."""
    with naming_write_errors(f"'{path}'"):
        replace_file(path, content)
