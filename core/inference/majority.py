"""Labels of groups of cells: a majority vote among neighbours or in clusters; markers by predicted label.

A single cell has few counts, and its neighbours are mostly of its kind: the label that most of them have is less
often wrong. Cells whose prediction is unsure do not vote, but count: where no value has the majority, the label is
`UNKNOWN`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.spelling import is_missing, suggest
from core.errors import DataError
from core.evaluation.report.pictures import draw_as_they_are
from core.inference.annotate import PhenotypePredictions
from core.inference.query_cells import QueryCells
from core.model.folder import CellModel
from core.wording import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The label without a majority, and the word for a vote of each cell's neighbours.
UNKNOWN, NEIGHBOURS = "unknown", "neighbours"
#: As scanpy's own defaults.
_COMPONENTS, _N_NEIGHBOURS = 50, 15
_BLOCK = 4_096
#: Of the dot plot: genes of each label, and labels, those of most cells first.
_GENES_EACH, _MOST_LABELS = 3, 25


@dataclass(frozen=True)
class VotingGroups:
    """Groups that vote: ``members`` (groups, cells) has a one for each member, ``group_of`` is (cells,), -1 for none."""

    members: sparse.csr_matrix
    group_of: NDArray[np.int64]


def panel_expression(query: QueryCells) -> sparse.csr_matrix:
    """Read (cells, model's genes) log1p counts per 10,000 of all cells."""
    blocks = [expression for _, expression, _ in query.blocks(_BLOCK)]
    return sparse.vstack(blocks, format="csr")


def neighbours_of(expression: sparse.csr_matrix) -> VotingGroups:
    """Group each cell with its nearest neighbours in the principal components of (cells, genes) (scanpy)."""
    import scanpy as sc  # 1 s
    from anndata import AnnData

    cells = AnnData(expression)
    n_cells, n_genes = expression.shape
    n_components = min(_COMPONENTS, n_cells - 1, n_genes - 1)
    members = sparse.eye_array(n_cells, format="csr")
    if n_components > 0 and n_cells > _N_NEIGHBOURS:
        sc.pp.pca(cells, n_comps=n_components)
        sc.pp.neighbors(
            cells, n_neighbors=_N_NEIGHBOURS, method="gauss"
        )  # umap's compiles for 10 s
        members = members + (cells.obsp["distances"] > 0)
    return VotingGroups(sparse.csr_matrix(members, dtype=np.float32), np.arange(n_cells))


def clusters_of(query: QueryCells, column: str) -> VotingGroups:
    """Group cells by the labels of an obs column; DataError if the file has no such column."""
    present = query.source.obs_columns([]).attrs["columns"]
    if column not in present:
        raise DataError(
            f"{query.source.name}: --majority {column} names an obs column that does not exist; "
            f"{suggest(column, [NEIGHBOURS, *present])}"
        )
    texts = query.source.obs_columns([column])[column].astype(str)
    codes, clusters = pd.factorize(texts.where(~texts.map(is_missing)))
    known = np.flatnonzero(codes >= 0)
    members = sparse.csr_matrix(
        (np.ones(len(known), np.float32), (codes[known], known)), shape=(len(clusters), len(codes))
    )
    return VotingGroups(members, codes.astype(np.int64))


def majority_labels(
    predictions: PhenotypePredictions,
    is_unsure: NDArray[np.bool_],
    groups: VotingGroups,
    *,
    above: float = 0.5,
) -> "pd.Categorical[str]":
    """(cells,), the value that more than the fraction ``above`` of a cell's group has, else `UNKNOWN`."""
    values = list(predictions.values)
    sure = np.flatnonzero(~is_unsure)
    votes = sparse.csr_matrix(
        (np.ones(len(sure), np.float32), (sure, predictions.codes[sure])),
        shape=(len(is_unsure), len(values)),
    )
    counts = (groups.members @ votes).toarray()
    n_members = np.maximum(np.asarray(groups.members.sum(axis=1)).ravel(), 1)
    categories = values if UNKNOWN in values else [*values, UNKNOWN]
    unknown = categories.index(UNKNOWN)
    winner = np.where(counts.max(axis=1) > above * n_members, counts.argmax(axis=1), unknown)
    codes = np.append(winner, unknown)[groups.group_of]
    return pd.Categorical.from_codes(codes.tolist(), pd.Index(categories))


def marker_dot_plot(
    model: CellModel,
    expression: sparse.csr_matrix,
    labels: "pd.Categorical[str]",
    phenotype: str,
    genes: Sequence[int] = (),
) -> "Figure":
    """Draw scanpy's dot plot of genes by label, over (cells, model's genes): mean, and fraction of cells.

    ``genes`` are columns of the panel; by default those that training cells of each label have more than the
    others. Labels of most cells come first, at most `_MOST_LABELS`.
    """
    import scanpy as sc
    from anndata import AnnData
    from matplotlib import pyplot
    from matplotlib.text import Text

    counts = pd.Series(labels).value_counts()
    shown = [str(label) for label in counts[counts > 0].index[:_MOST_LABELS]]
    shown.sort(key=lambda label: label == UNKNOWN)  # the last
    symbols = pd.Index([visible(one, most=40) for one in model.panel.symbols])
    cells = AnnData(
        expression,
        obs=pd.DataFrame(
            {phenotype: pd.Categorical([visible(str(label)) for label in labels])},
            index=pd.RangeIndex(len(labels)).astype(str),
        ),
        var=pd.DataFrame(index=symbols),
    )
    cells.var_names_make_unique()
    drawn = cells[np.isin(np.asarray(labels, dtype=str), shown)].copy()
    names = list(cells.var_names)
    chosen: dict[str, list[str]] | list[str] = [names[gene] for gene in genes]
    if not genes:
        columns = _markers(model, phenotype, shown)
        chosen = {visible(label): [names[gene] for gene in some] for label, some in columns.items()}
    order = [visible(label) for label in shown]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on versions of pandas and matplotlib
        plot = sc.pl.dotplot(
            drawn, chosen, phenotype, categories_order=order, return_fig=True, show=False
        )
        plot.make_figure()
    figure: Figure = plot.fig
    draw_as_they_are(figure.findobj(Text))
    pyplot.close(figure)
    return figure


def _markers(model: CellModel, phenotype: str, labels: Sequence[str]) -> dict[str, list[int]]:
    """Return label -> genes that its training cells have more than those of the other labels shown."""
    values = list(model.config.phenotypes[phenotype])
    slot = list(model.config.phenotypes).index(phenotype)
    start = int(np.sum(model.config.phenotype_sizes[:slot], dtype=int))
    rows = [values.index(label) for label in labels if label in values]
    means = model.reference.means[start + np.array(rows, dtype=int)]
    found: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        others = np.delete(means, at, axis=0)
        rest = others.mean(axis=0) if len(others) else np.zeros(means.shape[1], means.dtype)
        found[values[row]] = np.argsort(rest - means[at], kind="stable")[:_GENES_EACH].tolist()
    return found
