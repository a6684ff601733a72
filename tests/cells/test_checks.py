"""The checks together: reports, and what prepare and train check first."""

import json

import pandas as pd
import pytest

from core.cells.checks.check import check_data
from core.cells.checks.report import CheckReport, CheckRow
from core.cells.checks.survey import make_label_table, survey_files
from core.cells.prepare import prepare_store
from core.errors import ConfigurationError, DataError
from core.progress import ignore_progress

from .check_reports import check, only_row, rows_of
from .examples import make_adata, make_obs, real_file, settings, write


def test_the_worst_row_is_the_level_of_a_report():
    rows = [CheckRow(level, "genes", "x", "found") for level in ("ok", "fail", "warn")]
    assert [CheckReport.of(rows[:n], {}).level for n in range(4)] == ["ok", "ok", "fail", "fail"]


def test_rows_are_in_the_order_of_families(tmp_path):
    report = check(write(make_adata(), tmp_path))
    order = [CheckReport.FAMILIES.index(row.family) for row in report.rows]
    assert order == sorted(order)
    assert set(order) == set(range(len(CheckReport.FAMILIES)))


def test_a_report_is_plain_data(tmp_path):
    document = json.loads(json.dumps(check(write(make_adata(), tmp_path)).to_dict()))
    assert set(document) == {"level", "rows", "facts"}
    assert set(document["rows"][0]) == {"level", "family", "check", "finding", "fix", "subject"}
    assert document["facts"]["phenotypes"]["sex"]["labels"] == {"female": 30, "male": 30}
    assert sum(document["facts"]["split"].values()) == 60


def test_failures_are_one_error_and_warnings_are_none():
    warning = CheckRow("warn", "cells", "empty cells", "some", "drop them")
    CheckReport.of([warning], {}).raise_failures()
    failures = [CheckRow("fail", "genes", "x", f"fault {n}", "mend it") for n in range(25)]
    with pytest.raises(DataError) as raised:
        CheckReport.of([warning, *failures], {}).raise_failures()
    lines = str(raised.value).splitlines()
    assert lines[0] == "fault 0; mend it"
    assert lines[-1] == "and 5 more; 'tfx check' lists all"
    assert len(lines) == 21


@pytest.mark.parametrize(
    "spoil",
    [
        lambda adata: adata[:0].copy(),
        lambda adata: adata[:, :0].copy(),
        lambda adata: setattr(adata, "X", adata.X * -1),
        lambda adata: adata.obs.__setitem__("sex", "female"),
        lambda adata: adata.obs.drop(columns="sex", inplace=True),
    ],
)
def test_failures_have_the_words_of_prepare(tmp_path, spoil):
    adata = make_adata()
    spoilt = spoil(adata)
    file = write(adata if spoilt is None else spoilt, tmp_path)
    data = settings(file, phenotypes={"sex": "sex"})
    with pytest.raises(DataError) as expected:
        prepare_store(data, tmp_path / "store")
    with pytest.raises(DataError) as raised:
        check_data(data, scope="tables").raise_failures()
    assert str(raised.value) == str(expected.value)


def test_scope_tables_reads_no_values(tmp_path):
    adata = make_adata(n_cells=1_000)
    adata.X.data[adata.X.indptr[20]] = 0.5  # between the sampled cells: only prepare will find it
    report = check(write(adata, tmp_path), scope="tables")
    assert report.level != "fail"
    assert report.facts["files"][0]["cells_read"] == 0
    assert report.facts["estimate"]["n_values"] == adata.X.nnz
    assert not rows_of(report, "empty genes")


def test_progress_counts_files_and_cells(tmp_path):
    events = []
    files = [write(make_adata(seed=n), tmp_path, f"{n}.h5ad") for n in range(2)]
    check(files, on_progress=events.append)
    last = {event.stage: (event.done, event.total) for event in events}
    assert last == {"checking files": (2, 2), "reading cells": (120, 120)}


def test_a_file_listed_twice_is_a_fault_of_the_command(tmp_path):
    file = write(make_adata(), tmp_path)
    with pytest.raises(ConfigurationError, match="listed twice"):
        check([file, file])
    with pytest.raises(ConfigurationError, match=r"is in data\.files and in data\.test_files"):
        check([file], test_files=[file])


def test_the_label_table_counts_as_pandas_does(tmp_path):
    obs = [make_obs(60, 6), make_obs(50, 5, seed=3)]
    files = [
        write(make_adata(60), tmp_path, "a.h5ad"),
        write(make_adata(50, n_donors=5, seed=3), tmp_path, "b.h5ad"),
    ]
    data = settings(files, age_groups="none")
    table = make_label_table(survey_files(data, "tables", ignore_progress)[0], data)
    joined = pd.concat(obs)
    assert table.n_cells == 110
    for name, column in table.phenotypes.items():
        counts = joined[column.column].value_counts()
        assert dict(zip(column.values, table.count(column), strict=True)) == counts.to_dict(), name
    assert table.donors is not None
    crossed = table.cross(table.phenotypes["sex"], table.donors)
    assert (crossed == pd.crosstab(joined["sex"], joined["donor_id"]).to_numpy()).all()
    assert len(table.cells) == len(joined.assign(file=[0] * 60 + [1] * 50).drop_duplicates())


def test_the_built_in_atlas_is_fit():
    report = check("builtin:atlas?cells=600&seed=0")
    assert report.level != "fail"
    assert {row.check for row in report.of_level("warn")} <= {"rare labels", "combinations"}


@pytest.mark.parametrize(
    ("name", "others", "warned"),
    [
        ("onek1k_blood.h5ad", {}, set()),
        ("mouse_brain_cellxgene.h5ad", {}, {"rare labels", "combinations", "split"}),
        (
            "glioblastoma_treated.h5ad",
            {"phenotypes": {"treatment": "treatment"}},
            {"split", "confounding"},
        ),
    ],
)
def test_real_cells_are_warned_of_for_what_they_lack_and_nothing_else(name, others, warned):
    report = check_data(settings(real_file(name), **others))
    assert report.level != "fail"
    assert {row.check for row in report.of_level("warn")} == warned


def test_the_real_glioblastoma_has_one_female_donor():
    report = check_data(settings(real_file("glioblastoma_treated.h5ad")))
    rows = {row.subject: row.finding for row in rows_of(report, "confounding", "warn")}
    assert "'female' has 1 donor" in rows["sex"]
    assert only_row(report, "values").finding == "X holds counts"
