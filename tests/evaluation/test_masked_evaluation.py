"""Masked losses and accuracies, and predictions of phenotypes, against plain computations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.cells.genes import GenePanel
from core.encoding.panel_cells import PanelReader
from core.evaluation.marginals import Marginals
from core.evaluation.masked_evaluation import (
    GeneScores,
    TargetLoss,
    _batches_at_rate,
    draw_static_mask,
    evaluate_at_rate,
    evaluate_masked,
    report_genes,
)
from core.evaluation.predict import predict_phenotypes
from core.model.batch_tensors import BatchTensors
from core.model.losses import masked_loss
from core.presets.schema import LossSettings, MaskingSettings
from tests.evaluation.conftest import EVERYTHING
from tests.tiny_atlas import build_model, tiny_preset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("weighting", ["mean", "rate"])
@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_scores_do_not_depend_on_the_batches(
    tiny_store, rows, models, small_batches, kind, layout, weighting
):
    """45 cells in batches of 64, or of 7 with 3 left over."""
    loss = LossSettings(weighting=weighting, phenotype_weight=0.5)
    one = evaluate_masked(models(kind, layout), tiny_store, rows, loss)
    small_batches(7)
    two = evaluate_masked(models(kind, layout), tiny_store, rows, loss)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert one.genes.loss == pytest.approx(two.genes.loss, rel=1e-5)
    assert one.phenotype_loss == pytest.approx(two.phenotype_loss, rel=1e-5)
    assert one.genes.accuracy == two.genes.accuracy
    assert one.genes.baseline_accuracy == two.genes.baseline_accuracy
    assert one.loss == pytest.approx(one.genes.loss + 0.5 * one.phenotype_loss)
    assert one.score == pytest.approx(two.score, rel=1e-4, abs=1e-6)
    targets = {**one.phenotype_targets, "": one.gene_target}
    assert one.loss == pytest.approx(
        sum(target.weight * target.loss for target in targets.values())
    )
    assert all(math.isfinite(target.baseline) for target in targets.values())


def test_class_weights_add_up_over_batches_of_any_size(tiny_store, rows, models, small_batches):
    model = models()
    weights = torch.linspace(0.2, 3.0, sum(model.config.phenotype_sizes))
    one = evaluate_masked(model, tiny_store, rows, LossSettings(), class_weights=weights)
    small_batches(7)
    two = evaluate_masked(model, tiny_store, rows, LossSettings(), class_weights=weights)
    assert one.phenotype_loss == pytest.approx(two.phenotype_loss, rel=1e-5)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_baseline_is_the_genes_most_common_training_bin(tiny_store, rows, models, layout):
    model = models(layout=layout)
    scores = evaluate_masked(model, tiny_store, rows, LossSettings())
    training = tiny_store.read(tiny_store.rows("train"), model.panel).toarray()
    bins = model.values.encode(training)
    common = np.array([np.bincount(column).argmax() for column in bins.T])
    truth = model.values.encode(tiny_store.read(rows, model.panel).toarray())
    asked = truth > 0 if layout == "expressed" else np.ones_like(truth, dtype=bool)
    assert scores.genes.n_masked == asked.sum()
    assert scores.genes.baseline_accuracy == pytest.approx((truth == common)[asked].mean())


def test_a_model_that_knows_only_the_marginals_scores_as_the_baseline(tiny_store, rows):
    """An untrained encoder beside gene biases at the training marginals predicts the common bin."""
    model = build_model(tiny_preset().preset, tiny_store, name="example")
    with torch.no_grad():
        model.network.encoder_part.gene_output.weight.zero_()
    scores = evaluate_masked(model, tiny_store, rows, LossSettings())
    assert scores.genes.accuracy == scores.genes.baseline_accuracy
    scores = evaluate_masked(model, tiny_store, rows, LossSettings(smoothing=0.0))
    assert scores.gene_target.gain == pytest.approx(0.0, abs=1e-5)
    assert scores.gene_target.baseline == pytest.approx(scores.genes.loss, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("head", ["split", "joint"])
def test_no_other_constant_prediction_has_a_lower_loss_than_the_baseline(
    tiny_store, rows, head, smoothing
):
    """Of the training cells themselves; a step away from the baseline costs more."""
    model = build_model(tiny_preset(model__head=head).preset, tiny_store)
    model = replace(model, masking=EVERYTHING)
    loss = LossSettings(smoothing=smoothing, phenotype_smoothing=smoothing)
    marginals = Marginals.of(model, loss)
    reader, training = PanelReader(tiny_store, model.panel), tiny_store.rows("train")
    codes = np.asarray(tiny_store.phenotype_codes[training])
    rng = np.random.default_rng(0)
    cells = model.batches.masked(reader.read(training), codes, model.masking, rng)
    batch = BatchTensors.from_arrays(cells)

    def losses(one):
        output = one.predict(batch)
        logits = output.gene_logits, output.phenotype_logits
        parts = masked_loss(*logits, batch, model.config, loss)
        return float(parts.genes), float(parts.phenotypes)

    least = losses(marginals)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        genes, phenotypes = (
            logits + 0.3 * torch.randn(logits.shape, generator=generator)
            for logits in (marginals.genes, marginals.phenotypes)
        )
        more = losses(replace(marginals, genes=genes, phenotypes=phenotypes))
        assert more[0] > least[0]
        assert more[1] > least[1]


@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_baseline_of_a_phenotype_is_its_class_frequencies(
    tiny_store, rows, models, is_weighted
):
    model = models()
    sizes = model.config.phenotype_sizes
    weights = torch.linspace(0.2, 3.0, sum(sizes)) if is_weighted else torch.ones(sum(sizes))
    scores = evaluate_masked(
        model, tiny_store, rows, LossSettings(), class_weights=weights if is_weighted else None
    )
    training = np.asarray(tiny_store.phenotype_codes[tiny_store.rows("train")])
    codes, first = np.asarray(tiny_store.phenotype_codes[rows]), 0
    for slot, (name, size) in enumerate(zip(model.config.phenotypes, sizes, strict=True)):
        own = weights[first : first + size].numpy()
        known = training[:, slot][training[:, slot] >= 0]
        frequency = (np.bincount(known, minlength=size) + 1) * own
        truth = codes[:, slot][codes[:, slot] >= 0]
        nll = -np.log(frequency / frequency.sum())[truth]
        wanted = (nll * own[truth]).sum() / own[truth].sum()
        assert scores.phenotype_targets[name].baseline == pytest.approx(wanted, rel=1e-5)
        first += size


def test_being_too_sure_costs_a_phenotype_loss_and_no_gain(tiny_store, models, monkeypatch):
    rows = tiny_store.rows("train")
    model = models()
    before = evaluate_masked(model, tiny_store, rows, LossSettings())
    output = model.network.encoder_part.phenotype_output
    forward = output.forward
    monkeypatch.setattr(output, "forward", lambda hidden: 4 * forward(hidden))
    after = evaluate_masked(model, tiny_store, rows, LossSettings())
    assert after.phenotype_loss > before.phenotype_loss + 0.1
    for name, target in before.phenotype_targets.items():
        assert target.gain >= target.baseline - target.loss - 1e-9
        # The hottest temperature, 16, leaves something of four times the logits.
        assert after.phenotype_targets[name].gain == pytest.approx(target.gain, abs=0.02)


def test_the_score_is_the_gain_where_all_is_learnt_and_leaves_out_what_is_not():
    learnt = TargetLoss(loss=1.5, baseline=2.0, weight=0.5)
    assert (learnt.gain, learnt.score) == (0.5, 0.25)
    little = TargetLoss(loss=1.9, baseline=2.0, weight=1.0)  # half of a tenth of the baseline
    assert little.score == pytest.approx(0.1 * 0.5)
    for loss in (2.0, 2.5, math.nan, math.inf):
        assert TargetLoss(loss=loss, baseline=2.0, weight=1.0).score == 0.0


def test_a_continuous_model_is_scored_on_whether_a_gene_is_expressed(tiny_store, rows, models):
    model = models("continuous")
    with torch.no_grad():
        model.network.encoder_part.gene_output.weight[0] = 0
        model.network.encoder_part.gene_output.bias[0] = -5
        model.network.encoder_part.gene_bias.weight[:, 0] = 0
    scores = evaluate_masked(model, tiny_store, rows, LossSettings())
    values = tiny_store.read(rows, model.panel).toarray()
    assert scores.genes.accuracy == pytest.approx((model.values.encode(values) == 0).mean())


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_same_seed_gives_the_same_masks_and_another_gives_others(
    tiny_store, rows, models, layout
):
    model = models(layout=layout, masking=MaskingSettings(genes="uniform"))
    first, second, other = (
        evaluate_masked(model, tiny_store, rows, LossSettings(), seed=seed) for seed in (0, 0, 1)
    )
    assert first == second
    assert first.loss != other.loss


def test_evaluating_takes_no_chance_from_the_global_generator(tiny_store, rows, models):
    model = models()
    model.network.train()
    before = torch.get_rng_state()
    evaluate_masked(model, tiny_store, rows, LossSettings())
    predict_phenotypes(model, tiny_store, rows)
    evaluate_at_rate(model, tiny_store, rows, 0.15)
    assert torch.equal(before, torch.get_rng_state())
    assert not model.network.training


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_every_phenotype_gets_a_probability_for_each_value_of_each_cell(
    tiny_store, rows, models, layout
):
    predicted = predict_phenotypes(models(layout=layout), tiny_store, rows)
    assert list(predicted) == list(tiny_store.phenotypes)
    for name, values in tiny_store.phenotypes.items():
        assert predicted[name].shape == (45, len(values))
        np.testing.assert_allclose(predicted[name].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_a_cells_prediction_does_not_depend_on_the_cells_around_it(
    tiny_store, rows, models, small_batches, layout
):
    model = models(layout=layout)
    together = predict_phenotypes(model, tiny_store, rows)
    order = np.random.default_rng(0).permutation(len(rows))
    small_batches(7)
    apart = predict_phenotypes(model, tiny_store, rows[order])
    for name, probability in together.items():
        np.testing.assert_allclose(apart[name], probability[order], atol=1e-5)


def test_a_prediction_never_sees_the_labels(tiny_store, rows, models, monkeypatch):
    model = models()
    predict = (
        lambda: predict_phenotypes(model, tiny_store, rows),
        lambda: evaluate_at_rate(model, tiny_store, rows, 0.5)[0],
    )
    before = [one() for one in predict]
    blind = np.full_like(np.asarray(tiny_store.phenotype_codes), -1)
    monkeypatch.setattr(tiny_store, "phenotype_codes", blind)
    for one, seen in zip(predict, before, strict=True):
        after = one()
        for name, probability in seen.items():
            np.testing.assert_array_equal(after[name], probability)


def test_progress_ends_at_the_number_of_cells(tiny_store, rows, models, small_batches):
    small_batches(20)
    events = []
    evaluate_masked(models(), tiny_store, rows, LossSettings(), on_progress=events.append)
    assert [(event.done, event.total) for event in events] == [(20, 45), (40, 45), (45, 45)]


# ------------------------------------------------------------------------------------- mask rates
def test_a_mask_follows_from_seed_rate_and_row_alone():
    rows = np.array([3, 17, 40])
    mask = draw_static_mask(rows, 50, 0.5, seed=0)
    assert mask.sum(axis=1).tolist() == [25, 25, 25]
    assert (draw_static_mask(rows[[2, 0]], 50, 0.5, seed=0) == mask[[2, 0]]).all()
    assert (mask[0] != mask[1]).any()
    assert (draw_static_mask(rows, 50, 0.5, seed=1) != mask).any()


def test_every_gene_is_masked_equally_often():
    mask = draw_static_mask(np.arange(4000), 20, 0.15, seed=0)
    assert mask.sum(axis=1).tolist() == [3] * 4000
    np.testing.assert_allclose(mask.mean(axis=0), 0.15, atol=0.02)


@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
def test_scores_at_a_rate_do_not_depend_on_the_batches(
    tiny_store, rows, models, small_batches, kind
):
    one = evaluate_at_rate(models(kind), tiny_store, rows, 0.5)
    small_batches(7)
    two = evaluate_at_rate(models(kind), tiny_store, rows, 0.5)
    for name, predicted in one[0].items():
        np.testing.assert_allclose(two[0][name], predicted, atol=1e-5)
    np.testing.assert_allclose(two[1].model.nll, one[1].model.nll, rtol=1e-4, atol=1e-5)
    assert (two[1].confusion == one[1].confusion).all()


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_same_seed_gives_the_same_scores_at_a_rate(tiny_store, rows, models, layout):
    model = models(layout=layout)
    one, same, other = (
        evaluate_at_rate(model, tiny_store, rows, 0.5, seed=seed) for seed in (0, 0, 1)
    )
    for name, predicted in one[0].items():
        assert (predicted == same[0][name]).all()
        assert predicted.shape == (len(rows), len(tiny_store.phenotypes[name]))
        np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)
    assert (one[1].model.nll == same[1].model.nll).all()
    assert (one[1].model.nll != other[1].model.nll).any()


def test_the_right_genes_are_masked_and_scored(tiny_store, rows, models):
    model = models()
    _, genes = evaluate_at_rate(model, tiny_store, rows, 0.9)
    mask = draw_static_mask(rows, len(model.panel), 0.9, seed=0)
    assert (genes.n_masked == mask.sum(axis=0)).all()
    bins = model.values.encode(tiny_store.read(rows, model.panel).toarray())
    counts = np.bincount(bins[mask], minlength=model.config.n_bins)
    assert (genes.confusion.sum(axis=1) == counts).all()


def test_in_the_expressed_layout_masked_genes_are_no_tokens(tiny_store, rows, models):
    model = models(layout="expressed")
    rng = np.random.default_rng(0)
    of_phenotypes, of_genes = _batches_at_rate(model, tiny_store, rows, 0.5, 0, rng)
    mask = draw_static_mask(rows, len(model.panel), 0.5, seed=0)
    first = model.config.tokens.first_gene
    for cell in range(len(rows)):
        start, end = of_phenotypes.cu_seqlens[cell : cell + 2]
        identity = of_phenotypes.token_id[start:end].astype(int) - first
        shown = identity[(identity >= 0) & (identity < len(model.panel))]
        assert not mask[cell, shown].any()
    assert len(of_phenotypes.gene) == 0
    assert len(of_genes.gene) > 0


# -------------------------------------------------------------------------- scores gene by gene

N_GENES, N_BINS = 32, 10
PANEL = GenePanel(tuple(f"id{i}" for i in range(N_GENES)), tuple(f"G{i}" for i in range(N_GENES)))


@pytest.fixture
def masked(models):
    """400 masked genes of a binned model: (model, logits, genes, targets), one gene never masked."""
    model = models()
    assert (model.config.n_genes, model.config.n_bins) == (N_GENES, N_BINS)
    rng = np.random.default_rng(0)
    genes = rng.integers(0, N_GENES - 1, 400)
    targets = rng.integers(0, N_BINS, 400)
    logits = rng.normal(size=(400, N_BINS)).astype(np.float32)
    logits[np.arange(400), targets] += 1
    return model, logits, genes, targets


def test_the_sums_are_those_of_a_plain_loop(masked):
    model, logits, genes, targets = masked
    scores = GeneScores(model, 0.5)
    for some in np.array_split(np.arange(len(genes)), 7):
        scores.add(torch.from_numpy(logits[some]), genes[some], torch.from_numpy(targets[some]))
    counts = model.reference.bin_counts
    nll, off, right, marginal = ([] for _ in range(4))
    for gene, target, logit in zip(genes, targets, logits.astype(float), strict=True):
        best = int(logit.argmax())
        nll.append(math.log(np.exp(logit).sum()) - logit[target])
        off.append(abs(best - int(target)))
        right.append(best == target)
        share = (counts[gene, target] + 1 / N_BINS) / (counts[gene].sum() + 1)
        marginal.append(-math.log(share))
    means = scores.means()
    assert means.n_masked == 400
    assert means.nll == pytest.approx(np.mean(nll), rel=1e-5)
    assert means.mean_absolute_error == pytest.approx(np.mean(off))
    assert means.accuracy == pytest.approx(np.mean(right))
    assert means.marginal.nll == pytest.approx(np.mean(marginal))
    common = counts[genes].argmax(axis=1)
    assert means.marginal.accuracy == pytest.approx((common == targets).mean())
    assert means.marginal.mean_absolute_error == pytest.approx(np.abs(common - targets).mean())
    for number, one in enumerate(means.bins):
        own = targets == number
        assert one.n_masked == own.sum()
        assert one.accuracy == pytest.approx(np.array(right)[own].mean())
    gene = int(genes[0])
    row = scores.row(gene, PANEL)
    assert row.nll == pytest.approx(np.mean(np.array(nll)[genes == gene]), rel=1e-5)
    assert row.gain == pytest.approx(row.marginal_nll - row.nll)
    assert scores.n_masked[N_GENES - 1] == 0


def test_the_likelihood_is_the_models_whatever_its_loss(models):
    """A continuous model: the hurdle's density; right is whether the gene is expressed."""
    scores = GeneScores(models("continuous"), 0.5)
    logits = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
    scores.add(logits, np.array([0, 1]), torch.tensor([0.0, 2.5]))
    off, on = math.log1p(math.exp(2.0)), math.log1p(math.exp(-2.0))
    density = 0.5 + 0.5 * math.log(2 * math.pi)
    assert scores.model.nll[:2] == pytest.approx([off, on + density], rel=1e-5)
    assert scores.model.n_right[:2].tolist() == [0, 1]
    expected = 1.5 / (1 + math.exp(-2.0))
    assert scores.model.error[:2] == pytest.approx([expected, 2.5 - expected], rel=1e-5)
    assert scores.means().marginal is None
    assert math.isnan(scores.row(1, PANEL).gain)


