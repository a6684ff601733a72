"""What the two reports hold: these classes are the schema of their report.json.

An undefined number is NaN here and null in JSON. A part that a report does not have is None (or empty) here
and missing in JSON. The meaning of each number: docs/evaluation.md and docs/fidelity.md.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter

from core.files import file_json, plain_json
from core.renamed import current_report

EVALUATION_VERSION, FIDELITY_VERSION = 3, 2

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
Interval = tuple[Number, Number]
#: (true values, predicted values), cells.
Confusion = list[list[int]]


@dataclass(frozen=True)
class Difference:
    """A difference and its 95 % bootstrap interval."""

    value: Number
    interval: Interval


# ------------------------------------------------------------------------------------- phenotypes
@dataclass(frozen=True)
class Intervals:
    """A 95 % bootstrap interval of each score."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval


@dataclass(frozen=True)
class BootstrapIntervals(Intervals):
    """Intervals of one method."""

    resampled: Literal["donors", "cells"] = "cells"
    n_units: int = 0
    #: Of the model's score minus this method's, on the same draws; None for the model itself.
    model_minus_method: Intervals | None = None


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose confidence is in (low, high]."""

    low: Number
    high: Number
    n_cells: int
    confidence: Number
    accuracy: Number


@dataclass(frozen=True)
class Calibration:
    """How confidence and accuracy agree; the curve has the bins with cells."""

    #: Expected calibration error: mean over cells of abs(accuracy - confidence) of their bin.
    ece: Number
    #: Mean confidence minus accuracy.
    overconfidence: Number
    curve: tuple[ReliabilityBin, ...] = ()


@dataclass(frozen=True)
class DonorAccuracy:
    """Accuracy on one donor's labelled cells."""

    donor: str
    n_cells: int
    accuracy: Number


@dataclass(frozen=True)
class DonorAccuracies:
    """Accuracy over the donors with enough cells."""

    n_donors: int = 0
    #: Donors with enough cells, to which the accuracies belong.
    n_scored: int = 0
    min: Number = math.nan
    median: Number = math.nan
    max: Number = math.nan
    #: The worst first; of the model alone.
    each: tuple[DonorAccuracy, ...] | None = None


@dataclass(frozen=True)
class OntologyScores:
    """How near predictions are in the ontology of the labels."""

    #: Fraction of predictions that are the label, its ancestor or its descendant.
    related: Number
    #: Mean steps from label to prediction, through their nearest common ancestor.
    mean_distance: Number
    #: Cells whose true label is a term.
    n_cells: int


@dataclass(frozen=True)
class ConfidenceScores:
    """What the model's calibration is worth on the scored cells; it was fitted on validation cells."""

    temperature: Number
    #: As `PhenotypeScores.calibration`, at temperature 1.
    uncalibrated: Calibration
    #: Probability below which a prediction is unsure; None: always.
    unsure_below: Number | None = None
    n_unsure: int = 0
    #: Of the predictions that are not unsure.
    kept_accuracy: Number = math.nan
    #: Why the phenotype is always unsure, or was not calibrated.
    reason: str | None = None


@dataclass(frozen=True)
class PhenotypeScores:
    """Scores of one method for one phenotype."""

    accuracy: Number = math.nan
    #: Mean recall, and mean F1, of the values that occur among the true ones.
    balanced_accuracy: Number = math.nan
    macro_f1: Number = math.nan
    #: Cells with a true value; without a prediction they count as errors.
    n_cells: int = 0
    n_unpredicted: int = 0
    values: tuple[str, ...] | None = None
    confusion: Confusion | None = None
    top3_accuracy: Number | None = None
    #: Mean absolute error of ages.
    mae_years: Number | None = None
    #: Where most labels are ontology terms, and the extra `ontology` is installed.
    ontology: OntologyScores | None = None
    calibration: Calibration | None = None
    #: Of a calibrated model alone.
    confidence: ConfidenceScores | None = None
    donors: DonorAccuracies | None = None
    intervals: BootstrapIntervals | None = None


