"""The pictures of an evaluation report, as PNG.

Colours read the same with any kind of colour vision; labels are drawn as they are.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.evaluation.report.records import (
    Confusion,
    DonorAccuracy,
    GeneRow,
    RateScores,
    ReliabilityBin,
)
from core.wording import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL, OTHER = "#0072b2", "#d55e00"  # Okabe and Ito
#: Files of figures: pixels, or lines and text.
FIGURE_ENDINGS = (".png", ".pdf", ".svg")
#: Classes up to which each cell of a confusion matrix carries its percentage.
_MAX_NUMBERED = 15


def confusion_figure(confusion: Confusion, values: Sequence[str], *, title: str) -> "Figure":
    """Draw a confusion matrix, each row as fractions of its true cells.

    Values that occur neither as truth nor as prediction are left out.
    """
    counts = np.asarray(confusion, dtype=float)
    seen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1)).tolist()
    counts = counts[np.ix_(seen, seen)]
    names = [shortened(values[index]) for index in seen]
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)

    size = min(max(3.2, 0.3 * len(names) + 1.0), 26.0)
    figure = new_figure(size + 2.6, size + 2.2)
    axes = figure.add_subplot()
    image = axes.imshow(fractions, cmap="cividis", vmin=0.0, vmax=1.0)
    font = 8 if len(names) <= 45 else max(3.0, 8 * 45 / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    rows = [f"{name} ({int(n)})" for name, n in zip(names, totals.ravel(), strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (cells)")
    axes.set_title(visible(title, most=60), fontsize=10)
    draw_as_they_are((axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()))
    if len(names) <= _MAX_NUMBERED:
        for row, column in np.ndindex(fractions.shape):
            fraction = fractions[row, column]
            if fraction >= 0.005:
                text, colour = f"{100 * fraction:.0f}", "black" if fraction > 0.5 else "white"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.7, label="fraction of the true value's cells")
    return figure


def reliability_png(curves: Mapping[str, Sequence[ReliabilityBin]]) -> bytes:
    """Draw accuracy against confidence, a panel per phenotype; the area of a dot is its cells."""
    figure, panels = side_by_side(len(curves))
    for axes, (phenotype, curve) in zip(panels, curves.items(), strict=True):
        n_cells = np.array([one.n_cells for one in curve], dtype=float)
        confidence = [one.confidence for one in curve]
        accuracy = [one.accuracy for one in curve]
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axes.plot(confidence, accuracy, color=MODEL, linewidth=1)
        axes.scatter(confidence, accuracy, s=8 + 90 * n_cells / n_cells.sum(), color=MODEL)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_title(shortened(phenotype), fontsize=9).set_parse_math(False)
        axes.set_xlabel("confidence", fontsize=8)
        axes.set_ylabel("accuracy", fontsize=8)
    return png_bytes(figure)


def donor_accuracy_png(donors: Mapping[str, Sequence[DonorAccuracy]]) -> bytes:
    """Draw the accuracy of every donor as a dot, a row per phenotype, the median as a line."""
    figure = new_figure(7, 1.0 + 0.45 * len(donors))
    axes = figure.add_subplot()
    for row, of_one in enumerate(donors.values()):
        accuracy = np.array([one.accuracy for one in of_one])
        # Equal dots are spread over the row in a fixed pattern, so that all are seen.
        shift = 0.28 * (np.arange(len(accuracy)) % 5 - 2) / 2
        axes.scatter(accuracy, row + shift, s=14, color=MODEL, alpha=0.6, linewidths=0)
        axes.plot([np.median(accuracy)] * 2, [row - 0.4, row + 0.4], color=OTHER, linewidth=1.5)
    axes.set_yticks(range(len(donors)), list(map(shortened, donors)), fontsize=8)
    draw_as_they_are(axes.get_yticklabels())
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy of each donor", fontsize=8)
    axes.grid(axis="x", linewidth=0.4)
    return png_bytes(figure)


def gene_likelihood_png(rates: Sequence[RateScores], rows: Sequence[GeneRow]) -> bytes:
    """Draw the mean likelihood by mask rate, and that of every gene against its marginal."""
    figure, (means, genes) = side_by_side(2, width=4.0)
    percent = [100 * one.mask_rate for one in rates]
    means.plot(percent, [one.nll for one in rates], "o-", color=MODEL, label="model")
    marginals = [one.marginal.nll for one in rates if one.marginal is not None]
    if len(marginals) == len(rates):
        means.plot(percent, marginals, "s--", color=OTHER, label="marginal")
    means.set_xlim(0, 100)
    means.set_xlabel("masked genes (%)", fontsize=8)
    means.set_ylabel("NLL per masked gene (nats)", fontsize=8)
    means.legend(fontsize=8)
    has_marginals = not any(math.isnan(row.marginal_nll) for row in rows)
    for one, colour in zip(rates, ("#56b4e9", "#0072b2", "#000000"), strict=False):
        own = [row for row in rows if row.mask_rate == one.mask_rate]
        label = f"{100 * one.mask_rate:.0f} % masked"
        y = [row.nll for row in own]
        if has_marginals:
            x = [row.marginal_nll for row in own]
            genes.scatter(x, y, s=7, color=colour, alpha=0.5, linewidths=0, label=label)
        else:
            genes.plot(np.arange(len(y)), sorted(y), color=colour, label=label)
    if has_marginals:
        top = max(max(row.nll, row.marginal_nll) for row in rows) * 1.05
        genes.plot([0, top], [0, top], color="grey", linewidth=0.8)
        genes.set_xlabel("NLL of the gene's marginal", fontsize=8)
    else:
        genes.set_xlabel("genes, from best to worst", fontsize=8)
    genes.set_ylabel("NLL of the model", fontsize=8)
    genes.legend(fontsize=8)
    return png_bytes(figure)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 300 ms
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def side_by_side(n_panels: int, *, width: float = 2.6) -> "tuple[Figure, list[Any]]":
    """Return a figure with panels side by side, four in a row."""
    n_columns = min(n_panels, 4)
    n_rows = -(-n_panels // n_columns)
    figure = new_figure(width * n_columns, 2.7 * n_rows)
    panels = [figure.add_subplot(n_rows, n_columns, one + 1) for one in range(n_panels)]
    for axes in panels:
        axes.tick_params(labelsize=7)
    return figure, panels


def png_bytes(figure: "Figure") -> bytes:
    """Return the figure as a PNG for a page."""
    return figure_bytes(figure, ".png", dpi=110)


def figure_bytes(figure: "Figure", suffix: str, *, dpi: int = 300, is_tight: bool = False) -> bytes:
    """Return the figure as one of `FIGURE_ENDINGS`, the same bytes for the same figure; tight: cut to what is drawn.

    The text of a PDF or SVG file stays text, which Illustrator and Inkscape can edit.
    """
    from matplotlib import rc_context

    if (layout := figure.get_layout_engine()) is not None:  # once, and not twice for every file
        layout.execute(figure)
        figure.set_layout_engine("none")
    undated = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}
    form, buffer = suffix.removeprefix("."), io.BytesIO()
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "tfx"}):
        box = "tight" if is_tight else None
        metadata = {undated[form]: None}
        figure.savefig(buffer, format=form, dpi=dpi, bbox_inches=box, metadata=metadata)
    return buffer.getvalue()


def draw_as_they_are(texts: Iterable[Any]) -> None:
    """Keep matplotlib from reading a label with two dollar signs as a formula."""
    for text in texts:
        text.set_parse_math(False)


def shortened(name: str, *, length: int = 34) -> str:
    """Cut a long label, control characters as such."""
    name = visible(name)
    return name if len(name) <= length else name[: length - 1] + "…"
