"""What a request finds in cells whose links are known, which measure is the weight, and what is refused."""

from dataclasses import replace

import networkx
import numpy as np
import pytest

from core.cells.genes import GenePanel
from core.errors import ConfigurationError, DataError, MachineError
from core.interactions import network
from core.interactions.network import find_interactions
from core.interactions.output import write_interactions
from core.interactions.request import Request
from core.interactions.result import best_measure
from tests.generation.examples import known_model, set_pairs
from tests.interactions.examples import make_cells
from tests.model.examples import N_GENES, make_cell_model


def linked_cells(seed=0, n_cells=600, link=0.8, silent=()):
    """Make cells of 12 donors, of which the model has not seen 4, with genes 0 and 1 linked."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_cells, N_GENES))
    z[:, 1] = link * z[:, 0] + np.sqrt(1 - link**2) * z[:, 1]
    donors = np.arange(n_cells) % 12
    z[:, list(silent)] = -2
    return make_cells(np.clip(z + 1.2, 0, 3), donors=donors, held_out=donors < 4)


def find(model, cells, **request):
    return find_interactions(model, lambda where: cells, Request(**request))


def test_a_model_that_knows_the_link_gives_the_weight_and_the_edge_is_found():
    model = set_pairs(known_model(), [1, 1, 0, 0, 0, 0, 0])
    (found,) = find(model, linked_cells()).networks
    assert found.chosen == "model"
    assert not any("not the model's effects" in one for one in found.about_weights)
    assert found.strongest(1) == [(0, 1)]
    assert (found.p[0, 1] < 0.001, found.weight[0, 1] > 0) == (True, True)


def test_a_model_that_is_wrong_loses_to_a_simple_measure_and_the_network_says_so():
    model = set_pairs(known_model(), [0, 0, 1, 1, 0, 0, 0])
    (found,) = find(model, linked_cells()).networks
    assert found.chosen != "model"
    assert found.strongest(1) == [(0, 1)]
    assert "not the model's effects" in found.about_weights[0]
    (kept,) = find(model, linked_cells(), weight="model").networks
    assert kept.chosen == "model"
    assert "held-out donors hold more evidence for" in kept.about_weights[0]
    np.testing.assert_array_equal(kept.measures["pearson"], found.measures["pearson"])


def test_without_held_out_cells_the_weight_is_the_models_and_a_line_says_so():
    cells = linked_cells()
    (found,) = find(known_model(), cells.take(~cells.held_out)).networks
    assert found.chosen == "model"
    assert "too few cells of other donors" in found.about_weights[0]


def test_a_model_without_couplings_gives_no_weights_unless_held_out_donors_favour_it():
    model = make_cell_model(layers=0, log_linear=True, log_linear_rank=0, randomise=False)
    (found,) = find(model, linked_cells()).networks
    assert (found.chosen, found.default) == ("pearson_shrunken", "pearson_shrunken")
    assert found.strongest(1) == [(0, 1)]
    assert "a model without couplings" in found.about_weights[0]
    (kept,) = find(model, linked_cells(), weight="model").networks
    assert kept.chosen == "model"
    assert "hold more evidence for pearson_shrunken" in kept.about_weights[0]
    favoured = replace(found, chosen="model", evidence={"model": 9.0, "pearson_shrunken": 1.0})
    assert best_measure(favoured.evidence, found.margin, found.default) == "model"
    assert favoured.about_weights == [
        "the weights are model, not pearson_shrunken: held-out donors hold more evidence for its strongest "
        "pairs (9.00 against 1.00)"
    ]


def test_a_contrast_has_one_measure_on_both_sides_and_its_difference():
    model = set_pairs(known_model(), [0, 0, 1, 1, 0, 0, 0])
    sides = {"female": linked_cells(), "male": linked_cells(1, link=0.0)}
    found = find_interactions(
        model,
        lambda where: sides[where.conditions[-1].values[0]] if where else linked_cells(2),
        Request(contrast=("sex", "female", "male")),
    )
    assert len({one.chosen for one in (*found.networks, found.difference)}) == 1
    first, second = (one.weight for one in found.networks)
    np.testing.assert_allclose(found.difference.weight, first - second)
    assert np.isfinite(found.difference.q[0, 1])


def test_more_pairs_than_memory_holds_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(network, "_BYTES_PER_PAIR", 10**12)
    with pytest.raises(MachineError, match=r"7 x 7 pairs of genes need .* of memory"):
        find(known_model(), linked_cells())


def test_named_genes_are_those_that_cells_and_model_have():
    cells = linked_cells(silent=[2])
    with pytest.raises(DataError, match="GENE2 is never expressed, and a network needs 10"):
        find(known_model(), cells, genes=["GENE1", "GENE2"])
    (found,) = find(known_model(), cells).networks
    assert len(found.sources) == N_GENES - 1
    assert "1 gene is expressed in fewer than 10 cells" in found.notes[0]
    with pytest.raises(ConfigurationError, match="does not know the gene 'GENE9'; did you mean"):
        find(known_model(), cells, regulators=["GENE9"])
    (found,) = find(known_model(), cells, regulators=["GENE9", "GENE1"]).networks
    assert found.weight.shape == (1, N_GENES - 1)
    assert "1 of 2 regulators are no genes of the model: GENE9" in found.notes


def test_names_of_strangers_are_harmless_in_a_graph(tmp_path):
    model = set_pairs(known_model(), [1, 1, 0, 0, 0, 0, 0])
    symbols = ("\x1b[31mred", "<b>&\x00", *model.panel.symbols[2:])
    model.panel = GenePanel(model.panel.ids, symbols)
    write_interactions(find(model, linked_cells()), tmp_path / "net.graphml", top=1)
    graph = networkx.read_graphml(tmp_path / "net.graphml")
    assert {graph.nodes[node]["name"] for node in graph} == {r"\x1b[31mred", r"<b>&\x00"}
    ((_, _, edge),) = graph.edges(data=True)
    assert (edge["interaction"], edge["direction"]) == ("positive", "both")


def test_the_same_seed_gives_the_same_network():
    model = set_pairs(known_model(), [1, 1, 0, -1, 0, 0, 0])
    first, again = (find(model, linked_cells(), seed=3).networks[0] for _ in range(2))
    np.testing.assert_array_equal(first.weight, again.weight)
    np.testing.assert_array_equal(first.p, again.p)
