"""The tables of an evaluation report as text, for the page and the terminal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from core.evaluation.report.records import (
    Conditions,
    EvaluationFacts,
    EvaluationReport,
    FidelityFacts,
    GeneMeans,
    Interval,
    PartMetric,
    PhenotypeScores,
    Scores,
)
from core.wording import as_markdown

_SCORES = ("accuracy", "balanced_accuracy", "macro_f1")
_PARTS = {
    "class_log_odds_alone": "class log-odds alone",
    "without_the_log_linear_part": "without the log-linear part",
}
_CONDITIONS = {"hidden": "all genes", "given": "others given"}


@dataclass(frozen=True)
class ReportTable:
    """A table of text with an optional title, and a note below it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    #: Columns at the left that hold no numbers.
    n_labels: int = 1

    def markdown(self) -> list[str]:
        """Return the header and the rows as lines of Markdown."""
        lines = [f"| {' | '.join(map(as_markdown, row))} |" for row in (self.header, *self.rows)]
        return [lines[0], "|---" * len(self.header) + "|", *lines[1:]]


#: How cells were held out, by the name in the store's report.
_SPLITS = {
    "donor": "split by donor",
    "stratified": "cells held out at random, stratified by phenotype",
    "none": "no cells held out",
}


def split_text(method: str | None) -> str:
    """Write in words how cells were held out."""
    return _SPLITS.get(method or "", f"split by {method or 'unknown'}")


def fact_rows(facts: EvaluationFacts | FidelityFacts) -> list[tuple[str, str]]:
    """Return names and values of the facts that are known."""
    known = [(one.name, getattr(facts, one.name)) for one in fields(facts)]
    return [(label_of(name), show(value)) for name, value in known if value is not None]


def phenotype_tables(report: EvaluationReport) -> Iterator[ReportTable]:
    """Give the tables about phenotypes, if the report has any."""
    if not report.phenotypes:
        return
    yield ReportTable(
        "",
        "All genes visible, all phenotypes masked. In brackets: 95 % bootstrap intervals.",
        ["phenotype", "method", *map(label_of, _SCORES), "top 3", "cells"],
        [
            [
                phenotype,
                label_of(method),
                *(_with_interval(scores, score) for score in _SCORES),
                show(scores.top3_accuracy),
                show(scores.n_cells),
            ]
            for phenotype, methods in report.phenotypes.items()
            for method, scores in methods.items()
        ],
        2,
    )
    calibrated = {name: one for name, one in report.of_model.items() if one.calibration is not None}
    if calibrated:
        yield ReportTable(
            "Calibration and donors",
            "The model alone: expected calibration error (ECE); mean confidence minus accuracy; accuracy "
            "of the worst, median and best donor; mean absolute error of ages in years.",
            ["phenotype", "ECE", "overconfidence", "donors", "min", "median", "max", "years"],
            [_calibration_row(name, scores) for name, scores in calibrated.items()],
        )
    confident = {
        name: scores for name, scores in calibrated.items() if scores.confidence is not None
    }
    if confident:
        yield ReportTable(
            "Probabilities",
            "ECE before and after the logits are divided by the temperature, which was fitted on validation cells. A "
            "prediction with a probability below the threshold is unsure; accuracy of the others, and of all.",
            [
                "phenotype",
                "temperature",
                "ECE before",
                "after",
                "threshold",
                "unsure",
                "accuracy of the rest",
                "of all",
            ],
            [_confidence_row(name, scores) for name, scores in confident.items()],
        )
    in_ontology = [
        [name, label_of(method), show(one.related), show(one.mean_distance), show(one.n_cells)]
        for name, methods in report.phenotypes.items()
        for method, scores in methods.items()
        if (one := scores.ontology) is not None
    ]
    if in_ontology:
        yield ReportTable(
            "Distance in the ontology",
            "Related: fraction of predictions that are the label, its ancestor or its descendant. Distance: "
            "mean steps from label to prediction through their nearest common ancestor.",
            ["phenotype", "method", "related", "distance", "cells"],
            in_ontology,
            2,
        )
    if report.conditions is not None and report.conditions.phenotypes:
        yield _condition_table(report.conditions)


