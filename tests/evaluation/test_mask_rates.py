"""Genes partly hidden: masks that nothing moves, and answers that do not see what is hidden."""

import numpy as np
import pytest
import torch

from core.evaluation.masked_evaluation import _batches_at_rate, draw_static_mask, evaluate_at_rate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_mask_follows_from_seed_rate_and_row_alone():
    rows = np.array([3, 17, 40])
    mask = draw_static_mask(rows, 50, 0.5, seed=0)
    assert mask.sum(axis=1).tolist() == [25, 25, 25]
    assert (draw_static_mask(rows[[2, 0]], 50, 0.5, seed=0) == mask[[2, 0]]).all()
    assert (mask[0] != mask[1]).any()
    assert (draw_static_mask(rows, 50, 0.5, seed=1) != mask).any()


def test_every_gene_is_hidden_as_often():
    mask = draw_static_mask(np.arange(4000), 20, 0.15, seed=0)
    assert mask.sum(axis=1).tolist() == [3] * 4000
    np.testing.assert_allclose(mask.mean(axis=0), 0.15, atol=0.02)


@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
def test_the_figures_do_not_depend_on_the_batches(tiny_store, rows, models, kind):
    one, two = (
        evaluate_at_rate(models(kind), tiny_store, rows, 0.5, batch_size=size) for size in (64, 7)
    )
    for name, told in one[0].items():
        np.testing.assert_allclose(two[0][name], told, atol=1e-5)
    np.testing.assert_allclose(two[1].nll, one[1].nll, rtol=1e-4, atol=1e-5)
    assert (two[1].confusion == one[1].confusion).all()


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_same_seed_gives_the_same_figures(tiny_store, rows, models, layout):
    model = models(layout=layout)
    one, same, other = (
        evaluate_at_rate(model, tiny_store, rows, 0.5, seed=seed) for seed in (0, 0, 1)
    )
    for name, told in one[0].items():
        assert (told == same[0][name]).all()
        assert told.shape == (len(rows), len(tiny_store.phenotypes[name]))
        np.testing.assert_allclose(told.sum(axis=1), 1, rtol=1e-5)
    assert (one[1].nll == same[1].nll).all()
    assert (one[1].nll != other[1].nll).any()


def test_the_right_genes_are_hidden_and_scored(tiny_store, rows, models):
    model = models()
    _, genes = evaluate_at_rate(model, tiny_store, rows, 0.9)
    mask = draw_static_mask(rows, len(model.panel), 0.9, seed=0)
    assert (genes.n_asked == mask.sum(axis=0)).all()
    bins = model.values.encode(tiny_store.read(rows, model.panel).toarray())
    counts = np.bincount(bins[mask], minlength=model.config.n_bins)
    assert (genes.confusion.sum(axis=1) == counts).all()


def test_in_the_expressed_layout_hidden_genes_are_no_tokens(tiny_store, rows, models):
    model = models(layout="expressed")
    rng = np.random.default_rng(0)
    about_phenotypes, about_genes = _batches_at_rate(model, tiny_store, rows, 0.5, 0, rng)
    mask = draw_static_mask(rows, len(model.panel), 0.5, seed=0)
    first = model.config.tokens.first_gene
    for cell in range(len(rows)):
        start, end = about_phenotypes.cu_seqlens[cell : cell + 2]
        identity = about_phenotypes.token_id[start:end].astype(int) - first
        shown = identity[(identity >= 0) & (identity < len(model.panel))]
        assert not mask[cell, shown].any()
    assert len(about_phenotypes.gene) == 0
    assert len(about_genes.gene) > 0


def test_labels_are_not_looked_at(tiny_store, rows, models, monkeypatch):
    before, _ = evaluate_at_rate(models(), tiny_store, rows, 0.5)
    blind = np.full_like(np.asarray(tiny_store.phenotype_codes), -1)
    monkeypatch.setattr(tiny_store, "phenotype_codes", blind)
    after, _ = evaluate_at_rate(models(), tiny_store, rows, 0.5)
    for name, told in before.items():
        assert (after[name] == told).all()


def test_no_chance_is_taken_from_the_global_generator(tiny_store, rows, models):
    model = models()
    model.network.train()
    before = torch.get_rng_state()
    evaluate_at_rate(model, tiny_store, rows, 0.15)
    assert torch.equal(before, torch.get_rng_state())
    assert not model.network.training
