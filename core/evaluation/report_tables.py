"""The tables of an evaluation report as text, for the page and the terminal alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ReportTable", "gene_tables", "label_of", "phenotype_tables", "score_pair", "show"]

_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ReportTable:
    """A table of text.

    Attributes
    ----------
    title, note
        What stands above it, and the explanation below the title; may be empty.
    header, rows
        One text per column.
    n_labels
        Columns at the left that hold no numbers.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_labels: int = 1


def phenotype_tables(report: Record) -> Iterator[ReportTable]:
    """Give the tables about phenotypes that a report has figures for."""
    phenotypes: Mapping[str, Mapping[str, Record]] = report.get("phenotypes") or {}
    if not phenotypes:
        return
    rows = [
        [
            phenotype,
            label_of(method),
            *(_with_interval(scores, measure) for measure in _MEASURES),
            show(scores.get("top3_accuracy")),
            show(scores.get("n_cells")),
        ]
        for phenotype, methods in phenotypes.items()
        for method, scores in methods.items()
    ]
    note = "All genes visible, all phenotypes hidden. In brackets 95 % bootstrap intervals."
    header = ["phenotype", "method", *map(label_of, _MEASURES), "top 3", "cells"]
    yield ReportTable("", note, header, rows, 2)
    yield from _trust(phenotypes)
    yield from _conditions(report.get("conditions") or {})


def _trust(phenotypes: Mapping[str, Mapping[str, Record]]) -> Iterator[ReportTable]:
    """How far the model's own probabilities and its mean over cells can be trusted."""
    rows = []
    for phenotype, methods in phenotypes.items():
        ours = methods.get("model", {})
        if not ours.get("calibration"):
            continue
        calibration, donors = ours["calibration"], ours.get("over_donors") or {}
        rows.append(
            [
                phenotype,
                show(calibration["error"]),
                show(calibration["overconfidence"]),
                show(donors.get("donors")),
                *(show(donors.get(one)) for one in ("min", "median", "max")),
                show(ours.get("mean_years_off"), digits=1),
            ]
        )
    if rows:
        yield ReportTable(
            "Calibration and donors",
            "The model alone: calibration error (ECE), mean confidence minus accuracy, accuracy of "
            "the worst, middle and best donor, mean years off.",
            ["phenotype", "ECE", "overconfidence", "donors", "min", "median", "max", "years off"],
            rows,
        )


def _conditions(conditions: Record) -> Iterator[ReportTable]:
    """Compare the conditions, on the same cells."""
    phenotypes: Mapping[str, Mapping[str, Record]] = conditions.get("phenotypes") or {}
    names = list(dict.fromkeys(name for of_one in phenotypes.values() for name in of_one))
    if not names:
        return
    rows = [
        [phenotype, *(score_pair(of_one.get(name)) for name in names)]
        for phenotype, of_one in phenotypes.items()
    ]
    yield ReportTable(
        "Other conditions",
        f"The model's accuracy / macro-F1 on {conditions['cells']} of the cells: all genes visible "
        "and all phenotypes hidden, as above; the cell's other known phenotypes given; all "
        "phenotypes hidden and a share of the genes masked.",
        ["phenotype", *map(_condition, names)],
        rows,
    )


def _condition(name: str) -> str:
    _, is_masked, rate = name.partition("masked_")
    if is_masked:
        return f"{100 * float(rate):.0f} % masked"
    return {"hidden": "all genes", "given": "others given"}[name]


def score_pair(scores: Record | None) -> str:
    """Return accuracy / macro-F1, a dash where there are no figures."""
    return f"{show(scores['accuracy'])} / {show(scores['macro_f1'])}" if scores else "-"


def gene_tables(report: Record) -> Iterator[ReportTable]:
    """Give the tables about hidden genes that a report has figures for."""
    genes: Record = report.get("gene_rates") or {}
    if not genes:
        return
    rows = []
    for one in genes["rates"]:
        marginal = one.get("marginal") or {}
        rows.append(
            [
                f"{100 * one['rate']:.0f} %",
                show(one["hidden_genes"]),
                *(
                    show(figures.get(key))
                    for key in ("nll", "accuracy", "mean_off")
                    for figures in (one, marginal)
                ),
            ]
        )
    yield ReportTable(
        "Hidden genes by mask rate",
        f"{genes['cells']} cells, all phenotypes hidden; beside each figure that of the gene's "
        "training shares. NLL in nats per gene; distance between answer and truth in bins "
        "(continuous models: log1p units).",
        ["genes hidden", "asked", "NLL", "(marginal)", "accuracy", "(marginal)", "distance",
         "(marginal)"],
        rows,
    )  # fmt: skip
    n_bins = max(len(one["bins"]) for one in genes["rates"])
    yield ReportTable(
        "Accuracy by true bin",
        "Bin 0 is not expressed.",
        ["genes hidden", *map(str, range(n_bins))],
        [
            [f"{100 * one['rate']:.0f} %", *(show(bin_["accuracy"]) for bin_ in one["bins"])]
            for one in genes["rates"]
        ],
    )
    at = f"at {100 * genes['listed_at_rate']:.0f} % of the genes hidden"
    for key, title in (("best", "Genes told best"), ("worst", "Genes told worst")):
        if genes[key]:
            yield ReportTable(
                f"{title}, {at}",
                "By the gain over the gene's training shares, in nats.",
                ["gene", "id", "gain", "NLL", "accuracy", "asked"],
                [
                    [
                        one["symbol"],
                        one["gene"],
                        show(one.get("gain")),
                        show(one["nll"]),
                        show(one["accuracy"]),
                        show(one["times_hidden"]),
                    ]
                    for one in genes[key]
                ],
                2,
            )


def _with_interval(scores: Record, measure: str) -> str:
    bounds = (scores.get("intervals") or {}).get(measure)
    text = show(scores.get(measure))
    return f"{text} [{show(bounds[0])}, {show(bounds[1])}]" if bounds else text


def show(value: Any, *, digits: int = 3) -> str:  # noqa: ANN401 (any JSON value)
    """Put a value of a report into a table; what is not known is a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.000"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    return str(value)


def label_of(key: str) -> str:
    """Return a key of the report as words."""
    return key.replace("_", " ")
