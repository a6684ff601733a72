"""Reference networks: what is read of them, and scores against scikit-learn."""

import numpy as np
import pytest
from scipy.stats.contingency import odds_ratio
from sklearn.metrics import average_precision_score, roc_auc_score

from core.cells.genes import GenePanel
from core.errors import DataError
from core.interactions.baselines import MEASURE_NAMES
from core.interactions.known_edges import about_known, read_known_edges, score_known

PANEL = GenePanel(
    ("ENSG00000102145", "ENSG00000177606", "ENSG00000170345", "ENSG00000223609"),
    ("GATA1", "JUN", "FOS", "HBD"),
)


def read(tmp_path, text, panel=PANEL):
    (tmp_path / "known.csv").write_bytes(text.encode())
    return read_known_edges(tmp_path / "known.csv", panel, "--known")


@pytest.mark.parametrize(
    "text",
    [
        "source,target\nGATA1,HBD\nJUN,FOS\nMYC,FOS\nJUN,MYC\nJUN,JUN\n",
        "\ufeff,source,target,weight\n0,GATA1,HBD,1\n1,JUN,FOS,-1\n2,JUN,FOS,1\n3,MYC,X,1\n",
        "source\ttarget\tsource_genesymbol\ttarget_genesymbol\nP15976\tP02042\tGATA1\tHBD\n"
        "P05412\tP01100\tJUN\tFOS\nP05412\tCOMPLEX:P05412_P01100\tJUN\tJUN_FOS\n",
        "source,target\nENSG00000102145,ENSG00000223609\nENSG00000177606.12,ENSG00000170345\n",
    ],
    ids=["others", "decoupler", "omnipath", "ensembl"],
)
def test_edges_between_genes_of_the_model_are_read_by_symbol_or_id(tmp_path, text):
    known = read(tmp_path, text)
    assert set(zip(known.sources.tolist(), known.targets.tolist(), strict=True)) == {(0, 3), (1, 2)}
    assert known.regulators.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no table"),
        ("tf,gene\nGATA1,HBD\n", "has the columns tf, gene; it needs source and target"),
        ("source,target\nGata1,Hbd\n", "none of its 1 edges joins two genes of the model"),
        ("source,target\n", "none of its 0 edges"),
        ("source,target\nGATA1,GATA1\n", "none of its 1 edges"),
    ],
)
def test_a_table_without_known_edges_is_one_sentence(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, text)


def test_scores_are_those_of_scikit_learn_over_pairs_of_known_regulators(tmp_path):
    rng = np.random.default_rng(0)
    genes = [f"GENE{gene}" for gene in range(40)]
    edges = [(s, t) for s in range(0, 20, 2) for t in range(40) if s != t and rng.random() < 0.1]
    text = "\n".join(f"GENE{s},GENE{t}" for s, t in edges)
    known = read(
        tmp_path, f"source,target\nGENE2,OTHER\n{text}\n", GenePanel(tuple(genes), tuple(genes))
    )
    truth = np.zeros((40, 40), bool)
    truth[tuple(np.array(edges).T)] = True
    good = rng.normal(size=(40, 40)) + 2 * truth * rng.choice([-1, 1], (40, 40))
    # Columns of one strength alone: the null keeps what targets share.
    columns = np.tile(rng.normal(size=40), (40, 1))
    measures = {"model": good, "detection": columns, "trees": np.round(good)}
    for one in measures.values():
        np.fill_diagonal(one, np.nan)
    sources, targets = np.arange(1, 40), np.arange(38)
    pairs = np.ix_(sources, targets)
    found = score_known(
        {name: one[pairs] for name, one in measures.items()}, known, sources, targets, seed=0
    )
    rows = np.unique([s for s, _ in edges if s >= 1])
    used = np.ix_(rows, targets)
    is_pair = rows[:, None] != targets
    label = truth[used][is_pair]
    assert (found.edges_within, found.regulators_within, found.pairs) == (
        label.sum(), len(rows), len(label),
    )  # fmt: skip
    for score in found.measures:
        size = np.abs(measures[score.measure][used][is_pair])
        precision = average_precision_score(label, size)
        assert score.average_precision == pytest.approx(precision)
        assert score.over_chance == pytest.approx(precision / label.mean())
        assert score.auroc == pytest.approx(roc_auc_score(label, size))
        top = size >= np.sort(size)[-round(0.01 * len(size))]
        table = [
            [(top & label).sum(), (top & ~label).sum()],
            [(~top & label).sum(), (~top & ~label).sum()],
        ]
        expected = odds_ratio(2 * np.array(table) + 1, kind="sample").statistic
        assert score.odds_ratio == pytest.approx(expected)
    p = {score.measure: score.p for score in found.measures}
    assert (p["model"] < 0.02, p["detection"] > 0.02, found.ahead) == (True, True, "model")
    alone, both = about_known([found], MEASURE_NAMES), about_known([found] * 2, MEASURE_NAMES)
    assert "ahead is the model's effects" in alone[0]
    assert "give a second one" in alone[-1]
    assert both[-1] == "the references agree on the measure that is ahead"
