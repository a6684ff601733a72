"""The report on generated cells: thresholds, the verdict in sentences, tables, pictures, files.

Thresholds are relative to the reference, what other real cells score, wherever possible.
docs/fidelity.md gives the reason for each.
"""

import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from core.evaluation.report.pictures import draw_as_they_are, png_bytes, shortened, side_by_side
from core.evaluation.report.records import Difference, FidelityReport, Mark, Measured
from core.evaluation.report.tables import ReportTable, bounds, show
from core.evaluation.report.writing import Picture, Section, render_page, write_report

#: Method -> its name in a table.
METHOD_NAMES = {
    "generated": "generated",
    "real": "real (reference)",
    "copula": "copula",
    "independent": "independent",
    "scvi": "scVI",
    "training": "training cells",
}
#: With fewer matched cells, the verdict warns that there are few.
_ENOUGH = 1_000
#: Measure -> digits shown, if three are not right.
_DIGITS = {"mmd2": 4, "genes_mean": 1, "genes_sd": 1, "copies": 1}
_MARKS = {True: "met", False: "NOT MET", None: "-"}
_COMPARE = {">": operator.gt, "<=": operator.le}

_REAL, _GENERATED, _COPULA = "#0072b2", "#d55e00", "#999999"  # Okabe and Ito
#: Classes drawn each in its own colour, and rows and markers of the dot plot.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
_DOT_CLASSES, _MARKERS_EACH = 14, 3
_MOST_POINTS = 1_500
#: Of a UMAP, scanpy's default.
_NEIGHBOURS = 15

Scores = Mapping[str, Mapping[str, Measured]]
#: Value, reference and limit of a measure -> whether it meets the threshold, and the threshold in words.
Test = Callable[[float, float, float], tuple[bool, str]]


# -------------------------------------------------------------------------------------- thresholds
@dataclass(frozen=True)
class Rule:
    """One measure: its name in the report and in words, where good values are, its threshold."""

    key: str
    title: str
    #: Near: near the value of the real cells.
    better: Literal["low", "high", "near"]
    test: Test
    #: How generated cells have to compare with the copula, too.
    copula: Literal[">", "<="] | None = None


def _fraction(least: float) -> Test:
    return lambda value, reference, _: (
        value >= least * reference,
        f">= {least * reference:.3f} ({least:g} of reference)",
    )


def _offset(text: str) -> Test:
    """At most ("+ 0.1"), or at least ("- 0.1"), this offset from the reference."""
    offset = float(text.replace(" ", ""))
    sign, compare = ("<=", operator.le) if offset > 0 else (">=", operator.ge)
    return lambda value, reference, _: (
        compare(value, reference + offset),
        f"{sign} {reference + offset:.3f} (reference {text})",
    )


def _within_percent(percent: float) -> Test:
    return lambda value, _, limit: (
        abs(value - limit) / max(limit, 1e-12) <= percent / 100,
        f"within {percent:g} % of {limit:.1f}",
    )


def _between(low: float, high: float) -> Test:
    return lambda value, *_: (low <= value <= high, f"{low:.2f} to {high:.2f}")


def _mmd2(value: float, _: float, limit: float) -> tuple[bool, str]:
    return value <= limit, f"<= {limit:.4f} (95 % of real splits)"


def _condition(value: float, reference: float, _: float) -> tuple[bool, str]:
    return abs(value - reference) <= 0.05, f"within 0.05 of {reference:.3f}"


def _copies(value: float, reference: float, _: float) -> tuple[bool, str]:
    return value <= reference, f"<= {reference:.1f}" if reference else "0"


