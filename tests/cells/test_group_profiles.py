"""Profiles of groups against numpy on the dense matrix."""

import numpy as np
import pytest

from core.cells import group_profiles as module
from core.cells.genes import GenePanel
from core.cells.group_profiles import group_profiles
from core.cells.prepare import prepare_store
from core.errors import ConfigurationError

from .examples import log_normalised, make_adata, settings, write


@pytest.fixture(scope="module", params=["counts", "log1p"])
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    adata = make_adata(240, 50)
    adata.obs["tissue"] = np.where(np.arange(240) % 7 == 0, "unknown", adata.obs["tissue"])
    if request.param == "log1p":
        adata.X = log_normalised(adata.X.toarray()).astype(np.float32)
    return prepare_store(settings(write(adata, folder)), folder / "store")


def expected(store, panel, by, rows):
    """Group -> (n_cells, means, detection, variances) in float64, of the dense matrix."""
    dense = store.read(rows, panel).toarray().astype(np.float64)
    labels = np.column_stack([
        np.asarray(store.labels(name).categorical(rows).astype(object), dtype=object) for name in by
    ]) if by else np.zeros((len(rows), 0), dtype=object)  # fmt: skip
    keys = [tuple(None if value != value else value for value in row) for row in labels]
    groups = {}
    for key in set(keys):
        of = dense[[one == key for one in keys]]
        groups[key] = (len(of), of.mean(axis=0), (of > 0).mean(axis=0), of.var(axis=0))
    return groups


def assert_equals_numpy(profiles, groups, by):
    assert len(profiles.groups) == len(groups)
    assert [*by, "n_cells"] == list(profiles.groups.columns)
    for place in range(len(groups)):
        row = profiles.groups.iloc[place]
        key = tuple(None if row[name] != row[name] else row[name] for name in by)
        n_cells, means, detection, variances = groups[key]
        assert row["n_cells"] == n_cells
        np.testing.assert_allclose(profiles.means[place], means, rtol=1e-6)
        np.testing.assert_allclose(profiles.detection[place], detection, rtol=1e-6)
        np.testing.assert_allclose(profiles.variances[place], variances, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "by", [["tissue"], ["tissue", "cell_type"], ["donor", "sex"], ["split", "source"], []]
)
def test_every_group_has_the_figures_of_its_cells(store, by, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_VALUES", 500)
    rows = np.arange(store.n_cells)
    panel = store.panel(30)
    profiles = group_profiles(store, panel, by)
    assert profiles.means.shape == profiles.variances.shape == (len(profiles.groups), 30)
    assert profiles.means.dtype == profiles.detection.dtype == np.float32
    assert_equals_numpy(profiles, expected(store, panel, by, rows), by)


def test_only_the_rows_asked_for_are_read_in_any_order(store):
    rows = store.select("sex=female", split="train")
    panel = store.panel(12)
    by = ["tissue"]
    profiles = group_profiles(store, panel, by, rows[::-1])
    assert profiles.groups["n_cells"].sum() == len(rows)
    assert_equals_numpy(profiles, expected(store, panel, by, rows), by)


def test_groups_follow_the_order_of_the_labels_with_missing_ones_last(store):
    groups = group_profiles(store, store.panel(3), ["tissue", "sex"]).groups
    codes = groups[["tissue", "sex"]].apply(lambda column: column.cat.codes.replace(-1, 99))
    assert codes.apply(tuple, axis=1).is_monotonic_increasing
    assert groups["tissue"].isna().iloc[-1]


def test_the_figures_do_not_depend_on_the_size_of_the_blocks(store, monkeypatch):
    panel = store.panel(20)
    whole = group_profiles(store, panel, ["tissue"])
    monkeypatch.setattr(module, "_BLOCK_VALUES", 1)
    by_cell = group_profiles(store, panel, ["tissue"])
    for name in ("means", "detection", "variances"):
        assert getattr(whole, name).tobytes() == getattr(by_cell, name).tobytes()


def test_genes_that_the_store_lacks_are_zero(store):
    panel = GenePanel(("ENSG99999999999", *store.panel(2).ids), ("NEW", "A", "B"))
    profiles = group_profiles(store, panel, ["sex"])
    assert not profiles.means[:, 0].any()
    assert profiles.means[:, 1:].any()


def test_no_cells_have_no_groups(store):
    for by in ([], ["tissue"]):
        profiles = group_profiles(store, store.panel(4), by, np.array([], dtype=np.int64))
        assert profiles.means.shape == (0, 4)
        assert len(profiles.groups) == 0


def test_progress_ends_at_the_number_of_cells(store, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_VALUES", 500)
    events = []
    group_profiles(store, store.panel(4), ["sex"], on_progress=events.append)
    assert len(events) > 3
    assert {event.stage for event in events} == {"reading profiles"}
    assert (events[-1].done, events[-1].total) == (240, 240)


def test_an_unknown_label_is_answered_with_the_nearest(store):
    with pytest.raises(ConfigurationError, match=r"no phenotype 'tisue' to group by.*'tissue'"):
        group_profiles(store, store.panel(4), ["tisue"])


def test_groups_that_would_not_fit_into_memory_are_refused(store, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(ConfigurationError, match=r"group by fewer labels than donor, tissue"):
        group_profiles(store, store.panel(50), ["donor", "tissue"])