def test_a_binary_head_of_one_logit_is_two_bins(models):
    scores = GeneScores(models("binary"), 0.5)
    scores.add(torch.tensor([[3.0], [3.0]]), np.array([0, 0]), torch.tensor([1, 0]))
    assert scores.model.nll[0] == pytest.approx(
        math.log1p(math.exp(-3)) + math.log1p(math.exp(3)), rel=1e-5
    )
    assert scores.confusion.tolist() == [[0, 1], [0, 1]]


def test_the_best_and_the_worst_genes_are_those_of_most_and_least_gain(models):
    model = models()
    scores = GeneScores(model, 0.5)
    rng = np.random.default_rng(0)
    strength = np.linspace(-2, 4, N_GENES)
    for gene in range(N_GENES):
        targets = rng.integers(0, N_BINS, 30 if gene else 5)  # gene 0 is masked too rarely
        logits = np.zeros((len(targets), N_BINS), dtype=np.float32)
        logits[np.arange(len(targets)), targets] = strength[gene]
        scores.add(torch.from_numpy(logits), np.full(len(targets), gene), torch.from_numpy(targets))
    rates, rows = report_genes([scores], PANEL, 12)
    assert len(rates.best) == len(rates.worst) == 10
    gain = [row.gain for row in rows]
    order = sorted(range(1, N_GENES), key=lambda gene: -gain[gene])
    assert [one.symbol for one in rates.best] == [f"G{gene}" for gene in order[:10]]
    assert [one.symbol for one in rates.worst] == [f"G{gene}" for gene in order[::-1][:10]]
    assert rates.best[0].gain == gain[order[0]]
    assert (rates.n_cells, len(rates.rates), len(rows)) == (12, 1, N_GENES)
    first = rows[0]
    assert (first.gene, first.symbol, first.mask_rate, first.n_masked) == ("id0", "G0", 0.5, 5)
