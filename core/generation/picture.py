"""One picture of generated cells beside real ones: gene means, genes per cell, a shared PCA."""

import io

import numpy as np
from scipy import sparse

from core.cells.genes import GenePanel
from core.generation.profile import principal_plane

__all__ = ["comparison_png"]

_REAL, _GENERATED = "#0072b2", "#d55e00"  # Okabe and Ito: apart for any kind of colour vision
_MOST_POINTS = 1_000


def comparison_png(
    real: sparse.csr_matrix,
    generated: sparse.csr_matrix,
    panel: GenePanel,
    *,
    title: str,
    name_genes: int = 8,
) -> bytes:
    """Draw generated beside real cells of the same phenotypes.

    Parameters
    ----------
    real, generated
        (cells, genes), log1p counts per 10,000, in panel order.
    panel
        Names the genes whose means differ most.
    title
        Heading.
    name_genes
        How many genes to name.

    Returns
    -------
    The PNG file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 300 ms
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    means_axes, genes_axes, pca_axes = figure.subplots(1, 3)
    figure.suptitle(title, fontsize=11).set_parse_math(False)

    x, y = (np.asarray(cells.mean(axis=0)).ravel() for cells in (real, generated))
    top = float(max(x.max(), y.max(), 1e-6)) * 1.05
    means_axes.plot([0, top], [0, top], color="grey", linewidth=0.8)
    means_axes.scatter(x, y, s=9, color=_GENERATED)
    for gene in np.argsort(-np.abs(x - y))[:name_genes]:
        label = means_axes.annotate(
            panel.symbols[gene], (x[gene], y[gene]), fontsize=7, xytext=(3, 3),
            textcoords="offset points",
        )  # fmt: skip
        label.set_parse_math(False)
    means_axes.set_xlabel("real: mean log1p per 10k")
    means_axes.set_ylabel("generated")
    r = float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")
    means_axes.set_title(f"gene means (r = {r:.3f})", fontsize=10)

    counts = [np.diff(sparse.csr_matrix(cells > 0).indptr) for cells in (real, generated)]
    edges = np.linspace(min(c.min() for c in counts), max(c.max() for c in counts) + 1, 26)
    for n_genes, colour, name in zip(
        counts, (_REAL, _GENERATED), ("real", "generated"), strict=True
    ):
        genes_axes.hist(
            n_genes, bins=edges, density=True, histtype="step", linewidth=1.6, color=colour,
            label=f"{name} ({len(n_genes):,} cells)",
        )  # fmt: skip
    genes_axes.legend(fontsize=8)
    genes_axes.set_xlabel("genes detected per cell")
    genes_axes.set_yticks([])
    genes_axes.set_title("genes per cell", fontsize=10)

    _, *places, _ = principal_plane(real, generated, max_points=_MOST_POINTS)
    for at, colour, mark in zip(places, (_REAL, _GENERATED), ("o", "x"), strict=True):
        pca_axes.scatter(
            at[:, 0], at[:, 1], s=8, color=colour, marker=mark, linewidths=0.7, alpha=0.6
        )
    pca_axes.set_xticks([])
    pca_axes.set_yticks([])
    pca_axes.set_xlabel("principal component 1 of the real cells")
    pca_axes.set_ylabel("component 2")
    pca_axes.set_title("real (dots) and generated (crosses)", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
