"""Batches: written out by hand for two cells, and what must hold for any cells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from core.encoding.batches import BatchEncoder, Lookup, draw_unexpressed
from core.encoding.masking import Show
from core.encoding.panel_cells import PanelCells, PanelReader
from core.encoding.tokens import END, MASK, TokenSpace
from core.encoding.values import ValueEncoder
from core.presets.schema import MaskingSettings

from .examples import (
    EDGES,
    STATES,
    assert_same_batch,
    batch_encoder,
    by_cell,
    make_cells,
    read_back,
    true_answers,
)

KINDS = st.sampled_from(["binary", "binned", "continuous"])
LAYOUTS = st.sampled_from(["ranked", "expressed"])
SEEDS = st.integers(0, 100_000)
EVERYTHING = MaskingSettings(genes=1.0, phenotypes=1.0, unexpressed=0.0)

# Two cells of three genes, two phenotypes. Identities: CLS 0, START 1, END 2, [SEX] 3, [TISSUE] 4,
# genes 5 to 7. Values: none 0, MASK 1, bins 2 to 5, [NO_SEX] 6, female 7, male 8, [NO_TISSUE] 9,
# lung 10, blood 11, liver 12. Edges 0.5, 1.5, 2.5.
TWO_CELLS = np.array([[0.0, 1.75, 3.25], [2.0, 0.0, 0.25]], dtype=np.float32)
TWO_CODES = np.array([[1, -1], [0, 2]], dtype=np.int32)


def is_rectangular(batch):
    return batch.n_cells * batch.max_length == len(batch.token_id)


def hide(encoder):
    states = np.array(
        [[Show.VALUE, Show.NOT_SPECIFIED], [Show.DROPPED, Show.MASKED]], dtype=np.int8
    )
    mask = np.array([[False, True, False], [True, False, True]])
    return encoder.ranked(TWO_CELLS, TWO_CODES, states, mask)


def test_a_ranked_batch_of_two_cells_written_out_by_hand():
    batch = hide(batch_encoder(n_genes=3))
    assert batch.token_id.tolist() == [*[0, 3, 4, 1, 5, 6, 7, 2], *[0, 4, 1, 5, 6, 7, 2]]
    assert batch.value.tolist() == [*[0, 8, 9, 0, 2, 1, 5, 0], *[0, 1, 0, 1, 2, 1, 0]]
    assert batch.continuous.tolist() == [0] * 15
    assert batch.cu_seqlens.tolist() == [0, 8, 15]
    assert batch.gene_position.tolist() == [5, 11, 13]
    assert batch.gene_cell.tolist() == [0, 1, 1]
    assert batch.gene.tolist() == [1, 0, 2]
    assert batch.gene_target.tolist() == [2, 2, 0]
    assert batch.phenotype_position.tolist() == [9]
    assert batch.phenotype_cell.tolist() == [1]
    assert batch.phenotype_slot.tolist() == [1]
    assert batch.phenotype_target.tolist() == [2]
    np.testing.assert_allclose(batch.mask_rate, [1 / 3, 2 / 3])
    assert (batch.n_cells, batch.max_length, is_rectangular(batch)) == (2, 8, False)


def test_a_continuous_ranked_batch_shows_values_and_predicts_them():
    """One token, "a number follows" (2), is the token of every visible gene; faint values are 0."""
    batch = hide(batch_encoder("continuous", n_genes=3))
    assert batch.value.tolist() == [*[0, 5, 6, 0, 2, 1, 2, 0], *[0, 1, 0, 1, 2, 1, 0]]
    assert batch.continuous.tolist() == [0, 0, 0, 0, 0, 0, 3.25, 0] + [0] * 7
    assert batch.gene_target.tolist() == [1.75, 2.0, 0.0]
    assert batch.gene_target.dtype == np.float32


def test_an_expressed_batch_with_all_genes_visible_written_out_by_hand():
    """Cell 1's gene 7 is below the first edge: it is no part of the cell."""
    batch = batch_encoder(layout="expressed", n_genes=3).visible(
        sparse.csr_matrix(TWO_CELLS), TWO_CODES, ["tissue"], np.random.default_rng(0)
    )
    assert batch.token_id.tolist() == [*[0, 3, 4, 1, 6, 7, 2], *[0, 3, 4, 1, 5, 2]]
    assert batch.value.tolist() == [*[0, 8, 1, 0, 4, 5, 0], *[0, 7, 1, 0, 4, 0]]
    assert batch.cu_seqlens.tolist() == [0, 7, 13]
    assert batch.gene.tolist() == []
    assert batch.phenotype_position.tolist() == [9]  # cell 0's tissue is masked but not known
    assert batch.phenotype_target.tolist() == [2]
    assert batch.mask_rate.tolist() == [0, 0]


