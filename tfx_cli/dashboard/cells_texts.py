"""Generated cells beside real ones: rows, points and text of a profile.

A profile is what `tfx generate --serve` sends (docs/generate-serve.md); missing parts are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual.content import Content

from core.runlog.json_lines import finite_number, number_in
from tfx_cli.dashboard.plots import Series

GENE_COLUMNS = ("gene", "real", "generated", "difference", "")
MOVED_COLUMNS = ("gene", "before", "after", "change", "")
_BAR = 10
_N_SHOWN = 200
FEW_CELLS = 20
#: Places in the colours of curves.
_COLOURS = {"real": 1, "generated": 0}
#: Lines of the fidelity text and the numbers that each needs.
_FIDELITY = (
    (
        "genes per cell: real {:.1f} (sd {:.1f}), generated {:.1f} (sd {:.1f})",
        "genes_per_cell_real_mean genes_per_cell_real_sd "
        "genes_per_cell_generated_mean genes_per_cell_generated_sd",
    ),
    ("gene means r {:.3f}, detection rates differ by {:.3f}", "gene_mean_r detection_mae"),
    ("gene-gene correlations r {:.3f}", "correlation_r"),
)


class GeneMeans:
    """Mean expression per gene, log1p of counts per 10,000: (genes,), NaN without real cells."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        genes = _part(profile, "genes")
        self.names = [str(name) for name in genes.get("names") or ()]
        means = [_numbers(genes.get(name)) for name in ("real_mean", "generated_mean")]
        unknown = np.full(len(self.names), np.nan)
        self.real, self.generated = (
            one if len(one) == len(self.names) else unknown for one in means
        )

    @property
    def r(self) -> float | None:
        """Pearson correlation of real and generated means."""
        known = np.isfinite(self.real) & np.isfinite(self.generated)
        if known.sum() < 3 or np.ptp(self.real[known]) == 0 or np.ptp(self.generated[known]) == 0:
            return None
        return float(np.corrcoef(self.real[known], self.generated[known])[0, 1])


def _part(profile: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = profile.get(name)
    return part if isinstance(part, dict) else {}


def _numbers(values: object) -> NDArray[np.float64]:
    """Read a list of numbers, NaN where one is missing."""
    found = values if isinstance(values, list) else []
    return np.array([finite_number(value) for value in found], dtype=float)


def gene_rows(profile: Mapping[str, Any], colours: tuple[str, str]) -> list[list[Text]]:
    """Return rows of `GENE_COLUMNS`, the largest difference first; without real cells, the highest mean.

    ``colours`` are those of bars to the left and to the right.
    """
    means = GeneMeans(profile)
    difference = np.abs(means.generated - means.real)
    key = np.nan_to_num(difference if np.isfinite(difference).any() else means.generated)
    order = np.argsort(-key)
    rows = [(means.names[gene], means.real[gene], means.generated[gene]) for gene in order]
    return _rows(rows, colours)


def moved_rows(
    before: Mapping[str, Any], after: Mapping[str, Any], colours: tuple[str, str]
) -> list[list[Text]]:
    """Return rows of `MOVED_COLUMNS`: the generated means that moved most between two requests."""
    old, new = GeneMeans(before), GeneMeans(after)
    old_means = dict(zip(old.names, old.generated, strict=True))
    rows = [
        (name, old_means[name], mean)
        for name, mean in zip(new.names, new.generated, strict=True)
        if name in old_means
    ]
    rows.sort(key=lambda row: -abs(row[2] - row[1]))
    return _rows(rows, colours)


def _rows(pairs: Sequence[tuple[str, float, float]], colours: tuple[str, str]) -> list[list[Text]]:
    changes = [abs(b - a) for _, a, b in pairs if not np.isnan(b - a)]
    widest = max(changes, default=1.0)
    return [
        [
            Text(name),
            *(Text("-" if np.isnan(mean) else f"{mean:.2f}", justify="right") for mean in (a, b)),
            Text("" if np.isnan(b - a) else f"{b - a:+.2f}", justify="right"),
            _bar(b - a, widest, colours),
        ]
        for name, a, b in pairs[:_N_SHOWN]
    ]


def _bar(value: float, widest: float, colours: tuple[str, str]) -> Text:
    """Draw a signed difference from a middle line."""
    if np.isnan(value) or widest <= 0:
        return Text("")
    length = round(_BAR * min(abs(value) / widest, 1.0))
    left = "█" * length if value < 0 else ""
    right = "█" * length if value >= 0 else ""
    return Text.assemble((f"{left:>{_BAR}}", colours[0]), "│", (f"{right:{_BAR}}", colours[1]))


def embedding_points(profile: Mapping[str, Any], kind: str) -> Series:
    """Return the real or the generated cells as points."""
    points = _part(profile, "embedding").get(kind)
    pairs = [_numbers(pair) for pair in (points if isinstance(points, list) else ())]
    known = np.array([pair for pair in pairs if len(pair) == 2]).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    return Series(f"{len(known)} {kind}", known[:, 0], known[:, 1], _COLOURS[kind])


def gene_count_histograms(profile: Mapping[str, Any]) -> list[Series]:
    """Return genes per cell against the fraction of cells, of real and generated cells."""
    detected = _part(profile, "detected_genes")
    samples = {name: _numbers(detected.get(name)) for name in _COLOURS}
    samples = {name: values[np.isfinite(values)] for name, values in samples.items()}
    samples = {name: values for name, values in samples.items() if len(values)}
    if not samples:
        return []
    everything = np.concatenate(list(samples.values()))
    low, high = float(everything.min()), float(everything.max())
    # Not more bins than the values can fill.
    n_bins = int(np.clip(min(high - low, np.sqrt(everything.size)), 4, 24))
    edges = np.linspace(low - 0.5, high + 0.5, n_bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    return [
        Series(name, centres, np.histogram(values, edges)[0] / len(values), _COLOURS[name])
        for name, values in samples.items()
    ]


def fidelity_content(profile: Mapping[str, Any]) -> Content:
    """Write the fidelity metrics, the cells of the comparison, and the notes."""
    lines: list[Content] = []
    n_training, n_real = (number_in(profile, name) for name in ("training_cells", "real_cells"))
    if n_training is not None:
        style = "$warning" if n_training < FEW_CELLS else ""
        text = f"{n_training:,.0f} training cells match the request"
        lines.append(Content.styled(text, style))
    text = "0 real cells match: nothing to compare with"
    if n_real:
        text = f"beside {n_real:,.0f} real cells ({profile.get('compared_with')})"
    lines.append(Content(text))
    fidelity = _part(profile, "fidelity")
    for text, names in _FIDELITY:
        values = [number_in(fidelity, name) for name in names.split()]
        if None not in values:
            lines.append(Content(text.format(*values)))
    notes: Sequence[object] = profile.get("notes") or ()
    lines += [Content.styled(f"! {note}", "$warning") for note in notes]
    return Content("\n").join(lines)
