"""The pictures of an evaluation report, as PNG.

Colours read the same with any kind of colour vision; labels are drawn as they are.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["confusion_png"]

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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _shorten(name: str, *, length: int = 34) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
