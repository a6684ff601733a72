"""Token spaces, cells and batches for the encoding tests."""

from dataclasses import fields

import numpy as np
from scipy import sparse

from core.encoding.batches import BatchEncoder
from core.encoding.masking import Show
from core.encoding.tokens import TokenSpace
from core.encoding.values import ValueEncoder

PHENOTYPES = {"sex": ("female", "male"), "tissue": ("lung", "blood", "liver")}
EDGES = np.array([0.5, 1.5, 2.5], dtype=np.float32)


def value_encoder(kind):
    if kind == "binned":
        return ValueEncoder("binned", EDGES)
    return ValueEncoder(kind, EDGES[:1])


def batch_encoder(
    kind="binned", layout="ranked", *, n_genes=12, max_length=None, phenotypes=None, **options
):
    values = value_encoder(kind)
    n_bins = 1 if kind == "continuous" else values.n_bins
    phenotypes = PHENOTYPES if phenotypes is None else phenotypes
    tokens = TokenSpace(phenotypes, n_genes, n_bins, layout=layout)
    length = tokens.resolve_max_length(max_length)
    return BatchEncoder(tokens, values, max_length=length, **options)


def make_cells(seed, *, n_cells=6, n_genes=12, n_phenotypes=2):
    """Make sparse expression with faint values below the first edge, and codes, some missing."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(0.05, 4.0, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.5)
    codes = rng.integers(-1, 2, (n_cells, n_phenotypes)).astype(np.int32)
    return sparse.csr_matrix(dense.astype(np.float32)), codes


def by_cell(batch):
    """Take a batch apart into one plain record per cell, positions counted within the cell."""
    records = []
    for cell in range(batch.n_cells):
        start, end = (int(bound) for bound in batch.cu_seqlens[cell : cell + 2])
        genes = batch.gene_cell == cell
        phenotypes = batch.phenotype_cell == cell
        records.append(
            {
                "token_id": batch.token_id[start:end].tolist(),
                "value": batch.value[start:end].tolist(),
                "continuous": batch.continuous[start:end].tolist(),
                "gene_position": (batch.gene_position[genes] - start).tolist(),
                "gene": batch.gene[genes].tolist(),
                "gene_target": batch.gene_target[genes].tolist(),
                "phenotype_position": (batch.phenotype_position[phenotypes] - start).tolist(),
                "phenotype_slot": batch.phenotype_slot[phenotypes].tolist(),
                "phenotype_target": batch.phenotype_target[phenotypes].tolist(),
                "mask_rate": float(batch.mask_rate[cell]),
            }
        )
        if batch.context is not None:
            inside = (batch.context >= start) & (batch.context < end)
            records[-1]["context"] = (batch.context[inside] - start).tolist()
    return records


def assert_same_batch(one, other):
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("thresholds", "first_gene") or left is None:
            assert left == right
            continue
        assert left.dtype == right.dtype, field.name
        np.testing.assert_array_equal(left, right, err_msg=field.name)


def read_back(batch, encoder):
    """Unmask a batch: dense (cells, genes) bins or values, NaN where a gene is not in the cell.

    Continuous models' values that are not expressed read as 0.
    """
    tokens = encoder.tokens
    found = np.full((batch.n_cells, tokens.n_genes), np.nan)
    cell = np.repeat(np.arange(batch.n_cells), np.diff(batch.cu_seqlens))
    is_gene = (batch.token_id >= tokens.first_gene) & (batch.value != 1)
    genes = batch.token_id[is_gene] - tokens.first_gene
    shown = batch.continuous if encoder.continuous else batch.value - tokens.first_bin
    found[cell[is_gene], genes] = shown[is_gene]
    found[batch.gene_cell, batch.gene] = batch.gene_target
    return found


def true_answers(expression, encoder):
    """Dense (cells, genes): the bins, or the values where expressed."""
    dense = expression.toarray()
    bins = encoder.values.encode(dense)
    return np.where(bins > 0, dense, 0) if encoder.continuous else bins


STATES = np.array([Show.VALUE, Show.MASKED, Show.NOT_SPECIFIED, Show.DROPPED], dtype=np.int8)
