import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from core.cells.matrix_choice import choose_matrix, inspect_matrix
from core.cells.matrix_state import MatrixState, read_cells
from core.cells.sources import AnnDataSource
from core.errors import DataError

from .examples import log_normalised, make_adata, make_counts

COUNTS = make_counts()
LOGGED = log_normalised(COUNTS)
WEIGHTS = np.random.default_rng(2).lognormal(0, 0.1, LOGGED.shape[1])
SCALED = (LOGGED - LOGGED.mean(0)) / (LOGGED.std(0) + 1e-3)


def source(x, raw=None, **layers):
    adata = make_adata()
    if raw is not None:
        adata.X = sparse.csr_matrix(raw)
        adata.raw = adata
    adata.X = None if x is None else np.asarray(x)
    for name, values in layers.items():
        adata.layers[name] = np.asarray(values)
    return AnnDataSource(adata, "f.h5ad")


@pytest.mark.parametrize(
    ("values", "state", "words"),
    [
        pytest.param(COUNTS, MatrixState.COUNTS, "counts", id="counts"),
        pytest.param(LOGGED, MatrixState.LOG1P, "log1p", id="log"),
        pytest.param(log_normalised(COUNTS, 1e6), MatrixState.COUNTS,
                     "log1p of counts per 1,000,000", id="log of cpm"),
        pytest.param(LOGGED[:, :20], MatrixState.LOG1P, "log1p", id="log, genes removed"),
        pytest.param(np.expm1(LOGGED), MatrixState.COUNTS, "counts per 10,000, not logged",
                     id="normalised"),
        pytest.param(LOGGED / np.log(2), MatrixState.COUNTS, "log2(1 + x) of counts per 10,000",
                     id="log2"),
        pytest.param(np.log1p(COUNTS), MatrixState.COUNTS, "log1p of raw counts", id="log of raw"),
        pytest.param(SCALED, MatrixState.SCALED, "scaled (negative values)", id="scaled"),
        pytest.param(LOGGED * WEIGHTS, MatrixState.UNKNOWN, "values of an unknown scale",
                     id="unknown"),
        pytest.param(np.where(COUNTS > 5, np.nan, COUNTS), MatrixState.NOT_FINITE, "NaN", id="nan"),
        pytest.param(np.where(COUNTS > 5, np.inf, COUNTS), MatrixState.NOT_FINITE, "NaN",
                     id="infinite"),
        pytest.param(COUNTS * 0, MatrixState.EMPTY, "only zeros", id="empty"),
    ],
)  # fmt: skip
def test_matrices_are_recognised(values, state, words):
    adata = AnnData(sparse.csr_matrix(values))
    found = inspect_matrix(AnnDataSource(adata, "f"), "X")
    assert found.state == state
    assert found.describe().startswith(words)


@pytest.mark.parametrize(
    ("cells", "matrix", "state"),
    [
        pytest.param(source(COUNTS, LOGGED), "X", "counts", id="counts in X"),
        pytest.param(source(LOGGED, COUNTS, raw_counts=COUNTS), "layers/raw_counts", "counts",
                     id="counts in a layer before raw"),
        pytest.param(source(LOGGED, COUNTS), "raw", "counts", id="counts in raw"),
        pytest.param(source(LOGGED), "X", "log1p", id="log in X"),
        pytest.param(source(SCALED, LOGGED), "raw", "log1p", id="log in raw"),
        pytest.param(source(SCALED, lognorm=LOGGED), "layers/lognorm", "log1p", id="log in layer"),
        pytest.param(source(None, raw=COUNTS), "raw", "counts", id="no X"),
    ],
)  # fmt: skip
def test_auto_prefers_counts_then_log_values(cells, matrix, state):
    choice = choose_matrix(cells, "auto")
    assert (choice.matrix, choice.state) == (matrix, state)


def test_what_auto_passed_over_is_recorded():
    assert choose_matrix(source(SCALED, LOGGED), "auto").passed_over["X"].startswith("scaled")


def test_auto_without_a_fit_matrix_says_what_each_holds():
    with pytest.raises(
        DataError, match=r"f\.h5ad: .*X: scaled.*raw: values of an unk.*data\.matrix"
    ):
        choose_matrix(source(SCALED, LOGGED * WEIGHTS), "auto")
    with pytest.raises(DataError, match=r"f\.h5ad: X holds values of an unknown.*store raw counts"):
        choose_matrix(source(LOGGED * WEIGHTS), "auto")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (SCALED, r"X holds scaled \(negative values\).*cell cell0 \(row 0\), gene ENSG.*raw"),
        (np.where(COUNTS > 5, np.nan, COUNTS), r"X holds NaN or infinite.*at cell cell\d+"),
        (COUNTS * 0, "X holds only zeros"),
        (-COUNTS, r"X holds scaled \(negative values\)"),
    ],
)
def test_an_explicit_matrix_that_is_unfit_is_refused_with_the_place(values, complaint):
    with pytest.raises(DataError, match=rf"f\.h5ad: {complaint}"):
        choose_matrix(source(values, LOGGED), "X")


def test_a_matrix_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"no matrix 'layers/count'.*'layers/counts'\?"):
        choose_matrix(source(LOGGED, counts=COUNTS), "layers/count")


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (-1, "negative"),
        (np.nan, "NaN"),
        (0.5, "not a whole number"),
        (2**24, "a count of 16,777,216 or more"),
    ],
)
def test_a_late_bad_value_is_found_with_its_cell_and_gene(bad, complaint):
    choice = choose_matrix(source(COUNTS), "X")
    late = COUNTS.copy()
    late[23, 7] = bad
    with pytest.raises(DataError, match=rf"{complaint}.*cell cell23 \(row 23\), gene ENSG0+7"):
        list(read_cells(source(late), choice, 20))