def test_an_expressed_batch_with_everything_masked_written_out_by_hand():
    batch = batch_encoder(layout="expressed", n_genes=3).masked(
        sparse.csr_matrix(TWO_CELLS), TWO_CODES, EVERYTHING, np.random.default_rng(0)
    )
    assert batch.token_id.tolist() == [*[0, 3, 4, 1, 6, 7, 2], *[0, 3, 4, 1, 5, 2]]
    # A missing label is never masked: [NO_TISSUE] stays.
    assert batch.value.tolist() == [*[0, 1, 9, 0, 1, 1, 0], *[0, 1, 1, 0, 1, 0]]
    assert batch.gene_position.tolist() == [4, 5, 11]
    assert batch.gene_cell.tolist() == [0, 0, 1]
    assert batch.gene.tolist() == [1, 2, 0]
    assert batch.gene_target.tolist() == [2, 3, 2]
    assert batch.phenotype_position.tolist() == [1, 8, 9]
    assert batch.phenotype_target.tolist() == [1, 0, 2]
    assert batch.mask_rate.tolist() == [1, 1]


def test_cells_without_phenotypes_have_a_header_of_cls_and_start():
    encoder = batch_encoder(n_genes=3, phenotypes={})
    nothing = np.zeros((2, 0), dtype=np.int32)
    mask = np.zeros((2, 3), dtype=bool)
    batch = encoder.ranked(TWO_CELLS, nothing, nothing.astype(np.int8), mask)
    assert batch.token_id.tolist() == [0, 1, 3, 4, 5, 2] * 2
    assert batch.phenotype_position.tolist() == []


def test_a_cell_without_any_expressed_gene_is_a_header_and_an_end():
    cells = sparse.csr_matrix(np.array([[0, 0.25, 0], [1, 0, 0]], dtype=np.float32))
    batch = batch_encoder(layout="expressed", n_genes=3).masked(
        cells, TWO_CODES, EVERYTHING, np.random.default_rng(0)
    )
    assert batch.token_id.tolist() == [*[0, 3, 4, 1, 2], *[0, 3, 4, 1, 5, 2]]
    assert batch.mask_rate.tolist() == [0, 1]


# ------------------------------------------------------------------------------- properties
def masked(encoder, cells, codes, seed, **masking):
    return encoder.masked(
        cells, codes, MaskingSettings(**masking), np.random.default_rng([seed, 1])
    )


RATES = st.sampled_from([0.0, 0.3, 1.0, "uniform"])


@given(kind=KINDS, seed=SEEDS, context_genes=st.integers(1, 15))
def test_a_context_is_some_genes_of_each_cell_and_they_alone_are_predicted(
    kind, seed, context_genes
):
    cells, codes = make_cells(seed)
    settings = {"genes": "uniform", "visible_cells": 0.2}
    encoder = batch_encoder(kind, context_genes=context_genes)
    batch = masked(encoder, cells, codes, seed, **settings)
    whole = masked(batch_encoder(kind), cells, codes, seed, **settings)
    if context_genes >= 12:
        assert_same_batch(batch, whole)
        return
    np.testing.assert_array_equal(batch.value, whole.value)  # the rest is hidden or shown as before
    np.testing.assert_array_equal(batch.mask_rate, whole.mask_rate)
    is_gene = batch.token_id >= encoder.tokens.first_gene
    is_read = np.isin(np.arange(len(is_gene)), batch.context)
    assert is_read[~is_gene].all()
    read_genes = np.add.reduceat((is_read & is_gene).astype(int), batch.cu_seqlens[:-1])
    assert (read_genes == context_genes).all()
    np.testing.assert_array_equal(
        batch.encoded_lengths, context_genes + encoder.tokens.header_length + 1
    )
    is_predicted = is_read[whole.gene_position]
    for name in ("gene_position", "gene_cell", "gene", "gene_target"):
        expected = getattr(whole, name)[is_predicted]
        np.testing.assert_array_equal(getattr(batch, name), expected, err_msg=name)


