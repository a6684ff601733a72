"""What a reviewer would ask about the scores of held-out cells, as notes of the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.checks.donor_rows import confounded_values
from core.evaluation.report.records import PhenotypeScores, TwoGeneScores
from core.wording import listed

#: A value, or a split, of fewer donors is confounded with them.
_FEW_DONORS = 3
#: Two genes whose accuracy is this near to the model's show that it needed no more.
_NEAR = 0.01
#: Two genes of a lower balanced accuracy are not worth a note.
_LEAST_BALANCED = 0.75
#: Scores in which a baseline may be better.
_COMPARED = {"accuracy": "accuracy", "macro_f1": "macro-F1"}

Integers = NDArray[np.integer[Any]]


def review_scores(name: str, methods: Mapping[str, PhenotypeScores]) -> Iterator[str]:
    """Name the baselines that score higher than the model, to the three digits of the report."""
    model = methods["model"]
    for method, baseline in methods.items():
        if method in ("model", "majority"):
            continue
        pairs = {
            label: (round(getattr(model, score), 3), round(getattr(baseline, score), 3))
            for score, label in _COMPARED.items()
        }
        lower = [label for label, (ours, theirs) in pairs.items() if ours < theirs]
        if lower:
            scores = ", ".join(
                f"{label} {ours:.3f} against {theirs:.3f}"
                for label, (ours, theirs) in pairs.items()
            )
            yield (
                f"{name}: the model scores lower than {method.replace('_', ' ')} in "
                f"{' and '.join(lower)} ({scores}){_chance(baseline)}"
            )
    if "majority" in methods and model.accuracy <= methods["majority"].accuracy:
        yield f"{name}: the model is no better than always predicting the most common value"


def _chance(baseline: PhenotypeScores) -> str:
    """Note a difference that may be chance: zero is in the intervals of both scores."""
    intervals = baseline.intervals
    difference = None if intervals is None else intervals.model_minus_method
    if intervals is None or difference is None:
        return ""
    bounds = [getattr(difference, score) for score in _COMPARED]
    within = all(low <= 0 <= high for low, high in bounds)
    return f"; within chance (95 %, over {intervals.resampled})" if within else ""


def review_labels(
    name: str, values: Sequence[str], truth: Integers, training: Integers
) -> Iterator[str]:
    """Note scored labels that could not be learnt, and a phenotype with a single scored value.

    ``truth`` and ``training`` are (cells,) codes of the scored and of the training cells, -1 where missing.
    """
    n_scored = np.bincount(truth[truth >= 0], minlength=len(values))
    n_training = np.bincount(training[training >= 0], minlength=len(values))
    absent = np.flatnonzero((n_scored > 0) & (n_training == 0))
    if len(absent):
        n_cells = int(n_scored[absent].sum())
        yield (
            f"{name}: {_named(values, absent)} {_is(absent)} absent from training, so {n_cells:,} of "
            f"{int(n_scored.sum()):,} scored cells cannot be predicted rightly"
        )
    if (n_scored > 0).sum() == 1:
        yield f"{name}: all scored cells have one value, so its accuracy means little"


def review_donors(
    training_donors: Integers | None,
    scored_donors: Integers | None,
    n_donors: int,
    phenotypes: Mapping[str, Sequence[str]],
    training: Mapping[str, Integers],
    scored: Mapping[str, Integers],
) -> Iterator[str]:
    """Note what the scores owe to donors.

    Parameters
    ----------
    training_donors, scored_donors
        (cells,), codes below ``n_donors``, -1 where not known; None without donors.
    phenotypes
        Name -> values, of those with a scored label.
    training, scored
        Name -> (cells,) codes, -1 where missing.
    """
    if training_donors is None or scored_donors is None:
        yield (
            "donors are not known: training and scored cells may come from the same ones, so the "
            "scores may be too high"
        )
        return
    is_scored, is_trained = (
        np.bincount(donors[donors >= 0], minlength=n_donors) > 0
        for donors in (scored_donors, training_donors)
    )
    n_scored, n_both = int(is_scored.sum()), int((is_scored & is_trained).sum())
    if n_both:
        yield (
            f"of {n_scored:,} scored donor{_s(n_scored)} {n_both:,} "
            f"{'has' if n_both == 1 else 'have'} cells in training, so the scores may be too high"
        )
    if 0 < n_scored < _FEW_DONORS:
        yield (
            f"the scores are those of {n_scored} donor{_s(n_scored)}; other donors may differ by more "
            "than the intervals"
        )
    of_donors = []
    for name, values in phenotypes.items():
        crossed = _cross(scored[name], scored_donors, len(values), n_donors)
        all_cells = crossed + _cross(training[name], training_donors, len(values), n_donors)
        donors_per_value = confounded_values(all_cells)
        if donors_per_value is not None:
            of_donors.append(name)
            few = np.flatnonzero((donors_per_value > 0) & (donors_per_value < _FEW_DONORS))
            if len(few):
                yield (
                    f"{name}: every donor has one value, and {_named(values, few)} {_is(few)} of fewer "
                    f"than {_FEW_DONORS} donors, training and scored: any other difference between "
                    f"these donors and the rest looks like {name}"
                )
        per_value = (crossed > 0).sum(axis=1)
        few = np.flatnonzero((per_value > 0) & (per_value < _FEW_DONORS))
        if len(few) and n_scored >= _FEW_DONORS:
            yield (
                f"{name}: {_named(values, few)} {_is(few)} scored on fewer than {_FEW_DONORS} donors"
            )
    if of_donors and n_scored:
        yield (
            f"{', '.join(of_donors)}: every donor has one value, so the sample is "
            f"{n_scored:,} donor{_s(n_scored)}, not {len(scored_donors):,} cells"
        )


def review_two_genes(name: str, model: PhenotypeScores, two_genes: TwoGeneScores) -> Iterator[str]:
    """Note that two genes alone do as well as the model."""
    is_good = two_genes.balanced_accuracy >= _LEAST_BALANCED
    if is_good and two_genes.accuracy >= model.accuracy - _NEAR:
        yield (
            f"{name}: {' and '.join(two_genes.genes)} alone reach accuracy "
            f"{two_genes.accuracy:.3f} (model {model.accuracy:.3f}), so the score means "
            f"little about the other genes"
        )


def _named(values: Sequence[str], codes: NDArray[np.int64]) -> str:
    return listed([f"'{values[code]}'" for code in codes.tolist()])


def _is(codes: NDArray[np.int64]) -> str:
    return "is" if len(codes) == 1 else "are"


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _cross(codes: Integers, donors: Integers, n_values: int, n_donors: int) -> NDArray[np.int64]:
    """(values, donors), cells."""
    known = (codes >= 0) & (donors >= 0)
    pairs = codes[known].astype(np.int64) * n_donors + donors[known]
    counts = np.bincount(pairs, minlength=n_values * n_donors)
    return counts.reshape(n_values, n_donors).astype(np.int64)
