"""Scores of hidden genes against plain sums, one gene at a time."""

import math

import numpy as np
import pytest
import torch

from core.cells.genes import GenePanel
from core.evaluation.gene_marginal import GeneMarginal
from core.evaluation.gene_report import gene_table, report_genes
from core.evaluation.gene_scores import GeneScores

pytestmark = pytest.mark.usefixtures("one_thread")
N_GENES, N_BINS = 32, 10


@pytest.fixture
def asked(models):
    """400 hidden genes of a binned model: (model, logits, genes, targets), one gene never hidden."""
    model = models()
    assert (model.config.n_genes, model.config.n_bins) == (N_GENES, N_BINS)
    rng = np.random.default_rng(0)
    genes = rng.integers(0, N_GENES - 1, 400)
    targets = rng.integers(0, N_BINS, 400)
    logits = rng.normal(size=(400, N_BINS)).astype(np.float32)
    logits[np.arange(400), targets] += 1
    return model, logits, genes, targets


def scored(asked, parts=1):
    model, logits, genes, targets = asked
    scores = GeneScores.of(model, 0.5)
    for some in np.array_split(np.arange(len(genes)), parts):
        scores.add(torch.from_numpy(logits[some]), genes[some], torch.from_numpy(targets[some]))
    return scores


def test_the_sums_are_those_of_a_plain_loop(asked):
    model, logits, genes, targets = asked
    scores = scored(asked)
    counts = model.reference.bin_counts
    nll, off, right, marginal = ([] for _ in range(4))
    for gene, target, logit in zip(genes, targets, logits.astype(float), strict=True):
        said = int(logit.argmax())
        nll.append(math.log(np.exp(logit).sum()) - logit[target])
        off.append(abs(said - int(target)))
        right.append(said == target)
        share = (counts[gene, target] + 1 / N_BINS) / (counts[gene].sum() + 1)
        marginal.append(-math.log(share))
    record = scores.to_dict()
    assert record["hidden_genes"] == 400
    assert record["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert record["mean_off"] == pytest.approx(np.mean(off))
    assert record["accuracy"] == pytest.approx(np.mean(right))
    assert record["marginal"]["nll"] == pytest.approx(np.mean(marginal))
    common = counts[genes].argmax(axis=1)
    assert record["marginal"]["accuracy"] == pytest.approx((common == targets).mean())
    assert record["marginal"]["mean_off"] == pytest.approx(np.abs(common - targets).mean())
    for number, one in enumerate(record["bins"]):
        own = targets == number
        assert one["genes"] == own.sum()
        assert one["accuracy"] == pytest.approx(np.array(right)[own].mean())
    gene = int(genes[0])
    assert scores.each(scores.nll)[gene] == pytest.approx(
        np.mean(np.array(nll)[genes == gene]), rel=1e-5
    )
    assert math.isnan(scores.each(scores.nll)[N_GENES - 1])


def test_batches_add_up(asked):
    whole, cut = scored(asked), scored(asked, parts=7)
    np.testing.assert_allclose(whole.nll, cut.nll)
    assert (whole.confusion == cut.confusion).all()
    assert (whole.n_asked == cut.n_asked).all()


def test_the_likelihood_is_the_models_whatever_its_loss(models):
    """A continuous model: the hurdle's density; right is whether the gene is on."""
    scores = GeneScores.of(models("continuous"), 0.5)
    logits = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
    scores.add(logits, np.array([0, 1]), torch.tensor([0.0, 2.5]))
    off, on = math.log1p(math.exp(2.0)), math.log1p(math.exp(-2.0))
    density = 0.5 + 0.5 * math.log(2 * math.pi)
    assert scores.nll[:2] == pytest.approx([off, on + density], rel=1e-5)
    assert scores.n_right[:2].tolist() == [0, 1]
    expected = 1.5 / (1 + math.exp(-2.0))
    assert scores.off[:2] == pytest.approx([expected, 2.5 - expected], rel=1e-5)
    assert "marginal" not in scores.to_dict()


def test_a_binary_head_of_one_logit_is_two_bins(models):
    scores = GeneScores.of(models("binary"), 0.5)
    scores.add(torch.tensor([[3.0], [3.0]]), np.array([0, 0]), torch.tensor([1, 0]))
    assert scores.nll[0] == pytest.approx(
        math.log1p(math.exp(-3)) + math.log1p(math.exp(3)), rel=1e-5
    )
    assert scores.confusion.tolist() == [[0, 1], [0, 1]]


def test_no_bin_is_impossible_under_the_marginal():
    marginal = GeneMarginal.of(np.array([[8, 0, 0, 0], [0, 3, 0, 5]]))
    assert np.exp(-marginal.nll).sum(axis=1) == pytest.approx([1, 1])
    assert np.exp(-marginal.nll[0]) == pytest.approx(np.array([8.25, 0.25, 0.25, 0.25]) / 9)
    assert marginal.common.tolist() == [0, 3]


def test_the_best_and_the_worst_genes_are_those_of_most_and_least_gain(models):
    model = models()
    scores = GeneScores.of(model, 0.5)
    rng = np.random.default_rng(0)
    strength = np.linspace(-2, 4, N_GENES)
    for gene in range(N_GENES):
        targets = rng.integers(0, N_BINS, 30 if gene else 5)  # gene 0 is hidden too rarely
        logits = np.zeros((len(targets), N_BINS), dtype=np.float32)
        logits[np.arange(len(targets)), targets] = strength[gene]
        scores.add(torch.from_numpy(logits), np.full(len(targets), gene), torch.from_numpy(targets))
    panel = GenePanel(
        tuple(f"id{i}" for i in range(N_GENES)), tuple(f"G{i}" for i in range(N_GENES))
    )
    report = report_genes([scores], panel, 12)
    assert len(report["best"]) == len(report["worst"]) == 10
    gain = scores.each(scores.marginal_nll) - scores.each(scores.nll)
    order = sorted(range(1, N_GENES), key=lambda gene: -gain[gene])
    assert [one["symbol"] for one in report["best"]] == [f"G{gene}" for gene in order[:10]]
    assert [one["symbol"] for one in report["worst"]] == [f"G{gene}" for gene in order[::-1][:10]]
    assert report["best"][0]["gain"] == pytest.approx(gain[order[0]])
    header, *rows = gene_table([scores, scores], panel)
    assert header[0] == "gene"
    assert len(rows) == 2 * N_GENES
    assert rows[0][:4] == ["id0", "G0", 0.5, 5]
