"""Pieces of a page of HTML that needs nothing else: pictures inside, no scripts, no fonts."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from core.evaluation.report_tables import ReportTable, show

__all__ = ["html_facts", "html_image", "html_notes", "html_page", "html_table"]

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


def html_page(title: str, parts: Sequence[str]) -> str:
    """Put a page together from the text below its heading."""
    heading = escape(title)
    lines = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>{heading}</h1>",
        *parts,
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def html_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """Lay names and values out in two columns."""
    if facts:
        pairs = (f"<dt>{escape(k)}</dt><dd>{escape(show(v))}</dd>" for k, v in facts.items())
        yield f"<dl>{''.join(pairs)}</dl>"


def html_notes(notes: Sequence[str]) -> Iterator[str]:
    """List sentences that the reader should not miss."""
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        yield f'<h2>Notes</h2><ul class="remarks">{items}</ul>'


def html_table(table: ReportTable) -> Iterator[str]:
    """Lay a table out; a row whose second label is "model" stands out."""
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


def html_image(png: bytes, description: str) -> str:
    """Put a PNG into the page itself."""
    data = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{escape(description)}" src="data:image/png;base64,{data}"></p>'
