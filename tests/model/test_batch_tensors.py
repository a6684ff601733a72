"""Batches on the device: whatever the host's integers, the model's input has one type."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import sparse

from core.encoding.batches import BatchEncoder
from core.encoding.panel_cells import PanelReader
from core.encoding.tokens import TokenSpace
from core.encoding.values import ValueEncoder
from core.model.batch_tensors import BatchTensors
from core.presets.schema import MaskingSettings

from .examples import make_codes, make_config, make_expression, value_encoder


def make_arrays(kind, layout):
    config = make_config(kind, layout)
    encoder = BatchEncoder(config.tokens, value_encoder(config), max_length=config.longest_sequence)
    cells = sparse.csr_matrix(make_expression())
    return encoder.masked(
        cells, make_codes(config), MaskingSettings(genes="uniform"), np.random.default_rng(0)
    )


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
def test_integers_are_widened_and_values_stay(kind, layout):
    arrays = make_arrays(kind, layout)
    batch = BatchTensors.from_arrays(arrays)
    for name, tensor in vars(batch).items():
        array = getattr(arrays, name, None)
        if not isinstance(array, np.ndarray) or name == "thresholds":
            continue
        np.testing.assert_array_equal(tensor.numpy(), array, err_msg=name)
        if array.dtype == np.float32:
            assert tensor.dtype == torch.float32, name
        else:
            assert tensor.dtype == (torch.int32 if name == "cu_seqlens" else torch.int64), name


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_output_positions_are_the_masked_ones_cell_by_cell(layout):
    arrays = make_arrays("binned", layout)
    batch = BatchTensors.from_arrays(arrays)
    positions = batch.output_position.numpy()
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(positions[batch.output_of_gene], arrays.gene_position)
    np.testing.assert_array_equal(positions[batch.output_of_phenotype], arrays.phenotype_position)
    assert len(positions) == len(arrays.gene_position) + len(arrays.phenotype_position)
    cells = np.searchsorted(arrays.cu_seqlens, positions, side="right") - 1
    np.testing.assert_array_equal(np.diff(batch.output_bounds), np.bincount(cells, minlength=5))
    np.testing.assert_array_equal(batch.cu_outputs, batch.output_bounds)
    np.testing.assert_array_equal(batch.token_bounds, arrays.cu_seqlens)
    assert (batch.n_cells, batch.cu_outputs.dtype) == (5, torch.int32)


def test_on_the_host_integers_stay_small_and_a_repeated_zero_takes_no_memory():
    batch = BatchTensors.on_host(make_arrays("binned", "expressed"))
    assert batch.token_id.dtype == torch.uint16
    assert batch.value.dtype == torch.uint8
    assert batch.continuous.shape == (1,)
    assert batch.to("cpu").continuous.shape == (batch.n_tokens,)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("n_genes", [60, None])
def test_bins_made_on_the_device_are_those_of_the_host(tiny_store, layout, n_genes):
    panel = tiny_store.panel(n_genes or len(tiny_store.genes))
    rows = np.arange(50, 90)
    edges = np.linspace(0.1, 7, 9).astype(np.float32)
    tokens = TokenSpace(tiny_store.phenotypes, len(panel), 10, layout=layout)
    batches = []
    for on_device in (False, True):
        encoder = BatchEncoder(
            tokens,
            ValueEncoder("binned", edges),
            max_length=tokens.required_length if layout == "ranked" else 60,
            bins_on_device=on_device,
        )
        arrays = encoder.masked(
            PanelReader(tiny_store, panel).read(rows),
            np.asarray(tiny_store.phenotype_codes[rows]),
            MaskingSettings(genes="uniform", drop_phenotypes=0.3, visible_cells=0.2),
            np.random.default_rng(0),
        )
        assert (arrays.thresholds is not None) == on_device
        batches.append(BatchTensors.from_arrays(arrays))
    for name in (field.name for field in fields(BatchTensors)):
        tensor = getattr(batches[0], name)
        other = getattr(batches[1], name)
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype == other.dtype, name
            assert torch.equal(tensor, other), name
        else:
            np.testing.assert_array_equal(tensor, other, err_msg=name)
    assert len(batches[0].gene_target.unique()) > 2


def test_bins_are_left_to_the_device_only_where_counts_decide_them():
    """Log values, edges per gene and continuous models stay with the host."""
    config = make_config("binned", "expressed")
    encoder = BatchEncoder(config.tokens, value_encoder(config), max_length=99, bins_on_device=True)
    cells = sparse.csr_matrix(make_expression())
    batch = encoder.masked(cells, make_codes(config), MaskingSettings(), np.random.default_rng(0))
    assert batch.thresholds is None
