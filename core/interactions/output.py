"""Networks as tables, .h5ad, GraphML and pictures."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import MachineError
from core.evaluation.report.pictures import draw_as_they_are, figure_bytes, new_figure, shortened
from core.files import csv_cell, replace_file, replacing
from core.interactions.baselines import MEASURE_NAMES
from core.interactions.kept import KEPT_EDGES, KEPT_GENES
from core.interactions.known_edges import about_known
from core.interactions.result import FOUND, Interactions, Network
from core.interactions.statistics import top_pairs
from core.wording import visible

#: Genes of a picture, and edges of OpenProblems' table, at most.
_MOST_GENES, _MOST_EDGES = 60, 50_000
_POSITIVE, _NEGATIVE = "#d55e00", "#0072b2"  # Okabe and Ito


def edge_table(found: Interactions) -> pd.DataFrame:
    """Return every edge of every network, the strongest first: a row per context and ordered pair.

    Columns: source, target (symbols) and their ids, weight, sign, found (q below 0.05), p, p_matched, q,
    context, cells, donors, weight_is (the measure that is the weight), and all measures.
    """
    return pd.concat([_rows_of(one) for one in _networks(found)], ignore_index=True)


def _networks(found: Interactions) -> list[Network]:
    return [*found.networks, *([found.difference] if found.difference is not None else [])]


def _rows_of(network: Network) -> pd.DataFrame:
    order = top_pairs(network.weight, network.weight.size)
    row, column = np.divmod(order, len(network.targets))
    source, target = network.sources[row], network.targets[column]
    ids, symbols = (
        np.array(names, dtype=object) for names in (network.genes.ids, network.genes.symbols)
    )
    weight = network.weight.ravel()[order]
    columns: dict[str, Any] = {
        "source": symbols[source],
        "target": symbols[target],
        "weight": weight,
        "sign": np.sign(weight).astype(np.int8),
        "found": network.q.ravel()[order] < FOUND,
    }
    for name in ("p", "p_matched", "q"):
        columns[name] = getattr(network, name).ravel()[order]
    columns |= {
        "context": network.context,
        "cells": network.n_cells,
        "donors": network.n_donors,
        "weight_is": network.chosen,
    }
    columns |= {name: one.ravel()[order] for name, one in network.measures.items()}
    columns |= {"source_id": ids[source], "target_id": ids[target]}
    return pd.DataFrame(columns)  # fmt: skip


# ------------------------------------------------------------------------------------------ files
def write_interactions(found: Interactions, path: Path, *, top: int) -> None:
    """Write networks in the form of the ending: `WRITERS`.

    ``top`` edges of each network are in a graph or a picture. MachineError if Parquet is requested and
    pyarrow is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix](found, path, top)


def _write_csv(found: Interactions, path: Path, top: int) -> None:
    write_csv(edge_table(found), path)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table without its index; no text of it is a formula for a spreadsheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.copy()
    for name in table.select_dtypes(object):
        table[name] = table[name].map(csv_cell)
    replace_file(path, table.to_csv(index=False, float_format="%.6g"))


def _write_parquet(found: Interactions, path: Path, top: int) -> None:
    buffer = io.BytesIO()
    try:
        edge_table(found).to_parquet(buffer, index=False)
    except ImportError:
        raise MachineError(
            f"{path}: Parquet needs the package pyarrow; install it (pip install pyarrow), or write .csv"
        ) from None
    replace_file(path, buffer.getvalue())


