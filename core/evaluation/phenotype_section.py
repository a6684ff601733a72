"""The phenotypes of a report: the model's answers and the baselines', and what a reviewer would say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import GenePanel
from core.cells.store import Store
from core.evaluation.baselines import answer_baseline
from core.evaluation.phenotype_report import report_answers
from core.evaluation.review_notes import (
    DonorTable,
    review_donors,
    review_labels,
    review_scores,
    review_two_genes,
)
from core.evaluation.two_genes import tell_by_two_genes
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["KnownCells", "PhenotypeSection", "report_phenotypes"]


@dataclass(frozen=True)
class KnownCells:
    """Cells with known answers.

    Attributes
    ----------
    expression
        (cells, genes), log1p counts per 10k; the same genes for training and scored cells.
    codes
        (cells, phenotypes), -1 where missing.
    donors
        (cells,), -1 where not known; None without donors.
    """

    expression: sparse.csr_matrix
    codes: NDArray[np.integer[Any]]
    donors: NDArray[np.integer[Any]] | None

    @classmethod
    def of_store(cls, store: Store, rows: NDArray[np.int64], panel: GenePanel) -> "KnownCells":
        """Read cells of a store over the genes of a panel."""
        return cls(
            store.read(rows, panel),
            np.asarray(store.phenotype_codes[rows]),
            None if store.donors is None else np.asarray(store.donors[rows]),
        )

    def of_slots(self, slots: Sequence[int]) -> "KnownCells":
        """Return the same cells with some of their phenotypes."""
        return KnownCells(self.expression, self.codes[:, list(slots)], self.donors)


@dataclass(frozen=True)
class PhenotypeSection:
    """Parts of the report.

    Attributes
    ----------
    phenotypes
        phenotype -> method -> figures.
    two_genes
        phenotype -> what two genes reach.
    notes
        Remarks.
    """

    phenotypes: dict[str, dict[str, Any]]
    two_genes: dict[str, dict[str, Any]]
    notes: list[str]


def report_phenotypes(
    phenotypes: Mapping[str, Sequence[str]],
    probabilities: Mapping[str, NDArray[Any]],
    scored: KnownCells,
    training: KnownCells | None,
    *,
    baselines: Sequence[str],
    donor_names: Sequence[str],
    symbols: Sequence[str],
    seed: int,
    on_progress: Listener = ignore_progress,
) -> PhenotypeSection:
    """Score the model's answers beside baselines, phenotype by phenotype.

    Parameters
    ----------
    phenotypes
        Name -> values; those without a scored label are left out of the report.
    probabilities
        Name -> (scored cells, values), the model's.
    scored, training
        The cells; without training cells there are no baselines.
    baselines
        Methods of `core.evaluation.baselines`.
    donor_names
        Names behind the donors' codes, of both sides.
    symbols
        Names of the genes.
    seed
        Of samples and bootstrap draws.
    """
    reports: dict[str, dict[str, Any]] = {}
    two_genes: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for slot, (name, values) in enumerate(phenotypes.items()):
        truth = scored.codes[:, slot]
        if not (truth >= 0).any():
            continue
        on_progress(ProgressEvent("fitting baselines", slot, len(phenotypes)))
        known = np.zeros(0, np.int64) if training is None else training.codes[:, slot]
        answers: dict[str, Any] = {"model": probabilities[name]}
        if training is not None and (known >= 0).any():
            for method in baselines:
                answers[method] = answer_baseline(
                    method, training.expression, known, scored.expression, len(values), seed=seed
                )
        reports[name] = report_answers(
            name, values, truth, answers,
            donors=scored.donors, donor_names=donor_names, seed=seed,
        )  # fmt: skip
        notes += review_scores(name, reports[name])
        if training is None:
            continue
        notes += review_labels(name, values, truth, known)
        told = tell_by_two_genes(training.expression, known, scored.expression, truth, len(values))
        if told is not None:
            two_genes[name] = told.to_dict(symbols)
            notes += review_two_genes(name, reports[name]["model"], two_genes[name])
    on_progress(ProgressEvent("fitting baselines", len(phenotypes), len(phenotypes)))
    notes += _donor_notes(phenotypes, list(reports), scored, training, len(donor_names))
    return PhenotypeSection(reports, two_genes, notes)


def _donor_notes(
    phenotypes: Mapping[str, Sequence[str]],
    reported: Sequence[str],
    scored: KnownCells,
    training: KnownCells | None,
    n_donors: int,
) -> list[str]:
    nothing = np.zeros((0, len(phenotypes)), dtype=np.int64)
    codes = nothing if training is None else training.codes
    of_training = nothing[:, 0] if training is None else training.donors
    table = (
        None
        if scored.donors is None or of_training is None
        else DonorTable(of_training, scored.donors, n_donors)
    )
    return list(
        review_donors(
            table,
            {name: phenotypes[name] for name in reported},
            dict(zip(phenotypes, codes.T, strict=True)),
            dict(zip(phenotypes, scored.codes.T, strict=True)),
        )
    )