#: In the order of the report.
RULES = (
    Rule("rf_auc", "random-forest AUC", "low", _offset("+ 0.10"), "<="),
    Rule("mmd2", "MMD²", "low", _mmd2),
    Rule("within_r", "within-class correlation r", "high", _fraction(0.8), ">"),
    Rule("within_slope", "within-class correlation slope", "high", _fraction(0.8)),
    Rule("gene_mean_r", "gene means r", "high", _offset("- 0.005")),
    Rule("dropout_mae", "dropout difference", "low", _offset("+ 0.005")),
    Rule("genes_mean", "genes per cell (mean)", "near", _within_percent(5)),
    Rule("genes_sd", "genes per cell (sd)", "near", _within_percent(15)),
    Rule("recall", "recall", "high", _fraction(0.9)),
    Rule("coverage", "coverage", "high", _fraction(0.9)),
    Rule("condition_accuracy", "classified as requested", "near", _condition),
    Rule("nn_ratio", "distance to training cells", "near", _between(0.95, 1.10)),
    Rule("copies", "copies of training cells", "low", _copies),
    Rule("fold_change_slope", "log-fold change slope", "near", _between(0.9, 1.1)),
    Rule("fold_change_overlap", "top markers in common", "high", _fraction(0.9)),
    Rule("tstr_f1", "train on these (macro-F1 on real)", "high", _fraction(0.95)),
)


def mark_methods(scores: Scores, limits: Mapping[str, float]) -> dict[str, dict[str, Mark]]:
    """Compare every method with every threshold; method -> measure -> mark.

    ``limits``: "mmd2", "genes_mean" and "genes_sd", from the real cells.
    """
    return {
        method: {rule.key: _mark(rule, method, scores, limits) for rule in RULES}
        for method in scores
    }


def _mark(rule: Rule, method: str, scores: Scores, limits: Mapping[str, float]) -> Mark:
    value, reference = scores[method][rule.key].value, scores["real"][rule.key].value
    if math.isnan(value) or math.isnan(reference):
        return Mark(None, "-")
    limit = limits.get(rule.key, math.nan)
    met, text = rule.test(value, reference, limit)
    if not rule.test(reference, reference, limit)[0]:
        # Other real cells miss the threshold: nothing better can be expected of generated ones.
        if rule.better == "near":
            return Mark(None, f"real cells have {reference:.3f}, which is not {text}")
        sign, compare = ("<=", operator.le) if rule.better == "low" else (">=", operator.ge)
        met, text = compare(value, reference), f"{sign} {reference:.4f} (as other real cells)"
    if rule.copula and method == "generated" and "copula" in scores:
        copula = scores["copula"][rule.key].value
        if math.isfinite(copula):
            met = met and _COMPARE[rule.copula](value, copula)
            text += f" and {rule.copula} copula"
    return Mark(bool(met), text)


# ----------------------------------------------------------------------------------------- verdict
def verdict(scores: Scores, marks: Mapping[str, Mapping[str, Mark]], n_cells: int) -> list[str]:
    """Summarise the measures in sentences; ``n_cells``: matched cells on a side, of the smallest seed."""
    generated, reference = scores["generated"], scores["real"]
    met = [marks["generated"][rule.key].met for rule in RULES]
    missed = [rule.title for rule, one in zip(RULES, met, strict=True) if one is False]
    auc, real_auc = generated["rf_auc"].value, reference["rf_auc"].value
    sentences = [
        f"{met.count(True)} of {len(met) - met.count(None)} thresholds are met"
        + (f"; not met: {', '.join(missed)}." if missed else "."),
        f"A random forest {_separates(auc, real_auc)}: AUC {auc:.3f}, where other real cells have "
        f"{real_auc:.3f}.",
    ]
    if "copula" in scores:
        better: dict[str, list[str]] = {"copula": [], "generated": []}
        for rule in RULES:
            ours, theirs = (
                f"{scores[method][rule.key].value:.3f}" for method in ("generated", "copula")
            )
            if ours == theirs:
                continue  # to the digits that the reader sees
            text = f"{rule.title} ({ours} against {theirs})"
            better.setdefault(_better(rule, generated[rule.key].minus_copula), []).append(text)
        if better["copula"]:
            names = ", ".join(better["copula"])
            sentences.append(f"The Gaussian copula of each class is clearly better in: {names}.")
        if better["generated"]:
            names = ", ".join(better["generated"])
            sentences.append(f"The generated cells are clearly better than the copula in: {names}.")
        if not (better["copula"] or better["generated"]):
            sentences.append(
                "No measure separates the generated cells from the Gaussian copula of each class."
            )
    copies = generated["copies"].value
    if copies > 0:
        sentences.append(
            f"On average {copies:.1f} cells of a side equal a training cell in every bin; of held-out "
            f"real cells {reference['copies'].value:.1f} do."
        )
    if n_cells < _ENOUGH:
        sentences.append(
            f"Only {n_cells:,} cells of each side could be matched, and {_ENOUGH:,} are better: rely on the "
            "intervals rather than on the thresholds."
        )
    return sentences


