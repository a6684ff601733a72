"""How well a measure finds the edges that a simulation put into the cells."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.cells.atlas.edges import KINDS, TrueEdges, true_edges
from core.interactions.cells import ContextCells, FloatArray
from core.model.folder import CellModel


@dataclass(frozen=True)
class EdgeScore:
    """One measure against the edges of a context, or of one kind of them, over ordered pairs."""

    measure: str
    #: A kind of `core.cells.atlas.edges.KINDS`, or "all".
    kind: str
    n_edges: int
    #: Area under precision and recall, and the same over what chance gives.
    average_precision: float
    over_chance: float
    #: Precision among as many pairs as there are edges.
    early_precision: float
    auroc: float
    #: Mean AUROC of each source's own targets: which genes respond when its programme is silenced.
    responders: float
    #: Fraction of edges whose weight has the right sign; NaN for a measure without a sign.
    sign: float


def edges_of_context(model: CellModel, cells: ContextCells) -> TrueEdges:
    """Return the edges of the simulated atlas in a context, over the genes of the model."""
    return true_edges(model.panel.ids, *conditions_of(model, cells))


def conditions_of(model: CellModel, cells: ContextCells) -> tuple[list[dict[str, str]], list[int]]:
    """Return the combinations of phenotypes of a context, name -> value, and their cells."""
    names = list(model.config.phenotypes)
    combinations, counts = np.unique(cells.codes, axis=0, return_counts=True)
    conditions = [
        {
            name: model.config.phenotypes[name][code]
            for name, code in zip(names, row, strict=True)
            if code >= 0
        }
        for row in combinations.tolist()
    ]
    return conditions, counts.tolist()


def score_edges(
    measures: Mapping[str, FloatArray], truth: TrueEdges, signed: set[str]
) -> list[EdgeScore]:
    """Score (S, T) measures against edges of the same shape; NaN pairs are left out.

    Pairs of one kind are compared with all pairs that vary together in no cell of the context.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # 1 s

    scores = []
    for name, weight in measures.items():
        known = ~np.isnan(weight)
        for kind in ("all", *KINDS):
            of_kind = truth.sign != 0 if kind == "all" else truth.kind == KINDS.index(kind)
            used = known & (of_kind | ((truth.sign == 0) & ~truth.is_partial))
            label, size = of_kind[used], np.abs(weight[used])
            n = int(label.sum())
            if not 0 < n < len(label):
                continue
            first = np.argsort(-size, kind="stable")[:n]
            precision = float(average_precision_score(label, size))
            right = np.sign(weight[known & of_kind]) == truth.sign[known & of_kind]
            scores.append(
                EdgeScore(
                    measure=name,
                    kind=kind,
                    n_edges=n,
                    average_precision=precision,
                    over_chance=precision / (n / len(label)),
                    early_precision=float(label[first].mean()),
                    auroc=float(roc_auc_score(label, size)),
                    responders=_mean_of_sources(weight, of_kind, used),
                    sign=float(right.mean()) if name in signed else float("nan"),
                )
            )
    return scores


def _mean_of_sources(
    weight: FloatArray, is_edge: NDArray[np.bool_], used: NDArray[np.bool_]
) -> float:
    from sklearn.metrics import roc_auc_score  # 1 s

    found = [
        roc_auc_score(label[some], np.abs(row[some]))
        for row, label, some in zip(weight, is_edge, used, strict=True)
        if label[some].any() and not label[some].all()
    ]
    return float(np.mean(found)) if found else float("nan")