@given(SEEDS, KINDS, RATES)
def test_unmasking_a_ranked_batch_gives_the_cells_back(seed, kind, rate):
    encoder = batch_encoder(kind)
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes=rate, drop_phenotypes=0.5)
    np.testing.assert_array_equal(read_back(batch, encoder), true_answers(cells, encoder))


@given(SEEDS, KINDS, RATES)
def test_unmasking_an_expressed_batch_gives_the_expressed_genes_back(seed, kind, rate):
    encoder = batch_encoder(kind, "expressed")
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes=rate, unexpressed=0.0, drop_phenotypes=0.5)
    truth = true_answers(cells, encoder)
    expected = np.where(truth > 0, truth, np.nan)
    np.testing.assert_array_equal(read_back(batch, encoder), expected)


@given(SEEDS, KINDS, LAYOUTS)
def test_every_target_is_the_cells_true_bin_even_of_genes_swapped_in(seed, kind, layout):
    encoder = batch_encoder(kind, layout)
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes="uniform")
    truth = true_answers(cells, encoder)
    np.testing.assert_array_equal(batch.gene_target, truth[batch.gene_cell, batch.gene])
    np.testing.assert_array_equal(
        batch.phenotype_target, codes[batch.phenotype_cell, batch.phenotype_slot]
    )
    assert (batch.phenotype_target >= 0).all()


@given(SEEDS, KINDS, LAYOUTS)
def test_positions_point_at_the_masked_genes_and_phenotypes(seed, kind, layout):
    encoder = batch_encoder(kind, layout)
    tokens = encoder.tokens
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes="uniform", drop_phenotypes=0.3)
    np.testing.assert_array_equal(
        batch.token_id[batch.gene_position], tokens.first_gene + batch.gene
    )
    np.testing.assert_array_equal(
        batch.token_id[batch.phenotype_position], tokens.first_slot + batch.phenotype_slot
    )
    cell_of_token = np.repeat(np.arange(batch.n_cells), np.diff(batch.cu_seqlens))
    np.testing.assert_array_equal(cell_of_token[batch.gene_position], batch.gene_cell)
    np.testing.assert_array_equal(cell_of_token[batch.phenotype_position], batch.phenotype_cell)


@given(SEEDS, KINDS, LAYOUTS)
def test_masked_positions_show_the_mask_and_nothing_of_their_value(seed, kind, layout):
    encoder = batch_encoder(kind, layout)
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes="uniform")
    at = np.concatenate([batch.gene_position, batch.phenotype_position])
    assert (batch.value[at] == MASK).all()
    assert (batch.continuous[at] == 0).all()
    # Every masked gene has a target.
    is_gene = batch.token_id >= encoder.tokens.first_gene
    assert np.sum(batch.value[is_gene] == MASK) == len(batch.gene_position)


@given(SEEDS, KINDS)
def test_the_input_does_not_change_with_what_is_masked(seed, kind):
    """The strongest form of "no leak": other values behind the masks, the same input."""
    encoder = batch_encoder(kind)
    rng = np.random.default_rng(seed)
    cells, codes = make_cells(seed)
    mask = rng.random(cells.shape) < 0.5
    states = rng.choice(STATES, codes.shape)
    states[codes < 0] = Show.NOT_SPECIFIED
    other = np.where(mask, rng.permutation(cells.toarray().ravel()).reshape(mask.shape), 0)
    other = np.where(mask, other, cells.toarray()).astype(np.float32)
    other_codes = np.where((states == Show.MASKED) | (states == Show.DROPPED), 1 - codes, codes)
    one = encoder.ranked(cells.toarray(), codes, states, mask)
    two = encoder.ranked(other, other_codes.astype(np.int32), states, mask)
    for field in ("token_id", "value", "continuous", "cu_seqlens", "mask_rate", "gene"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


@given(SEEDS, LAYOUTS, st.sampled_from([6, 8, 17]))
def test_no_gene_is_twice_in_a_cell_and_ranked_genes_keep_panel_order(seed, layout, longest):
    encoder = batch_encoder(layout=layout, max_length=17 if layout == "ranked" else longest)
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes="uniform", unexpressed=0.7)
    for cell in by_cell(batch):
        genes = [token for token in cell["token_id"] if token >= encoder.tokens.first_gene]
        assert len(genes) == len(set(genes))
        assert layout == "expressed" or genes == sorted(genes)
        assert cell["token_id"][-1] == END


