"""What `tfx init` finds in files, and what it refuses."""

import pytest

from core.cells.preset_draft import look_at_files
from core.errors import DataError
from tests.cells.examples import log_normalised, make_adata, make_counts, real_file, write


def mapped(facts):
    return {one.phenotype: one.column for one in facts.phenotypes}


def test_facts_of_two_files(tmp_path):
    first = write(make_adata(), tmp_path, "a.h5ad")
    write(make_adata(n_genes=30, seed=1), tmp_path, "b.h5ad")
    facts = look_at_files([str(tmp_path / "*.h5ad")])
    assert (facts.n_files, facts.n_cells, facts.n_genes) == (2, 120, 30)
    assert (facts.matrix, facts.values, facts.split_by) == ("X", "counts", "donor_id")
    assert list(mapped(facts)) == ["sex", "tissue", "cell_type", "age", "disease"]
    assert look_at_files([first]).n_cells == 60


def test_log_values_are_said_to_be_log_values(tmp_path):
    adata = make_adata()
    adata.X = log_normalised(make_counts()).astype("float32")
    assert look_at_files([write(adata, tmp_path)]).values == "log1p values"


def test_matrices_that_differ_from_file_to_file_are_left_to_auto(tmp_path):
    first, second = make_adata(), make_adata(seed=1)
    second.layers["counts"] = second.X
    second.X = log_normalised(make_counts(seed=1)).astype("float32")
    files = [write(first, tmp_path, "a.h5ad"), write(second, tmp_path, "b.h5ad")]
    facts = look_at_files(files)
    assert (facts.matrix, facts.values) == ("auto", "counts")


def test_a_phenotype_that_training_would_refuse_is_left_out_with_the_reason(tmp_path):
    """Each of three donors has a treatment of its own, and one donor alone is left to train."""
    adata = make_adata(n_cells=90, n_donors=3)
    adata.obs["treatment"] = adata.obs["donor_id"].map({"D0": "mock", "D1": "low", "D2": "high"})
    facts = look_at_files([write(adata, tmp_path)])
    left_out = {one.phenotype: one.note for one in facts.left_out}
    assert set(left_out) == {"sex", "age", "treatment"}
    assert "obs column 'treatment': has one value only in the training" in left_out["treatment"]
    assert set(mapped(facts)) == {"tissue", "cell_type", "disease"}


def test_files_that_training_would_refuse_are_refused(tmp_path):
    adata = make_adata()
    adata.X = adata.X.multiply(-1).tocsr()
    with pytest.raises(DataError, match="negative"):
        look_at_files([write(adata, tmp_path)])
    with pytest.raises(DataError, match="no such file"):
        look_at_files([str(tmp_path / "none.h5ad")])


@pytest.mark.parametrize(
    ("name", "phenotypes", "further", "split_by"),
    [
        ("onek1k_blood.h5ad", {"sex", "cell_type", "age"}, set(), "donor_id"),
        ("glioblastoma_treated.h5ad", {"sex", "age", "treatment"}, {"region"}, "donor_id"),
        ("mouse_brain_cellxgene.h5ad", {"tissue", "cell_type"}, {"major_brain_region"}, "cells"),
    ],
)
def test_real_files(name, phenotypes, further, split_by):
    facts = look_at_files([real_file(name)])
    assert set(mapped(facts)) == phenotypes
    assert {one.phenotype for one in facts.further} == further
    assert (facts.split_by, facts.values) == (split_by, "counts")
