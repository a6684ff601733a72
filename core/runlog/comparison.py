"""Runs side by side: the settings in which they differ, and their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.runlog.history import LatestMetrics
from core.runlog.json_lines import number_in
from core.runlog.overview import RunRow, run_row, seconds_trained
from core.runlog.reader import RunReader
from core.runlog.schema import GENE_METRICS, RESERVED_METRIC_KEYS, metric_info
from core.runlog.settings import read_values

#: Sections of a preset that define the task: if they differ, losses mean different things.
_TASK = ("data", "encoding", "masking", "loss")


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of all runs."""

    #: As in metrics.jsonl, or one of ours (``seconds``, ``parameters``).
    name: str
    #: ``train``: last line of training; ``kept``: the evaluation of the lowest loss; ``last``: the
    #: last evaluation; ``run``: of the run itself.
    at: Literal["run", "train", "kept", "last"]
    #: One per run; None if a run has none.
    values: tuple[float | None, ...]
    #: Places of the best runs; none without a better direction, or if the values are not comparable.
    best: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, in the order given."""

    runs: tuple[RunRow, ...]
    #: Dotted key of the preset -> its value in each run (None: not set), where they differ.
    settings: dict[str, tuple[Any, ...]]
    #: In the order to show.
    metrics: tuple[ComparedMetric, ...]
    #: Why some metrics must not be compared.
    notes: tuple[str, ...]


def compare_runs(readers: Sequence[RunReader]) -> Comparison:
    """Compare runs, in the order to show them."""
    presets = [read_values(reader.folder) for reader in readers]
    keys = dict.fromkeys(key for preset in presets for key in preset if key != "name")
    rows = {key: tuple(preset.get(key) for preset in presets) for key in keys}
    settings = {key: row for key, row in rows.items() if any(one != row[0] for one in row[1:])}

    lines = [reader.metrics() for reader in readers]
    latest = [LatestMetrics.of(records) for records in lines]
    stores = [reader.run.get("store_key") for reader in readers]
    same_cells = isinstance(stores[0], str) and all(store == stores[0] for store in stores)
    same_task = same_cells and not any(key.split(".")[0] in _TASK for key in settings)
    notes = []
    if not same_cells:
        notes.append(
            "the runs were not trained on one store: none of their metrics is marked as best"
        )
    elif not same_task:
        notes.append(
            "encoding, masking or loss differ: losses and accuracies of genes are not marked as best"
        )

    def compared(
        name: str, at: Literal["train", "kept", "last"], *, comparable: bool = False
    ) -> ComparedMetric:
        values = tuple(number_in(getattr(one, at), name) for one in latest)
        return ComparedMetric(name, at, values, _best(name, values) if comparable else ())

    parameters = tuple(number_in(reader.run, "parameters") for reader in readers)
    seconds = tuple(
        seconds_trained(reader.events(), records)
        for reader, records in zip(readers, lines, strict=True)
    )
    found = [
        ComparedMetric("parameters", "run", parameters),
        ComparedMetric("seconds", "run", seconds),
        compared("cells_per_second", "train"),
        compared("loss", "train"),
        compared("loss", "last"),
    ]
    names = list(
        dict.fromkeys(
            name for one in latest for name in one.kept or () if name not in RESERVED_METRIC_KEYS
        )
    )
    if "loss" in names:  # the loss first, then its step
        names = ["loss", "step", *(name for name in names if name != "loss")]
    for name in names:
        is_of_phenotype = name.startswith(("acc/", "f1/")) and name not in GENE_METRICS
        found.append(
            compared(name, "kept", comparable=same_cells if is_of_phenotype else same_task)
        )
    return Comparison(
        runs=tuple(
            run_row(reader.summary(), one) for reader, one in zip(readers, latest, strict=True)
        ),
        settings=settings,
        metrics=tuple(one for one in found if any(value is not None for value in one.values)),
        notes=tuple(notes),
    )


def _best(name: str, values: Sequence[float | None]) -> tuple[int, ...]:
    better = metric_info(name).better
    known = [value for value in values if value is not None]
    if better is None or len(known) < 2:
        return ()
    best = max(known) if better == "higher" else min(known)
    return tuple(place for place, value in enumerate(values) if value == best)
