"""The report as one page of HTML that needs nothing else: pictures inside, no scripts, no fonts."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

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

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1.05rem; margin-bottom: 0.2rem; }
table { border-collapse: collapse; margin: 0.6rem 0 1.2rem; font-size: 0.88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #999; }
.label { text-align: left; }
.wide { overflow-x: auto; }
.first td { border-top: 1px solid #999; }
.model { font-weight: 600; }
.note { color: #555; margin: 0 0 0.4rem; max-width: 50rem; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0.1rem 1rem; margin: 0; }
dt { color: #555; } dd { margin: 0; }
.remarks { background: #fff6e0; border-left: 4px solid #d55e00; padding: 0.5rem 1rem 0.5rem 2rem; }
img { max-width: 100%; height: auto; }
"""


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
    title = escape(str(report.get("title", "Evaluation")))
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        *_facts(report.get("facts") or {}),
        *_notes(report.get("notes") or []),
        *_phenotypes(report, confusions or {}),
        *_genes(report, gene_table),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        pairs = (f"<dt>{escape(k)}</dt><dd>{escape(show(v))}</dd>" for k, v in facts.items())
        yield f"<dl>{''.join(pairs)}</dl>"


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        yield f'<h2>Notes</h2><ul class="remarks">{items}</ul>'


def _phenotypes(report: Mapping[str, Any], confusions: Mapping[str, bytes]) -> Iterator[str]:
    phenotypes = report.get("phenotypes") or {}
    if not phenotypes:
        return
    yield "<h2>Phenotypes</h2>"
    for table in phenotype_tables(report):
        yield from _table(table)
    ours = {name: methods["model"] for name, methods in phenotypes.items() if "model" in methods}
    curves = {
        name: figures["calibration"]["curve"]
        for name, figures in ours.items()
        if (figures.get("calibration") or {}).get("curve")
    }
    if curves:
        yield "<h3>Reliability</h3>"
        yield '<p class="note">On the grey line answers are right as often as they say.</p>'
        yield _image(reliability_png(curves), "Reliability curves")
    donors = {
        name: figures["over_donors"]["each"]
        for name, figures in ours.items()
        if (figures.get("over_donors") or {}).get("each")
    }
    if donors:
        yield "<h3>Donors</h3>"
        yield '<p class="note">A dot is a donor, the line the middle one.</p>'
        yield _image(donor_spread_png(donors), "Accuracy of each donor")
    if confusions:
        yield "<h3>Confusion matrices</h3>"
    for name, picture in confusions.items():
        yield _image(picture, f"Confusion matrix of {name}")


def _genes(report: Mapping[str, Any], gene_table: Sequence[Sequence[Any]]) -> Iterator[str]:
    if not (report.get("genes") or report.get("gene_rates")):
        return
    yield "<h2>Genes</h2>"
    if report.get("genes"):
        rows = [[label_of(key), show(value)] for key, value in report["genes"].items()]
        yield from _table(ReportTable("Masked as in training", "", ["measure", "value"], rows))
    tables = list(gene_tables(report))
    yield from (line for table in tables[:1] for line in _table(table))
    if gene_table:
        picture = gene_likelihood_png(report["gene_rates"]["rates"], gene_table)
        yield _image(picture, "Likelihood of hidden genes by mask rate, and gene by gene")
    yield from (line for table in tables[1:] for line in _table(table))


def _table(table: ReportTable) -> Iterator[str]:
    if table.title:
        yield f"<h3>{escape(table.title)}</h3>"
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>'
    head = "".join(_cell("th", text, at < table.n_labels) for at, text in enumerate(table.header))
    yield f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>'
    before = ""
    for row in table.rows:
        cells = "".join(_cell("td", text, at < table.n_labels) for at, text in enumerate(row))
        is_grouped = table.n_labels > 1
        classes = ["first"] if is_grouped and row[0] != before else []
        classes += ["model"] if is_grouped and row[1] == "model" else []
        before = row[0]
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        yield f"<tr{attribute}>{cells}</tr>"
    yield "</tbody></table></div>"


def _cell(tag: str, text: str, is_label: bool) -> str:  # noqa: FBT001
    attribute = ' class="label"' if is_label else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def _image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{escape(description)}" src="data:image/png;base64,{data}"></p>'
