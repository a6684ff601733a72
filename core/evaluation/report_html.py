"""The report as one page of HTML that needs nothing else: pictures inside, no scripts, no fonts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.evaluation.html_parts import html_facts, html_image, html_notes, html_page, html_table
from core.evaluation.report_pictures import (
    donor_spread_png,
    gene_likelihood_png,
    reliability_png,
)
from core.evaluation.report_tables import (
    ReportTable,
    gene_tables,
    label_of,
    phenotype_tables,
    show,
)

__all__ = ["evaluation_html"]


def evaluation_html(
    report: Mapping[str, Any],
    *,
    confusions: Mapping[str, bytes] | None = None,
    gene_table: Sequence[Sequence[Any]] = (),
) -> str:
    """Lay the report out as a page.

    Parameters
    ----------
    report
        See `core.evaluation.reports`.
    confusions
        Phenotype -> PNG of its confusion matrix.
    gene_table
        A row per gene and rate, the names of the columns first; may be empty.
    """
    parts = [
        *html_facts(report.get("facts") or {}),
        *html_notes(report.get("notes") or []),
        *_phenotypes(report, confusions or {}),
        *_genes(report, gene_table),
    ]
    return html_page(str(report.get("title", "Evaluation")), parts)


def _phenotypes(report: Mapping[str, Any], confusions: Mapping[str, bytes]) -> Iterator[str]:
    phenotypes = report.get("phenotypes") or {}
    if not phenotypes:
        return
    yield "<h2>Phenotypes</h2>"
    for table in phenotype_tables(report):
        yield from html_table(table)
    ours = {name: methods["model"] for name, methods in phenotypes.items() if "model" in methods}
    curves = {
        name: figures["calibration"]["curve"]
        for name, figures in ours.items()
        if (figures.get("calibration") or {}).get("curve")
    }
    if curves:
        yield "<h3>Reliability</h3>"
        yield '<p class="note">On the grey line answers are right as often as they say.</p>'
        yield html_image(reliability_png(curves), "Reliability curves")
    donors = {
        name: figures["over_donors"]["each"]
        for name, figures in ours.items()
        if (figures.get("over_donors") or {}).get("each")
    }
    if donors:
        yield "<h3>Donors</h3>"
        yield '<p class="note">A dot is a donor, the line the middle one.</p>'
        yield html_image(donor_spread_png(donors), "Accuracy of each donor")
    if confusions:
        yield "<h3>Confusion matrices</h3>"
    for name, picture in confusions.items():
        yield html_image(picture, f"Confusion matrix of {name}")


def _genes(report: Mapping[str, Any], gene_table: Sequence[Sequence[Any]]) -> Iterator[str]:
    if not (report.get("genes") or report.get("gene_rates")):
        return
    yield "<h2>Genes</h2>"
    if report.get("genes"):
        rows = [[label_of(key), show(value)] for key, value in report["genes"].items()]
        yield from html_table(ReportTable("Masked as in training", "", ["measure", "value"], rows))
    tables = list(gene_tables(report))
    yield from (line for table in tables[:1] for line in html_table(table))
    if gene_table:
        picture = gene_likelihood_png(report["gene_rates"]["rates"], gene_table)
        yield html_image(picture, "Likelihood of hidden genes by mask rate, and gene by gene")
    yield from (line for table in tables[1:] for line in html_table(table))
