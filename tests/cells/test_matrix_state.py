import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from core.cells.matrix_state import MatrixState, check_chunk, choose_matrix, inspect_matrix
from core.cells.sources import AnnDataSource
from core.errors import DataError

from .examples import log_normalised, make_adata, make_counts

COUNTS = make_counts()
LOGGED = log_normalised(COUNTS)
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
    ("values", "state"),
    [
        pytest.param(COUNTS, MatrixState.COUNTS, id="counts"),
        pytest.param(LOGGED, MatrixState.LOG1P, id="log"),
        pytest.param(log_normalised(COUNTS, 1e6), MatrixState.LOG1P, id="log of cpm"),
        pytest.param(LOGGED[:, :20], MatrixState.LOG1P, id="log, genes removed"),
        pytest.param(SCALED, MatrixState.SCALED, id="scaled"),
        pytest.param(np.expm1(LOGGED), MatrixState.NORMALISED, id="normalised"),
        pytest.param(COUNTS / COUNTS.sum(1, keepdims=True), MatrixState.NORMALISED, id="shares"),
        pytest.param(COUNTS * 7.3, MatrixState.NORMALISED, id="fractional"),
        pytest.param(LOGGED / np.log(2), MatrixState.LOG2, id="log2"),
        pytest.param(np.where(COUNTS > 5, np.nan, COUNTS), MatrixState.NOT_FINITE, id="nan"),
        pytest.param(np.where(COUNTS > 5, np.inf, COUNTS), MatrixState.NOT_FINITE, id="infinite"),
        pytest.param(COUNTS * 0, MatrixState.EMPTY, id="empty"),
    ],
)
def test_states_are_told_apart(values, state):
    adata = AnnData(sparse.csr_matrix(values))
    assert inspect_matrix(AnnDataSource(adata, "f"), "X").state == state


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
    with pytest.raises(DataError, match=r"f\.h5ad: .*X: scaled.*raw: normalised.*set data\.matrix"):
        choose_matrix(source(SCALED, np.expm1(LOGGED)), "auto")
    with pytest.raises(DataError, match=r"f\.h5ad: X holds normalised, not logged.*log1p"):
        choose_matrix(source(np.expm1(LOGGED)), "auto")


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
    cells = source(COUNTS)
    choice = choose_matrix(cells, "X")
    late = COUNTS[20:30].copy()
    late[3, 7] = bad
    with pytest.raises(DataError, match=rf"{complaint}.*cell cell23 \(row 23\), gene ENSG0+7"):
        check_chunk(sparse.csr_matrix(late), choice, cells, 20)