def _separates(auc: float, real_auc: float) -> str:
    expected = max(real_auc, 0.5)  # that of chance
    if auc <= expected + 0.03:
        return "does not separate generated from real cells better than two halves of real cells"
    if auc <= max(expected + 0.10, 0.6):
        return "separates a few generated cells from real ones"
    if auc <= 0.9:
        return "separates many generated cells from real ones"
    return "separates nearly all generated cells from real ones"


def _better(rule: Rule, minus_copula: Difference | None) -> str:
    """Return the better of generated cells and copula, if an interval without 0 separates them."""
    if minus_copula is None or rule.better == "near":
        return "-"
    low, high = minus_copula.interval
    if low > 0 or high < 0:
        return "generated" if (low > 0) == (rule.better == "high") else "copula"
    return "not separated" if low <= high else "-"  # "-": NaN


# --------------------------------------------------------------------------------- tables and files
def write_fidelity_report(
    folder: Path, report: FidelityReport, pictures: Mapping[str, bytes]
) -> list[Path]:
    """Write report.html and report.json into a folder; ``pictures``: heading -> PNG."""
    sections = [
        Section("Measures", [measure_table(report, intervals=True)]),
        *(Section(heading, [Picture(png, heading)]) for heading, png in pictures.items()),
        Section("More measures", list(more_tables(report))),
    ]
    return write_report(folder, report, render_page(report, sections, verdict=report.verdict))


def measure_table(report: FidelityReport, *, intervals: bool) -> ReportTable:
    """Give every measure of every method, with thresholds and ``intervals`` of the generated cells."""
    methods = _methods(report)
    rows = []
    for rule in RULES:
        digits = _DIGITS.get(rule.key, 3)
        texts = [show(report.scores[name][rule.key].value, digits=digits) for name in methods]
        if intervals:
            interval = report.scores["generated"][rule.key].interval
            texts[0] += f" {bounds(interval, digits=digits)}"
        mark = report.marks["generated"][rule.key]
        rows.append([rule.title, *texts, mark.threshold, _MARKS[mark.met]])
    return ReportTable(
        "",
        "Each column is compared with the same held-out real cells, on equal numbers of cells of each "
        "class. Real (reference): other held-out real cells. Training cells: what copying them would score."
        + (" In brackets: 95 % bootstrap intervals over cells and seeds." if intervals else ""),
        ["measure", *(METHOD_NAMES[name] for name in methods), "threshold", ""],
        rows,
    )


