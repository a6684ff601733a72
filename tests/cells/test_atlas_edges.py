"""The edges of the simulated atlas, read off cells that it draws."""

import numpy as np
import pytest

from core.cells.atlas.biology import atlas_biology
from core.cells.atlas.edges import KINDS, OPPOSITE, UNIVERSAL, true_edges, true_responses
from core.cells.atlas.simulation import simulate_cells

MACROPHAGE = {"cell_type": "macrophage", "tissue": "lung", "disease": "normal", "sex": "female"}


def edges(genes, condition=MACROPHAGE):
    found = true_edges(genes, [condition], [10])
    return found.sign, found.kind


def test_edges_are_those_of_the_programmes_of_a_context_with_their_signs():
    genes = ["FOS", "TXNIP", "IL1B", "CD163", "CYP2E1", "ASS1", "unknown"]
    sign, kind = edges(genes)
    assert (sign == sign.T).all()
    assert sign[0].tolist() == [0, -1, 0, 0, 0, 0, 0]
    assert sign[2].tolist() == [0, 0, 0, -1, 0, 0, 0]
    assert (sign[4:] == 0).all()
    assert KINDS[kind[0, 1]] == UNIVERSAL
    assert (kind[sign == 0] == -1).all()
    hepatocyte, _ = edges(genes, MACROPHAGE | {"cell_type": "hepatocyte", "tissue": "liver"})
    assert hepatocyte[4].tolist() == [0, 0, 0, 0, 0, -1, 0]


def test_an_edge_of_half_the_cells_is_one_of_the_context():
    genes, other = ["IL1B", "CD163"], MACROPHAGE | {"cell_type": "hepatocyte"}
    assert true_edges(genes, [MACROPHAGE, other], [5, 5]).sign[0, 1] == -1
    rare = true_edges(genes, [MACROPHAGE, other], [4, 5])
    assert (rare.sign[0, 1], rare.is_partial[0, 1]) == (0, True)


@pytest.mark.parametrize("tissue", ["lung", "blood"])
def test_simulated_cells_correlate_as_the_edges_say(tissue):
    condition = {"cell_type": "CD4-positive, alpha-beta T cell", "tissue": tissue}
    condition |= {"disease": "normal", "sex": "male"}
    cells = simulate_cells(4000, seed=0, **condition)
    sign, kind = edges(list(cells.var_names), condition)
    counts = cells.X.toarray()
    expressed = np.flatnonzero((counts > 0).mean(axis=0) > 0.3)
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, expressed]
    correlation = np.corrcoef(values.T)
    sign, kind = sign[np.ix_(expressed, expressed)], kind[np.ix_(expressed, expressed)]
    linked = sign != 0
    assert linked.sum() > 50
    assert (np.sign(correlation[linked]) == sign[linked]).mean() > 0.9
    free = ~linked & ~np.eye(len(sign), dtype=bool)
    assert np.abs(correlation[linked]).mean() > 3 * np.abs(correlation[free]).mean()
    if OPPOSITE in {KINDS[one] for one in np.unique(kind) if one >= 0}:
        assert (kind == KINDS.index(OPPOSITE)).any()


def test_pairs_of_opposite_sign_are_known_as_such():
    genes = list(atlas_biology().genes)
    lung = edges(genes, MACROPHAGE)[0]
    blood = edges(genes, MACROPHAGE | {"tissue": "blood"})
    flipped = (lung * blood[0]) < 0
    assert flipped.any()
    assert (blood[1][flipped] == KINDS.index(OPPOSITE)).all()


def test_responses_are_the_edges_of_a_gene_but_of_a_regulator_alone_where_there_is_one():
    genes = ["IL1B", "CXCL8", "CD163", "FOS", "HSPA1A", "DNAJB1"]
    for gene, version, expected in (
        ("IL1B", 1, [0, 1, -1, 0, 0, 0]),
        ("CXCL8", 1, [1, 0, -1, 0, 0, 0]),
        ("IL1B", 2, [0, 1, -1, 0, 0, 0]),
        ("CXCL8", 2, [0, 0, 0, 0, 0, 0]),
        ("HSPA1A", 2, [0, 0, 0, 0, 0, 1]),
    ):
        found = true_responses(genes, gene, [MACROPHAGE], [10], version=version)
        assert found.sign.tolist() == [expected]