def _write_h5ad(found: Interactions, path: Path, top: int) -> None:
    """Genes in var, a (genes, genes) matrix per network in varp, row = source, and the table in uns."""
    from anndata import AnnData  # 400 ms

    first = found.networks[0]
    used = np.union1d(first.sources, first.targets)
    panel = first.genes.take(used)
    adata = AnnData(
        shape=(0, len(used)),
        var=pd.DataFrame({"gene_symbol": list(panel.symbols)}, index=pd.Index(panel.ids)),
    )
    rows, columns = np.searchsorted(used, first.sources), np.searchsorted(used, first.targets)
    names = []
    for number, network in enumerate(_networks(found)):
        key = "interactions" if number == 0 else f"interactions_{number + 1}"
        names.append({"key": key, "context": network.context, "weight": network.chosen})
        for end, matrix in (("", network.weight), ("_q", network.q)):
            whole = np.zeros((len(used), len(used)), dtype=np.float32)
            whole[np.ix_(rows, columns)] = np.nan_to_num(matrix, nan=0.0 if not end else 1.0)
            adata.varp[f"{key}{end}"] = whole
    strongest = edge_table(found)
    strongest = strongest[strongest["context"] == first.context].head(_MOST_EDGES)
    # The form of a prediction in OpenProblems' task of gene regulatory network inference.
    adata.uns["method_id"] = f"tfx {first.chosen}"
    adata.uns["dataset_id"] = first.context
    adata.uns["prediction"] = strongest[["source", "target", "weight"]].reset_index(drop=True)
    adata.uns["tfx_interactions"] = json.dumps(
        {"model": found.model_name, "networks": names, "simulated": found.is_simulated}
    )
    with replacing(path) as temporary:
        adata.write_h5ad(temporary)


def _graph(found: Interactions, top: int) -> Any:  # noqa: ANN401 - networkx has no types
    """Return the strongest edges as a networkx graph, with attributes that Cytoscape reads."""
    import networkx  # 300 ms; comes with torch

    graph = networkx.MultiDiGraph()
    for network in _networks(found):
        for row, column in network.strongest(top):
            genes = int(network.sources[row]), int(network.targets[column])
            ends = [
                visible(network.genes.ids[gene]) for gene in genes
            ]  # XML has no control characters
            for end, gene in zip(ends, genes, strict=True):
                symbol = visible(network.genes.symbols[gene])
                graph.add_node(end, name=symbol, label=symbol)
            weight = float(network.weight[row, column])
            graph.add_edge(
                *ends,
                weight=weight,
                strength=abs(weight),
                interaction="positive" if weight > 0 else "negative",
                direction="source to target" if network.is_directed else "both",
                q=float(np.nan_to_num(network.q[row, column], nan=1.0)),
                context=visible(network.context),
            )
    return graph


def _write_graphml(found: Interactions, path: Path, top: int) -> None:
    import networkx

    buffer = io.BytesIO()
    networkx.write_graphml(_graph(found, top), buffer)
    replace_file(path, buffer.getvalue())


def _write_picture(found: Interactions, path: Path, top: int) -> None:
    networks = _networks(found)
    figure = new_figure(13.0, 6.2 * len(networks))
    for number, network in enumerate(networks):
        heat = figure.add_subplot(len(networks), 2, 2 * number + 1)
        _draw_heat_map(figure, heat, network)
        graph = figure.add_subplot(len(networks), 2, 2 * number + 2)
        _draw_graph(graph, network, top)
    replace_file(path, figure_bytes(figure, path.suffix))


def _draw_heat_map(figure: Any, axes: Any, network: Network) -> None:  # noqa: ANN401 - matplotlib's
    """Draw the weights among the genes of largest weight."""
    rows, columns = _of_largest_weight(network, _MOST_GENES)
    shown = np.nan_to_num(network.weight[np.ix_(rows, columns)])
    most = max(float(np.quantile(np.abs(shown), 0.99)), 1e-9)
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    sources = [shortened(network.genes.symbols[network.sources[row]], length=14) for row in rows]
    targets = [shortened(network.genes.symbols[network.targets[one]], length=14) for one in columns]
    axes.set_yticks(range(len(sources)), sources, fontsize=5)
    axes.set_xticks(range(len(targets)), targets, rotation=90, fontsize=5)
    axes.set_ylabel("source", fontsize=8)
    axes.set_xlabel("target", fontsize=8)
    axes.set_title(
        shortened(f"{network.context}: {network.chosen}, {network.n_cells:,} cells", length=80),
        fontsize=9,
    )
    draw_as_they_are((axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()))
    figure.colorbar(image, ax=axes, shrink=0.7, label="weight")