def _calibration_row(phenotype: str, scores: PhenotypeScores) -> list[str]:
    calibration, donors = scores.calibration, scores.donors
    assert calibration is not None
    of_donors = (
        [None] * 4 if donors is None else [donors.n_donors, donors.min, donors.median, donors.max]
    )
    return [
        phenotype,
        show(calibration.ece),
        show(calibration.overconfidence),
        *map(show, of_donors),
        show(scores.mae_years, digits=1),
    ]


def _confidence_row(phenotype: str, scores: PhenotypeScores) -> list[str]:
    confidence, calibration = scores.confidence, scores.calibration
    assert confidence is not None
    assert calibration is not None
    below = confidence.unsure_below
    return [
        phenotype,
        show(confidence.temperature, digits=2),
        show(confidence.uncalibrated.ece),
        show(calibration.ece),
        "always unsure" if below is None else show(below),
        _percent(confidence.n_unsure / max(scores.n_cells, 1)),
        show(confidence.kept_accuracy),
        show(scores.accuracy),
    ]


def reliability_table(report: EvaluationReport) -> Iterator[ReportTable]:
    """Give the table of reliability before and after calibration, if the model was calibrated."""
    rows = []
    for phenotype, scores in report.of_model.items():
        if scores.confidence is None or scores.calibration is None:
            continue
        sides = (scores.confidence.uncalibrated, scores.calibration)
        of_sides = [{(one.low, one.high): one for one in side.curve} for side in sides]
        for span in sorted({*of_sides[0], *of_sides[1]}):
            numbers = [
                [show(None)] * 3
                if (found := of_side.get(span)) is None
                else [show(found.n_cells), show(found.confidence), show(found.accuracy)]
                for of_side in of_sides
            ]
            rows.append([phenotype, f"{span[0]:.1f}-{span[1]:.1f}", *numbers[0], *numbers[1]])
    if rows:
        yield ReportTable(
            "Reliability before and after calibration",
            "Predictions by probability: their cells, mean probability and accuracy.",
            ["phenotype", "probability", *(["cells", "mean", "accuracy"]) * 2],
            rows,
            2,
        )


def _condition_table(conditions: Conditions) -> ReportTable:
    phenotypes = conditions.phenotypes
    return ReportTable(
        "Other conditions",
        f"Accuracy / macro-F1 of the model on {conditions.n_cells} of the cells: all genes visible "
        "and all phenotypes masked, as above; the other known phenotypes of the cell given; all "
        "phenotypes and a fraction of the genes masked.",
        ["phenotype", *map(_condition, _names(phenotypes))],
        [
            [name, *(score_pair(of_one.get(one)) for one in _names(phenotypes))]
            for name, of_one in phenotypes.items()
        ],
    )


def _names(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for of_one in scores.values() for name in of_one))


def _condition(name: str) -> str:
    _, is_masked, rate = name.partition("masked_")
    return f"{_percent(float(rate))} masked" if is_masked else _CONDITIONS.get(name, name)


def headline_table(report: EvaluationReport) -> ReportTable:
    """Accuracy / macro-F1 of every method; a phenotype without a training label has no baselines."""
    methods = _names(report.phenotypes)
    return ReportTable(
        "accuracy / macro-F1, all genes visible, all phenotypes masked",
        "",
        ["phenotype", "cells", *map(label_of, methods)],
        [
            [name, f"{of_one['model'].n_cells:,}", *(score_pair(of_one.get(m)) for m in methods)]
            for name, of_one in report.phenotypes.items()
        ],
    )


def score_pair(scores: PhenotypeScores | None) -> str:
    """Return accuracy / macro-F1, a dash if there are no scores."""
    return "-" if scores is None else f"{show(scores.accuracy)} / {show(scores.macro_f1)}"


