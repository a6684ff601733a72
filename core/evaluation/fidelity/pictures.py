"""Pictures of generated cells beside real ones: UMAP, genes, correlations and markers."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.evaluation.fidelity.measures import (
    LabelledCells,
    correlation_genes,
    detected_genes,
    fit_components,
    fold_changes,
    within_class_correlations,
)
from core.evaluation.report.pictures import (
    draw_as_they_are,
    png_bytes,
    shortened,
    side_by_side,
)

_REAL, _GENERATED, _COPULA = "#0072b2", "#d55e00", "#999999"  # Okabe and Ito
#: Classes drawn each in its own colour, and rows and markers of the dot plot.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
_DOT_CLASSES, _MARKERS_EACH = 14, 3
_MOST_POINTS = 1_500
#: Of a UMAP, scanpy's default.
_NEIGHBOURS = 15


def fidelity_pictures(
    shown: Mapping[str, LabelledCells], symbols: Sequence[str], classes: Sequence[str]
) -> dict[str, bytes]:
    """Draw the pictures of the report; heading -> PNG.

    ``shown``: "target" (real cells), "generated", and "copula" if there is one, on equal class counts;
    ``classes``: code -> name.
    """
    real, generated = shown["target"], shown["generated"]
    return {
        **_places(real, generated, classes),
        "Genes, and correlations within classes": _genes(shown, symbols),
        "Markers of each class": _markers(real, generated, symbols, classes),
    }


def _places(
    real: LabelledCells, generated: LabelledCells, classes: Sequence[str]
) -> dict[str, bytes]:
    """Draw real and generated cells together, in the plane of a UMAP and of principal components."""
    some = [cells.take(np.arange(min(len(cells), _MOST_POINTS))) for cells in (real, generated)]
    both = np.concatenate([cells.values for cells in some])
    components = fit_components(both).transform(both)
    return {
        "UMAP of the cells": _plane(some, umap(components), classes, "UMAP"),
        "Principal components of the cells": _plane(
            some, components[:, :2], classes, "principal component"
        ),
    }


def umap(points: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Place (cells, components) in a plane, (cells, 2), as scanpy does; always the same way.

    McInnes et al. 2018, arXiv 1802.03426. Only near cells mean something, not distances between groups.
    """
    import scanpy  # 2 s, and 10 s of compiling where it is first used
    from anndata import AnnData

    cells = AnnData(np.ascontiguousarray(points, dtype=np.float32))
    n_neighbours = min(_NEIGHBOURS, len(points) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups that are apart, and missing packages
        scanpy.pp.neighbors(cells, n_neighbors=n_neighbours, use_rep="X", random_state=0)
        scanpy.tl.umap(cells, random_state=0)
    return np.asarray(cells.obsm["X_umap"])


def _plane(
    some: Sequence[LabelledCells],
    places: NDArray[np.floating[Any]],
    classes: Sequence[str],
    axis: str,
) -> bytes:
    """Draw real and generated cells by side, and each side by class."""
    real = some[0]
    at = (places[: len(real)], places[len(real) :])
    figure, (by_side, *by_class) = side_by_side(3, width=4.4)
    is_real = np.repeat([True, False], [len(one) for one in at])
    order = np.random.default_rng(0).permutation(len(places))  # neither side hides the other
    colours = np.where(is_real[order], _REAL, _GENERATED)
    by_side.scatter(*places[order].T, s=6, alpha=0.5, linewidths=0, c=colours)
    by_side.set_title("real (blue) and generated (orange)", fontsize=9)
    codes, n = np.unique(real.classes, return_counts=True)
    common = codes[np.argsort(-n)][: len(_PALETTE)]
    for axes, cells, points, name in zip(by_class, some, at, ("real", "generated"), strict=True):
        for colour, code in zip(_PALETTE, common, strict=False):
            chosen = cells.classes == code
            label = shortened(classes[code], length=30)
            axes.scatter(*points[chosen].T, s=6, alpha=0.6, linewidths=0, color=colour, label=label)
        axes.set_title(f"{name}, by class", fontsize=9)
        axes.set_xlim(by_side.get_xlim())
        axes.set_ylim(by_side.get_ylim())
    legend = by_class[-1].legend(
        fontsize=6, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    draw_as_they_are(legend.get_texts())
    for axes in (by_side, *by_class):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{axis} 1", fontsize=8)
        axes.set_ylabel(f"{axis} 2", fontsize=8)
    return png_bytes(figure)


def _genes(shown: Mapping[str, LabelledCells], symbols: Sequence[str]) -> bytes:
    """Draw gene means, dropout, genes per cell and the correlations of pairs within classes."""
    real, generated = shown["target"], shown["generated"]
    sides = {"real": (real, _REAL), "generated": (generated, _GENERATED)}
    if "copula" in shown:
        sides["copula"] = (shown["copula"], _COPULA)
    figure, axes = side_by_side(2 + len(sides), width=3.4)
    means = [cells.values.mean(axis=0) for cells in (real, generated)]
    dropout = [(cells.values <= 0).mean(axis=0) for cells in (real, generated)]
    _against(axes[0], means[0], means[1], "mean log1p per 10k", symbols)
    _against(axes[1], dropout[0], dropout[1], "dropout (fraction of cells at 0)", symbols)
    n_genes = {name: detected_genes(cells.values) for name, (cells, _) in sides.items()}
    every = np.concatenate(list(n_genes.values()))
    edges = np.linspace(int(every.min()), int(every.max()) + 1, 26)
    for name, (_, colour) in sides.items():
        axes[2].hist(
            n_genes[name], bins=edges, histtype="step", linewidth=1.4, color=colour, label=name
        )
    axes[2].set_xlabel("genes detected per cell", fontsize=8)
    axes[2].set_yticks([])
    axes[2].legend(fontsize=7)
    columns = correlation_genes(real.values)
    pairs = within_class_correlations(real.values[:, columns], real.classes)
    ends = [min(pairs.min(initial=0), -0.1), max(pairs.max(initial=0), 0.1)]
    for panel, (name, (cells, _)) in zip(axes[3:], list(sides.items())[1:], strict=True):
        theirs = within_class_correlations(cells.values[:, columns], cells.classes)
        panel.scatter(pairs, theirs, s=3, alpha=0.3, linewidths=0, color=_GENERATED)
        panel.plot(ends, ends, color="grey", linewidth=0.8)
        panel.set_xlabel("real correlation within classes", fontsize=8)
        panel.set_ylabel(name, fontsize=8)
    return png_bytes(figure)


def _against(
    axes: Any,  # noqa: ANN401 (of matplotlib, imported where it draws)
    real: NDArray[np.floating[Any]],
    generated: NDArray[np.floating[Any]],
    what: str,
    symbols: Sequence[str],
) -> None:
    """Draw a value of every gene on both sides, and name those furthest off."""
    axes.plot([0, real.max()], [0, real.max()], color="grey", linewidth=0.8)
    axes.scatter(real, generated, s=7, color=_GENERATED, linewidths=0, alpha=0.7)
    for gene in np.argsort(-np.abs(real - generated))[:5]:
        place = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 6}
        draw_as_they_are([axes.annotate(symbols[gene], (real[gene], generated[gene]), **place)])
    axes.set_xlabel(f"real: {what}", fontsize=8)
    axes.set_ylabel("generated", fontsize=8)


def _markers(
    real: LabelledCells,
    generated: LabelledCells,
    symbols: Sequence[str],
    classes: Sequence[str],
) -> bytes:
    """Draw a dot plot: size is the fraction of cells with the gene, colour its mean."""
    codes, n = np.unique(real.classes, return_counts=True)
    codes = np.sort(codes[np.argsort(-n, kind="stable")][:_DOT_CLASSES])
    changes = fold_changes(real.values, real.classes, int(real.classes.max()) + 1)
    genes: list[int] = []
    for code in codes:
        ranked = np.argsort(-np.nan_to_num(changes[code], nan=-np.inf), kind="stable")
        if not np.isnan(changes[code]).any():
            genes += [int(gene) for gene in ranked[:_MARKERS_EACH] if int(gene) not in genes]
    if not genes:  # one class alone, or few cells of each: the genes of highest mean
        genes = np.argsort(-real.values.mean(axis=0), kind="stable")[:12].tolist()
    figure, panels = side_by_side(2, width=max(3.5, 0.19 * len(genes) + 2.2))
    figure.set_figheight(1.6 + 0.24 * len(codes))
    tables = [
        np.stack([cells.values[cells.classes == code][:, genes].mean(axis=0) for code in codes])
        for cells in (real, generated)
    ]
    top = max(float(table.max()) for table in tables) or 1.0
    for axes, cells, means, name in zip(
        panels, (real, generated), tables, ("real", "generated"), strict=True
    ):
        fraction = np.stack(
            [(cells.values[cells.classes == code][:, genes] > 0).mean(axis=0) for code in codes]
        )
        x, y = np.meshgrid(range(len(genes)), range(len(codes)))
        dots = axes.scatter(
            x, y, s=2 + 70 * fraction, c=means, cmap="cividis_r", vmin=0, vmax=top, linewidths=0
        )
        axes.set_xticks(range(len(genes)), [symbols[gene] for gene in genes], rotation=90)
        axes.set_yticks(range(len(codes)), [shortened(classes[code], length=30) for code in codes])
        axes.tick_params(labelsize=6)
        draw_as_they_are((*axes.get_xticklabels(), *axes.get_yticklabels()))
        axes.invert_yaxis()
        axes.margins(y=0.5 / len(codes) + 0.05)
        axes.set_title(name, fontsize=9)
    figure.colorbar(dots, ax=panels, shrink=0.8, label="mean log1p per 10k")
    return png_bytes(figure)
