"""The model card that every model folder carries as README.md, generated from the run's facts.

`tfx eval` adds the figures of the test cells, beside baselines, where the card keeps a place for them.
"""

import re
from pathlib import PurePath
from typing import Any

import numpy as np

from core.cells.genes import GenePanel
from core.model.configuration import TfxConfig
from core.model.reference import Reference
from core.presets.schema import MaskingSettings

__all__ = ["model_card", "put_test_figures"]

_BEGIN, _END = "<!-- test figures -->", "<!-- end of test figures -->"
_NO_FIGURES = "None yet: `tfx eval` writes them here, beside those of simple baselines."
#: Values of a phenotype that the card names, and genes.
_MOST_VALUES, _MOST_GENES = 12, 8


def model_card(
    config: TfxConfig,
    panel: GenePanel,
    reference: Reference,
    masking: MaskingSettings,
    provenance: dict[str, Any],
) -> str:
    """Return the card as Markdown, with the front matter that model hubs read.

    Parameters
    ----------
    config, panel, reference, masking
        Of the model.
    provenance
        Facts of the run: name, sources, split, step, validation figures, licence.
    """
    parts = [
        "---\nlibrary_name: transformerics\ntags:\n- single-cell\n- transcriptomics\n---",
        f"# {provenance.get('name') or 'A tfx model'}",
        _what(config),
    ]
    if provenance.get("simulated"):
        parts.append("**Trained on simulated cells. Nothing it says is about real biology.**")
    parts += ["## Use", _use(config)]
    parts += ["## Data", _data(config, panel, reference, provenance)]
    if config.phenotypes:
        parts += ["## Phenotypes", _phenotypes(config, reference)]
    parts += ["## Model", _model(config, masking, provenance)]
    if figures := _validation(config, reference, provenance.get("validation") or {}):
        parts += ["## Validation figures", figures]
    parts += ["## Test figures", f"{_BEGIN}\n{_NO_FIGURES}\n{_END}"]
    parts += ["## Limits", _limits(config), "## Licence", _licence(provenance)]
    return "\n\n".join(parts) + "\n"


def put_test_figures(card: str, figures: str) -> str:
    """Return the card with other test figures; one without a place for them as it was.

    Parameters
    ----------
    card
        The card's text.
    figures
        Markdown.
    """
    place = re.compile(rf"{re.escape(_BEGIN)}\n.*?{re.escape(_END)}", re.DOTALL)
    return place.sub(lambda _: f"{_BEGIN}\n{figures}\n{_END}", card, count=1)


def _what(config: TfxConfig) -> str:
    if config.classified is None:
        return "A masked language model of single cells, made with tfx (transformerics)."
    values = config.phenotypes[config.classified]
    what = " or ".join(values) if len(values) <= 2 else f"{len(values)} values"
    return f"A classifier of single cells by {config.classified} ({what}), made with tfx (transformerics)."


def _use(config: TfxConfig) -> str:
    lines = ["    tfx predict new.h5ad -o labelled.h5ad --run FOLDER"]
    lines.append("    tfx embed new.h5ad -o embedded.h5ad --run FOLDER")
    if config.classified is None and config.layout == "ranked":
        lines.append("    tfx generate -n 1000 -o cells.h5ad --run FOLDER")
    return "\n".join(lines)


def _data(
    config: TfxConfig, panel: GenePanel, reference: Reference, provenance: dict[str, Any]
) -> str:
    # Names alone: the folders they lie in are nobody else's business.
    lines = [f"- source: {PurePath(name).name}" for name in provenance.get("sources", [])]
    genes = ", ".join(panel.symbols[:_MOST_GENES]) + ", ..." * (len(panel) > _MOST_GENES)
    split = {"donor": "whole donors", "stratified": "single cells, stratified"}
    method = provenance.get("split") or "unknown"
    lines += [
        f"- training cells: {int(reference.counts.sum()):,}; held out: {split.get(method, method)}",
        f"- genes: {len(panel):,} ({genes})",
        f"- values: log1p of counts per 10,000, {config.kind}, {config.n_bins} bins, "
        f"{config.layout} layout",
    ]
    if provenance.get("where"):
        lines.append(f"- only cells of: {'; '.join(map(str, provenance['where']))}")
    return "\n".join(lines)


def _phenotypes(config: TfxConfig, reference: Reference) -> str:
    lines = ["Values and their training cells:", ""]
    for slot, (name, values) in enumerate(config.phenotypes.items()):
        counts = _value_counts(reference, slot, len(values))
        shown = [
            f"{value} ({count:,})"
            for value, count in zip(values[:_MOST_VALUES], counts, strict=False)
        ]
        more = f", and {len(values) - _MOST_VALUES:,} more" if len(values) > _MOST_VALUES else ""
        lines.append(f"- **{name}** ({len(values):,}): {', '.join(shown)}{more}")
    return "\n".join(lines)


def _value_counts(reference: Reference, slot: int, n_values: int) -> list[int]:
    """Training cells of each value of a phenotype."""
    codes = reference.combinations[:, slot]
    known = codes >= 0
    counts = np.bincount(codes[known], weights=reference.counts[known], minlength=n_values)
    return [int(count) for count in counts]


def _model(config: TfxConfig, masking: MaskingSettings, provenance: dict[str, Any]) -> str:
    hidden = f"- masked genes: {masking.genes}; masked phenotypes: {masking.phenotypes}"
    if config.classified is not None:
        given = ", ".join(config.given) or "none"
        hidden = f"- asked: {config.classified}; shown, where known: {given}; all others hidden"
    lines = [
        f"- encoder: {config.layers} layers x {config.hidden_size}, {config.heads} heads; "
        f"log-linear part: {'yes' if config.log_linear else 'no'}",
        hidden,
        f"- step {provenance.get('step', '?')} of {provenance.get('total_steps', '?')}, that of the lowest "
        f"validation loss; seed {provenance.get('seed', '?')}",
    ]
    if versions := provenance.get("versions"):
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"- made with {named}")
    return "\n".join(lines)


def _validation(config: TfxConfig, reference: Reference, figures: dict[str, Any]) -> str:
    """Figures while training: masked genes and phenotypes of validation cells."""
    known = {name: value for name, value in figures.items() if value is not None}
    commonest = {"acc/genes": known.pop("acc/genes_baseline", None)}
    for slot, (name, values) in enumerate(config.phenotypes.items()):
        counts = _value_counts(reference, slot, len(values))
        if sum(counts):
            commonest[f"acc/{name}"] = max(counts) / sum(counts)
    if not known:
        return ""
    lines = ["| figure | model | always the most common |", "|---|---|---|"]
    for name, value in known.items():
        beside = commonest.get(name)
        lines.append(f"| {name} | {value:.4f} | {'' if beside is None else f'{beside:.4f}'} |")
    return "\n".join(lines)


def _limits(config: TfxConfig) -> str:
    lines = [
        "- Labels it has not seen are unknown to it; cells of other tissues or assays than the "
        "training data's are outside what it knows.",
        "- What sets few donors apart looks like the phenotypes that they differ in: see the notes of "
        "`tfx eval`.",
        "- Not for decisions about patients.",
    ]
    if config.classified is None:
        lines.insert(
            2,
            "- Generated cells are synthetic. They may resemble training cells: do not call them "
            "anonymous.",
        )
    return "\n".join(lines)


def _licence(provenance: dict[str, Any]) -> str:
    return str(
        provenance.get("licence")
        or "Not stated. Write it here before you share the folder; that of the training data may bind you."
    )