def gene_tables(report: EvaluationReport) -> Iterator[ReportTable]:
    """Give the tables about masked genes, if the report has any."""
    genes = report.gene_rates
    if genes is None:
        return
    yield ReportTable(
        "Masked genes by mask rate",
        f"{genes.n_cells} cells, all phenotypes masked. In brackets: the same of each gene's marginal, "
        "its fractions of training cells per bin. NLL in nats per gene; error: mean absolute distance of "
        "predicted and true bin (continuous models: log1p units).",
        ["mask rate", "masked genes", "NLL", "accuracy", "error"],
        [
            [
                _percent(one.mask_rate),
                show(one.n_masked),
                *(
                    _beside(one, one.marginal, of)
                    for of in ("nll", "accuracy", "mean_absolute_error")
                ),
            ]
            for one in genes.rates
        ],
    )
    n_bins = max(len(one.bins) for one in genes.rates)
    yield ReportTable(
        "Accuracy by true bin",
        "Bin 0: not expressed.",
        ["mask rate", *map(str, range(n_bins))],
        [[_percent(one.mask_rate), *(show(b.accuracy) for b in one.bins)] for one in genes.rates],
    )
    for title, rows in (("Best", genes.best), ("Worst", genes.worst)):
        if rows:
            yield ReportTable(
                f"{title} predicted genes, at a mask rate of {_percent(rows[0].mask_rate)}",
                "Ranked by gain: the marginal's NLL minus the model's, in nats.",
                ["gene", "id", "gain", "NLL", "accuracy", "times masked"],
                [
                    [
                        row.symbol,
                        row.gene,
                        *map(show, (row.gain, row.nll, row.accuracy, row.n_masked)),
                    ]
                    for row in rows
                ],
                2,
            )


def part_table(report: EvaluationReport) -> ReportTable | None:
    """Return the table of what each part of the model contributes, if the report has it."""
    parts = report.parts
    if parts is None:
        return None
    first = next(iter(parts.scores.values()))
    genes = [] if first.nll is None else ["loss per masked gene"]
    rows = [
        [
            _PARTS.get(name, label_of(name)),
            *([] if of_part.nll is None else [_part_metric(of_part.nll)]),
            *map(_part_metric, of_part.accuracy.values()),
        ]
        for name, of_part in parts.scores.items()
    ]
    return ReportTable(
        "What each part contributes",
        f"{parts.n_cells:,} of the cells. Loss: nats per masked gene, genes and phenotypes masked as in training. "
        f"Phenotypes: accuracy, all genes visible. In brackets: 95 % bootstrap intervals, over {parts.n_units:,} "
        f"{parts.resampled}; *: worse than the whole model, by an interval of the difference above zero.",
        ["parts", *genes, *first.accuracy],
        rows,
    )


def _part_metric(metric: PartMetric) -> str:
    is_worse = metric.worse_by is not None and metric.worse_by.interval[0] > 0
    return f"{show(metric.value)} {bounds(metric.interval)}{'*' if is_worse else ''}"


def masked_gene_rows(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return names and values of the scores of genes masked as in training."""
    genes = report.genes
    if genes is None:
        return []
    return [
        ("masked genes", f"{genes.n_masked:,}"),
        ("accuracy", show(genes.accuracy)),
        ("accuracy of each gene's most common bin", show(genes.baseline_accuracy)),
        ("loss", show(genes.loss)),
    ]


def _beside(means: GeneMeans, marginal: GeneMeans | None, name: str) -> str:
    text = show(getattr(means, name))
    return text if marginal is None else f"{text} ({show(getattr(marginal, name))})"


def _with_interval(scores: PhenotypeScores, name: str) -> str:
    text = show(getattr(scores, name))
    return text if scores.intervals is None else f"{text} {bounds(getattr(scores.intervals, name))}"


def bounds(interval: Interval, *, digits: int = 3) -> str:
    """Put an interval into a table."""
    low, high = (show(one, digits=digits) for one in interval)
    return f"[{low}, {high}]"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def show(value: Any, *, digits: int = 3) -> str:  # noqa: ANN401 (any value of a report)
    """Put a value of a report into a table; what is not known or not defined is a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        # "+ 0.0": no "-0.000"
        return f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else "-"
    return str(value)


def label_of(key: str) -> str:
    """Return the name of a field, a method or a measure as words."""
    return key.removeprefix("n_").replace("_", " ")
