"""The model card that every model folder carries as README.md, generated from the run's facts.

Names and labels are written so that Markdown shows them as they are.

`tfx eval` adds the metrics of the test cells, beside baselines, at a place that the card keeps for them.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from core.cells.genes import GenePanel
from core.model.calibration import UNSURE_AT, PhenotypeCalibration, unsure_rules
from core.model.configuration import TfxConfig
from core.model.reference import Reference
from core.presets.schema import MaskingSettings
from core.wording import as_markdown

_BEGIN, _END = "<!-- test figures -->", "<!-- end of test figures -->"
_NO_METRICS = "None yet: `tfx eval` writes them here, beside those of simple baselines."
#: Values of a phenotype that the card names, and genes.
_MOST_VALUES, _MOST_GENES = 12, 8


def model_card(
    config: TfxConfig,
    panel: GenePanel,
    reference: Reference,
    masking: MaskingSettings,
    provenance: dict[str, Any],
    calibration: Mapping[str, PhenotypeCalibration],
) -> str:
    """Return the card as Markdown, with the front matter that model hubs read."""
    parts = [
        "---\nlibrary_name: transformerics\ntags:\n- single-cell\n- transcriptomics\n---",
        f"# {as_markdown(str(provenance.get('name') or 'A tfx model'))}",
        _what(config),
    ]
    if provenance.get("simulated"):
        parts.append(
            "**Trained on simulated cells. Its predictions say nothing about real biology.**"
        )
    parts += ["## Use", _use(config)]
    parts += ["## Data", _data(config, panel, reference, provenance)]
    if config.phenotypes:
        parts += ["## Phenotypes", _phenotypes(config, reference)]
    parts += ["## Model", _model(config, masking, provenance)]
    if metrics := _validation(config, reference, provenance.get("validation") or {}):
        parts += ["## Validation metrics", metrics]
    if calibration:
        parts += ["## Probabilities", _probabilities(calibration)]
    parts += ["## Test metrics", f"{_BEGIN}\n{_NO_METRICS}\n{_END}"]
    parts += ["## Limits", _limits(config), "## Licence", _licence(provenance)]
    return "\n\n".join(parts) + "\n"


def put_test_metrics(card: str, metrics: str) -> str:
    """Return the card with other test metrics, in Markdown; unchanged if it has no place for them."""
    place = re.compile(rf"{re.escape(_BEGIN)}\n.*?{re.escape(_END)}", re.DOTALL)
    return place.sub(lambda _: f"{_BEGIN}\n{metrics}\n{_END}", card, count=1)


def _what(config: TfxConfig) -> str:
    if config.classified is None:
        return "A masked language model of single cells, made with tfx (transformerics)."
    values = config.phenotypes[config.classified]
    what = " or ".join(map(as_markdown, values)) if len(values) <= 2 else f"{len(values)} values"
    return f"A classifier of single cells by {as_markdown(config.classified)} ({what}), made with tfx (transformerics)."


def _use(config: TfxConfig) -> str:
    lines = ["    tfx predict new.h5ad -o labelled.h5ad --run FOLDER"]
    lines.append("    tfx embed new.h5ad -o embedded.h5ad --run FOLDER")
    if config.classified is None and config.layout == "ranked":
        lines.append("    tfx generate -n 1000 -o cells.h5ad --run FOLDER")
    return "\n".join(lines)


def _data(
    config: TfxConfig, panel: GenePanel, reference: Reference, provenance: dict[str, Any]
) -> str:
    # Names alone: the folders are private.
    lines = [
        f"- source: {as_markdown(PurePath(name).name)}" for name in provenance.get("sources", [])
    ]
    genes = ", ".join(map(as_markdown, panel.symbols[:_MOST_GENES])) + ", ..." * (
        len(panel) > _MOST_GENES
    )
    split = {
        "donor": "whole donors",
        "stratified": "single cells, stratified by phenotype",
        "none": "nothing",
    }
    method = provenance.get("split") or "unknown"
    lines += [
        f"- training cells: {int(reference.counts.sum()):,}; held out: {as_markdown(split.get(method, method))}",
        f"- genes: {len(panel):,} ({genes})",
        f"- values: log1p of counts per 10,000, {config.kind}, {config.n_bins} bins, "
        f"{config.layout} layout",
    ]
    if provenance.get("where"):
        lines.append(
            f"- only cells of: {'; '.join(as_markdown(str(one)) for one in provenance['where'])}"
        )
    return "\n".join(lines)


def _phenotypes(config: TfxConfig, reference: Reference) -> str:
    lines = ["Values and their training cells:", ""]
    for slot, (name, values) in enumerate(config.phenotypes.items()):
        counts = reference.value_counts(slot, len(values))
        shown = [
            f"{as_markdown(value)} ({n:,})"
            for value, n in zip(values[:_MOST_VALUES], counts, strict=False)
        ]
        more = f", and {len(values) - _MOST_VALUES:,} more" if len(values) > _MOST_VALUES else ""
        lines.append(f"- **{as_markdown(name)}** ({len(values):,}): {', '.join(shown)}{more}")
    return "\n".join(lines)


def _model(config: TfxConfig, masking: MaskingSettings, provenance: dict[str, Any]) -> str:
    hidden = f"- masked genes: {masking.genes}; masked phenotypes: {masking.phenotypes}"
    if config.classified is not None:
        given = ", ".join(map(as_markdown, config.given)) or "none"
        hidden = f"- predicted: {as_markdown(config.classified)}; shown, where known: {given}; all others hidden"
    chosen_by = "score" if "score" in (provenance.get("validation") or {}) else "loss"
    lines = [
        f"- encoder: {config.layers} layers x {config.hidden_size}, {config.heads} heads; "
        f"log-linear part: {'yes' if config.log_linear else 'no'}"
        + ("; reads the library size of the cell" if config.library_size else ""),
        hidden,
        f"- step {provenance.get('step', '?')} of {provenance.get('total_steps', '?')}"
        + (f", that of the best validation {chosen_by}" if provenance.get("validation") else "")
        + f"; seed {provenance.get('seed', '?')}",
    ]
    if versions := provenance.get("versions"):
        named = ", ".join(as_markdown(f"{name} {version}") for name, version in versions.items())
        lines.append(f"- made with {named}")
    return "\n".join(lines)


def _validation(config: TfxConfig, reference: Reference, metrics: dict[str, Any]) -> str:
    """Metrics while training: masked genes and phenotypes of validation cells."""
    known = {name: value for name, value in metrics.items() if value is not None}
    commonest = {"acc/genes": known.pop("acc/genes_baseline", None)}
    for slot, (name, values) in enumerate(config.phenotypes.items()):
        counts = reference.value_counts(slot, len(values))
        if sum(counts):
            commonest[f"acc/{name}"] = max(counts) / sum(counts)
    if not known:
        return ""
    lines = ["| metric | model | always the most common |", "|---|---|---|"]
    for name, value in known.items():
        beside = commonest.get(name)
        lines.append(
            f"| {as_markdown(name)} | {value:.4f} | {'' if beside is None else f'{beside:.4f}'} |"
        )
    return "\n".join(lines)


def _probabilities(calibration: Mapping[str, PhenotypeCalibration]) -> str:
    lines = [
        f"Logits are divided by a temperature that was fitted on validation cells. With a probability below the "
        f"threshold a prediction is unsure: from there on, {100 * UNSURE_AT:g} % of the validation cells were right.",
        "",
        "| phenotype | temperature | threshold |",
        "|---|---|---|",
    ]
    rules = unsure_rules(calibration, calibration)
    for name, rule in rules.items():
        threshold = "always unsure" if rule.is_always else f"{rule.below:.3f}"
        lines.append(f"| {as_markdown(name)} | {calibration[name].temperature:.2f} | {threshold} |")
    reasons = [f"- {as_markdown(rule.reason, most=500)}" for rule in rules.values() if rule.reason]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def _limits(config: TfxConfig) -> str:
    generated = [
        "- Generated cells are synthetic. They may resemble training cells: do not call them "
        "anonymous."
    ]
    lines = [
        "- Labels that were not in the training data are unknown to the model; cells of other tissues or "
        "assays are outside its knowledge.",
        "- Differences between few donors look like the phenotypes in which they differ: see the notes of "
        "`tfx eval`.",
        *(generated if config.classified is None else []),
        "- Not for decisions about patients.",
    ]
    return "\n".join(lines)


def _licence(provenance: dict[str, Any]) -> str:
    return as_markdown(str(provenance.get("licence") or "")) or (
        "Not stated. Write it here before you share the folder; that of the training data may bind you."
    )
