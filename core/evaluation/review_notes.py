"""What a reviewer would ask about a held-out figure, said before the reviewer does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.checks.donor_rows import confounded_values
from core.wording import listed

__all__ = ["DonorTable", "review_donors", "review_labels", "review_scores", "review_two_genes"]

#: A value, or a split, of fewer donors cannot be told from these donors.
_FEW_DONORS = 3
#: Two genes that come this near to the model say that it needed no more.
_NEAR = 0.01
#: Balanced accuracy below which two genes tell nothing worth a note.
_TELLING = 0.75

#: Measures in which a baseline may be ahead.
_COMPARED = {"accuracy": "accuracy", "macro_f1": "macro-F1"}

Integers = NDArray[np.integer[Any]]


def review_scores(name: str, methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say which baselines the model loses to.

    Parameters
    ----------
    methods
        Method -> its figures, the model's first.
    """
    ours = methods["model"]
    for method, theirs in methods.items():
        behind = [one for one in _COMPARED if ours[one] < theirs[one]]
        if method in ("model", "majority") or not behind:
            continue
        figures = ", ".join(
            f"{_COMPARED[one]} {ours[one]:.3f} against {theirs[one]:.3f}" for one in _COMPARED
        )
        yield (
            f"{name}: the model loses to {method.replace('_', ' ')} in "
            f"{' and '.join(_COMPARED[one] for one in behind)} ({figures}){_chance(theirs)}"
        )
    if "majority" in methods and ours["accuracy"] <= methods["majority"]["accuracy"]:
        yield f"{name}: the model is no better than always answering the most common value"


def _chance(theirs: Mapping[str, Any]) -> str:
    """Say whether a lead could be chance: zero lies in the intervals of both differences."""
    lead = theirs["intervals"]["lead of the model"]
    within = all(lead[one][0] <= 0 <= lead[one][1] for one in _COMPARED)
    return f"; within chance (95 %, over {theirs['intervals']['resampled']})" if within else ""


def review_labels(
    name: str, values: Sequence[str], truth: Integers, training: Integers
) -> Iterator[str]:
    """Say which scored labels could not be learnt, and where there was nothing to tell apart.

    Parameters
    ----------
    truth, training
        (cells,), codes of the scored and of the training cells, -1 where missing.
    """
    n_scored = np.bincount(truth[truth >= 0], minlength=len(values))
    n_training = np.bincount(training[training >= 0], minlength=len(values))
    absent = np.flatnonzero((n_scored > 0) & (n_training == 0))
    if len(absent):
        n_cells = int(n_scored[absent].sum())
        yield (
            f"{name}: {_named(values, absent)} "
            f"{'is' if len(absent) == 1 else 'are'} absent from training, so {n_cells:,} of "
            f"{int(n_scored.sum()):,} scored cells cannot be told rightly"
        )
    if (n_scored > 0).sum() == 1:
        yield f"{name}: all scored cells have one value, so its accuracy says little"


@dataclass(frozen=True)
class DonorTable:
    """Donors of the training and of the scored cells.

    Attributes
    ----------
    training, scored
        (cells,), codes, -1 where not known.
    n_donors
        Number of codes.
    """

    training: Integers
    scored: Integers
    n_donors: int

    def are_scored(self) -> NDArray[np.bool_]:
        """(donors,), whether a scored cell is of it."""
        return np.bincount(self.scored[self.scored >= 0], minlength=self.n_donors) > 0

    def are_trained(self) -> NDArray[np.bool_]:
        """(donors,), whether a training cell is of it."""
        return np.bincount(self.training[self.training >= 0], minlength=self.n_donors) > 0


def review_donors(
    donors: DonorTable | None,
    phenotypes: Mapping[str, Sequence[str]],
    training: Mapping[str, Integers],
    scored: Mapping[str, Integers],
) -> Iterator[str]:
    """Say what the figures owe to donors.

    Parameters
    ----------
    donors
        None where the store knows none.
    phenotypes
        Name -> values, those with a scored label.
    training, scored
        Name -> (cells,) codes, -1 where missing.
    """
    if donors is None:
        yield (
            "donors are not known: training and scored cells may come from the same ones, so the "
            "figures may flatter"
        )
        return
    n_scored = int(donors.are_scored().sum())
    shared = int((donors.are_scored() & donors.are_trained()).sum())
    if shared:
        yield (
            f"of {n_scored:,} scored donor{'' if n_scored == 1 else 's'} {shared:,} "
            f"{'has' if shared == 1 else 'have'} cells in training, so the figures may flatter"
        )
    if 0 < n_scored < _FEW_DONORS:
        yield (
            f"the figures are those of {n_scored} donor{'' if n_scored == 1 else 's'}; others may "
            f"differ more than the intervals say"
        )
    of_donors = []
    for name, values in phenotypes.items():
        crossed = _cross(scored[name], donors.scored, len(values), donors.n_donors)
        everyone = crossed + _cross(training[name], donors.training, len(values), donors.n_donors)
        n_donors = confounded_values(everyone)
        if n_donors is not None:
            of_donors.append(name)
            few = np.flatnonzero((n_donors > 0) & (n_donors < _FEW_DONORS))
            if len(few):
                yield (
                    f"{name}: every donor has one value, and {_named(values, few)} "
                    f"{'is' if len(few) == 1 else 'are'} of fewer than {_FEW_DONORS} donors, training and "
                    f"scored: "
                    f"what sets these donors apart looks like {name}"
                )
        per_value = (crossed > 0).sum(axis=1)
        few = np.flatnonzero((per_value > 0) & (per_value < _FEW_DONORS))
        if len(few) and n_scored >= _FEW_DONORS:
            yield (
                f"{name}: {_named(values, few)} "
                f"{'is' if len(few) == 1 else 'are'} scored on fewer than {_FEW_DONORS} donors"
            )
    if of_donors and n_scored:
        yield (
            f"{', '.join(of_donors)}: every donor has one value, so the sample is "
            f"{n_scored:,} donor{'' if n_scored == 1 else 's'}, not {len(donors.scored):,} cells"
        )


def _named(values: Sequence[str], codes: NDArray[np.int64]) -> str:
    return listed([f"'{values[code]}'" for code in codes.tolist()])


def _cross(codes: Integers, donors: Integers, n_values: int, n_donors: int) -> NDArray[np.int64]:
    """(values, donors), cells."""
    known = (codes >= 0) & (donors >= 0)
    pairs = codes[known].astype(np.int64) * n_donors + donors[known]
    counts = np.bincount(pairs, minlength=n_values * n_donors)
    return counts.reshape(n_values, n_donors).astype(np.int64)


def review_two_genes(
    name: str, model: Mapping[str, Any], two_genes: Mapping[str, Any]
) -> Iterator[str]:
    """Say where two genes alone do as well as the model.

    Parameters
    ----------
    model
        Figures of the model.
    two_genes
        Those of `core.evaluation.two_genes.TwoGenes`.
    """
    is_telling = (two_genes["balanced_accuracy"] or 0) >= _TELLING
    if is_telling and two_genes["accuracy"] >= model["accuracy"] - _NEAR:
        yield (
            f"{name}: {' and '.join(two_genes['genes'])} alone reach accuracy "
            f"{two_genes['accuracy']:.3f} (model {model['accuracy']:.3f}), so the figure says "
            f"little about the other genes"
        )
