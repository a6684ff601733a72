"""Runs side by side: what their presets say differently, and what came of it."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.runlog.figures import RunFigures, number_in
from core.runlog.overview import RunRow, run_row, seconds_trained
from core.runlog.reader import RunReader
from core.runlog.schema import CONFIG_FILE, GENE_FIGURES, RESERVED_METRIC_KEYS, metric_info
from core.runlog.settings import dotted_values

__all__ = ["ComparedFigure", "Comparison", "compare_runs"]

#: Sections of a preset that say what is asked of a model: without them alike, losses mean
#: different things.
_QUESTION = ("data", "encoding", "masking", "loss")
#: Keys that differ between any two runs and tell nothing.
_TRIVIAL = frozenset({"name"})


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of all runs.

    Attributes
    ----------
    name
        As in metrics.jsonl, or one of ours (``seconds``, ``parameters``).
    at
        ``train``: last line of training; ``kept``: the evaluation of the lowest loss; ``last``:
        the last one; ``run``: of the run itself.
    values
        One per run; None where a run has none.
    best
        Which runs are best, by place; none where there is no better direction, nothing to
        compare, or nothing comparable.
    """

    name: str
    at: Literal["run", "train", "kept", "last"]
    values: tuple[float | None, ...]
    best: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes
    ----------
    runs
        As in a list of runs, in the order asked for.
    settings
        Dotted key of the preset -> its value in each run (None: not set), where they differ.
    figures
        In the order to show.
    notes
        Why some figures must not be compared.
    """

    runs: tuple[RunRow, ...]
    settings: dict[str, tuple[Any, ...]]
    figures: tuple[ComparedFigure, ...]
    notes: tuple[str, ...]


def compare_runs(readers: Sequence[RunReader]) -> Comparison:
    """Compare runs.

    Parameters
    ----------
    readers
        Of the runs, in the order to show them.
    """
    settings = _differences([_settings(reader.folder / CONFIG_FILE) for reader in readers])
    lines = [reader.metrics() for reader in readers]
    figures = [RunFigures.of(records) for records in lines]
    stores = [reader.run.get("store_key") for reader in readers]
    same_cells = isinstance(stores[0], str) and all(store == stores[0] for store in stores)
    same_question = same_cells and not any(key.split(".")[0] in _QUESTION for key in settings)
    notes = []
    if not same_cells:
        notes.append(
            "the runs were not trained on one store: no figure of theirs is marked as best"
        )
    elif not same_question:
        notes.append(
            "encoding, masking or loss differ: losses and accuracies of genes are not marked as best"
        )

    def compared(
        name: str, at: Literal["train", "kept", "last"], *, comparable: bool
    ) -> ComparedFigure:
        values = tuple(number_in(getattr(one, at), name) for one in figures)
        return ComparedFigure(name, at, values, _best(name, values) if comparable else ())

    found = [
        ComparedFigure("parameters", "run", _facts(readers, "parameters"), ()),
        ComparedFigure(
            "seconds",
            "run",
            tuple(
                seconds_trained(reader.events(), records)
                for reader, records in zip(readers, lines, strict=True)
            ),
            (),
        ),
        compared("cells_per_second", "train", comparable=False),
        compared("loss", "train", comparable=False),
        compared("loss", "last", comparable=False),
    ]
    names = _names([one.kept for one in figures])
    if "loss" in names:  # first, and then where it was
        names = ["loss", "step", *(name for name in names if name != "loss")]
    for name in names:
        is_of_phenotype = name.startswith(("acc/", "f1/")) and name not in GENE_FIGURES
        found.append(
            compared(name, "kept", comparable=same_cells if is_of_phenotype else same_question)
        )
    return Comparison(
        runs=tuple(
            run_row(reader.summary(), one) for reader, one in zip(readers, figures, strict=True)
        ),
        settings=settings,
        figures=tuple(one for one in found if any(value is not None for value in one.values)),
        notes=tuple(notes),
    )


def _facts(readers: Sequence[RunReader], name: str) -> tuple[float | None, ...]:
    return tuple(number_in(reader.run, name) for reader in readers)


def _names(records: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Return the metrics of some lines, each once, in the order they come."""
    names = dict.fromkeys(name for record in records for name in record or ())
    return [name for name in names if name not in RESERVED_METRIC_KEYS]


def _best(name: str, values: Sequence[float | None]) -> tuple[int, ...]:
    better = metric_info(name).better
    known = [value for value in values if value is not None]
    if better is None or len(known) < 2:
        return ()
    best = max(known) if better == "higher" else min(known)
    return tuple(place for place, value in enumerate(values) if value == best)


def _settings(path: Path) -> dict[str, Any]:
    """Read a resolved preset as dotted keys; empty where it is absent or not readable."""
    try:
        values = dotted_values(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in values.items() if value != {}}


def _differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    names = dict.fromkeys(name for one in settings for name in one if name not in _TRIVIAL)
    rows = {name: tuple(one.get(name) for one in settings) for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row[1:])}
