"""Write what an evaluation found: report.json, .md and .html, confusion matrices as PNG and CSV.

The report is a plain dictionary; sections that are absent are left out of the page:

    title        str
    facts        {name: value}: what was evaluated (model, data, split, cells, seed, ...)
    phenotypes   {phenotype: {method: figures}}, figures as of `core.evaluation.phenotype_report`;
                 the first method is the model, the others stand beside it
    conditions   {cells, phenotypes: {phenotype: {condition: figures}}}
    genes        {measure: value} of genes masked as in training
    gene_rates   hidden genes by mask rate, as of `core.evaluation.gene_report`
    gene_table   rows of genes.csv, the names of the columns first; not in the JSON
    fidelity     FidelitySummary.to_dict()
    notes        [sentence, ...]

Anything else is kept in the JSON. Values may be numpy numbers or arrays; non-finite numbers become
null, so that the JSON is strict. What each figure means: docs/evaluation.md.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.evaluation.report_html import evaluation_html
from core.evaluation.report_markdown import evaluation_markdown
from core.evaluation.report_pictures import confusion_png
from core.files import plain_json, replace_file

__all__ = [
    "REPORT_SCHEMA",
    "REPORT_VERSION",
    "write_evaluation_report",
]

REPORT_VERSION = 2
REPORT_SCHEMA = f"tfx.eval/{REPORT_VERSION}"


def write_evaluation_report(folder: Path, report_dict: Mapping[str, Any]) -> list[Path]:
    """Write the report into a folder, each file whole or not at all.

    Parameters
    ----------
    folder
        Made where it is missing; files of an earlier report are replaced.
    report_dict
        See the module's description.

    Returns
    -------
    The files written: report.html, report.json, report.md, then genes.csv, and confusion_PHENOTYPE.png and .csv
    of each phenotype.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = plain_json({**report_dict, "schema": REPORT_SCHEMA})
    stems: dict[str, str] = {}
    contents: list[tuple[str, bytes]] = []
    pictures: dict[str, bytes] = {}
    gene_table = report.pop("gene_table", [])
    if gene_table:
        contents.append(("genes.csv", _csv(gene_table)))
    for phenotype, methods in report.get("phenotypes", {}).items():
        if not methods:
            continue
        method, scores = next(iter(methods.items()))
        if scores.get("n_cells") and scores.get("confusion"):
            stem = stems[phenotype] = _file_stem(phenotype, list(stems.values()))
            counts, values = scores["confusion"], scores["values"]
            picture = confusion_png(counts, values, title=f"{phenotype} ({method})")
            pictures[phenotype] = picture
            table = [[value, *row] for value, row in zip(values, counts, strict=True)]
            contents.append((f"{stem}.csv", _csv([["true \\ predicted", *values], *table])))
            contents.append((f"{stem}.png", picture))
    links = {phenotype: f"{stem}.png" for phenotype, stem in stems.items()}
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    page = evaluation_html(report, confusions=pictures, gene_table=gene_table)
    pages = [
        ("report.html", page.encode()),
        ("report.md", evaluation_markdown(report, pictures=links).encode()),
        ("report.json", text.encode()),  # last: its presence says the report is whole
    ]
    for name, content in contents + pages:
        replace_file(folder / name, content)
    names = ["report.html", "report.json", "report.md", *(name for name, _ in contents)]
    return [folder / name for name in names]


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _file_stem(phenotype: str, taken: Sequence[str]) -> str:
    """Return a safe file name, without its ending, that no other phenotype has."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", phenotype).strip("_") or "phenotype"
    name, number = f"confusion_{stem}", 2
    while name.casefold() in {other.casefold() for other in taken}:
        name, number = f"confusion_{stem}_{number}", number + 1
    return name
