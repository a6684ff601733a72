"""Write what the protocol found of generated cells: report.html and report.json.

The report is a plain dictionary:

    title        str
    facts        {name: value}: which cells, which model, how many, which classes
    verdict      [sentence, ...]
    scores       {method: {measure: {value, sd, interval, minus_copula}}}; methods of
                 `core.evaluation.fidelity_protocol.METHODS`, measures of `fidelity_verdict.RULES`
    marks        {method: {measure: {won, threshold}}}; won is null where it cannot be told
    limits       {name: value} that thresholds came from
    class_cells  {class: matched cells}
    likelihood   {cells, model, class_marginals, model_minus_class_marginals}, nats per gene of unseen cells
                 whose genes are all hidden; null where it cannot be told
    rebalancing  {way: {balanced_accuracy, macro_f1, minus_class_weights, cells_added}}; may be empty
    notes        [sentence, ...]

What each figure means: docs/fidelity.md.
"""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from core.evaluation.fidelity_tables import fidelity_tables
from core.evaluation.html_parts import html_facts, html_image, html_notes, html_page, html_table
from core.files import plain_json, replace_file

__all__ = ["FIDELITY_SCHEMA", "FIDELITY_VERSION", "fidelity_html", "write_fidelity_report"]

FIDELITY_VERSION = 1
FIDELITY_SCHEMA = f"tfx.fidelity/{FIDELITY_VERSION}"


def write_fidelity_report(
    folder: Path, report: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> list[Path]:
    """Write the report into a folder, each file whole or not at all.

    Parameters
    ----------
    folder
        Made where it is missing; files of an earlier report are replaced.
    report
        See the module's description.
    pictures
        Heading -> PNG; they are put into the page.

    Returns
    -------
    report.html and report.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = plain_json({"schema": FIDELITY_SCHEMA, **report})
    text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    replace_file(folder / "report.html", fidelity_html(record, pictures))
    replace_file(folder / "report.json", text)  # last: the report is whole
    return [folder / "report.html", folder / "report.json"]


def fidelity_html(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Lay the report out as a page that needs nothing else."""
    return html_page(report["title"], list(_parts(report, pictures)))


def _parts(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Iterator[str]:
    yield from html_facts(report["facts"])
    yield "<h2>Verdict</h2><ul>"
    yield from (f"<li>{escape(sentence)}</li>" for sentence in report["verdict"])
    yield "</ul>"
    yield from html_notes(report["notes"])
    tables = list(fidelity_tables(report, intervals=True))
    yield "<h2>Figures</h2>"
    yield from html_table(tables[0])
    for heading, picture in pictures.items():
        yield f"<h2>{escape(heading)}</h2>"
        yield html_image(picture, heading)
    yield "<h2>More figures</h2>"
    for table in tables[1:]:
        yield from html_table(table)