def more_tables(report: FidelityReport) -> Iterator[ReportTable]:
    """Give the tables of the page alone."""
    methods = _methods(report)
    yield ReportTable(
        "The same thresholds for the other methods",
        "For the copula and the independent genes, without the thresholds that name the copula.",
        ["measure", *(METHOD_NAMES[name] for name in methods)],
        [
            [rule.title, *(_MARKS[report.marks[name][rule.key].met] for name in methods)]
            for rule in RULES
        ],
    )
    if "copula" in report.scores:
        differences = [report.scores["generated"][rule.key].minus_copula for rule in RULES]
        yield ReportTable(
            "Generated minus copula",
            "On the same resamples of real cells. An interval without 0 separates the two.",
            ["measure", "difference", "low", "high", "better"],
            [
                [rule.title, *_difference(one, _DIGITS.get(rule.key, 3)), _better(rule, one)]
                for rule, one in zip(RULES, differences, strict=True)
            ],
        )
    if (likelihood := report.likelihood) is not None:
        nats = [show(likelihood.model), show(likelihood.class_marginals)]
        yield ReportTable(
            "From the class alone",
            f"Nats per gene of {likelihood.n_cells:,} held-out cells, with all genes masked and the "
            "phenotypes of the class visible: lower is better. Class marginals: fractions of the class's "
            "training cells per bin.",
            ["model", "class marginals", "difference", "low", "high"],
            [[*nats, *_difference(likelihood.model_minus_class_marginals)]],
        )
    if report.rebalancing:
        header = ("learnt from", "cells added", "balanced accuracy", "macro-F1")
        yield ReportTable(
            "Rare classes filled up",
            "A classifier of the class learns from real training cells: as they are, with equal weights of "
            "the classes, with cells of rare classes repeated, filled up by the copula, and filled up by "
            "generated cells. All are scored on the same held-out real cells; an interval without 0 "
            "separates a way from class weights.",
            [*header, "minus class weights", "low", "high"],
            [
                [
                    name,
                    *map(show, (one.n_cells_added, one.balanced_accuracy, one.macro_f1)),
                    *_difference(one.minus_class_weights),
                ]
                for name, one in report.rebalancing.items()
            ],
        )
    yield ReportTable(
        "Matched cells",
        "Cells of each class on a side, in the first seed.",
        ["class", "cells"],
        [[name, str(n)] for name, n in report.class_cells.items()],
    )


def _methods(report: FidelityReport) -> list[str]:
    return [name for name in METHOD_NAMES if name in report.scores]


def _difference(difference: Difference | None, digits: int = 3) -> list[str]:
    if difference is None:
        return ["-"] * 3
    return [show(one, digits=digits) for one in (difference.value, *difference.interval)]


# ------------------------------------------------------------------------------------------ pictures
def fidelity_pictures(
    shown: Mapping[str, LabelledCells], symbols: Sequence[str], classes: Sequence[str]
) -> dict[str, bytes]:
    """Draw the pictures of the report; heading -> PNG.

    ``shown``: "target" (real cells), "generated", and "copula" if there is one, on equal class counts;
    ``classes``: code -> name.
    """
    real, generated = shown["target"], shown["generated"]
    some = [cells.take(np.arange(min(len(cells), _MOST_POINTS))) for cells in (real, generated)]
    both = np.concatenate([cells.values for cells in some])
    components = fit_components(both).transform(both)
    plane = components[:, :2]
    return {
        "UMAP of the cells": _plane(some, umap(components), classes, "UMAP"),
        "Principal components of the cells": _plane(some, plane, classes, "principal component"),
        "Genes, and correlations within classes": _genes(shown, symbols),
        "Markers of each class": _markers(real, generated, symbols, classes),
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
        draw_as_they_are(
            [axes.annotate(shortened(symbols[gene]), (real[gene], generated[gene]), **place)]
        )
    axes.set_xlabel(f"real: {what}", fontsize=8)
    axes.set_ylabel("generated", fontsize=8)


def _markers(
    real: LabelledCells, generated: LabelledCells, symbols: Sequence[str], classes: Sequence[str]
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
        axes.set_xticks(
            range(len(genes)), [shortened(symbols[gene]) for gene in genes], rotation=90
        )
        axes.set_yticks(range(len(codes)), [shortened(classes[code], length=30) for code in codes])
        axes.tick_params(labelsize=6)
        draw_as_they_are((*axes.get_xticklabels(), *axes.get_yticklabels()))
        axes.invert_yaxis()
        axes.margins(y=0.5 / len(codes) + 0.05)
        axes.set_title(name, fontsize=9)
    figure.colorbar(dots, ax=panels, shrink=0.8, label="mean log1p per 10k")
    return png_bytes(figure)
