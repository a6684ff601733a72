"""The pictures of an evaluation report, as PNG.

Colours read the same with any kind of colour vision; labels are drawn as they are.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "confusion_png",
    "donor_spread_png",
    "gene_likelihood_png",
    "png_bytes",
    "reliability_png",
    "side_by_side",
]

_MODEL, _BESIDE = "#0072b2", "#d55e00"  # Okabe and Ito: apart for any kind of colour vision

_MAX_NUMBERED = 15  # classes up to which each cell of the picture carries its percentage


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
    return png_bytes(figure)


def reliability_png(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draw accuracy against confidence, a panel per phenotype; the area of a dot is its cells.

    Parameters
    ----------
    curves
        Phenotype -> bins with "cells", "confidence" and "accuracy".
    """
    figure, panels = side_by_side(len(curves))
    for axes, (phenotype, curve) in zip(panels, curves.items(), strict=True):
        n_cells = np.array([one["cells"] for one in curve], dtype=float)
        confidence = [one["confidence"] for one in curve]
        accuracy = [one["accuracy"] for one in curve]
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axes.plot(confidence, accuracy, color=_MODEL, linewidth=1)
        axes.scatter(confidence, accuracy, s=8 + 90 * n_cells / n_cells.sum(), color=_MODEL)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_title(phenotype, fontsize=9).set_parse_math(False)
        axes.set_xlabel("confidence", fontsize=8)
        axes.set_ylabel("accuracy", fontsize=8)
    return png_bytes(figure)


def donor_spread_png(donors: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draw the accuracy of every donor as a dot, a row per phenotype, the middle one as a line.

    Parameters
    ----------
    donors
        Phenotype -> donors with "accuracy".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 300 ms
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.0 + 0.45 * len(donors)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, of_one in enumerate(donors.values()):
        accuracy = np.array([one["accuracy"] for one in of_one])
        # Equal dots are spread over the row in a fixed pattern, so that all are seen.
        shift = 0.28 * (np.arange(len(accuracy)) % 5 - 2) / 2
        axes.scatter(accuracy, row + shift, s=14, color=_MODEL, alpha=0.6, linewidths=0)
        axes.plot([np.median(accuracy)] * 2, [row - 0.4, row + 0.4], color=_BESIDE, linewidth=1.5)
    axes.set_yticks(range(len(donors)), list(donors), fontsize=8)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy of each donor", fontsize=8)
    axes.grid(axis="x", linewidth=0.4)
    return png_bytes(figure)


def gene_likelihood_png(
    rates: Sequence[Mapping[str, Any]], table: Sequence[Sequence[Any]]
) -> bytes:
    """Draw the mean likelihood by mask rate, and that of every gene against its marginal.

    Parameters
    ----------
    rates
        Figures of each rate, as of `core.evaluation.gene_report`.
    table
        A row per gene and rate, the names of the columns first.
    """
    figure, (means, genes) = side_by_side(2, width=4.0)
    share = [100 * one["rate"] for one in rates]
    means.plot(share, [one["nll"] for one in rates], "o-", color=_MODEL, label="model")
    if all(one.get("marginal") for one in rates):
        beside = [one["marginal"]["nll"] for one in rates]
        means.plot(share, beside, "s--", color=_BESIDE, label="training shares")
    means.set_xlim(0, 100)
    means.set_xlabel("genes hidden (%)", fontsize=8)
    means.set_ylabel("NLL per hidden gene (nats)", fontsize=8)
    means.legend(fontsize=8)
    names = list(table[0])
    at, nll, marginal = (names.index(one) for one in ("rate", "nll", "marginal_nll"))
    for one, colour in zip(rates, ("#56b4e9", "#0072b2", "#000000"), strict=False):
        rows = [row for row in table[1:] if row[at] == one["rate"]]
        label = f"{100 * one['rate']:.0f} % hidden"
        if rows and rows[0][marginal] != "":
            x, y = [row[marginal] for row in rows], [row[nll] for row in rows]
            genes.scatter(x, y, s=7, color=colour, alpha=0.5, linewidths=0, label=label)
        else:
            y = sorted(row[nll] for row in rows)
            genes.plot(np.arange(len(y)), y, color=colour, label=label)
    if any(row[marginal] != "" for row in table[1:]):
        top = max(float(row[column]) for row in table[1:] for column in (nll, marginal)) * 1.05
        genes.plot([0, top], [0, top], color="grey", linewidth=0.8)
        genes.set_xlabel("NLL of the gene's training shares", fontsize=8)
    else:
        genes.set_xlabel("genes, from best to worst", fontsize=8)
    genes.set_ylabel("NLL of the model", fontsize=8)
    genes.legend(fontsize=8)
    return png_bytes(figure)


def side_by_side(n_panels: int, *, width: float = 2.6) -> "tuple[Figure, list[Any]]":
    """Return a figure with panels side by side, four in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 300 ms
    from matplotlib.figure import Figure

    n_columns = min(n_panels, 4)
    n_rows = -(-n_panels // n_columns)
    figure = Figure(figsize=(width * n_columns, 2.7 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(n_rows, n_columns, one + 1) for one in range(n_panels)]
    for axes in panels:
        axes.tick_params(labelsize=7)
    return figure, panels


def png_bytes(figure: "Figure") -> bytes:
    """Return the figure as a PNG file's bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _shorten(name: str, *, length: int = 34) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