#: Phenotype -> method, or condition -> scores.
Scores = dict[str, dict[str, PhenotypeScores]]


@dataclass(frozen=True)
class TwoGeneScores:
    """What logistic regression on two genes alone reaches."""

    genes: tuple[str, str]
    accuracy: Number
    balanced_accuracy: Number


@dataclass(frozen=True)
class Conditions:
    """The model alone under several conditions, on the same cells."""

    n_cells: int
    phenotypes: Scores


# ------------------------------------------------------------------------------------------ genes
@dataclass(frozen=True)
class MaskedGenes:
    """Genes masked as in training."""

    n_masked: int
    accuracy: Number
    #: Of the most common training bin of each gene.
    baseline_accuracy: Number
    loss: Number


@dataclass(frozen=True)
class GeneMeans:
    """Means over masked genes: NLL in nats; the error in bins, of continuous models in log1p units."""

    nll: Number
    accuracy: Number
    mean_absolute_error: Number


@dataclass(frozen=True)
class BinAccuracy:
    """Accuracy of the masked genes of one true bin."""

    bin: int
    n_masked: int
    accuracy: Number


@dataclass(frozen=True)
class RateScores(GeneMeans):
    """The model's means at one mask rate, and those of each gene's marginal distribution."""

    mask_rate: Number = math.nan
    n_masked: int = 0
    marginal: GeneMeans | None = None
    bins: tuple[BinAccuracy, ...] = ()
    confusion: Confusion | None = None


@dataclass(frozen=True)
class GeneRow:
    """One gene at one mask rate: a row of genes.csv."""

    gene: str
    symbol: str
    mask_rate: Number = math.nan
    n_masked: int = 0
    nll: Number = math.nan
    marginal_nll: Number = math.nan
    #: The marginal's NLL minus the model's.
    gain: Number = math.nan
    accuracy: Number = math.nan
    mean_absolute_error: Number = math.nan


@dataclass(frozen=True)
class GeneRates:
    """Masked genes by mask rate; the genes predicted best and worst at the middle rate."""

    n_cells: int
    rates: tuple[RateScores, ...]
    best: tuple[GeneRow, ...] = ()
    worst: tuple[GeneRow, ...] = ()


# ------------------------------------------------------------------------------------------ parts
@dataclass(frozen=True)
class PartMetric:
    """A metric of a model without some of its parts, and its 95 % interval."""

    value: Number
    interval: Interval
    #: How much worse it is than the whole model, on the same draws; None for the whole model.
    worse_by: Difference | None = None


@dataclass(frozen=True)
class PartScores:
    """Genes masked as in training (nats per masked gene), and phenotypes predicted from all genes."""

    nll: PartMetric | None
    #: By phenotype.
    accuracy: dict[str, PartMetric]


@dataclass(frozen=True)
class Parts:
    """What each part of the model contributes, on a sample of the cells."""

    n_cells: int
    resampled: Literal["donors", "cells"]
    n_units: int
    #: By what is left, from the marginals to the whole model.
    scores: dict[str, PartScores]


# ---------------------------------------------------------------------------------------- reports
@dataclass(frozen=True)
class EvaluationFacts:
    """What was evaluated."""

    model: str | None = None
    step: int | None = None
    data: str = ""
    simulated: bool = False
    split: str | None = None
    split_by: str | None = None
    where: str | None = None
    trained_where: str | None = None
    n_cells: int = 0
    n_genes: int = 0
    n_genes_missing: int | None = None
    baselines: str = "none"
    n_cells_of_baselines: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class EvaluationReport:
    """The report of `tfx eval`."""

    title: str = "Evaluation"
    facts: EvaluationFacts = EvaluationFacts()
    phenotypes: Scores = field(default_factory=dict)
    two_genes: dict[str, TwoGeneScores] = field(default_factory=dict)
    conditions: Conditions | None = None
    genes: MaskedGenes | None = None
    gene_rates: GeneRates | None = None
    parts: Parts | None = None
    notes: tuple[str, ...] = ()

    @property
    def of_model(self) -> dict[str, PhenotypeScores]:
        """Phenotype -> scores of the model itself."""
        return {name: of["model"] for name, of in self.phenotypes.items() if "model" in of}


