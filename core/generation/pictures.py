"""Figures of generated and of changed cells beside real ones.

Cells are (cells, genes) log1p counts per 10,000, in panel order. Colours are distinct for any kind of colour
vision; labels are drawn as they are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.evaluation.fidelity.measures import gene_means, pearson
from core.evaluation.report.pictures import MODEL as REAL
from core.evaluation.report.pictures import OTHER as GENERATED
from core.evaluation.report.pictures import draw_as_they_are, new_figure
from core.generation.comparison import principal_plane
from core.wording import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_DRAWN = 1_000
_NAMED_GENES = 8
_CHANGED = "#009e73"

FloatArray = NDArray[np.float64]


def comparison_figure(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, symbols: Sequence[str], *, title: str
) -> "Figure":
    """Draw gene means, genes per cell and a shared PCA of real and generated cells."""
    figure, (means_axes, genes_axes, pca_axes) = _panels(title)
    x, y = gene_means(real), gene_means(generated)
    _draw_genes(means_axes, x, y, np.abs(x - y), symbols)
    means_axes.set_xlabel("real: mean log1p per 10k")
    means_axes.set_ylabel("generated")
    means_axes.set_title(f"gene means (r = {pearson(x, y):.3f})", fontsize=10)

    counts = [np.diff(sparse.csr_matrix(cells > 0).indptr) for cells in (real, generated)]
    edges = np.linspace(min(c.min() for c in counts), max(c.max() for c in counts) + 1, 26)
    outline = {"bins": edges, "density": True, "histtype": "step", "linewidth": 1.6}
    names = ("real", "generated")
    for n_genes, colour, name in zip(counts, (REAL, GENERATED), names, strict=True):
        label = f"{name} ({len(n_genes):,} cells)"
        genes_axes.hist(n_genes, color=colour, label=label, **outline)
    genes_axes.legend(fontsize=8)
    genes_axes.set_xlabel("genes detected per cell")
    genes_axes.set_yticks([])
    genes_axes.set_title("genes per cell", fontsize=10)

    _draw_plane(pca_axes, real, {"real": (real, REAL), "generated": (generated, GENERATED)})
    return figure


def edited_figure(
    before: sparse.csr_matrix,
    after: sparse.csr_matrix,
    treated: sparse.csr_matrix | None,
    change: tuple[FloatArray, FloatArray] | None,
    symbols: Sequence[str],
    *,
    title: str,
) -> "Figure":
    """Draw cells before and after a change, and beside cells that really have the value, if there are any.

    ``change`` is (genes,) change of each gene's mean: of the cells that really have it, and the model's.
    """
    figure, (means_axes, change_axes, pca_axes) = _panels(title)
    x, y = gene_means(before), gene_means(after)
    _draw_genes(means_axes, x, y, np.abs(x - y), symbols)
    means_axes.set_xlabel("before: mean log1p per 10k")
    means_axes.set_ylabel("changed by the model")
    means_axes.set_title("gene means", fontsize=10)
    shown = {"before": (before, REAL), "changed": (after, GENERATED)}
    if change is None or treated is None:
        change_axes.axis("off")
        change_axes.text(0.5, 0.5, "no real cells have the value", ha="center", fontsize=9)
        _draw_plane(pca_axes, before, shown)
        return figure
    of_real, of_model = change
    _draw_genes(change_axes, of_real, of_model, np.abs(of_real) + np.abs(of_model), symbols)
    change_axes.set_xlabel("real change of the mean")
    change_axes.set_ylabel("change by the model")
    change_axes.set_title(f"changes (r = {pearson(of_real, of_model):.3f})", fontsize=10)
    shown["have the value"] = (treated, _CHANGED)
    _draw_plane(pca_axes, sparse.vstack([before, treated], format="csr"), shown)
    return figure


def _panels(title: str) -> "tuple[Figure, list[Any]]":
    figure = new_figure(12, 4)
    draw_as_they_are([figure.suptitle(visible(title, most=200), fontsize=11)])
    return figure, list(figure.subplots(1, 3))


def _draw_genes(
    axes: Any,  # noqa: ANN401 - matplotlib's
    x: FloatArray,
    y: FloatArray,
    interest: FloatArray,
    symbols: Sequence[str],
) -> None:
    """Draw a dot per gene, with the line of equality and the names of the most interesting."""
    low, high = (float(edge(np.concatenate([x, y, [0.0]]))) for edge in (np.min, np.max))
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8)
    axes.scatter(x, y, s=9, color=GENERATED)
    offset = {"xytext": (3, 3), "textcoords": "offset points"}
    for gene in np.argsort(-interest, kind="stable")[:_NAMED_GENES].tolist():
        symbol = visible(symbols[gene], most=40)
        draw_as_they_are([axes.annotate(symbol, (x[gene], y[gene]), fontsize=7, **offset)])


def _draw_plane(
    axes: Any,  # noqa: ANN401 - matplotlib's
    fitted: sparse.csr_matrix,
    groups: dict[str, tuple[sparse.csr_matrix, str]],
) -> None:
    """Place groups of cells in the plane of the first two principal components of real cells."""
    for (name, (cells, colour)), mark in zip(groups.items(), "ox^", strict=False):
        _, _, at, _ = principal_plane(fitted, cells, max_points=_MOST_DRAWN)
        look = {"s": 8, "marker": mark, "linewidths": 0.7, "alpha": 0.6}
        axes.scatter(at[:, 0], at[:, 1], color=colour, label=name, **look)
    axes.legend(fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("principal component 1 of the real cells")
    axes.set_ylabel("component 2")
    axes.set_title("cells", fontsize=10)
