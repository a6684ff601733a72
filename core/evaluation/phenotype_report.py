"""All that is said of the answers to one phenotype, the same for the model and each baseline."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.evaluation.age_error import mean_years_off
from core.evaluation.bootstrap import bootstrap_scores
from core.evaluation.calibration import calibrate
from core.evaluation.donor_spread import spread_over_donors
from core.evaluation.phenotype_metrics import score_phenotype

__all__ = ["report_answers", "top_accuracy"]

#: Phenotypes whose values stand for years.
_IS_AGE = re.compile(r"(^|_)age(_|$)|(^|_)development_stage$")
_TOP = 3


def report_answers(
    name: str,
    values: Sequence[str],
    truth: NDArray[np.integer[Any]],
    answers: Mapping[str, NDArray[np.floating[Any]]],
    *,
    donors: NDArray[np.integer[Any]] | None = None,
    donor_names: Sequence[str] = (),
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Score the answers of several methods on the same cells.

    Parameters
    ----------
    name, values
        The phenotype.
    truth
        (cells,), codes of `values`, -1 where missing.
    answers
        Method -> (cells, values) probabilities; the first is the model.
    donors, donor_names
        (cells,) codes of the names, -1 where not known; None without donors.
    seed
        Of the bootstrap.

    Returns
    -------
    Method -> its figures, as in report.json (docs/evaluation.md).
    """
    predicted = {method: told.argmax(axis=1) for method, told in answers.items()}
    intervals = bootstrap_scores(truth, predicted, len(values), donors=donors, seed=seed)
    report: dict[str, dict[str, Any]] = {}
    for number, (method, codes) in enumerate(predicted.items()):
        figures = score_phenotype(truth, codes, values).to_dict()
        figures["top3_accuracy"] = top_accuracy(answers[method], truth, _TOP)
        if _IS_AGE.search(name):
            figures["mean_years_off"] = mean_years_off(truth, codes, values)
        figures["calibration"] = calibrate(answers[method], truth).to_dict()
        if donors is not None:
            spread = spread_over_donors(truth, codes, donors, donor_names)
            figures["over_donors"] = spread.to_dict(each=number == 0)
        if method in intervals:
            figures["intervals"] = intervals[method].to_dict()
        report[method] = figures
    return report


def top_accuracy(
    probabilities: NDArray[np.floating[Any]], true_codes: NDArray[np.integer[Any]], n_top: int
) -> float | None:
    """Share of cells whose true value is among the ``n_top`` most probable.

    Of equally probable values the first of the list count as more probable. None where there are
    no labelled cells, or no more values than that, so that any answer would do.
    """
    labelled = true_codes >= 0
    if not labelled.any() or probabilities.shape[1] <= n_top:
        return None
    top = np.argsort(-probabilities[labelled], axis=1, kind="stable")[:, :n_top]
    return float((top == true_codes[labelled, None]).any(axis=1).mean())
