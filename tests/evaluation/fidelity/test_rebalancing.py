"""Rare classes filled up by generated cells, beside simple remedies."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score, f1_score

from core.cells.genes import GenePanel
from core.encoding.values import ValueTable, fit_value_encoder
from core.evaluation.fidelity.class_baselines import REBALANCED_BY, compare_rebalancing
from core.evaluation.fidelity.measures import ClassClassifier, LabelledCells
from core.presets.schema import EncodingSettings

N_GENES = 10


def draw_cells(counts, seed):
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(counts)), counts)
    level = 1.2 * (np.arange(N_GENES) % len(counts) == classes[:, None])
    values = np.maximum(level + rng.standard_normal((len(classes), N_GENES)), 0)
    return LabelledCells(values.astype(np.float32), classes)


@pytest.fixture(scope="module")
def compare():
    """Return a function: generated cells -> comparison, of a class with few training cells."""
    training, real = draw_cells([400, 380, 8], 0), draw_cells([150, 150, 150], 1)
    settings = EncodingSettings(kind="binned", bins=10, edges="gene_quantile", threshold=0.0)
    names = tuple(f"G{number}" for number in range(N_GENES))
    cells = sparse.csr_matrix(training.values)
    encoder = fit_value_encoder(settings, cells, GenePanel(names, names))
    table = ValueTable.fit(encoder, cells)

    def run(generated, training=training):
        return compare_rebalancing(training, real, generated, encoder, table, 3)

    run.training, run.real = training, real
    return run


def test_perfect_cells_of_the_rare_class_help_and_wrong_ones_do_not(compare):
    good = compare(draw_cells([400, 400, 400], 2))
    assert list(good) == list(REBALANCED_BY)
    assert good["generated"].macro_f1 > good["real"].macro_f1 + 0.1
    assert good["generated"].n_cells_added == 20 + 392
    assert good["generated"].minus_class_weights.interval[0] > 0
    wrong = draw_cells([400, 400, 400], 2)
    swapped = LabelledCells(wrong.values, (wrong.classes + 1) % 3)
    assert compare(swapped)["generated"].minus_class_weights.interval[1] < 0


def test_scores_equal_sklearns(compare):
    found = compare(draw_cells([50, 50, 50], 2))["real"]
    training, real = compare.training, compare.real
    predicted = ClassClassifier(training.values, training.classes, balanced=False).predict(
        real.values
    )
    assert found.macro_f1 == pytest.approx(f1_score(real.classes, predicted, average="macro"))
    assert found.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(real.classes, predicted)
    )
    assert found.n_cells_added == 0


def test_all_available_cells_are_added_and_one_class_needs_no_balance(compare):
    assert compare(draw_cells([5, 5, 30], 2))["generated"].n_cells_added == 5 + 30
    one = draw_cells([300], 0)
    assert compare(draw_cells([50, 50, 50], 2), training=one) == {}
