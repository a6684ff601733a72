"""What generated cells look like beside real ones: rows and points out of a profile.

A profile is what `tfx generate --serve` sends (docs/generate-serve.md); what it lacks is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual.content import Content

from core.runlog.json_lines import finite_number

__all__ = [
    "GENE_COLUMNS",
    "MOVED_COLUMNS",
    "GeneMeans",
    "depth_histograms",
    "fidelity_content",
    "gene_rows",
    "moved_rows",
    "points_of",
]

GENE_COLUMNS = ("gene", "real", "generated", "difference", "")
MOVED_COLUMNS = ("gene", "before", "after", "change", "")
_BAR = 10
_N_SHOWN = 200


class GeneMeans:
    """Mean expression per gene, log1p of counts per 10,000.

    Attributes
    ----------
    names
        Symbols.
    real, generated
        (genes,), NaN where there are no real cells.
    """

    def __init__(self, profile: Mapping[str, Any]) -> None:
        genes = profile.get("genes")
        genes = genes if isinstance(genes, dict) else {}
        self.names = [str(name) for name in genes.get("names") or ()]
        self.real = _numbers(genes.get("real_mean"), len(self.names))
        self.generated = _numbers(genes.get("generated_mean"), len(self.names))

    @property
    def r(self) -> float | None:
        """Pearson correlation of real and generated means."""
        known = np.isfinite(self.real) & np.isfinite(self.generated)
        if known.sum() < 3 or np.ptp(self.real[known]) == 0 or np.ptp(self.generated[known]) == 0:
            return None
        return float(np.corrcoef(self.real[known], self.generated[known])[0, 1])


def _numbers(values: object, length: int) -> NDArray[np.float64]:
    if not isinstance(values, list) or len(values) != length:
        return np.full(length, np.nan)
    found = [finite_number(value) for value in values]
    return np.array([np.nan if one is None else one for one in found], dtype=float)


def gene_rows(profile: Mapping[str, Any], colours: tuple[str, str]) -> list[list[Text]]:
    """Return rows of `GENE_COLUMNS`, the largest difference first; without real cells the highest means.

    Parameters
    ----------
    profile
        As the generating process sent it.
    colours
        Of bars to the left and to the right.
    """
    means = GeneMeans(profile)
    difference = means.generated - means.real
    has_real = np.isfinite(difference).any()
    order = np.argsort(-np.abs(np.nan_to_num(difference if has_real else means.generated)))
    widest = float(np.nanmax(np.abs(difference))) if has_real else 1.0
    rows = []
    for gene in order[:_N_SHOWN]:
        shown = [means.real[gene], means.generated[gene]]
        rows.append([
            Text(means.names[gene]),
            *(_figure(value) for value in shown),
            _signed(difference[gene]),
            _bar(difference[gene], widest, colours),
        ])  # fmt: skip
    return rows


def moved_rows(
    before: Mapping[str, Any], after: Mapping[str, Any], colours: tuple[str, str]
) -> list[list[Text]]:
    """Return rows of `MOVED_COLUMNS`: the generated means that moved most between two requests."""
    old, new = GeneMeans(before), GeneMeans(after)
    places = {name: place for place, name in enumerate(old.names)}
    pairs = [
        (name, old.generated[places[name]], new.generated[place])
        for place, name in enumerate(new.names)
        if name in places
    ]
    pairs.sort(key=lambda pair: -abs(pair[2] - pair[1]))
    widest = max((abs(b - a) for _, a, b in pairs), default=1.0)
    return [
        [Text(name), _figure(a), _figure(b), _signed(b - a), _bar(b - a, widest, colours)]
        for name, a, b in pairs[:_N_SHOWN]
    ]


def _figure(value: float) -> Text:
    return Text("-" if np.isnan(value) else f"{value:.2f}", justify="right")


def _signed(value: float) -> Text:
    return Text("" if np.isnan(value) else f"{value:+.2f}", justify="right")


def _bar(value: float, widest: float, colours: tuple[str, str]) -> Text:
    """Draw a signed difference from a middle line."""
    if np.isnan(value) or widest <= 0:
        return Text("")
    length = round(_BAR * min(abs(value) / widest, 1.0))
    left = "█" * length if value < 0 else ""
    right = "█" * length if value >= 0 else ""
    return Text.assemble((f"{left:>{_BAR}}", colours[0]), "│", (f"{right:{_BAR}}", colours[1]))


def points_of(points: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of a list of pairs."""
    if not isinstance(points, list):
        return np.empty(0), np.empty(0)
    pairs = [
        (finite_number(pair[0]), finite_number(pair[1]))
        for pair in points
        if isinstance(pair, list) and len(pair) == 2
    ]
    known = np.array([(x, y) for x, y in pairs if x is not None and y is not None], dtype=float)
    return (known[:, 0], known[:, 1]) if len(known) else (np.empty(0), np.empty(0))


def depth_histograms(
    profile: Mapping[str, Any],
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Return (name, genes per cell, share of cells) of real and generated cells."""
    detected = profile.get("detected_genes")
    detected = detected if isinstance(detected, dict) else {}
    samples = {
        name: np.array(
            [one for one in map(finite_number, detected.get(name) or ()) if one is not None]
        )
        for name in ("real", "generated")
    }
    known = [values for values in samples.values() if len(values)]
    if not known:
        return []
    everything = np.concatenate(known)
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low - 0.5, high + 0.5, _n_bins(high - low, everything.size) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    return [
        (name, centres, np.histogram(values, edges)[0] / len(values))
        for name, values in samples.items()
        if len(values)
    ]


def _n_bins(span: float, n_values: int) -> int:
    """Return how many bins show a distribution: not more than its values can fill."""
    return int(np.clip(min(span, np.sqrt(n_values)), 4, 24))


def fidelity_content(profile: Mapping[str, Any]) -> Content:
    """Write the fidelity numbers, what they were taken against, and the notes."""
    lines: list[Content] = []
    n_training = finite_number(profile.get("training_cells"))
    if n_training is not None:
        style = "$warning" if n_training < 20 else ""
        text = f"{n_training:,.0f} training cells had what was asked for"
        lines.append(Content.styled(text, style) if style else Content(text))
    n_real = finite_number(profile.get("real_cells"))
    if n_real:
        lines.append(Content(f"beside {n_real:,.0f} real cells ({profile.get('compared_with')})"))
    else:
        lines.append(Content("0 real cells match: nothing to compare with"))
    lines += [Content(line) for line in _fidelity_lines(profile.get("fidelity"))]
    notes: Sequence[object] = profile.get("notes") or ()
    lines += [Content.styled(f"! {note}", "$warning") for note in notes]
    return Content("\n").join(lines)


def _fidelity_lines(fidelity: object) -> list[str]:
    if not isinstance(fidelity, dict):
        return []
    known = {name: finite_number(value) for name, value in fidelity.items()}

    def told(text: str, *names: str) -> list[str]:
        values = [known.get(name) for name in names]
        return [] if None in values else [text.format(*values)]

    lines = told(
        "genes per cell: real {:.1f} (sd {:.1f}), generated {:.1f} (sd {:.1f})",
        "genes_per_cell_real_mean", "genes_per_cell_real_sd",
        "genes_per_cell_generated_mean", "genes_per_cell_generated_sd",
    )  # fmt: skip
    lines += told(
        "gene means r {:.3f}, detection rates differ by {:.3f}", "gene_mean_r", "detection_mae"
    )
    lines += told("gene-gene correlations r {:.3f}", "correlation_r")
    return lines
