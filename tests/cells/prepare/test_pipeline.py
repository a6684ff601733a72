import itertools
import json
import os
import signal
import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import sparse

from core.cells.builtin import load_builtin
from core.cells.prepare import ensure_store, prepare_store, store_path
from core.cells.prepare.parts import BUCKETS
from core.cells.prepare.pipeline import _piece_values
from core.errors import ConfigurationError, DataError, ExitCode, MachineError
from tests.cells.examples import (
    ensembl,
    log_normalised,
    make_adata,
    make_counts,
    make_obs,
    real_file,
    settings,
    write,
)


def everything(store):
    """(cells, genes) dense, rows in the order of the sources, columns in the store's."""
    dense = store.read(np.arange(store.n_cells), store.genes).toarray()
    return dense[np.lexsort((store.origins[:, 1], store.origins[:, 0]))]


def scanpy_normalised(counts):
    adata = AnnData(counts.astype(np.float32).copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells without counts
        sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata.X


@pytest.mark.parametrize(
    ("matrix", "form"),
    [
        ("X", np.asarray), ("raw", sparse.csr_matrix), ("layers/counts", sparse.csc_matrix),
        ("raw", sparse.csc_matrix),
    ],
)  # fmt: skip
def test_any_matrix_reads_back_as_scanpy_normalises_it(tmp_path, form, matrix):
    adata = make_adata()
    scaled = log_normalised(make_counts()) - 1.0
    if matrix == "raw":
        adata.raw = adata
    elif matrix == "layers/counts":
        adata.layers["counts"] = form(make_counts())
    adata.X = form(make_counts() if matrix == "X" else scaled)
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    assert store.value_kind == "counts"
    assert store.report["files"][0]["matrix"] == matrix
    np.testing.assert_allclose(everything(store), scanpy_normalised(make_counts()), rtol=2e-6)


@hypothesis_settings(max_examples=8)
@given(
    n_cells=st.integers(3, 40),
    n_genes=st.integers(2, 30),
    seed=st.integers(0, 1000),
    empty_cell=st.booleans(),
)
def test_prepare_then_read_equals_scanpy(tmp_path_factory, n_cells, n_genes, seed, empty_cell):
    folder = tmp_path_factory.mktemp("round_trip")
    counts = make_counts(n_cells, n_genes, seed)
    if empty_cell:
        counts[seed % n_cells] = 0
    adata = AnnData(
        sparse.csr_matrix(counts), make_obs(n_cells, 3, seed), pd.DataFrame(index=ensembl(n_genes))
    )
    data = settings(write(adata, folder), hvg="none", split={"seed": seed})
    store = prepare_store(data, folder / "store")
    np.testing.assert_allclose(everything(store), scanpy_normalised(counts), rtol=2e-6, atol=1e-7)
    codes = store.phenotype_codes[np.argsort(store.origins[:, 1])]
    for column, (name, values) in enumerate(store.phenotypes.items()):
        if name == "age":
            continue
        labels = [values[code] if code >= 0 else None for code in codes[:, column]]
        assert all(
            label in (None, true) for label, true in zip(labels, adata.obs[name], strict=True)
        )


@pytest.mark.parametrize("total", [1e4, 1e6, 2345.0])
def test_log_values_of_any_total_are_stored_as_the_counts_behind_them(tmp_path, total):
    adata = make_adata()
    adata.X = sparse.csr_matrix(log_normalised(make_counts(), total).astype(np.float32))
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    np.testing.assert_allclose(everything(store), log_normalised(make_counts()), rtol=1e-4)
    is_plain = total == 1e4
    assert store.value_kind == ("log1p" if is_plain else "counts")
    expected = 1e4 if is_plain else make_counts().sum(axis=1)[store.origins[:, 1]]
    np.testing.assert_allclose(store.totals, expected, rtol=1e-3)
    assert any("read as counts" in notice for notice in store.report["notices"]) != is_plain


@pytest.mark.parametrize("total", [1e4, 1e6])
def test_library_sizes_are_known_although_genes_were_removed(tmp_path, total):
    adata = make_adata()
    adata.X = log_normalised(make_counts(), total).astype(np.float32)
    store = prepare_store(settings(write(adata[:, 10:].copy(), tmp_path)), tmp_path / "store")
    np.testing.assert_allclose(everything(store), log_normalised(make_counts())[:, 10:], rtol=1e-5)
    if total != 1e4:
        sizes = make_counts().sum(axis=1)[store.origins[:, 1]]
        np.testing.assert_array_equal(store.totals, sizes)


def test_normalisations_of_several_files_become_one_kind(tmp_path):
    """One file keeps its log1p values, so that the other gives log1p, too, not its counts."""
    for name, total in (("a.h5ad", 1e4), ("b.h5ad", 1e6)):
        adata = make_adata()
        adata.X = log_normalised(make_counts(), total).astype(np.float32)
        write(adata, tmp_path, name)
    store = prepare_store(settings(str(tmp_path / "*.h5ad")), tmp_path / "store")
    assert store.value_kind == "log1p"
    expected = log_normalised(make_counts())[store.origins[:, 1]]
    np.testing.assert_allclose(
        store.read(np.arange(120), store.genes).toarray(), expected, rtol=1e-4
    )


def test_files_are_joined_by_gene_id_not_by_position(tmp_path):
    first = make_adata(30, 20, seed=1)
    second = make_adata(30, 20, seed=2)[:, ::-1].copy()
    second.var_names = [f"{name}.4" for name in second.var_names]
    extra = AnnData(make_counts(30, 5, 3), second.obs, pd.DataFrame(index=ensembl(5, 900)))
    second = AnnData(
        np.hstack([second.X.toarray(), extra.X]), second.obs,
        pd.DataFrame(index=[*second.var_names, *extra.var_names]),
    )  # fmt: skip
    files = [write(first, tmp_path, "a.h5ad"), write(second, tmp_path, "b.h5ad")]
    store = prepare_store(settings(files), tmp_path / "inner")
    normalised = scanpy_normalised(second.X)  # the total counts the genes that were left out
    assert store.genes.ids == tuple(ensembl(20))
    np.testing.assert_allclose(everything(store)[30:], normalised[:, :20][:, ::-1], rtol=2e-6)
    assert [file["lost_genes"] for file in store.report["files"]] == [0, 5]
    union = prepare_store(settings(files, join="union"), tmp_path / "outer")
    assert union.genes.ids == (*ensembl(20), *ensembl(5, 900))
    assert not everything(union)[:30, 20:].any()
    assert [file["absent_genes"] for file in union.report["files"]] == [5, 0]


@pytest.mark.parametrize("seed", range(3))
def test_donors_never_cross_and_vocabularies_come_from_training_cells(tmp_path, seed):
    adata = make_adata()
    adata.obs["cell_type"] = [f"type of {donor}" for donor in adata.obs["donor_id"]]
    path = write(adata, tmp_path)
    data = settings(path, phenotypes={"cell_type": "cell_type"}, split={"seed": seed})
    store = prepare_store(data, tmp_path / "store")
    donors = store.report["split"]["donors"]
    assert sorted(itertools.chain(*donors.values())) == [f"D{number}" for number in range(6)]
    assert all(donors.values())
    assert store.phenotypes["cell_type"] == [f"type of {donor}" for donor in donors["train"]]
    report = store.report["phenotypes"]["cell_type"]
    held_out = [*donors["validation"], *donors["test"]]
    assert report["unmapped_labels"] == {f"type of {donor}": 10 for donor in sorted(held_out)}
    assert report["missing_cells"] == 10 * len(held_out)


def test_phenotypes_are_in_header_order_with_the_users_own_last(tmp_path):
    adata = make_adata()
    adata.obs["drug"] = np.where(np.arange(60) % 2, "yes", "no")
    data = settings(write(adata, tmp_path), phenotypes={"drug": "drug", "disease": False})
    store = prepare_store(data, tmp_path / "store")
    assert list(store.phenotypes) == ["sex", "tissue", "cell_type", "age", "drug"]
    assert store.phenotypes["age"] == ["30-39", "40-49", "50-59"]
    assert store.report["left_out_phenotypes"] == {"disease": "set to false"}


def test_a_one_valued_phenotype_is_left_out_by_default_and_refused_if_named(tmp_path):
    adata = make_adata()
    adata.obs["tissue"] = "lung"
    path = write(adata, tmp_path)
    store = prepare_store(settings(path), tmp_path / "store")
    assert "tissue" not in store.phenotypes
    assert "'lung'" in store.report["left_out_phenotypes"]["tissue"]
    named = settings(path, phenotypes={"tissue": "tissue"})
    refuse(tmp_path, named, DataError, path, "tissue", "one value only", "= false")


def test_cells_without_any_phenotype_make_a_store(tmp_path):
    adata = make_adata()
    adata.obs = adata.obs[[]]
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    assert store.phenotypes == {}
    assert store.phenotype_codes.shape == (60, 0)
    assert store.to_anndata(store.rows("test")).n_obs == 6


def test_an_absent_default_column_is_left_out_and_a_named_one_refused(tmp_path):
    adata = make_adata()
    del adata.obs["disease"], adata.obs["donor_id"]
    path = write(adata, tmp_path)
    store = prepare_store(settings(path), tmp_path / "store")
    assert store.report["left_out_phenotypes"]["disease"] == "no obs column 'disease'"
    assert store.report["split"]["method"] == "stratified"
    assert store.donors is None
    assert any("no obs column 'donor_id'" in notice for notice in store.report["notices"])
    named = settings(path, phenotypes={"disease": "diseases"})
    refuse(tmp_path, named, DataError, path, "'diseases', which does not exist")
    by = settings(path, split={"by": "donor_id"})
    refuse(tmp_path, by, DataError, path, "data.split.by", "'cells'")


def test_a_vocabulary_file_of_the_originals_maps_the_labels(tmp_path):
    vocabulary = tmp_path / "tokens.json"
    vocabulary.write_text(json.dumps({"cell_type": ["[T_cell]", "[B_cell]", "[mast_cell]"]}))
    data = settings(write(make_adata(), tmp_path), vocabulary=str(vocabulary))
    store = prepare_store(data, tmp_path / "store")
    assert store.phenotypes["cell_type"] == ["T cell", "B cell", "mast cell"]
    assert list(store.report["phenotypes"]["cell_type"]["unmapped_labels"]) == ["monocyte"]


def test_explicit_files_make_the_splits(tmp_path):
    names = [write(make_adata(20, seed=seed), tmp_path, f"{seed}.h5ad") for seed in range(3)]
    data = settings(names[0], validation_files=names[1], test_files=names[2])
    store = prepare_store(data, tmp_path / "store")
    assert store.report["split"]["method"] == "files"
    assert np.array_equal(store.split_codes, store.origins[:, 0])
    assert any("share 6 donors" in notice for notice in store.report["notices"])
    both = settings(names, test_files=names[2])
    refuse(tmp_path, both, ConfigurationError, names[2], "data.files and in data.test_files")


def test_one_split_may_have_files_while_the_other_is_dealt(tmp_path):
    names = [write(make_adata(60, seed=seed), tmp_path, f"{seed}.h5ad") for seed in range(2)]
    store = prepare_store(settings(names[0], test_files=names[1]), tmp_path / "store")
    assert set(store.origins[store.rows("test"), 0]) == {1}
    assert set(store.origins[store.rows("validation"), 0]) == {0}


def test_equal_input_and_seed_give_equal_bytes_and_another_seed_another_order(tmp_path):
    path = write(make_adata(), tmp_path)
    for name in ("one", "two"):
        prepare_store(settings(path), tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    other = prepare_store(settings(path, split={"seed": 1}), tmp_path / "three")
    assert (tmp_path / "one" / "origins.npy").read_bytes() != (
        other.path / "origins.npy"
    ).read_bytes()


def test_a_store_is_reused_for_the_same_settings_and_kept_from_others(tmp_path):
    path = write(make_adata(), tmp_path)
    destination = tmp_path / "store"
    prepare_store(settings(path), destination)
    written = (destination / "values.npy").stat().st_mtime_ns
    assert prepare_store(settings(path, genes=7), destination).n_cells == 60
    assert (destination / "values.npy").stat().st_mtime_ns == written
    other = settings(path, split={"seed": 5})
    with pytest.raises(ConfigurationError, match=r"store: exists and is a store of other cells"):
        prepare_store(other, destination)
    assert prepare_store(other, destination, overwrite=True).manifest.seed == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cells.h5ad", "store"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    path = write(make_adata(), tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match="mine: exists and is not a store"):
        prepare_store(settings(path), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_the_default_path_follows_files_and_settings(tmp_path):
    path = write(make_adata(), tmp_path)
    first = store_path(settings(path), "blood", root=tmp_path / "stores")
    assert first.parent == tmp_path / "stores"
    assert first.name.startswith("blood-")
    assert first == store_path(settings(path, genes=3), "blood", root=tmp_path / "stores")
    assert first.name != store_path(settings(path, hvg="none"), "blood").name
    store = ensure_store(settings(path), "blood", root=tmp_path / "stores")
    assert store.path == first
    named = settings(path, store=str(tmp_path / "here"))
    assert ensure_store(named, "blood").path == tmp_path / "here"
    write(make_adata(61), tmp_path)
    assert first.name != store_path(settings(path), "blood").name


@pytest.mark.parametrize("n_values", [1, 10**8, 2 * 10**9, 3 * 10**10, 133 * 10**9])
def test_pieces_are_small_enough_for_memory_and_few_enough_for_the_disk(n_values):
    size = _piece_values(n_values)
    assert size <= 2**25
    n_pieces = -(-n_values // size)
    assert n_pieces <= BUCKETS
    # Every bucket reads from every part, so that many values at once.
    assert n_pieces <= 128 or n_values / n_pieces**2 > 8_000


def test_progress_is_told_from_start_to_end(tmp_path):
    events = []
    path = write(make_adata(), tmp_path)
    prepare_store(settings(path), tmp_path / "store", on_progress=events.append)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == [
        "checking files", "reading cells", "writing cells", "ranking genes", "checksums",
    ]  # fmt: skip
    for stage in stages:
        last = [event for event in events if event.stage == stage][-1]
        assert last.done == last.total


@pytest.mark.parametrize("stage", ["reading cells", "writing cells", "ranking genes", "checksums"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, signal.SIGTERM])
def test_whatever_ends_it_early_leaves_nothing_behind(tmp_path, stage, interruption):
    path = write(make_adata(), tmp_path)

    def interrupt(event):
        if event.stage == stage and interruption is signal.SIGTERM:
            os.kill(os.getpid(), interruption)
        elif event.stage == stage:
            raise interruption

    error = KeyboardInterrupt if interruption is signal.SIGTERM else interruption
    with pytest.raises(error):
        prepare_store(settings(path), tmp_path / "a" / "b" / "store", on_progress=interrupt)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.h5ad"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_handler_of_sigterm_that_is_there_is_kept(tmp_path):
    path = write(make_adata(), tmp_path)
    heard = []

    def terminate(event):
        if event.stage == "writing cells":
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        store = prepare_store(settings(path), tmp_path / "store", on_progress=terminate)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert store.n_cells == 60
    assert signal.SIGTERM in heard


def test_an_interrupted_overwrite_keeps_the_old_store(tmp_path):
    path = write(make_adata(), tmp_path)
    prepare_store(settings(path), tmp_path / "store")

    def interrupt(event):
        if event.stage == "checksums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(
            settings(path, hvg="none"), tmp_path / "store", overwrite=True, on_progress=interrupt
        )
    assert prepare_store(settings(path), tmp_path / "store").n_cells == 60
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cells.h5ad", "store"]


def test_a_full_disk_is_told_before_writing(tmp_path, monkeypatch):
    path = write(make_adata(), tmp_path)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("core.cells.prepare.pipeline.shutil.disk_usage", lambda _: usage)
    refuse(tmp_path, settings(path), MachineError, "the disk has", "free some space")


def refuse(folder, data, error, *words):
    """The error's sentence holds the words, its exit code fits, and nothing is left behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(error) as refusal:
        prepare_store(data, folder / "refused" / "store")
    sentence = str(refusal.value)
    for word in words:
        assert word in sentence
    assert "\n" not in sentence
    assert (
        refusal.value.exit_code
        == {
            DataError: ExitCode.DATA,
            ConfigurationError: ExitCode.CONFIGURATION,
            MachineError: ExitCode.MACHINE,
        }[error]
    )
    assert sorted(folder.rglob("*")) == before


def test_bad_values_anywhere_are_refused_with_their_place(tmp_path):
    for bad, words in ((-3, "negative"), (np.nan, "NaN"), (1.5, "not a whole number")):
        adata = make_adata(700, 20)
        x = adata.X.toarray()
        x[650, 11] = bad
        adata.X = x
        path = write(adata, tmp_path)
        refuse(tmp_path, settings(path), DataError, path, words, "cell650", "ENSG00000000011")


def test_values_that_are_not_recognised_are_refused_or_taken_as_the_user_says(tmp_path):
    adata = make_adata()
    adata.X = log_normalised(make_counts()) * np.linspace(0.8, 1.25, 40)
    path = write(adata, tmp_path)
    refuse(tmp_path, settings(path), DataError, path, "values of an unknown scale", "data.values")
    store = prepare_store(settings(path, values="log"), tmp_path / "store")
    assert "because data.values is 'log'" in store.report["warnings"][0]
    np.testing.assert_allclose(everything(store), adata.X, rtol=1e-5)


def test_files_without_a_shared_gene_are_refused_with_what_their_ids_look_like(tmp_path):
    symbols = make_adata()
    symbols.var = pd.DataFrame(index=[f"GENE{number}" for number in range(40)])
    ids = make_adata()
    del ids.var["feature_name"]
    files = [write(ids, tmp_path, "a.h5ad"), write(symbols, tmp_path, "b.h5ad")]
    for join in ("intersection", "union"):
        refuse(
            tmp_path, settings(files, join=join), DataError, *files, "Ensembl ids (ENSG",
            "symbols or other names (GENE0", "data.gene_ids",
        )  # fmt: skip


def test_files_of_symbols_and_of_ensembl_ids_are_joined(tmp_path):
    ids = ["ENSG00000010610", "ENSG00000153563", "ENSG00000168385", *ensembl(37, 50)]
    symbols = ["CD4", "CD8A", "SEPT2", *(f"ONLY{number}" for number in range(37))]
    first, second = make_adata(), make_adata(seed=1)
    first.var, second.var = pd.DataFrame(index=ids), pd.DataFrame(index=symbols)
    files = [write(first, tmp_path, "a.h5ad"), write(second, tmp_path, "b.h5ad")]
    store = prepare_store(settings(files), tmp_path / "store")
    assert store.genes.ids == tuple(ids[:3])
    (notice,) = (text for text in store.report["warnings"] if "other names" in text)
    assert "3 of 40 genes have other names than in the first file (CD4 is ENSG00000010610" in notice
    counts = store.read_counts(np.arange(store.n_cells), store.genes).toarray()
    matrices = (first.X.toarray(), second.X.toarray())
    for (source, row), cell in zip(store.origins.tolist(), counts, strict=True):
        np.testing.assert_array_equal(cell, matrices[source][row][:3])


def test_pbmc68k_is_read_from_its_log_values_and_not_from_its_scaled_ones(tmp_path):
    store = prepare_store(settings("builtin:pbmc68k"), tmp_path / "store")
    assert (store.n_cells, len(store.genes), store.value_kind) == (700, 765, "log1p")
    assert store.report["files"][0]["matrix"] == "raw"
    assert set(store.phenotypes) == {"cell_type"}
    assert len(store.phenotypes["cell_type"]) == 10
    assert "CD14+ Monocyte" in store.phenotypes["cell_type"]
    assert store.report["split"]["method"] == "stratified"
    assert store.truth is None
    assert not (store.path / "truth.json").exists()
    values = store.read(np.arange(700), store.genes)
    assert values.data.min() > 0


def test_the_atlas_brings_its_truth_and_every_phenotype(tmp_path):
    spec = "builtin:atlas?cells=1000&seed=1"
    store = prepare_store(settings(spec), tmp_path / "store")
    assert (store.n_cells, store.value_kind) == (1000, "counts")
    assert store.report["files"][0]["name"] == spec
    assert list(store.phenotypes) == ["sex", "tissue", "cell_type", "age", "disease"]
    assert store.phenotypes["sex"] == ["female", "male"]
    assert "lung" in store.phenotypes["tissue"]
    truth = json.loads((store.path / "truth.json").read_text())
    assert store.truth == truth == json.loads(load_builtin(spec).uns["tfx_truth"])
    assert {"XIST", "RPS4Y1"} <= set(store.genes.symbols)
    split = store.report["split"]
    assert split["method"] == "donor"
    assert "no result of a model" in split["search"]
    assert sum(map(len, split["donors"].values())) == 48
    assert list(split["imbalance"]["test"]) == list(store.phenotypes)
    worst = split["worst_imbalance"]
    assert worst["distance"] == max(max(part.values()) for part in split["imbalance"].values())
    assert split["imbalance"][worst["split"]][worst["phenotype"]] == worst["distance"]
    for name in ("validation", "test"):
        sexes = store.phenotype_codes[store.rows(name), 0]
        assert np.bincount(sexes, minlength=2).min() > 0.2 * len(sexes)


def test_onek1k_is_split_by_donor_and_read_as_scanpy_normalises_it(tmp_path):
    path = real_file("onek1k_blood.h5ad")
    store = prepare_store(settings(path), tmp_path / "store")
    adata = sc.read_h5ad(path)
    rows = store.rows("test")[:200]
    expected = scanpy_normalised(adata.X[store.origins[rows, 1]].toarray())
    np.testing.assert_allclose(store.read(rows, store.genes).toarray(), expected, rtol=2e-6)
    assert (store.n_cells, len(store.genes), store.value_kind) == (7811, 1000, "counts")
    assert list(store.phenotypes) == ["sex", "cell_type", "age"]
    assert set(store.report["left_out_phenotypes"]) == {"tissue", "disease"}
    assert store.report["split"]["method"] == "donor"
    assert all(650 < len(store.rows(split)) < 1000 for split in ("validation", "test"))


def test_glioblastoma_takes_treatment_as_a_phenotype_of_the_users(tmp_path):
    data = settings(real_file("glioblastoma_treated.h5ad"), phenotypes={"treatment": "treatment"})
    store = prepare_store(data, tmp_path / "store")
    assert store.phenotypes["treatment"] == ["ctrl", "panobinostat"]
    assert [len(store.rows(split)) for split in ("train", "validation", "test")] == [
        3000, 1000, 1000,
    ]  # fmt: skip
    assert store.phenotypes["sex"] == ["female", "male"]  # the only woman trains


def test_mouse_brain_has_its_names_in_var_columns_and_one_donor(tmp_path):
    store = prepare_store(settings(real_file("mouse_brain_cellxgene.h5ad")), tmp_path / "store")
    assert store.genes.index_of("ENSMUSG00000024798") == store.genes.index_of("Htr7") == 0
    assert (len(store.phenotypes["tissue"]), len(store.phenotypes["cell_type"])) == (13, 21)
    assert store.report["split"]["method"] == "stratified"
    assert "'9-week-old stage'" in store.report["left_out_phenotypes"]["age"]


def test_a_store_that_would_be_prepared_differently_today_is_used_with_a_warning(tmp_path, caplog):
    data = settings(write(make_adata(), tmp_path))
    made = prepare_store(data, tmp_path / "store")
    prepare_store(data, tmp_path / "store")
    assert "older tfx" not in caplog.text
    versions = dict(made.manifest.versions)
    del versions["reading rules"]
    made.manifest.model_copy(update={"versions": versions}).write(made.path)
    before = (tmp_path / "store" / "values.npy").stat().st_mtime_ns
    assert prepare_store(data, tmp_path / "store").n_cells == made.n_cells
    assert "store: an older tfx prepared this store" in caplog.text
    assert (tmp_path / "store" / "values.npy").stat().st_mtime_ns == before
