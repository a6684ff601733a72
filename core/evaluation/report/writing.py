"""Write reports: report.html and report.json, and of an evaluation the tables and confusion matrices.

The page needs nothing else: pictures inside, no scripts, no fonts.

Each file is written whole or not at all; report.json is the last: where it is, the report is complete.
"""

import base64
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import MappingProxyType

from core.evaluation.report.pictures import (
    confusion_figure,
    donor_accuracy_png,
    figure_bytes,
    gene_likelihood_png,
    png_bytes,
    reliability_png,
)
from core.evaluation.report.records import EvaluationReport, FidelityReport, GeneRow, report_record
from core.evaluation.report.tables import (
    ReportTable,
    fact_rows,
    gene_tables,
    headline_table,
    masked_gene_rows,
    part_table,
    phenotype_tables,
    reliability_table,
    split_text,
)
from core.files import csv_bytes, file_text, replace_file
from core.folders import locked_folder
from core.model.card import put_test_metrics
from core.wording import as_markdown, visible

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A PNG, with an optional title and note."""

    png: bytes
    description: str
    title: str = ""
    note: str = ""

    @property
    def data(self) -> str:
        """The PNG in base64."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading, and what comes below it."""

    heading: str
    parts: Sequence[ReportTable | Picture]


def render_page(
    report: EvaluationReport | FidelityReport,
    sections: Sequence[Section],
    *,
    verdict: Sequence[str] = (),
) -> str:
    """Lay a report out: facts, verdict, notes, then the sections."""
    from jinja2 import Environment, PackageLoader  # 60 ms

    templates = Environment(
        loader=PackageLoader("core.evaluation.report"),
        autoescape=True,
        finalize=lambda one: visible(one, lines=True) if isinstance(one, str) else one,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(
        title=report.title,
        facts=fact_rows(report.facts),
        verdict=verdict,
        notes=report.notes,
        sections=[section for section in sections if section.parts],
    )


def write_evaluation(
    folder: Path, report: EvaluationReport, gene_rows: Sequence[GeneRow] = ()
) -> list[Path]:
    """Write the report of `tfx eval` into a folder, which is made if it is missing.

    Returns report.html, report.json, then genes.csv, and confusion_PHENOTYPE.csv, .png and .pdf of each phenotype.
    """
    files: dict[str, bytes] = {}
    if gene_rows:
        header = [one.name for one in fields(GeneRow)]
        files["genes.csv"] = csv_bytes(
            [header, *([_rounded(v) for v in astuple(r)] for r in gene_rows)]
        )
    confusions: dict[str, bytes] = {}
    stems: list[str] = []
    for phenotype, scores in report.of_model.items():
        if not (scores.n_cells and scores.confusion and scores.values):
            continue
        stems.append(_file_stem(phenotype, stems))
        title = f"{phenotype} (model)"
        figure = confusion_figure(scores.confusion, scores.values, title=title)
        confusions[phenotype] = png_bytes(figure)
        table = [[v, *row] for v, row in zip(scores.values, scores.confusion, strict=True)]
        files[f"{stems[-1]}.csv"] = csv_bytes([["true \\ predicted", *scores.values], *table])
        for suffix in (".png", ".pdf"):
            files[f"{stems[-1]}{suffix}"] = figure_bytes(figure, suffix)
    page = render_page(report, list(evaluation_sections(report, confusions, gene_rows)))
    return write_report(folder, report, page, files)


def write_report(
    folder: Path,
    report: EvaluationReport | FidelityReport,
    page: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> list[Path]:
    """Write a report, its page and its other files; return the paths, page and report first.

    Another process that writes into the folder is waited for: all files are of one report.
    """
    record = json.dumps(report_record(report), indent=2, allow_nan=False, ensure_ascii=False)
    with locked_folder(folder, on_wait=lambda: None) as held:
        try:
            for name, content in files.items():
                replace_file(folder / name, content)
            replace_file(folder / "report.html", page)
            replace_file(folder / "report.json", record + "\n")
        finally:
            held.remove_lock()
    return [folder / name for name in ("report.html", "report.json", *files)]


def evaluation_sections(
    report: EvaluationReport, confusions: Mapping[str, bytes], gene_rows: Sequence[GeneRow]
) -> Iterator[Section]:
    """Give the sections of the page of `tfx eval`; ``confusions``: phenotype -> PNG."""
    models = report.of_model
    pictures = []
    curves = {
        name: scores.calibration.curve
        for name, scores in models.items()
        if scores.calibration is not None and scores.calibration.curve
    }
    if curves:
        note = "On the grey line, predictions are right as often as their confidence promises."
        pictures.append(
            Picture(reliability_png(curves), "Reliability curves", title="Reliability", note=note)
        )
    donors = {
        name: scores.donors.each
        for name, scores in models.items()
        if scores.donors is not None and scores.donors.each
    }
    if donors:
        note = "A dot is a donor, the line the median."
        picture = donor_accuracy_png(donors)
        pictures.append(Picture(picture, "Accuracy of each donor", title="Donors", note=note))
    titles = ["Confusion matrices"] + [""] * len(confusions)
    pictures += [
        Picture(png, f"Confusion matrix of {name}", title=title)
        for (name, png), title in zip(confusions.items(), titles, strict=False)
    ]
    if (parts := part_table(report)) is not None:
        yield Section("Parts of the model", [parts])
    yield Section("Phenotypes", [*phenotype_tables(report), *reliability_table(report), *pictures])
    genes: list[ReportTable | Picture] = []
    if report.genes is not None:
        rows = masked_gene_rows(report)
        genes.append(ReportTable("Masked as in training", "", ["", "value"], rows))
    genes += gene_tables(report)
    if gene_rows and report.gene_rates is not None:
        png = gene_likelihood_png(report.gene_rates.rates, gene_rows)
        text = "Likelihood of masked genes by mask rate, and gene by gene"
        genes.insert(2, Picture(png, text))
    yield Section("Genes", genes)


def _rounded(value: object) -> object:
    """Five digits; an undefined number is empty."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else round(value, 5)


def _file_stem(phenotype: str, taken: Sequence[str]) -> str:
    """Return a safe file name, without its ending, that no other phenotype has."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", phenotype[:100]).strip("_") or "phenotype"
    name, number = f"confusion_{stem}", 2
    while name.casefold() in {other.casefold() for other in taken}:
        name, number = f"confusion_{stem}_{number}", number + 1
    return name


# ----------------------------------------------------------------------------------- the model card
def card_text(report: EvaluationReport) -> str:
    """Return accuracy and macro-F1 of every phenotype and method, and the parts of the model, as Markdown."""
    facts = report.facts
    which = f"test cells ({split_text(facts.split_by)})"
    if facts.split == "cross-validation":
        which = "cells, each predicted by a model that was trained without its donor"
    head = (
        f"{facts.n_cells:,} {which}, all genes visible, all phenotypes masked; accuracy / macro-F1:"
    )
    lines = [head, "", *headline_table(report).markdown()]
    if (parts := part_table(report)) is not None:
        title = as_markdown(f"{parts.title}. {parts.note}", most=2_000)
        lines += ["", title, "", *parts.markdown()]
    lines += ["", *(f"- {as_markdown(note, most=2_000)}" for note in report.notes)]
    return "\n".join(lines).rstrip()


def write_into_card(folder: Path, report: EvaluationReport) -> None:
    """Write the scores into the card of a model folder, unless the folder cannot be written to."""
    path = folder / "README.md"
    try:
        card = file_text(path)
        changed = put_test_metrics(card, card_text(report))
        if changed != card:
            replace_file(path, changed)
    except (OSError, UnicodeDecodeError) as error:
        _LOG.info("the model card %s is left as it was (%s)", path, error)
