"""A report as one page of HTML that needs nothing else: pictures inside, no scripts, no fonts."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from core.evaluation.report.records import EvaluationReport, FidelityReport
from core.evaluation.report.tables import ReportTable, fact_rows


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
