"""What each part contributes: the parts that there are, left out one by one, against plain computations."""

import numpy as np
import pytest
import torch

from core.evaluation import parts as module
from core.evaluation.masked_evaluation import evaluate_masked
from core.evaluation.parts import evaluate_parts, parts_left_out
from core.presets.schema import LossSettings
from tests.tiny_atlas import build_model, tiny_preset

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = {"model__log_linear": True, "model__log_linear_rank": 4, "model__library_size": True}


def add_noise(network):
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))


@pytest.fixture(scope="module")
def full_model(tiny_store):
    """Return a model with every part, of weights that say something."""
    model = build_model(tiny_preset(**FULL).preset, tiny_store)
    add_noise(model.network)
    return model


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (FULL, ["whole", "without_library_size", "without_the_encoder", "without_the_log_linear_part", "class_log_odds_alone"]),
        ({}, ["whole"]),
        ({"model__library_size": True}, ["whole", "without_library_size"]),
        ({"model__log_linear": True, "model__layers": 0}, ["whole", "class_log_odds_alone"]),
    ],
)  # fmt: skip
def test_only_parts_that_the_model_has_are_left_out(tiny_store, settings, names):
    model = build_model(tiny_preset(**settings).preset, tiny_store)
    assert list(parts_left_out(model.network)) == names


def test_every_part_is_scored_on_the_same_cells_and_masks(tiny_store, rows, full_model):
    events = []
    found = evaluate_parts(full_model, tiny_store, rows, on_progress=events.append)
    assert list(found.scores) == [
        "marginals", "class_log_odds_alone", "without_the_log_linear_part", "without_the_encoder",
        "without_library_size", "whole",
    ]  # fmt: skip
    assert (found.n_cells, found.resampled) == (len(rows), "donors")
    assert found.n_units == len(np.unique(tiny_store.donors[rows]))
    whole = evaluate_masked(full_model, tiny_store, rows, LossSettings(smoothing=0.0))
    metric = found.scores["whole"].nll
    assert metric.value == pytest.approx(whole.genes.loss, rel=1e-5)
    assert metric.worse_by is None
    assert found.scores["marginals"].nll.value == pytest.approx(
        whole.gene_target.baseline, rel=1e-4
    )
    values = [scores.nll.value for scores in found.scores.values()]
    assert len(set(values)) == len(values)
    for name, scores in found.scores.items():
        assert scores.nll.interval[0] <= scores.nll.value <= scores.nll.interval[1]
        assert list(scores.accuracy) == list(tiny_store.phenotypes)
        if name != "whole":
            assert scores.nll.worse_by.value == pytest.approx(scores.nll.value - metric.value)
            of_sex, of_whole = scores.accuracy["sex"], found.scores["whole"].accuracy["sex"]
            assert of_sex.worse_by.value == pytest.approx(of_whole.value - of_sex.value)
    assert {event.stage for event in events} == {"what each part contributes"}
    done = [event.done for event in events]
    assert done == sorted(done)
    assert done[-1] == events[-1].total
    assert full_model.network.left_out == frozenset()


def test_class_log_odds_alone_look_at_no_gene_and_predict_the_majority(
    tiny_store, rows, full_model
):
    found = evaluate_parts(full_model, tiny_store, rows)
    alone, marginals = found.scores["class_log_odds_alone"], found.scores["marginals"]
    for phenotype, metric in marginals.accuracy.items():
        assert alone.accuracy[phenotype].value == metric.value
        slot = list(tiny_store.phenotypes).index(phenotype)
        training = tiny_store.phenotype_codes[tiny_store.rows("train"), slot]
        majority = np.bincount(training[training >= 0]).argmax()
        truth = tiny_store.phenotype_codes[rows, slot]
        assert metric.value == pytest.approx((truth == majority)[truth >= 0].mean())


def test_a_part_that_does_nothing_is_no_worse(tiny_store, rows):
    model = build_model(tiny_preset(**FULL).preset, tiny_store)  # its encoder's outputs are zero
    found = evaluate_parts(model, tiny_store, rows)
    worse_by = found.scores["without_the_encoder"].nll.worse_by
    assert (worse_by.value, worse_by.interval) == (0.0, (0.0, 0.0))


def test_many_cells_are_sampled(tiny_store, rows, models, monkeypatch):
    monkeypatch.setattr(module, "MAX_CELLS", 10)
    first, second = (evaluate_parts(models(), tiny_store, rows) for _ in range(2))
    assert first == second
    assert first.n_cells == 10