@given(SEEDS)
def test_dropped_phenotypes_vanish_and_carry_no_loss(seed):
    encoder = batch_encoder()
    cells, codes = make_cells(seed)
    codes = np.abs(codes)
    batch = masked(encoder, cells, codes, seed, phenotypes=1.0, drop_phenotypes=1.0)
    tokens = encoder.tokens
    is_slot = (batch.token_id >= tokens.first_slot) & (batch.token_id < tokens.first_gene)
    assert not is_slot.any()
    assert len(batch.phenotype_position) == 0
    assert batch.max_length == tokens.required_length - tokens.n_phenotypes


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_fraction_of_cells_shown_whole_is_the_requested_one(layout):
    encoder = batch_encoder(layout=layout)
    cells, codes = make_cells(0, n_cells=4000)
    batch = masked(encoder, cells, codes, 0, genes=0.5, visible_cells=0.3, unexpressed=0.0)
    expressed = (true_answers(cells, encoder) > 0).any(axis=1) | (layout == "ranked")
    whole = batch.mask_rate[expressed] == 0
    assert whole.mean() == pytest.approx(0.3, abs=0.03)
    n_masked = np.bincount(batch.gene_cell, minlength=4000)
    np.testing.assert_array_equal(n_masked == 0, batch.mask_rate == 0)
    assert (batch.phenotype_cell[:, None] == np.flatnonzero(batch.mask_rate == 0)).any()


