"""The model card that every model folder carries as README.md, generated from the run's facts."""

from typing import Any

from core.cells.genes import GenePanel
from core.model.configuration import TfxConfig
from core.model.reference import Reference
from core.presets.schema import MaskingSettings

__all__ = ["model_card"]


def model_card(
    config: TfxConfig,
    panel: GenePanel,
    reference: Reference,
    masking: MaskingSettings,
    origin: dict[str, Any],
) -> str:
    """Return the card as Markdown."""
    simulated = bool(origin.get("simulated"))
    lines = [
        f"# {origin.get('name', 'A tfx model')}",
        "",
        _what(config),
        "",
    ]
    if simulated:
        lines += ["**Trained on simulated cells. Nothing it says is about real biology.**", ""]
    lines += ["## Data", ""]
    lines += [f"- source: {name}" for name in origin.get("sources", [])]
    lines += [
        f"- training cells: {int(reference.counts.sum()):,}; split: {origin.get('split', 'unknown')}",
        f"- genes: {len(panel):,} ({', '.join(panel.symbols[:8])}, ...)",
        f"- values: log1p of counts per 10,000, {config.kind}, {config.n_bins} bins, "
        f"{config.layout} layout",
        "",
        "## Phenotypes",
        "",
    ]
    for name, values in config.phenotypes.items():
        shown = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
        lines.append(f"- {name} ({len(values)} values): {shown}")
    hidden = f"- masked genes: {masking.genes}; masked phenotypes: {masking.phenotypes}"
    if config.classified is not None:
        given = ", ".join(config.given) or "none"
        hidden = f"- asked: {config.classified}; shown, where known: {given}; all others hidden"
    lines += [
        "",
        "## Model",
        "",
        f"- encoder: {config.layers} layers x {config.hidden_size}, {config.heads} heads; "
        f"skeleton: {'yes' if config.skeleton else 'no'}",
        hidden,
        f"- step {origin.get('step', '?')} of {origin.get('total_steps', '?')}",
        "",
    ]
    figures = origin.get("validation", {})
    if figures:
        lines += ["## Validation figures", "", "| figure | value |", "|---|---|"]
        lines += [
            f"| {name} | {value:.4f} |" for name, value in figures.items() if value is not None
        ]
        lines.append("")
    lines += [
        "## Limits",
        "",
        "- Labels it has not seen are unknown to it; cells of other tissues or assays than the "
        "training data's are outside what it knows.",
        *(
            [
                "- Generated cells are synthetic. They may resemble training cells: do not call them "
                "anonymous."
            ]
            if config.classified is None
            else []
        ),
        "",
        f"Licence: {origin.get('licence', 'not stated')}",
        "",
    ]
    return "\n".join(lines)


def _what(config: TfxConfig) -> str:
    if config.classified is None:
        return "A masked language model of single cells, made with tfx (transformerics)."
    values = config.phenotypes[config.classified]
    what = " or ".join(values) if len(values) <= 2 else f"{len(values)} values"
    return f"A classifier of single cells by {config.classified} ({what}), made with tfx (transformerics)."
