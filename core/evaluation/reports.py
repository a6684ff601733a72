"""Write what an evaluation found: report.json, report.md and a confusion matrix per phenotype.

The report is a plain dictionary; sections that are absent are left out of the page:

    title        str
    facts        {name: value}: what was evaluated (model, data, split, cells, seed, ...)
    phenotypes   {phenotype: {method: PhenotypeScores.to_dict()}}; the first method is the model,
                 the others stand beside it ("majority", "logistic_regression")
    genes        {measure: value} of the masked genes
    fidelity     FidelitySummary.to_dict()
    notes        [sentence, ...]

Anything else is kept in the JSON. Values may be numpy numbers or arrays; non-finite numbers become
null, so that the JSON is strict.
"""

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "REPORT_SCHEMA",
    "confusion_png",
    "evaluation_markdown",
    "plain_json",
    "write_evaluation_report",
    "write_whole",
]

REPORT_SCHEMA = "tfx.eval/1"

_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")
_MAX_NUMBERED = 15  # classes up to which each cell of the picture carries its percentage


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
    The files written: report.json, report.md, confusion_PHENOTYPE.png.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = plain_json({**report_dict, "schema": REPORT_SCHEMA})
    pictures: dict[str, tuple[str, bytes]] = {}
    for phenotype, methods in report.get("phenotypes", {}).items():
        if not methods:
            continue
        method, scores = next(iter(methods.items()))
        if scores.get("n_cells") and scores.get("confusion"):
            name = _picture_name(phenotype, [taken for taken, _ in pictures.values()])
            title = f"{phenotype} ({method})"
            pictures[phenotype] = (
                name,
                confusion_png(scores["confusion"], scores["values"], title=title),
            )
    links = {phenotype: name for phenotype, (name, _) in pictures.items()}
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    contents = [(name, picture) for name, picture in pictures.values()]
    contents.append(("report.md", evaluation_markdown(report, pictures=links).encode()))
    contents.append(("report.json", text.encode()))  # last: its presence says the report is whole
    for name, content in contents:
        write_whole(folder / name, content)
    return [folder / name for name, _ in reversed(contents)]


def plain_json(value: Any) -> Any:  # noqa: ANN401 (any JSON-like value)
    """Turn numpy values, tuples and paths into strict JSON values; non-finite numbers into None."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, np.generic):
        return plain_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain_json(item) for item in items]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "to_dict"):
        return plain_json(value.to_dict())
    return str(value)


def evaluation_markdown(
    report: Mapping[str, Any], *, pictures: Mapping[str, str] | None = None
) -> str:
    """Lay the report out as a page.

    Parameters
    ----------
    report
        See the module's description.
    pictures
        Phenotype -> file name of its confusion matrix.
    """
    parts = [f"# {report.get('title', 'Evaluation')}"]
    if report.get("facts"):
        parts.append("\n".join(f"- {key}: {_show(v)}" for key, v in report["facts"].items()))
    if report.get("phenotypes"):
        parts += ["## Phenotypes", _phenotype_table(report["phenotypes"])]
    for phenotype, name in (pictures or {}).items():
        parts.append(f"![Confusion matrix of {phenotype}]({name})")
    if report.get("genes"):
        rows = [[_label(key), _show(value)] for key, value in report["genes"].items()]
        parts += ["## Masked genes", _table(["measure", "value"], rows)]
    if report.get("fidelity"):
        parts += ["## Generated against real cells", *_fidelity(report["fidelity"])]
    if report.get("notes"):
        parts += ["## Notes", "\n".join(f"- {note}" for note in report["notes"])]
    return "\n\n".join(parts) + "\n"


def confusion_png(confusion: Any, values: Sequence[str], *, title: str) -> bytes:  # noqa: ANN401
    """Draw a confusion matrix, each row as shares of its true cells.

    Values that occur neither as truth nor as prediction are left out. The colours (cividis) read
    the same with any kind of colour vision and in grey.

    Parameters
    ----------
    confusion
        (values, values) counts, row = true, column = predicted.
    values
        Names of rows and columns.
    title
        Heading of the picture.

    Returns
    -------
    The PNG file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 300 ms
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, dtype=float)
    seen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1)).tolist()
    counts = counts[np.ix_(seen, seen)]
    names = [_shorten(values[index]) for index in seen]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)

    size = min(max(3.2, 0.3 * len(names) + 1.0), 26.0)
    figure = Figure(figsize=(size + 2.6, size + 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0.0, vmax=1.0)
    font = 8 if len(names) <= 45 else max(3.0, 8 * 45 / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    rows = [f"{name} ({int(n)})" for name, n in zip(names, totals.ravel(), strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (cells)")
    axes.set_title(title, fontsize=10)
    for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a label with two dollar signs is no formula
    if len(names) <= _MAX_NUMBERED:
        for row, column in np.ndindex(shares.shape):
            if shares[row, column] >= 0.005:
                share = shares[row, column]
                colour = "black" if share > 0.5 else "white"
                axes.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour,
                    fontsize=7,
                )  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true value's cells")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _phenotype_table(phenotypes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [phenotype, _label(method), *(_show(scores.get(key)) for key in (*_MEASURES, "n_cells"))]
        for phenotype, methods in phenotypes.items()
        for method, scores in methods.items()
    ]
    return _table(["phenotype", "method", *map(_label, _MEASURES), "cells"], rows)


def _fidelity(fidelity: Mapping[str, Any]) -> list[str]:
    parts = []
    single = [(key, v) for key, v in fidelity.items() if not isinstance(v, (list, dict))]
    parts.append(_table(["measure", "value"], [[_label(key), _show(v)] for key, v in single]))
    for key, heading in (
        ("top_genes", "Genes of highest real mean"),
        ("furthest_genes", "Genes furthest off"),
    ):
        genes = fidelity.get(key)
        if genes:
            columns = ("real_mean", "generated_mean", "difference")
            rows = [[gene["gene"], *(_show(gene[column]) for column in columns)] for gene in genes]
            parts += [f"### {heading}", _table(["gene", *map(_label, columns)], rows)]
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _show(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    return str(value)


def _label(key: str) -> str:
    return key.replace("_", " ")


def _shorten(name: str, *, length: int = 34) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _picture_name(phenotype: str, taken: Sequence[str]) -> str:
    """Return a safe file name that no other phenotype has."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", phenotype).strip("_") or "phenotype"
    name, number = f"confusion_{stem}.png", 2
    while name.casefold() in {other.casefold() for other in taken}:
        name, number = f"confusion_{stem}_{number}.png", number + 1
    return name


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file in the same folder, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