# ------------------------------------------------------------------- expressed layout alone
@given(SEEDS, KINDS, st.sampled_from([0.3, 1.0, "uniform"]))
def test_genes_swapped_in_are_unexpressed_distinct_and_answered_with_bin_0(seed, kind, rate):
    encoder = batch_encoder(kind, "expressed")
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes=rate, unexpressed=1.0)
    truth = true_answers(cells, encoder)
    n_expressed = (truth > 0).sum(axis=1)
    is_swapped = batch.gene_target == 0
    pairs = list(zip(batch.gene_cell[is_swapped], batch.gene[is_swapped], strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(truth[cell, gene] == 0 for cell, gene in pairs)
    # Swapping replaces: it makes no cell longer, and lacks genes only where a cell has few left.
    for cell in range(len(truth)):
        start, end = batch.cu_seqlens[cell : cell + 2]
        assert (batch.token_id[start:end] >= encoder.tokens.first_gene).sum() == n_expressed[cell]
        of_cell = batch.gene_cell == cell
        free = truth.shape[1] - n_expressed[cell]
        assert is_swapped[of_cell].sum() == min(of_cell.sum(), free)


def test_the_fraction_of_genes_swapped_in_is_the_requested_one():
    rng = np.random.default_rng(0)
    dense = rng.uniform(1, 4, (400, 60)) * (rng.random((400, 60)) < 0.3)
    encoder = batch_encoder(layout="expressed", n_genes=60)
    cells = sparse.csr_matrix(dense.astype(np.float32))
    batch = masked(encoder, cells, np.zeros((400, 2), np.int32), 0, genes=0.5, unexpressed=0.25)
    assert np.mean(batch.gene_target == 0) == pytest.approx(0.25, abs=0.02)
    swapped = np.bincount(batch.gene[batch.gene_target == 0], minlength=60)
    assert swapped.min() > 0, "every gene can be swapped in"


def test_a_cell_that_expresses_the_whole_panel_swaps_nothing():
    cells = sparse.csr_matrix(np.full((2, 5), 2.0, dtype=np.float32))
    encoder = batch_encoder(layout="expressed", n_genes=5)
    batch = masked(encoder, cells, np.zeros((2, 2), np.int32), 0, genes=1.0, unexpressed=1.0)
    assert batch.gene_target.tolist() == [2] * 10


@given(SEEDS, st.integers(6, 17))
def test_a_cell_longer_than_max_length_is_cut_to_it(seed, longest):
    encoder = batch_encoder(layout="expressed", max_length=longest)
    cells, codes = make_cells(seed)
    batch = masked(encoder, cells, codes, seed, genes=0.5, unexpressed=0.0)
    n_expressed = (true_answers(cells, encoder) > 0).sum(axis=1)
    room = longest - encoder.tokens.header_length - 1
    found = (~np.isnan(read_back(batch, encoder))).sum(axis=1)
    np.testing.assert_array_equal(found, np.minimum(n_expressed, room))
    assert batch.max_length <= longest


@pytest.mark.parametrize("method", ["masked", "visible"])
def test_the_genes_kept_of_a_long_cell_are_a_random_choice(method):
    """PolyGene and PerturbGene cut the end off, so late genes were never seen."""
    encoder = batch_encoder(layout="expressed", n_genes=20, max_length=10)
    cells = sparse.csr_matrix(np.full((2000, 20), 2.0, dtype=np.float32))
    codes = np.zeros((2000, 2), dtype=np.int32)
    rng = np.random.default_rng(0)
    if method == "visible":
        batch = encoder.visible(cells, codes, [], rng)
    else:
        batch = encoder.masked(cells, codes, MaskingSettings(unexpressed=0.0), rng)
    genes = batch.token_id[batch.token_id >= encoder.tokens.first_gene] - encoder.tokens.first_gene
    kept = np.bincount(genes, minlength=20) / 2000
    np.testing.assert_allclose(kept, 5 / 20, atol=0.04)


# ----------------------------------------------------------------------------- all visible
@given(SEEDS, KINDS, LAYOUTS)
def test_visible_cells_hide_the_requested_phenotypes_and_nothing_else(seed, kind, layout):
    encoder = batch_encoder(kind, layout)
    cells, codes = make_cells(seed)
    batch = encoder.visible(cells, codes, ["tissue"], np.random.default_rng(seed))
    assert len(batch.gene_position) == 0
    assert (batch.mask_rate == 0).all()
    known = np.flatnonzero(codes[:, 1] >= 0)
    assert batch.phenotype_cell.tolist() == known.tolist()
    assert batch.phenotype_slot.tolist() == [1] * len(known)
    n_masks = np.sum(batch.value == MASK)
    assert n_masks == len(codes)  # an unknown label is hidden too, but without a target


def test_edges_per_gene_reach_the_batch():
    edges = np.stack([EDGES, EDGES + 1, EDGES * 0.1])
    values = ValueEncoder("binned", edges)
    tokens = TokenSpace({}, 3, 4, layout="expressed")
    encoder = BatchEncoder(tokens, values, max_length=20)
    batch = encoder.visible(
        sparse.csr_matrix(TWO_CELLS), np.zeros((2, 0), np.int32), [], np.random.default_rng(0)
    )
    genes = batch.token_id >= tokens.first_gene
    assert (batch.token_id[genes] - tokens.first_gene).tolist() == [1, 2, 0, 2]
    assert (batch.value[genes] - tokens.first_bin).tolist() == [1, 3, 2, 3]


# ------------------------------------------------------------------- as stored, from a store

STORED = [
    (kind, layout)
    for kind in ("binned", "binary", "continuous", "per gene")
    for layout in ("ranked", "expressed")
]


def store_encoder(store, kind, layout, *, n_genes=60, max_length=None):
    edges = EDGES if kind in ("binned", "per gene") else EDGES[:1]
    if kind == "per gene":
        edges = EDGES * np.random.default_rng(0).uniform(0.5, 2, (n_genes, 1)).astype(np.float32)
    values = ValueEncoder("binned" if kind == "per gene" else kind, edges)
    n_bins = 1 if kind == "continuous" else values.n_bins
    tokens = TokenSpace(store.phenotypes, n_genes, n_bins, layout=layout)
    return BatchEncoder(tokens, values, max_length=tokens.resolve_max_length(max_length))


def sorted_by_gene(batch):
    """Cells as records whose order of tokens does not count."""
    records = by_cell(batch)
    for record in records:
        tokens = zip(record["token_id"], record["value"], record["continuous"], strict=True)
        record["tokens"] = sorted(tokens)
        record["targets"] = sorted(zip(record["gene"], record["gene_target"], strict=True))
    return [{name: record[name] for name in ("tokens", "targets")} for record in records]


@pytest.mark.parametrize(("kind", "layout"), STORED)
@pytest.mark.parametrize("n_genes", [60, None])
def test_stored_cells_give_the_batch_of_their_normalised_values(tiny_store, kind, layout, n_genes):
    n_genes = n_genes or len(tiny_store.genes)
    encoder = store_encoder(tiny_store, kind, layout, n_genes=n_genes)
    panel, rows = tiny_store.panel(n_genes), np.arange(40, 80)
    codes = np.asarray(tiny_store.phenotype_codes[rows])
    stored = PanelReader(tiny_store, panel).read(rows)
    masking = MaskingSettings(genes=1.0, unexpressed=0.0, drop_phenotypes=0.2)
    results = []
    for cells in (stored, tiny_store.read(rows, panel)):
        masked_cells = encoder.masked(cells, codes, masking, np.random.default_rng(0))
        shown_cells = encoder.visible(cells, codes, ["tissue"], np.random.default_rng(0))
        results.append((sorted_by_gene(masked_cells), sorted_by_gene(shown_cells)))
    assert results[0] == results[1]


@pytest.mark.parametrize(("kind", "layout"), STORED)
def test_masked_stored_cells_have_true_targets(tiny_store, kind, layout):
    """Long cells cut, genes swapped in: each target is still that gene's bin in that cell."""
    encoder = store_encoder(
        tiny_store, kind, layout, n_genes=200, max_length=None if layout == "ranked" else 40
    )
    panel, rows = tiny_store.panel(200), np.arange(100, 164)
    stored = PanelReader(tiny_store, panel).read(rows)
    codes = np.asarray(tiny_store.phenotype_codes[rows])
    batch = encoder.masked(
        stored, codes, MaskingSettings(genes="uniform", unexpressed=0.5), np.random.default_rng(0)
    )
    truth = true_answers(tiny_store.read(rows, panel), encoder)
    np.testing.assert_array_equal(batch.gene_target, truth[batch.gene_cell, batch.gene])
    found = read_back(batch, encoder)
    in_cell = ~np.isnan(found)
    np.testing.assert_array_equal(found[in_cell], truth[in_cell])
    assert layout == "ranked" or (batch.gene_target == 0).any()


def test_integers_of_a_batch_are_as_small_as_they_can_be(tiny_store):
    panel, rows = tiny_store.panel(60), np.arange(20)
    stored = PanelReader(tiny_store, panel).read(rows)
    codes = np.asarray(tiny_store.phenotype_codes[rows])
    for kind, layout in STORED:
        encoder = store_encoder(tiny_store, kind, layout)
        batch = encoder.masked(stored, codes, MaskingSettings(), np.random.default_rng(0))
        assert batch.token_id.dtype == np.uint16
        assert batch.value.dtype == np.uint8
        assert batch.gene_target.dtype == (np.float32 if kind == "continuous" else np.uint8)
        assert (batch.continuous.strides == (0,)) == (kind != "continuous")


def draw(dense, wanted, seed=0):
    cells = PanelCells.of(sparse.csr_matrix(dense.astype(np.float32)))
    lookup = Lookup(cells.n_columns + 1)
    rng = np.random.default_rng(seed)
    genes, n_drawn = draw_unexpressed(cells, np.asarray(wanted), lookup, rng)
    return np.split(genes, np.cumsum(n_drawn)[:-1])


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 40), st.integers(1, 300))
def test_as_many_as_wanted_or_as_there_are_all_distinct_and_unexpressed(
    seed, fraction, n_cells, n_genes
):
    rng = np.random.default_rng(seed)
    dense = rng.random((n_cells, n_genes)) < fraction
    wanted = rng.integers(0, n_genes + 1, n_cells)
    for cell, genes in enumerate(draw(dense, wanted, seed)):
        assert len(set(genes.tolist())) == len(genes)
        assert not dense[cell, genes].any()
        assert len(genes) == min(wanted[cell], (~dense[cell]).sum())


@pytest.mark.parametrize(
    ("n_genes", "n_expressed", "wanted"),
    [
        pytest.param(60, 6, 5, id="many are free"),
        pytest.param(60, 48, 6, id="half of the free ones"),
        pytest.param(20, 17, 2, id="listed"),
    ],
)
def test_every_unexpressed_gene_is_as_likely_as_the_next(n_genes, n_expressed, wanted):
    dense = np.zeros((4000, n_genes), dtype=bool)
    dense[:, 3 : 3 + n_expressed] = True
    genes = np.concatenate(draw(dense, np.full(4000, wanted)))
    counts = np.bincount(genes, minlength=n_genes)
    n_free = n_genes - n_expressed
    expected = 4000 * wanted / n_free
    assert counts[3 : 3 + n_expressed].sum() == 0
    free = np.delete(counts, np.arange(3, 3 + n_expressed))
    np.testing.assert_allclose(free, expected, atol=5 * np.sqrt(expected))
