"""`tfx interactions` on the tiny run: every form of output, contexts and contrasts, one sentence for what is wrong."""

import inspect
import json
import typing

import anndata as ad
import networkx
import numpy as np
import pandas as pd
import pytest

from core.cells.builtin import load_builtin
from core.interactions.kept import read_results
from core.interactions.request import CHOICES
from tfx_cli.interactions_command import interactions

QUICK = ("--error", "1", "--where", "tissue=blood,lung")


@pytest.fixture(scope="module")
def panel(tiny_training):
    record = json.loads((tiny_training[0] / "runs/tiny/model/genes.json").read_text())
    return record["symbols"]


@pytest.mark.usefixtures("drawn_figures")
def test_one_calculation_is_written_in_every_form(tfx, tiny_run, tmp_path, panel):
    outputs = [f"net{end}" for end in (".csv", ".parquet", ".h5ad", ".graphml", ".png", ".svg")]
    options = [word for name in outputs for word in ("-o", name)]
    result = tfx("interactions", "tiny", *QUICK, *options, "--top", "20", "--json")
    assert result.code == 0, result.stderr
    (network,) = result.json["networks"]
    (tmp_path / "runs/tiny/interactions/broken.json").write_text('{"command": "interactions"}')
    (kept,) = read_results(tmp_path / "runs/tiny")  # for the dashboard
    (same,) = kept.networks
    assert kept.output == tuple(str(tmp_path / name) for name in outputs)
    assert (same.context, same.cells, same.found) == tuple(
        network[name] for name in ("context", "cells", "found")
    )
    assert [(one.source, one.target) for one in same.edges[:12]] == [
        (one["source"], one["target"]) for one in network["edges"]
    ]
    assert network["context"] == "tissue=blood,lung"
    assert network["donors"] > 2
    table = pd.read_csv(tmp_path / "net.csv")
    pd.testing.assert_frame_equal(
        table, pd.read_parquet(tmp_path / "net.parquet"), check_dtype=False, rtol=1e-4
    )
    genes = network["sources"]
    assert len(table) == genes * (genes - 1)
    assert not (table["source"] == table["target"]).any()
    assert table["weight"].abs().is_monotonic_decreasing
    np.testing.assert_array_equal(np.sign(table["weight"]), table["sign"])
    np.testing.assert_allclose(table["model"], table["log_linear"] + table["encoder"], atol=1e-5)
    np.testing.assert_allclose(table["weight"], table[network["weight"]])
    assert table[["p", "p_matched", "q"]].apply(lambda one: one.between(0, 1).all()).all()
    assert (table["q"] >= table[["p", "p_matched"]].max(axis=1) - 1e-6).all()
    assert set(table["source"]) <= set(panel)

    matrix = ad.read_h5ad(tmp_path / "net.h5ad")
    edge = table.iloc[0]
    row, column = (matrix.var_names.get_loc(edge[f"{end}_id"]) for end in ("source", "target"))
    assert matrix.varp["interactions"][row, column] == pytest.approx(edge["weight"], rel=1e-4)
    assert list(matrix.uns["prediction"]) == ["source", "target", "weight"]
    graph = networkx.read_graphml(tmp_path / "net.graphml")
    assert graph.is_directed()
    assert graph.number_of_edges() == 20
    by_pair = table.set_index(["source", "target"])["weight"]
    heat = same.heat_map
    for source, weights in zip(heat.sources, heat.weights, strict=True):
        for target, weight in zip(heat.targets, weights, strict=True):
            known = by_pair.get((source, target), np.nan)
            assert weight == pytest.approx(known, rel=1e-3, nan_ok=True)
    strongest = {(graph.nodes[a]["name"], graph.nodes[b]["name"]) for a, b in graph.edges()}
    assert {(one["source"], one["target"]) for one in network["edges"]} <= strongest
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "net.svg").read_text()[:500]  # fmt: skip


def test_two_contexts_and_their_difference(tfx, tiny_run, tmp_path):
    words = ["--contrast", "sex=female,male", "--genes", "XIST,RPS4Y1", "--error", "1"]
    result = tfx("interactions", *words, "-o", "all.csv")
    assert result.code == 4  # a woman's cells hold ambient RNA of it alone
    assert "RPS4Y1 is expressed in 3 cells, and a network needs 10" in result.stderr
    result = tfx("interactions", *words[:2], "--error", "1", "-o", "sex.csv")
    assert result.code == 0, result.stderr
    table = pd.read_csv(tmp_path / "sex.csv")
    contexts = list(dict.fromkeys(table["context"]))
    assert contexts == ["sex=female", "sex=male", "sex=female - sex=male"]
    parts = [
        table[table["context"] == one].set_index(["source", "target"])["model"] for one in contexts
    ]
    np.testing.assert_allclose(parts[2], (parts[0] - parts[1])[parts[2].index], atol=1e-5)
    for context in contexts:
        assert f"{context}: " in result.stdout
    assert "associations, not causes" in result.stdout


def test_regulators_files_and_the_truth_of_simulated_cells(tfx, tiny_run, tmp_path, panel):
    (tmp_path / "tf.txt").write_text(f"{panel[0]}\nNOT_A_GENE\n\n{panel[1]}\n")
    words = ["--regulators", "tf.txt", "--error", "1", "-o", "edges.csv"]
    (tmp_path / "known.csv").write_text(f"source,target\n{panel[0]},{panel[2]}\nOTHER,{panel[3]}\n")
    known = ["--known", "known.csv", "--known", "known.csv"]
    result = tfx("interactions", "tiny", "builtin:atlas?cells=400&seed=5", *words, *known)
    assert result.code == 0, result.stderr
    assert "1 of 2 join genes of this network, from 1 of 2 regulators" in " ".join(
        result.stdout.split()
    )
    table = pd.read_csv(tmp_path / "edges.csv")
    assert set(table["source"]) <= set(panel[:2])
    assert "evidence of held-out donors" in result.stdout
    real = load_builtin("builtin:atlas?cells=400&seed=5")
    real.write_h5ad(tmp_path / "cells.h5ad")
    again = tfx("interactions", "tiny", "cells.h5ad", *words, *known, "--overwrite", "--json")
    assert again.code == 0, again.stderr
    first, second = again.json["networks"][0]["known"]
    assert first == second
    assert {one["measure"] for one in first["measures"]} >= {"model", "pearson", "detection"}
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "edges.csv"))
    assert "simulated, and the edges" not in again.stdout


def test_the_weights_that_can_be_chosen_are_those_that_there_are():
    choice = typing.get_args(inspect.signature(interactions).parameters["weight"].annotation)
    assert choice == ("auto", *CHOICES)
