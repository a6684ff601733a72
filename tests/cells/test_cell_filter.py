"""Filters: what users write, and the cells it means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.cell_filter import CellFilter, Condition
from core.cells.prepare import prepare_store
from core.errors import ConfigurationError

from .examples import make_adata, settings, write

LABELS = {
    "sex": ["female", "male", "unknown"],
    "tissue": ["lung", "Lung lobe", "spleen"],
    "cell_type": ["T cell, CD4", "B cell", 'o\'Neill "cell"'],
    "disease": ["normal", "Crohn's disease", "none"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filter")
    files = []
    for seed, name in enumerate(["one.h5ad", "two.h5ad"]):
        adata = make_adata(90, 20, seed=seed)
        rng = np.random.default_rng(seed)
        for column, labels in LABELS.items():
            adata.obs[column] = rng.choice(labels, 90)
        files.append(write(adata, folder, name))
    return prepare_store(settings(files), folder / "store")


@pytest.fixture(scope="module")
def table(store):
    """Labels of the cells as plain text, read from the codes without a filter."""
    columns = {}
    for slot, (name, values) in enumerate(store.phenotypes.items()):
        texts = np.array([*values, ""], dtype=object)
        columns[name] = texts[store.phenotype_codes[:, slot]]
    columns["split"] = np.array(["train", "validation", "test"], dtype=object)[store.split_codes]
    columns["donor"] = np.array([*store.donor_names, ""], dtype=object)[store.donors]
    columns["source"] = store.origins[:, 0]
    return columns


def conditions(*texts):
    return [(c.name, c.values, c.excluded) for c in CellFilter.parse(texts).conditions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sex=female", [("sex", ("female",), False)]),
        ("tissue=lung,spleen", [("tissue", ("lung", "spleen"), False)]),
        (
            "sex=female,tissue=lung,spleen",
            [("sex", ("female",), False), ("tissue", ("lung", "spleen"), False)],
        ),
        (" sex = female , tissue = lung ", [("sex", ("female",), False),
                                            ("tissue", ("lung",), False)]),
        ("tissue!=lung,spleen", [("tissue", ("lung", "spleen"), True)]),
        ("disease=", [("disease", ("",), False)]),
        ("disease=none,normal", [("disease", ("none", "normal"), False)]),
        ("cell_type='T cell, CD4',B cell", [("cell_type", ("T cell, CD4", "B cell"), False)]),
        ('cell_type=B cell, "T cell, CD4" ', [("cell_type", ("B cell", "T cell, CD4"), False)]),
        ("disease=Crohn's disease,normal", [("disease", ("Crohn's disease", "normal"), False)]),
        ("stage='a=b',sex=male", [("stage", ("a=b",), False), ("sex", ("male",), False)]),
        ("stage=a=b", [("stage", ("a=b",), False)]),
        ("x=''", [("x", ("",), False)]),
    ],
)  # fmt: skip
def test_a_text_is_read_as_its_conditions(text, expected):
    assert conditions(text) == expected


def test_repeated_texts_add_conditions():
    assert conditions("sex=male", "tissue=lung", "tissue=spleen") == [
        ("sex", ("male",), False), ("tissue", ("lung",), False), ("tissue", ("spleen",), False),
    ]  # fmt: skip
    assert not CellFilter.parse([])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("female", r"'female' is no condition; write NAME=VALUE"),
        ("", r"--where '': '' is no condition"),
        ("sex=female,,male", r"'' is no condition"),
        ("tissue=lung,", r"'' is no condition"),
        ("=female", r"'=female' lacks a name"),
        ("!=female", r"'=female' lacks a name"),
        ("cell_type='T cell, CD4", r"the quote at character 11 is not closed"),
        ("cell_type='T cell' CD4", r"the quote at character 11 is not closed at the end"),
    ],
)
def test_a_text_that_is_no_condition_is_refused(text, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        CellFilter.parse(text, where="--where")


names = st.text("abc_ ", min_size=1).map(str.strip).filter(bool)
texts = st.text("ab ,='!x", max_size=6).map(str.strip)


@given(
    st.lists(
        st.builds(
            Condition, names, st.lists(texts, min_size=1, max_size=3).map(tuple), st.booleans()
        ),
        max_size=4,
    )
)
def test_a_filter_written_out_reads_back_as_itself(written):
    filters = CellFilter(tuple(written))
    spelt = tuple(
        Condition(c.name, tuple(value or "none" for value in c.values), c.excluded) for c in written
    )
    again = CellFilter.parse(str(filters) if written else [])
    assert again.conditions == spelt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sex=female", lambda t: t["sex"] == "female"),
        ("sex=[FEMALE]", lambda t: t["sex"] == "female"),
        ("tissue=lung", lambda t: t["tissue"] == "lung"),
        ("tissue=lung,spleen", lambda t: np.isin(t["tissue"], ["lung", "spleen"])),
        ("tissue=lung_lobe", lambda t: t["tissue"] == "Lung lobe"),
        ("tissue!=lung", lambda t: t["tissue"] != "lung"),
        ("sex!=female", lambda t: t["sex"] != "female"),
        ("sex=none", lambda t: t["sex"] == ""),
        ("sex=", lambda t: t["sex"] == ""),
        ("sex=[NO_SEX]", lambda t: t["sex"] == ""),
        ("sex=none,male", lambda t: t["sex"] != "female"),
        ("sex!=none", lambda t: t["sex"] != ""),
        ("disease=Crohn's disease", lambda t: t["disease"] == "Crohn's disease"),
        ("cell_type='T cell, CD4'", lambda t: t["cell_type"] == "T cell, CD4"),
        (
            "sex=female,tissue=lung,spleen",
            lambda t: (t["sex"] == "female") & np.isin(t["tissue"], ["lung", "spleen"]),
        ),
        ("split=test", lambda t: t["split"] == "test"),
        ("split!=train", lambda t: t["split"] != "train"),
        ("donor=D1,D4", lambda t: np.isin(t["donor"], ["D1", "D4"])),
        ("source=two.h5ad", lambda t: t["source"] == 1),
        ("source=one,sex=male", lambda t: (t["source"] == 0) & (t["sex"] == "male")),
        ("tissue=lung,tissue=spleen", lambda t: np.zeros(180, dtype=bool)),
    ],
)
def test_the_cells_are_those_whose_labels_match(store, table, text, expected):
    mask = store.where(text)
    assert mask.dtype == bool
    assert np.array_equal(mask, expected(table))


def test_no_condition_means_every_cell(store):
    assert store.where([]).all()
    assert store.select().tolist() == store.select([]).tolist() == list(range(180))


def test_selected_rows_lie_within_the_split(store, table):
    expected = np.flatnonzero((table["sex"] == "male") & (table["split"] == "train"))
    for cells in ("sex=male", ["sex=male"], CellFilter.parse("sex=male"), store.where("sex=male")):
        assert np.array_equal(store.select(cells, split="train"), expected)
    assert store.select("sex=male").dtype == np.int64
    assert np.array_equal(store.select(split="test"), store.rows("test"))
    assert np.array_equal(store.select([], split="test"), store.rows("test"))


def test_a_mask_of_another_size_is_refused(store):
    with pytest.raises(ValueError, match=r"bool \(180,\), not bool \(3,\)"):
        store.select(np.ones(3, dtype=bool))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "tisue=lung",
            r"data\.where tisue=lung: .* has no phenotype 'tisue'; did you mean 'tissue'",
        ),
        ("tissue=lnug", r"has no tissue 'lnug'; did you mean 'lung'"),
        ("cell_type=CD4", r"did you mean 'T cell, CD4'\? \(quote a value that has commas\)"),
        ("split=dev", r"has no split 'dev'; it has train, validation, test"),
        ("donor=D11", r"has no donor 'D11'; did you mean 'D1'"),
        ("source=three.h5ad", r"has no source 'three.h5ad'"),
        ("colour=red", r"has no phenotype 'colour'; did you mean"),
    ],
)
def test_an_unknown_name_or_value_is_answered_with_the_nearest(store, text, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        store.where(CellFilter.parse(text, where="data.where"))


def test_where_nothing_matches_each_condition_is_counted(store, table):
    cells = CellFilter.parse("tissue=lung,split=train")
    rows = store.rows("test")
    n_lung = int((table["tissue"][rows] == "lung").sum())
    assert cells.describe_no_match(store.labels, rows) == (
        f"of {len(rows)}, {n_lung} match tissue=lung and 0 match split=train"
    )


def test_a_store_without_donors_has_no_name_donor(tmp_path):
    adata = make_adata()
    del adata.obs["donor_id"]
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    assert list(store.labels)[-2:] == ["split", "source"]
    with pytest.raises(ConfigurationError, match="no phenotype 'donor'"):
        store.where("donor=D1")


def test_a_phenotype_of_the_users_own_goes_before_the_names_of_the_store(tmp_path):
    adata = make_adata()
    adata.obs["split"] = np.where(np.arange(60) % 2, "odd", "even")
    data = settings(write(adata, tmp_path), phenotypes={"split": "split"})
    store = prepare_store(data, tmp_path / "store")
    assert np.array_equal(store.where("split=odd"), store.origins[:, 1] % 2 == 1)
    assert list(store.labels).count("split") == 1
    assert set(store.to_anndata(split_rows := store.rows("test")).obs["tfx_split"]) == {"test"}
    assert len(split_rows)
