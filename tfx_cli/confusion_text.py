"""A confusion matrix of few values as a heat map for the terminal; plain numbers where piped."""

from typing import TYPE_CHECKING

from tfx_cli.formatting import shortened
from tfx_cli.output import make_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.text import Text

    from core.evaluation.report.records import PhenotypeScores

__all__ = ["confusion_text"]

#: Values up to which a matrix fits a terminal of 100 columns.
MOST_VALUES = 8
_LONGEST_NAME = 24
#: The ends and the middle of cividis, as in the picture.
_COLOURS = ((0, 34, 78), (124, 123, 120), (254, 232, 56))


def confusion_text(phenotype: str, scores: "PhenotypeScores") -> "Iterator[RenderableType]":
    """Draw the model's confusion matrix: rows are true values, in per cent of their cells.

    Nothing is drawn where more than `MOST_VALUES` values occur, or nothing is confused.
    """
    matrix, values = scores.confusion, scores.values
    if matrix is None or values is None:
        return
    n_true = [sum(row) for row in matrix]
    n_predicted = [sum(column) for column in zip(*matrix, strict=True)]
    seen = [i for i in range(len(values)) if n_true[i] or n_predicted[i]]
    is_confused = any(matrix[i][j] for i in seen for j in seen if i != j)
    if len(seen) > MOST_VALUES or not is_confused:
        return
    names = [shortened(values[i], _LONGEST_NAME) for i in seen]
    letters = [chr(ord("a") + place) for place in range(len(seen))]
    rows = [
        [
            f"{letter} {name}",
            n_true[i],
            *(_cell(matrix[i][j] / n_true[i]) if n_true[i] else "" for j in seen),
        ]
        for i, letter, name in zip(seen, letters, names, strict=True)
    ]
    yield f"{phenotype}: predictions (columns) in per cent of the true value's cells"
    right = range(1, len(seen) + 2)
    yield make_table(["true value", "cells", *letters], rows, right=right)


def _cell(share: float) -> "Text":
    from rich.text import Text

    percent = f"{100 * share:3.0f}" if share else "  ."
    red, green, blue = _colour(share)
    ink = "black" if share > 0.5 else "white"
    return Text(percent, style=f"{ink} on rgb({red},{green},{blue})" if share else "")


def _colour(share: float) -> tuple[int, ...]:
    low, middle, high = _COLOURS
    start, end, part = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
    return tuple(round(one + (two - one) * part) for one, two in zip(start, end, strict=True))
