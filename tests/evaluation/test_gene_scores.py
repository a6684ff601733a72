"""Scores of masked genes against plain sums, one gene at a time."""

import math

import numpy as np
import pytest
import torch

from core.cells.genes import GenePanel
from core.evaluation.gene_scores import GeneScores, report_genes

pytestmark = pytest.mark.usefixtures("one_thread")
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


def scored(masked, parts=1):
    model, logits, genes, targets = masked
    scores = GeneScores(model, 0.5)
    for some in np.array_split(np.arange(len(genes)), parts):
        scores.add(torch.from_numpy(logits[some]), genes[some], torch.from_numpy(targets[some]))
    return scores


def test_the_sums_are_those_of_a_plain_loop(masked):
    model, logits, genes, targets = masked
    scores = scored(masked)
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


def test_batches_add_up(masked):
    whole, cut = scored(masked), scored(masked, parts=7)
    np.testing.assert_allclose(whole.model.nll, cut.model.nll)
    assert (whole.confusion == cut.confusion).all()
    assert (whole.n_masked == cut.n_masked).all()


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