def _of_largest_weight(network: Network, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and columns of largest weight, in the order of a clustering."""
    size = np.abs(np.nan_to_num(network.weight))
    return (
        _clustered(network.weight, np.argsort(-size.max(axis=1))[:most]),
        _clustered(network.weight.T, np.argsort(-size.max(axis=0))[:most]),
    )


def _clustered(weight: NDArray[np.float64], some: NDArray[np.int64]) -> NDArray[np.int64]:
    from scipy.cluster.hierarchy import leaves_list, linkage  # 300 ms

    if len(some) < 3:
        return some
    profile = np.nan_to_num(weight[some])
    return some[leaves_list(linkage(profile, method="average", metric="euclidean"))]


def _draw_graph(axes: Any, network: Network, top: int) -> None:  # noqa: ANN401 - matplotlib's
    """Draw the strongest edges, red where positive, in a spring layout."""
    import networkx

    edges = network.strongest(top)
    graph = networkx.Graph()
    for row, column in edges:
        ends = int(network.sources[row]), int(network.targets[column])
        graph.add_edge(*ends, weight=float(network.weight[row, column]))
    place = networkx.spring_layout(graph, seed=0, k=1.5 / np.sqrt(max(len(graph), 1)), weight=None)
    most = max((abs(one) for *_, one in graph.edges(data="weight")), default=1.0)
    for first, second, weight in graph.edges(data="weight"):
        x, y = zip(place[first], place[second], strict=True)
        colour = _POSITIVE if weight > 0 else _NEGATIVE
        axes.plot(x, y, color=colour, linewidth=0.4 + 2.0 * abs(weight) / most, alpha=0.6, zorder=1)
    for gene, (x, y) in place.items():
        axes.scatter([x], [y], s=12, color="black", zorder=2)
        name = shortened(network.genes.symbols[gene], length=14)
        draw_as_they_are(
            [axes.annotate(name, (x, y), fontsize=6, xytext=(2, 2), textcoords="offset points")]
        )
    axes.set_axis_off()
    axes.set_title(
        f"the {len(edges):,} strongest edges (red: positive, blue: negative)", fontsize=9
    )


WRITERS: dict[str, Callable[[Interactions, Path, int], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".h5ad": _write_h5ad,
    ".graphml": _write_graphml,
    ".png": _write_picture,
    ".svg": _write_picture,
    ".pdf": _write_picture,
}


def kept_record(found: Interactions) -> dict[str, object]:
    """Return what `core.interactions.kept` keeps of networks."""
    networks = [
        {
            **_summary_of(one, KEPT_EDGES),
            "measure": MEASURE_NAMES[one.chosen],
            "is_baseline": not one.chosen.startswith("model"),
            "heat_map": _kept_heat_map(one),
        }
        for one in _networks(found)
    ]
    return {"simulated": found.is_simulated, "networks": networks}


def _kept_heat_map(network: Network) -> dict[str, object]:
    rows, columns = _of_largest_weight(network, KEPT_GENES)
    symbols = network.genes.symbols
    return {
        "sources": [symbols[gene] for gene in network.sources[rows].tolist()],
        "targets": [symbols[gene] for gene in network.targets[columns].tolist()],
        "weights": [
            [float(f"{weight:.4g}") for weight in row]
            for row in network.weight[np.ix_(rows, columns)].tolist()
        ],
    }


def summary(found: Interactions, n_edges: int) -> list[dict[str, object]]:
    """Return what a report says of each network: cells, donors, nulls, choice, strongest edges."""
    return [_summary_of(one, n_edges) for one in _networks(found)]


def _summary_of(network: Network, n_edges: int) -> dict[str, object]:
    edges: Sequence[dict[str, object]] = [
        {
            "source": network.genes.symbols[network.sources[row]],
            "target": network.genes.symbols[network.targets[column]],
            "weight": float(network.weight[row, column]),
            "p": float(network.p[row, column]),
            "p_matched": float(network.p_matched[row, column]),
            "q": float(network.q[row, column]),
        }
        for row, column in network.strongest(n_edges)
    ]
    return {
        "context": network.context,
        "cells": network.n_cells,
        "donors": network.n_donors,
        "sources": len(network.sources),
        "targets": len(network.targets),
        "weight": network.chosen,
        "found": network.n_found,
        "relative_error": network.relative_error,
        "passes": network.n_passes,
        "stability": network.stability,
        "stability_pairs": network.n_stable,
        "held_out_evidence": network.evidence,
        "edges": edges,
        "truth": [vars(score) for score in network.scores],
        "known": [asdict(one) for one in network.known],
        "notes": [
            *network.notes,
            *network.about_weights,
            *about_known(network.known, MEASURE_NAMES),
        ],
    }
