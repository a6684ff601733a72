"""What `tfx init` finds in files."""

import numpy as np
import pytest

from core.cells import preset_draft
from core.cells.draft_toml import choose_sizes, write_draft
from core.cells.preset_draft import look_at_files
from core.errors import DataError
from core.presets.loading import ResolvedPreset
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


def test_counts_are_recovered_from_log_values_where_they_can_be(tmp_path):
    adata, counts = make_adata(), make_counts()
    adata.X = log_normalised(counts).astype("float32")
    facts = look_at_files([write(adata, tmp_path, "counts.h5ad")])
    assert facts.values == "log1p of counts"
    text = write_draft(facts, choose_sizes(60, 40, "cpu"), path="a.toml", device="cpu")
    preset = ResolvedPreset.from_toml(text).preset
    assert (preset.data.values, preset.model.library_size) == ("counts", True)
    adata.X = log_normalised(counts * np.random.default_rng(0).uniform(0.5, 2, counts.shape))
    facts = look_at_files([write(adata, tmp_path, "corrected.h5ad")])
    assert facts.values == "log1p values"
    text = write_draft(facts, choose_sizes(60, 40, "cpu"), path="a.toml", device="cpu")
    preset = ResolvedPreset.from_toml(text).preset
    assert (preset.data.values, preset.model.library_size) == ("auto", False)


def test_matrices_that_differ_from_file_to_file_are_left_to_auto(tmp_path):
    first, second = make_adata(), make_adata(seed=1)
    second.layers["counts"] = second.X
    second.X = log_normalised(make_counts(seed=1)).astype("float32")
    files = [write(first, tmp_path, "a.h5ad"), write(second, tmp_path, "b.h5ad")]
    facts = look_at_files(files)
    assert (facts.matrix, facts.values) == ("auto", "counts")


@pytest.mark.parametrize(("n_donors", "few"), [(3, True), (5, True), (6, False)])
def test_none_of_few_donors_is_held_out(tmp_path, n_donors, few):
    facts = look_at_files([write(make_adata(n_cells=90, n_donors=n_donors), tmp_path)])
    assert facts.has_few_donors == few
    assert ("--cross-validate donors" in facts.split_note) == few
    assert not facts.left_out
    text = write_draft(facts, choose_sizes(90, 40, "cpu"), path="a.toml", device="cpu")
    split = ResolvedPreset.from_toml(text).preset.data.split
    assert (split.by, split.validation, split.test) == (
        "donor_id",
        *((0.0, 0.0) if few else (0.1, 0.1)),
    )
    assert ("#   tfx eval --cross-validate donors\n" in text) == few


def test_a_phenotype_that_would_stop_training_is_left_out_with_the_reason(tmp_path, monkeypatch):
    """Each of three donors has a treatment of its own, and one donor alone is left to train."""
    monkeypatch.setattr(preset_draft, "_FEW_DONORS", 0)
    adata = make_adata(n_cells=90, n_donors=3)
    adata.obs["treatment"] = adata.obs["donor_id"].map({"D0": "mock", "D1": "low", "D2": "high"})
    facts = look_at_files([write(adata, tmp_path)])
    left_out = {one.phenotype: one.note for one in facts.left_out}
    assert set(left_out) == {"sex", "age", "treatment"}
    assert "obs column 'treatment': has one value only in the training" in left_out["treatment"]
    assert set(mapped(facts)) == {"tissue", "cell_type", "disease"}


def test_files_that_would_stop_training_are_errors(tmp_path):
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
        (
            "mouse_brain_cellxgene.h5ad",
            {"tissue", "cell_type"},
            {"major_brain_region", "subclass_transfer", "ccf_region_name", "brain_section_label"},
            "cells",
        ),
    ],
)
def test_real_files(name, phenotypes, further, split_by):
    facts = look_at_files([real_file(name)])
    assert set(mapped(facts)) == phenotypes
    assert {one.phenotype for one in facts.further} == further
    assert (facts.split_by, facts.values) == (split_by, "counts")
