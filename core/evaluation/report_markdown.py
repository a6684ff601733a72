"""The report as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.evaluation.report_tables import ReportTable, gene_tables, label_of, phenotype_tables, show

__all__ = ["evaluation_markdown"]


def evaluation_markdown(
    report: Mapping[str, Any], *, pictures: Mapping[str, str] | None = None
) -> str:
    """Lay the report out as a page.

    Parameters
    ----------
    report
        See `core.evaluation.reports`.
    pictures
        Phenotype -> file name of its confusion matrix.
    """
    parts = [f"# {report.get('title', 'Evaluation')}"]
    if report.get("facts"):
        parts.append("\n".join(f"- {key}: {show(v)}" for key, v in report["facts"].items()))
    if report.get("phenotypes"):
        parts.append("## Phenotypes")
        for table in phenotype_tables(report):
            parts += _table(table)
    for phenotype, name in (pictures or {}).items():
        parts.append(f"![Confusion matrix of {phenotype}]({name})")
    if report.get("genes"):
        rows = [[label_of(key), show(value)] for key, value in report["genes"].items()]
        parts += ["## Masked genes", "Masked as in training.", _rows(["measure", "value"], rows)]
    for table in gene_tables(report):
        parts += _table(table)
    if report.get("fidelity"):
        parts += ["## Generated against real cells", *_fidelity(report["fidelity"])]
    if report.get("notes"):
        parts += ["## Notes", "\n".join(f"- {note}" for note in report["notes"])]
    return "\n\n".join(parts) + "\n"


def _fidelity(fidelity: Mapping[str, Any]) -> list[str]:
    parts = []
    single = [(key, v) for key, v in fidelity.items() if not isinstance(v, (list, dict))]
    parts.append(_rows(["measure", "value"], [[label_of(key), show(v)] for key, v in single]))
    for key, heading in (
        ("top_genes", "Genes of highest real mean"),
        ("furthest_genes", "Genes furthest off"),
    ):
        genes = fidelity.get(key)
        if genes:
            columns = ("real_mean", "generated_mean", "difference")
            rows = [[gene["gene"], *(show(gene[column]) for column in columns)] for gene in genes]
            parts += [f"### {heading}", _rows(["gene", *map(label_of, columns)], rows)]
    return parts


def _table(table: ReportTable) -> list[str]:
    parts = [f"### {table.title}"] if table.title else []
    if table.note:
        parts.append(table.note)
    return [*parts, _rows(table.header, table.rows)]


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
