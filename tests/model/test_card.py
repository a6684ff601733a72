"""The model card: the description of a model for others."""

import numpy as np

from core.evaluation.report.records import EvaluationFacts, EvaluationReport, PhenotypeScores
from core.evaluation.report.writing import card_text, write_into_card
from core.model.calibration import PhenotypeCalibration
from core.model.card import model_card, put_test_metrics

from .examples import make_cell_model

ORIGIN = {
    "name": "lung", "sources": ["/home/someone/secret/cells.h5ad", "builtin:atlas"],
    "split": "donor", "step": 40, "total_steps": 50, "seed": 3, "versions": {"torch": "2.13.0"},
    "validation": {"loss": 1.5, "acc/genes": 0.8, "acc/genes_baseline": 0.7, "acc/sex": 0.9},
}  # fmt: skip


def card_of(model, **origin):
    return model_card(
        model.config,
        model.panel,
        model.reference,
        model.masking,
        ORIGIN | origin,
        model.calibration,
    )


def section(card, title):
    return card.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_a_card_names_data_split_genes_and_model():
    card = card_of(make_cell_model(log_linear=True))
    assert card.startswith("---\nlibrary_name: transformerics\n")
    assert "# lung\n" in card
    data = section(card, "Data")
    assert "- source: cells.h5ad\n- source: builtin:atlas" in data
    assert "training cells: 40; held out: whole donors" in data
    assert "7 genes" in data or "genes: 7 (GENE0" in data
    assert "step 40 of 50" in section(card, "Model")
    assert "made with torch 2.13.0" in section(card, "Model")


def test_a_card_says_what_the_probabilities_are_worth():
    model = make_cell_model()
    assert "## Probabilities" not in card_of(model)
    known = {
        "n_cells": 100,
        "accuracy": 0.8,
        "probabilities": [0.0, 0.7],
        "kept_accuracies": [0.8, 0.96],
    }
    model.calibration = {
        "sex": PhenotypeCalibration(temperature=1.234, accuracy_low=0.7, majority=0.6, **known),
        "tissue": PhenotypeCalibration(temperature=3, accuracy_low=0.7, majority=0.75, **known),
    }
    text = section(card_of(model), "Probabilities")
    assert "| sex | 1.23 | 0.700 |\n| tissue | 3.00 | always unsure |" in text
    assert "no better than the most common value" in text


def test_a_card_gives_away_no_folder():
    assert "/home/someone" not in card_of(make_cell_model())


def test_values_stand_with_their_training_cells():
    model = make_cell_model()
    counts = [
        int(model.reference.counts[model.reference.combinations[:, 0] == code].sum())
        for code in (0, 1)
    ]
    text = section(card_of(model), "Phenotypes")
    assert f"- **sex** (2): female ({counts[0]}), male ({counts[1]})" in text


def test_validation_metrics_are_beside_the_most_common_value():
    model = make_cell_model()
    codes, counts = model.reference.combinations[:, 0], model.reference.counts
    known = np.array([counts[codes == code].sum() for code in (0, 1)])
    text = section(card_of(model), "Validation metrics")
    assert "| acc/genes | 0.8000 | 0.7000 |" in text
    assert f"| acc/sex | 0.9000 | {known.max() / known.sum():.4f} |" in text
    assert "genes_baseline" not in text
    assert "| loss | 1.5000 |  |" in text


def test_a_card_without_metrics_or_phenotypes_is_complete():
    card = card_of(make_cell_model(phenotypes={}), validation={})
    assert "## Phenotypes" not in card
    assert "## Validation metrics" not in card
    assert "not anonymous" not in card
    assert "do not call them anonymous" in section(card, "Limits")


def test_simulated_cells_and_a_licence_are_said():
    model = make_cell_model()
    assert "Its predictions say nothing about real biology" in card_of(model, simulated=True)
    assert section(card_of(model), "Licence").startswith("Not stated. Write it here")
    assert section(card_of(model, licence="CC BY 4.0"), "Licence").strip() == "CC BY 4.0"


REPORT = EvaluationReport(
    facts=EvaluationFacts(n_cells=1200, split_by="donor"),
    phenotypes={
        "sex": {"model": PhenotypeScores(accuracy=0.9, macro_f1=0.8)},
        "age": {
            "model": PhenotypeScores(accuracy=0.5, macro_f1=0.4),
            "logistic_regression": PhenotypeScores(accuracy=0.6, macro_f1=0.55),
        },
    },
    notes=("age: the model scores lower",),
)


def test_test_metrics_replace_earlier_ones(tmp_path):
    make_cell_model().save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "None yet: `tfx eval` writes them here" in section(card, "Test metrics")
    write_into_card(tmp_path / "model", REPORT)
    write_into_card(tmp_path / "model", REPORT)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    text = section(card, "Test metrics")
    assert "1,200 test cells (split by donor)" in text
    assert text.count("| sex | 0 | 0.900 / 0.800 | - |") == 1
    assert "| age | 0 | 0.500 / 0.400 | 0.600 / 0.550 |" in text
    assert "- age: the model scores lower" in text
    assert card.count("## Limits") == 1


def test_a_card_that_somebody_rewrote_is_left_alone():
    assert put_test_metrics("# mine\n", card_text(REPORT)) == "# mine\n"


def test_a_model_folder_that_is_gone_is_no_fault(tmp_path):
    write_into_card(tmp_path / "nowhere", REPORT)
    assert not list(tmp_path.iterdir())
