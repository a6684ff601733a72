"""The figures of an evaluation, for the model card: phenotypes beside baselines, on test cells."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.evaluation.report_tables import label_of
from core.files import replace_file
from core.model.card import put_test_metrics

__all__ = ["card_figures", "write_card_figures"]

_LOG = logging.getLogger(__name__)


def card_figures(report: Mapping[str, Any]) -> str:
    """Return accuracy and macro-F1 of every phenotype, beside the baselines, as Markdown.

    Parameters
    ----------
    report
        As `core.evaluation.reports` has it, of test cells.
    """
    facts, phenotypes = report.get("facts", {}), report.get("phenotypes", {})
    methods = list(dict.fromkeys(method for scores in phenotypes.values() for method in scores))
    lines = [
        f"{facts.get('cells', 0):,} test cells (split by {facts.get('split by', 'unknown')}), all "
        f"genes visible, all phenotypes hidden; accuracy / macro-F1:",
        "",
        "| phenotype | " + " | ".join(label_of(method) for method in methods) + " |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for name, scores in phenotypes.items():
        cells = [_show(scores.get(method)) for method in methods]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = [f"- {note}" for note in report.get("notes", [])]
    return "\n".join([*lines, "", *notes]).rstrip()


def _show(scores: Mapping[str, Any] | None) -> str:
    if not scores or scores.get("accuracy") is None or scores.get("macro_f1") is None:
        return ""
    return f"{scores['accuracy']:.3f} / {scores['macro_f1']:.3f}"


def write_card_figures(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the figures into the card of a model folder; a folder that may not be written to stays."""
    path = folder / "README.md"
    try:
        card = path.read_text(encoding="utf-8")
        changed = put_test_metrics(card, card_figures(report))
        if changed != card:
            replace_file(path, changed)
    except (OSError, UnicodeDecodeError) as error:
        _LOG.info("the model card %s is left as it was (%s)", path, error)