@dataclass(frozen=True)
class Measured:
    """One measure of one method: mean and standard deviation over seeds, 95 % bootstrap interval."""

    value: Number
    sd: Number
    interval: Interval
    #: On the same resamples of real cells; None for the copula itself, or without it.
    minus_copula: Difference | None = None


@dataclass(frozen=True)
class Mark:
    """Whether a method meets a threshold (None: it cannot be decided), and the threshold in words."""

    met: bool | None
    threshold: str


@dataclass(frozen=True)
class ConditionLikelihood:
    """Negative log-likelihoods in nats per gene from the class alone; lower is better."""

    n_cells: int
    model: Number
    class_marginals: Number
    model_minus_class_marginals: Difference

    def sentence(self) -> str:
        """Name the better one, if the interval separates them."""
        low, high = self.model_minus_class_marginals.interval
        model, marginals = f"{self.model:.3f}", f"{self.class_marginals:.3f}"
        better = "the model is better" if high < 0 else "the class marginals are better"
        if low <= 0 <= high or model == marginals:
            better = "neither is better"
        return (
            f"The negative log-likelihood of a held-out cell, with all its genes masked, is {model} nats per gene by the "
            f"model and {marginals} by the class marginals (lower is better): {better}."
        )


@dataclass(frozen=True)
class Rebalanced:
    """How a classifier of one training set does on held-out real cells."""

    balanced_accuracy: Number
    macro_f1: Number
    #: Difference of macro-F1 from class weights.
    minus_class_weights: Difference
    n_cells_added: int


@dataclass(frozen=True)
class FidelityFacts:
    """What was compared."""

    files: str = ""
    n_cells_generated: int = 0
    requested: str = ""
    model: str | None = None
    step: int | None = None
    simulated: bool = False
    real_cells: str = ""
    training_cells: str = ""
    classes: str = ""
    matched_cells_per_side: str = ""
    n_genes: int = 0
    n_seeds: int = 0
    n_trees: int = 0


@dataclass(frozen=True)
class FidelityReport:
    """The report of `tfx eval --generated`; scores and marks by method, then measure."""

    title: str
    facts: FidelityFacts
    verdict: tuple[str, ...]
    scores: dict[str, dict[str, Measured]]
    marks: dict[str, dict[str, Mark]]
    limits: dict[str, Number]
    class_cells: dict[str, int]
    likelihood: ConditionLikelihood | None = None
    rebalancing: dict[str, Rebalanced] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def report_record(report: EvaluationReport | FidelityReport) -> dict[str, Any]:
    """Return a report as plain JSON values."""
    name, version = (
        ("eval", EVALUATION_VERSION)
        if isinstance(report, EvaluationReport)
        else ("fidelity", FIDELITY_VERSION)
    )
    return plain_json({"schema": f"tfx.{name}/{version}", **asdict(report, dict_factory=_present)})


#: Fields that are null in a report where they have no value; others are left out.
_NULLS = ("met", "unsure_below")


def _present(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if value is not None or name in _NULLS}


def read_evaluation(record: Mapping[str, Any]) -> EvaluationReport:
    """Read the record of an evaluation, of this tfx or an older one."""
    return TypeAdapter(EvaluationReport).validate_python(current_report(record))


def read_evaluation_file(path: Path) -> EvaluationReport:
    """Read a report.json; raises OSError or ValueError."""
    record = file_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a report")
    return read_evaluation(record)
