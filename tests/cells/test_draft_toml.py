"""The text of `tfx init` is a preset, whatever the files are called and hold."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.draft_toml import choose_sizes, save_draft, write_draft
from core.cells.preset_draft import ColumnNote, DraftFacts
from core.errors import ConfigurationError
from core.presets.loading import ResolvedPreset

TEXT = st.text(min_size=1, max_size=12)
NOTES = st.lists(
    st.builds(ColumnNote, TEXT, TEXT, TEXT), max_size=3, unique_by=lambda n: n.phenotype
)


def facts(**others):
    known = DraftFacts(
        files=["a.h5ad"],
        n_files=1,
        n_cells=7_811,
        n_genes=1_000,
        matrix="X",
        values="counts",
        gene_ids="var_names",
        phenotypes=[ColumnNote("sex", "gender", "2 values")],
        split_by="donor_id",
        split_note="",
    )
    return dataclasses.replace(known, **others)


@given(
    files=st.lists(TEXT, min_size=1, max_size=2),
    columns=NOTES,
    further=NOTES,
    split_by=TEXT,
    words=st.lists(TEXT, max_size=2),
    path=TEXT,
)
def test_any_names_make_a_preset_with_them(files, columns, further, split_by, words, path):
    found = facts(
        files=files,
        phenotypes=columns,
        further=further,
        split_by=split_by,
        warnings=words,
        gene_ids=split_by,
        split_note=path,
        partial=words,
    )
    text = write_draft(found, choose_sizes(100, 20, "cpu"), path=path, device="cpu")
    data = ResolvedPreset.from_toml(text).preset.data
    assert data.files == files
    assert data.split.by == split_by
    assert data.phenotypes == {one.phenotype: one.column for one in columns}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(n_cells=st.integers(1, 10**8), n_genes=st.integers(1, 60_000))
def test_sizes_fit_any_number_of_cells_and_genes(device, n_cells, n_genes):
    sizes = choose_sizes(n_cells, n_genes, device)
    assert 1 <= sizes.genes <= n_genes
    assert (sizes.encoder == "attention") <= sizes.log_linear_rank <= n_genes
    assert 1 <= sizes.batch_size <= max(n_cells, 1)
    assert sizes.hidden_size % sizes.heads == 0
    text = write_draft(facts(), sizes, path="x.toml", device=device)
    preset = ResolvedPreset.from_toml(text).preset
    assert preset.data.genes == sizes.genes
    assert preset.model.encoder == sizes.encoder
    assert preset.model.log_linear_rank == sizes.log_linear_rank
    assert preset.train.log_linear_steps == 0
    assert (preset.model.initial_weights, preset.train.learning_rate) == (
        "fan_in",
        sizes.learning_rate,
    )
    assert preset.train.eval_steps <= preset.train.max_steps


def test_a_gpu_and_more_cells_get_a_larger_model():
    few, cpu, gpu, many = (
        choose_sizes(n_cells, 20_000, device)
        for n_cells, device in ((700, "cuda"), (9_000, "cpu"), (9_000, "cuda"), (10**6, "cuda"))
    )
    assert few.max_steps < cpu.max_steps < gpu.max_steps < many.max_steps
    assert cpu.hidden_size < gpu.hidden_size < many.hidden_size
    assert gpu.genes < many.genes
    assert few.cell_states == 0 < gpu.cell_states


def test_few_cells_or_a_cpu_get_a_pooled_encoder_of_all_genes():
    for n_cells, device, encoder in (
        (9_000, "cpu", "pooled"),
        (9_000, "cuda", "attention"),
        (700, "cuda", "pooled"),
    ):
        assert choose_sizes(n_cells, 20_000, device).encoder == encoder
    assert choose_sizes(9_000, 20_000, "cpu").genes == 2_000
    assert choose_sizes(900, 20_000, "cpu").genes == 2_000


def test_a_panel_of_nearly_all_genes_takes_all():
    genes = {n: choose_sizes(900, n, "cpu").genes for n in (30, 2_000, 3_000, 3_001)}
    assert genes == {30: 30, 2_000: 2_000, 3_000: 3_000, 3_001: 2_000}


@pytest.mark.parametrize("values", ["counts", "log1p values"])
def test_the_library_size_is_read_where_counts_are_known(values):
    sizes = choose_sizes(9_000, 300, "cpu")
    text = write_draft(facts(values=values), sizes, path="x", device="cpu")
    assert ResolvedPreset.from_toml(text).preset.model.library_size == (values == "counts")


def test_columns_that_are_left_out_or_could_be_phenotypes_are_shown_as_such():
    found = facts(
        left_out=[ColumnNote("tissue", "organ", "one value")],
        further=[ColumnNote("region", "my region", "4 values")],
        partial=["disease"],
    )
    text = write_draft(found, choose_sizes(100, 20, "cpu"), path="my preset.toml", device="cpu")
    phenotypes = ResolvedPreset.from_toml(text).preset.data.phenotypes
    assert phenotypes == {"sex": "gender", "tissue": False}
    assert '\n# region = "my region"' in text
    assert "disease: some files have no such column; their cells get [NO_DISEASE]" in text
    assert "# " + "  tfx train 'my preset.toml'\n" in text


def test_an_existing_file_is_never_replaced(tmp_path):
    text = write_draft(facts(), choose_sizes(100, 20, "cpu"), path="x", device="cpu")
    place = tmp_path / "new" / "mine.toml"
    save_draft(text, place)
    assert place.read_text(encoding="utf-8") == text
    with pytest.raises(ConfigurationError, match="is missing"):
        save_draft("", tmp_path / "other.toml")
    with pytest.raises(ConfigurationError, match="exists"):
        save_draft(text, place)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["mine.toml"]