def test_a_late_cell_of_another_total_or_base_is_refused():
    for values, late in ((LOGGED, log_normalised(COUNTS, 1e6)), (LOGGED / np.log(2), LOGGED)):
        choice = choose_matrix(source(values), "X")
        joined = np.where((np.arange(60) > 50)[:, None], late, values)
        with pytest.raises(DataError, match=r"cell51 \(row 51\)"):
            list(read_cells(source(joined), choice, 20))


def read(cells, **options):
    choice = choose_matrix(cells, options.pop("matrix", "auto"), **options)
    parts = list(read_cells(cells, choice, 25))
    sizes = np.concatenate([part.library_sizes for part in parts])
    return choice, np.concatenate([part.values.toarray() for part in parts]), sizes


def test_counts_behind_normalised_values_are_read_with_their_library_sizes():
    for values in (np.log2(1 + COUNTS / COUNTS.sum(1, keepdims=True) * 1e6), np.log1p(COUNTS),
                   COUNTS * (1 + 1e-6), np.sqrt(COUNTS)):  # fmt: skip
        choice, found, sizes = read(source(values))
        assert choice.notes[0].endswith("read as counts")
        np.testing.assert_array_equal(found, COUNTS)
        np.testing.assert_array_equal(sizes, COUNTS.sum(axis=1))
    choice, found, _ = read(source(LOGGED), values="counts")
    np.testing.assert_array_equal(found, COUNTS)


def test_what_is_not_recognised_is_taken_as_the_user_says_with_a_warning():
    for says, expected in (("log", LOGGED * WEIGHTS), ("linear", log_normalised(LOGGED * WEIGHTS))):
        choice, found, _ = read(source(LOGGED * WEIGHTS), values=says)
        assert says in choice.warnings[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "says", "words"),
    [
        (COUNTS, "log", "contradicts"),
        (LOGGED, "linear", "contradicts"),
        (LOGGED * WEIGHTS, "counts", "no counts can be recovered"),
        (LOGGED * WEIGHTS * 10, "log", "is no logarithm"),
        (SCALED, "log", "negative"),
    ],
)
def test_a_wrong_word_of_the_user_is_refused(values, says, words):
    with pytest.raises(DataError, match=words):
        choose_matrix(source(values), "X", values=says)


def with_raw(x, raw):
    """Few genes in X, all in raw."""
    every = make_adata()
    every.X = sparse.csr_matrix(raw.astype(np.float32))
    few = every[:, :15].copy()
    few.raw = every
    few.X = sparse.csr_matrix(x[:, :15].astype(np.float32))
    few.obs["total_counts"] = COUNTS.sum(axis=1)
    return few


def test_a_matrix_with_a_selection_of_the_genes_comes_behind_raw():
    for raw in (COUNTS, LOGGED):
        choice, found, _ = read(AnnDataSource(with_raw(COUNTS, raw), "f"))
        assert choice.matrix == "raw"
        assert choice.notes == ("raw is read, because X has 15 of the 40 genes of raw",)
        np.testing.assert_allclose(found, raw, rtol=1e-6)


@pytest.mark.parametrize("raw", [COUNTS, LOGGED, SCALED], ids=["counts", "log", "scaled"])
def test_library_sizes_of_a_selection_come_from_raw_or_obs(raw):
    cells = AnnDataSource(with_raw(COUNTS, raw), "f")
    choice, found, sizes = read(cells, matrix="X")
    np.testing.assert_array_equal(found, COUNTS[:, :15])
    np.testing.assert_array_equal(sizes, COUNTS.sum(axis=1))
    where = "obs['total_counts']" if raw is SCALED else "raw"
    assert choice.notes[-1].startswith(f"library sizes come from {where}, because X has")


@pytest.mark.parametrize(
    "totals", [COUNTS[:, :15].sum(1) - 1, COUNTS.sum(1) / 7.3, np.full(60, np.nan)]
)
def test_totals_that_do_not_agree_are_not_believed(totals):
    adata = with_raw(COUNTS, SCALED)
    adata.raw = None
    adata.obs["total_counts"] = totals
    choice, _, sizes = read(AnnDataSource(adata, "f"))
    assert choice.library is None
    np.testing.assert_array_equal(sizes, COUNTS[:, :15].sum(axis=1))


def test_features_that_are_not_genes_are_left_out_of_genes_and_library_sizes():
    adata = make_adata()
    adata.var["feature_types"] = np.where(np.arange(40) < 30, "Gene Expression", "Antibody Capture")
    choice, found, sizes = read(AnnDataSource(adata, "f"))
    np.testing.assert_array_equal(found, COUNTS[:, :30])
    np.testing.assert_array_equal(sizes, COUNTS[:, :30].sum(axis=1))
    assert choice.notes[0].startswith("10 features of X are not gene expression (Antibody Capture)")


def test_cells_are_sampled_over_the_whole_file():
    counts = make_counts(2_000, 40)
    counts[600:] = np.log1p(counts[600:])
    adata = AnnData(sparse.csr_matrix(counts))
    for stored in (adata.X, adata.X.tocsc()):
        adata.X = stored
        assert inspect_matrix(AnnDataSource(adata, "f"), "X").state == MatrixState.UNKNOWN
