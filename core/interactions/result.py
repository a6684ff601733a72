"""What was found: the edges of a context, or of the difference of two, and what chooses their weight.

The weight of an edge is the effect in a model whose log-linear part has couplings, and the correlation shrunken to
that of all cells for any other model: its effects find the edges of the simulated atlas less well (benchmarks/interactions.md).
If held-out donors hold more evidence for the strongest pairs of another measure
(`core.interactions.statistics.held_out_evidence`), the weight is that measure. The network says which it is and
why, and every measure stays in the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.cells.genes import GenePanel
from core.interactions.cells import FloatArray, Integers
from core.interactions.known_edges import KnownResult
from core.interactions.request import CHOICES
from core.interactions.statistics import top_pairs
from core.interactions.truth import EdgeScore

#: q below which an edge counts as found.
FOUND = 0.05
#: Pairs of largest weight whose overlap between halves of the donors is measured, at most.
_STABLE = 100


@dataclass(frozen=True)
class Network:
    """Edges of a context, or the difference of two contexts; matrices are (sources, targets), NaN without an edge."""

    context: str
    n_cells: int
    n_donors: int
    genes: GenePanel
    sources: Integers
    targets: Integers
    #: "model" (the mean of both directions, where both are known), "model_error" and "model_directed", its parts
    #: "log_linear" and "encoder" if it has two, and measures of the cells.
    measures: dict[str, FloatArray]
    #: The measure that is the weight, and that which it is unless held-out donors favour another.
    chosen: str
    default: str
    #: Against cells that exchange targets, and against targets of the same detection rate and mean; q of the
    #: larger of both.
    p: FloatArray
    p_matched: FloatArray
    q: FloatArray
    relative_error: float
    n_passes: int
    #: Jaccard index of the strongest pairs of two halves of the donors, by the model; NaN for a difference.
    stability: float
    #: Measure -> evidence of held-out donors for its strongest pairs; empty where it cannot be had.
    evidence: dict[str, float]
    #: Difference of evidence that a measure must have to the default, to be the weight.
    margin: float
    #: Against the truth of simulated cells; empty for real ones.
    scores: tuple[EdgeScore, ...]
    #: Against the reference networks of the request.
    known: tuple[KnownResult, ...]
    notes: tuple[str, ...]

    @property
    def weight(self) -> FloatArray:
        """The chosen measure."""
        return self.measures[self.chosen]

    @property
    def n_stable(self) -> int:
        """Number of strongest pairs whose `stability` is measured."""
        return n_strongest(self.q.size)

    @property
    def n_found(self) -> int:
        """Number of edges with q below `FOUND`."""
        return int((self.q < FOUND).sum())

    @property
    def about_weights(self) -> list[str]:
        """Sentences on what the weights are, and what held-out donors say of them."""
        if not self.evidence and np.isnan(self.stability):  # a difference
            return []
        found: list[str] = []
        if self.chosen == self.default != "model":
            found.append(
                f"the weights are {self.chosen}, not the model's effects: a model without couplings finds edges "
                "less well than correlation; --weight model takes the model's"
            )
        if not self.evidence:
            few = "too few cells of other donors are left to compare the model with simple measures"
            return [*found, few] if self.chosen == self.default else found
        best, of = best_measure(self.evidence, self.margin, self.default), self.evidence
        if best != self.chosen:
            compared = f"{of[best]:.2f} against {of.get(self.chosen, np.nan):.2f}"
            found.append(
                f"held-out donors hold more evidence for {best} ({compared}), a column of the table"
            )
        elif best != self.default:
            compared = f"{of[best]:.2f} against {of[self.default]:.2f}"
            instead = "the model's effects" if self.default == "model" else self.default
            how = "" if best == "model" else "; --weight model takes the model's"
            found.append(
                f"the weights are {best}, not {instead}: held-out donors hold more evidence for its "
                f"strongest pairs ({compared}){how}"
            )
        if of.get("detection", -np.inf) > of[best] + self.margin:
            found.append(
                "detection rates alone rank the pairs better in held-out donors than any measure: what "
                "these cells show are effects of single genes"
            )
        return found

    @property
    def is_directed(self) -> bool:
        """Whether both directions of a pair may have different weights."""
        return self.weight.shape[0] != self.weight.shape[1] or not np.allclose(
            self.weight, self.weight.T, equal_nan=True
        )

    def strongest(self, n: int) -> list[tuple[int, int]]:
        """Return rows and columns of the strongest edges, those found if there are any.

        Without directions every pair comes once.
        """
        weight = self.weight
        if not self.is_directed:
            weight = np.where(np.tri(len(weight), dtype=bool), np.nan, weight)
        flat = top_pairs(np.where(self.q < FOUND, weight, np.nan), n)
        if len(flat) == 0:
            flat = top_pairs(weight, n)
        rows, columns = np.divmod(flat, len(self.targets))
        return list(zip(rows.tolist(), columns.tolist(), strict=True))


@dataclass(frozen=True)
class Interactions:
    """The networks of a request: one context, or two and their difference."""

    networks: tuple[Network, ...]
    difference: Network | None
    model_name: str
    is_simulated: bool


def n_strongest(n_pairs: int) -> int:
    """Return how many of the strongest of so many pairs are compared between halves of the donors."""
    return min(_STABLE, max(n_pairs // 10, 1))


def best_measure(evidence: Mapping[str, float], margin: float, default: str = "model") -> str:
    """Return the measure with most evidence that a weight can be; the default unless it is clearly behind."""
    best = max(CHOICES, key=lambda name: evidence.get(name, -np.inf))
    is_ahead = evidence.get(best, -np.inf) > evidence.get(default, -np.inf) + margin
    return best if is_ahead else default
