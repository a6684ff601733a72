"""`tfx perturb` on the tiny run: cells before and after, tables, screens; one sentence for what is wrong."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from core.cells.builtin import load_builtin
from core.interactions.kept import read_results

FILE = "builtin:atlas?cells=300&seed=5"


def test_a_knock_out_is_written_as_cells_and_as_a_table_and_reported(tfx, tiny_run, tmp_path):
    outputs = ("-o", "out/ko.h5ad", "-o", "out/ko.csv")
    result = tfx("perturb", "tiny", FILE, "--knock-out", "XIST", "-n", "80", *outputs, "--json")
    assert result.code == 0, result.stderr
    cells, table = ad.read_h5ad("out/ko.h5ad"), pd.read_csv("out/ko.csv")
    # The form of cell-eval: control cells and perturbed ones under one another, log values, unique names.
    assert cells.obs["target_gene"].tolist() == ["non-targeting"] * 80 + ["XIST"] * 80
    assert cells.obs_names.is_unique
    real = load_builtin(FILE)
    assert list(cells.obs_names[:80]) == [
        name for name in real.obs_names if name in cells.obs_names
    ]
    assert set(real.obs.columns) <= set(cells.obs.columns)
    before, after = cells[:80].to_df(), cells[80:].to_df()
    assert (after["XIST"] == 0).all()
    changed = cells.obs["changed"].to_numpy()[80:]
    np.testing.assert_array_equal(changed, before["XIST"].to_numpy() > 0)
    np.testing.assert_array_equal(after.to_numpy()[~changed], before.to_numpy()[~changed])
    # Tables, var, report and the cells themselves say the same.
    record = result.json
    assert record["changed_cells"] == changed.sum()
    shift = (after.to_numpy() - before.to_numpy())[changed].mean(axis=0)
    by_gene = table.set_index("gene_id")["shift"][cells.var_names]
    np.testing.assert_allclose(by_gene, shift, atol=1e-5)
    np.testing.assert_allclose(cells.var["shift"], shift, atol=1e-5)
    assert [row["gene"] for row in record["genes"]] == list(table["gene"])
    tested = table[~table["is_set"]]
    assert tested[["p_donors", "p_matched", "q"]].apply(lambda one: one.between(0, 1).all()).all()
    assert table.loc[table["is_set"], ["q", "correlation"]].isna().all(axis=None)
    assert record["meaning"] == "association, not causation"
    assert {one["phenotype"] for one in record["phenotypes"]} >= {"sex", "tissue"}
    (kept,) = read_results(Path("runs/tiny"))
    assert [one.gene for one in kept.perturbation.genes] == list(tested["gene"])
    assert kept.perturbation.found == record["found"]
    again = tfx("perturb", "tiny", FILE, "--knock-out", "XIST", "-n", "80", "-o", "b.csv")
    assert again.code == 0, again.stderr
    assert "This is association, not causation" in again.stdout
    assert "other perturbations" in again.stdout
    pd.testing.assert_frame_equal(pd.read_csv("b.csv"), table)


def test_several_genes_of_the_store_are_set_at_once_and_a_dose_is_a_bin(tfx, tiny_run, tmp_path):
    words = ["--knock-out", "XIST", "--set-gene", "RPS4Y1=3", "-n", "60", "-o", "p.h5ad"]
    result = tfx("perturb", *words, "--where", "sex=female")
    assert result.code == 0, result.stderr
    cells = ad.read_h5ad("p.h5ad")
    assert set(cells.obs["sex"]) == {"female"}
    assert cells.obs["target_gene"].cat.categories.tolist() == ["XIST+RPS4Y1", "non-targeting"]
    after = cells[cells.obs["target_gene"] == "XIST+RPS4Y1"].to_df()
    assert (after["XIST"] == 0).all()
    assert (after["RPS4Y1"] > 0).all()
    assert list(cells.uns["tfx_perturbation"]["bins"]) == [0, 3]
    assert "(q < 0.05, over donors and beside genes" in result.stdout
    unknown = load_builtin(FILE)
    unknown.obs = unknown.obs[["cell_type"]]
    unknown.write_h5ad("unknown.h5ad")
    result = tfx("perturb", "unknown.h5ad", *words[:4], "-n", "40", "-o", "u.csv")
    assert result.code == 0, result.stderr
    assert "of unknown donors" in result.stdout
    assert "(q < 0.05, beside genes" in result.stdout
    assert "donors of the cells are not known" in result.stderr


@pytest.mark.parametrize("more", [(), ("--over-express", "all")])
def test_a_screen_ranks_every_gene_that_enough_cells_express(tfx, tiny_run, tmp_path, more):
    result = tfx("perturb", "tiny", FILE, "--screen", "sex=male", "-o", "s.csv", *more, "--json")
    assert result.code == 0, result.stderr
    table, record = pd.read_csv("s.csv"), result.json
    assert len(table) + record["left_out"] == 32
    assert record["change"] == ("over-expression" if more else "knock-out")
    assert [row["gene"] for row in record["genes"]] == list(table["gene"])
    assert (
        table["q"].clip(lower=1e-6).is_monotonic_increasing
    )  # below it the largest shift is first
    correlation = table.set_index("gene")["correlation"]
    assert correlation["RPS4Y1"] > 0 > correlation["XIST"]
