"""Checks of phenotypes, donors and the split."""

import numpy as np
import pytest

from core.cells import ontology
from core.cells.checks import phenotype_rows
from core.cells.checks.donor_rows import confounded_values
from core.cells.obs_columns import likely_column

from .check_reports import check, check_adata, only_row, rows_of
from .examples import make_adata, write


def with_obs(**columns):
    adata = make_adata(n_cells=columns.pop("n_cells", 120), n_donors=columns.pop("n_donors", 12))
    for name, values in columns.items():
        if values is None:
            del adata.obs[name]
        else:
            adata.obs[name] = values
    return adata


def findings(rows):
    return " | ".join(row.finding for row in rows)


def of_subject(report, name, subject):
    return [row for row in rows_of(report, name) if row.subject == subject]


# -- coverage
def test_coverage_names_what_is_known_and_what_is_left_out(tmp_path):
    adata = with_obs(tissue="lung", disease=None)
    rows = rows_of(check_adata(adata, tmp_path), "coverage")
    assert {row.level for row in rows} == {"ok"}
    text = findings(rows)
    assert "known for every cell: sex (2 labels), cell_type (3 labels), age (3 labels)" in text
    assert "one value only: tissue ('lung')" in text
    assert "no such obs columns: disease ('disease')" in text


@pytest.mark.parametrize(("n_unknown", "level"), [(30, "ok"), (90, "warn")])
def test_a_phenotype_known_for_few_cells_is_warned_of(tmp_path, n_unknown, level):
    tissue = np.array(["lung", "liver"] * 60, dtype=object)
    tissue[:n_unknown] = "unknown"
    (row,) = of_subject(check_adata(with_obs(tissue=tissue), tmp_path), "coverage", "tissue")
    assert row.level == level
    assert f"known for {100 - 100 * n_unknown // 120} % of cells" in row.finding


def test_a_column_of_another_name_is_suggested(tmp_path):
    adata = with_obs(sex=None, Gender=["f", "m"] * 60)
    (row,) = rows_of(check_adata(adata, tmp_path), "coverage", "warn")
    assert "there is 'Gender'" in row.finding
    assert row.fix.startswith("--set data.phenotypes.sex=Gender")
    assert not rows_of(
        check_adata(adata, tmp_path, phenotypes={"sex": "Gender"}), "coverage", "warn"
    )
    assert not rows_of(check_adata(adata, tmp_path, phenotypes={"sex": False}), "coverage", "warn")


def test_a_column_that_one_file_lacks_is_warned_of(tmp_path):
    first = write(with_obs(), tmp_path, "first.h5ad")
    second = write(with_obs(sex=None, gender="f"), tmp_path, "second.h5ad")
    (row,) = of_subject(check([first, second]), "coverage", "sex")
    assert row.level == "warn"
    assert f"known for 50 % of cells; no column 'sex' in {second}" in row.finding
    assert row.fix == f"rename 'gender' to 'sex' in {second}"


@pytest.mark.parametrize(
    ("wanted", "name", "columns", "found"),
    [
        ("cell_type", "cell_type", ["Cell.Type", "x"], "Cell.Type"),
        ("development_stage", "age", ["age_years"], "age_years"),
        ("tissue", "tissue", ["tissue_type_2", "organ"], "organ"),
        ("donor_id", "donor_id", ["patient"], "patient"),
        ("sex", "sex", ["sexy", "leiden"], None),
    ],
)
def test_likely_columns(wanted, name, columns, found):
    assert likely_column(wanted, name, columns) == found


def test_a_column_that_the_preset_names_must_exist_in_every_file(tmp_path):
    first = write(with_obs(treatment=["a", "b"] * 60), tmp_path, "first.h5ad")
    second = write(with_obs(), tmp_path, "second.h5ad")
    report = check([first, second], phenotypes={"treatment": "treatment"})
    (row,) = report.of_level("fail")
    assert (row.check, row.subject) == ("coverage", "treatment")
    assert second in row.finding


def test_a_users_own_phenotype_is_checked_like_the_others(tmp_path):
    adata = with_obs(treatment=["drug", "none_"] * 60)
    report = check_adata(adata, tmp_path, phenotypes={"treatment": "treatment"})
    assert "treatment (2 labels)" in findings(rows_of(report, "coverage"))
    single = check_adata(
        with_obs(treatment="drug"), tmp_path, phenotypes={"treatment": "treatment"}
    )
    (row,) = single.of_level("fail")
    assert "one value only" in row.finding


def test_labels_that_name_single_cells_are_no_phenotype(tmp_path):
    adata = with_obs(tissue=[f"place {number}" for number in range(120)])
    (row,) = rows_of(check_adata(adata, tmp_path), "coverage", "warn")
    assert "identifies single cells" in row.finding


def test_cells_without_any_phenotype_are_warned_of(tmp_path):
    names = ("sex", "tissue", "cell_type", "development_stage", "disease")
    adata = with_obs(**dict.fromkeys(names))
    (row,) = rows_of(check_adata(adata, tmp_path), "coverage", "warn")
    assert "no cell has a known phenotype" in row.finding


# -- spelling, rare labels, combinations
def test_two_spellings_in_two_files_are_listed_with_their_file(tmp_path):
    first = write(with_obs(), tmp_path, "first.h5ad")
    second = with_obs()
    second.obs["cell_type"] = second.obs["cell_type"].str.replace("T cell", "T_cells")
    report = check([first, write(second, tmp_path, "second.h5ad")])
    row = only_row(report, "spelling")
    assert (row.level, row.subject) == ("warn", "cell_type")
    assert "'T cell'" in row.finding
    assert "'T_cells'" in row.finding
    assert ", only in " in row.finding
    assert row.fix.endswith("to 'T_cells' in obs 'cell_type'") or row.fix.endswith(
        "to 'T cell' in obs 'cell_type'"
    )
    assert not rows_of(check(first), "spelling")


def test_labels_of_few_training_cells_are_listed(tmp_path):
    assert only_row(check_adata(with_obs(), tmp_path), "rare labels").level == "ok"
    kinds = np.array(["T cell", "B cell"] * 60, dtype=object)
    kinds[::40] = "mast cell"
    row = only_row(check_adata(with_obs(cell_type=kinds), tmp_path), "rare labels")
    assert row.level == "warn"
    assert "cell_type: 1 of 3 labels" in row.finding
    assert "'mast cell'" in row.finding


def test_rare_combinations_are_warned_of_when_they_hold_many_cells(tmp_path):
    only = dict.fromkeys(("disease", "development_stage", "tissue"))
    sex = np.repeat(["female", "male"], 60)
    kinds = np.tile(["T cell", "B cell"], 60)
    even = only_row(
        check_adata(with_obs(sex=sex, cell_type=kinds, **only), tmp_path), "combinations"
    )
    assert even.level == "ok"
    assert even.finding == (
        "4 of 4 combinations of sex x cell_type occur, each in 20 cells or more"
    )
    kinds = np.where(np.arange(120) < 110, "T cell", "B cell")
    row = only_row(
        check_adata(with_obs(sex=sex, cell_type=kinds, **only), tmp_path), "combinations"
    )
    assert row.level == "warn"
    assert "3 of 4" in row.finding
    assert "male + B cell (10)" in row.finding


def test_a_label_of_held_out_cells_alone_is_warned_of(tmp_path):
    train = write(with_obs(), tmp_path, "train.h5ad")
    held_out = with_obs()
    held_out.obs["tissue"] = "kidney"
    report = check(
        [train], test_files=[write(held_out, tmp_path, "test.h5ad")], split={"by": "cells"}
    )
    row = only_row(report, "unknown labels")
    assert (row.level, row.subject) == ("warn", "tissue")
    assert "'kidney' (120 cells)" in row.finding


# -- what was decided
def test_what_is_missing_and_what_was_joined_is_said_with_counts(tmp_path):
    """The shared case of sexes M/F beside male/female, 'none' for healthy, Unicode forms, ages."""
    first = with_obs(
        sex=["male", "female"] * 60,
        disease=["none", "none", "COVID-19"] * 40,
        treatment=["none"] + ["drug A", "drug B"] * 59 + ["unknown"],
        development_stage=["25", "third decade stage", "60-79"] * 40,
    )
    second = with_obs(
        sex=["M", "F"] * 60,
        disease=["none", "none", "COVID-19"] * 40,
        treatment=["drug\u00a0A", "drug B"] * 60,
        development_stage=["30s", "17th week post-fertilization stage", "unknown"] * 40,
    )
    files = [write(first, tmp_path, "first.h5ad"), write(second, tmp_path, "second.h5ad")]
    report = check(files, phenotypes={"treatment": "treatment"})
    text = findings(report.rows)
    assert "'female' also as 'F' (60 cells); 'male' also as 'M' (60 cells)" in text
    assert "'drug A' also as 'drug\\xa0A' (60 cells)" in text
    assert "disease: 'none' (160 cells, 67 %) is common, so it is a label" in text
    (row,) = of_subject(report, "missing labels", "treatment")
    assert row.level == "warn"  # "none" may mean untreated
    assert "'none' (1 cells), 'unknown' (1 cells)" in row.finding
    ages = of_subject(report, "ages", "age")
    assert [row.level for row in ages] == ["ok", "ok", "warn"]
    assert "'third decade stage' in 20-29, '30s' in 30-39" in ages[0].finding
    assert "17th week" in ages[1].finding
    assert "'60-79' (40 cells)" in ages[2].finding
    assert set(report.facts["phenotypes"]["age"]["labels"]) == {
        "20-29", "30-39", "60-79", "17th week post-fertilization stage",
    }  # fmt: skip


def test_deprecated_terms_and_unknown_ids_are_listed(tmp_path, monkeypatch):
    pytest.importorskip("cellxgene_ontology_guide")
    kinds = ["CL:0000003", "native cell", "CL:9999999", "T cell"] * 30
    file = write(with_obs(cell_type=kinds), tmp_path)
    rows = of_subject(check(file), "ontology", "cell_type")
    assert {row.level for row in rows} == {"warn"}
    assert "'CL:0000003' is a deprecated term" in findings(rows)
    assert "'native cell' is a deprecated term (CL:0000003)" in findings(rows)
    assert rows[0].fix == "replace it in obs 'cell_type' by cell (CL:0000000)"
    assert rows[-1].finding == "cell_type: no terms of their ontology: CL:9999999"
    by_id = of_subject(check(file, scope="tables"), "ontology", "cell_type")
    assert "native cell" not in findings(by_id)
    monkeypatch.setattr(ontology, "is_installed", lambda: False)
    monkeypatch.setattr(phenotype_rows, "is_installed", lambda: False)
    (row,) = of_subject(check(file), "ontology", "cell_type")
    assert "pip install 'transformerics[ontology]'" in row.fix


# -- donors
def test_donors_whose_names_differ_in_form_are_listed(tmp_path):
    adata = make_adata(n_cells=240, n_donors=12)
    adata.obs["donor_id"] = adata.obs["donor_id"].astype(object)
    adata.obs.iloc[:9, adata.obs.columns.get_loc("donor_id")] = [
        "Donor 1",
        "donor-1",
        "Donor_1",
    ] * 3
    report = check_adata(adata, tmp_path)
    (row,) = [row for row in rows_of(report, "spelling") if row.family == "donors"]
    assert "'donor-1' and 'Donor" in row.finding
    assert "'Donor 1'" in only_row(report, "joined donors").finding


def test_cells_without_donors_are_warned_of_unless_intended(tmp_path):
    adata = with_obs(donor_id=None)
    row = only_row(check_adata(adata, tmp_path), "split")
    assert (row.level, "no obs column 'donor_id'" in row.finding) == ("warn", True)
    assert only_row(check_adata(adata, tmp_path, split={"by": "cells"}), "split").level == "ok"
    adata.obs["patient"] = make_adata(n_cells=120).obs["donor_id"].to_numpy()
    assert "data.split.by=patient" in only_row(check_adata(adata, tmp_path), "split").fix
    missing = only_row(check_adata(adata, tmp_path, split={"by": "donor"}), "split")
    assert missing.level == "fail"


@pytest.mark.parametrize(
    ("n_donors", "level", "words"),
    [(2, "warn", "too few values (2)"), (6, "warn", "so few donors"), (60, "ok", "60 donors")],
)
def test_few_donors_are_warned_of(tmp_path, n_donors, level, words):
    adata = make_adata(n_cells=240, n_donors=n_donors)
    row = only_row(check_adata(adata, tmp_path), "split")
    assert (row.level, words in row.finding) == (level, True)


def test_cells_of_unknown_donors_are_counted(tmp_path):
    adata = make_adata(n_cells=240, n_donors=40)
    assert not rows_of(check_adata(adata, tmp_path), "unknown donors")
    adata.obs["donor_id"] = np.where(np.arange(240) < 24, "unknown", adata.obs["donor_id"])
    assert (
        "24 of 240 cells (10 %)" in only_row(check_adata(adata, tmp_path), "unknown donors").finding
    )


def test_donors_on_both_sides_of_a_given_split_leak(tmp_path):
    train = make_adata()
    test = make_adata(seed=1)
    files = [write(train, tmp_path, "train.h5ad")]
    row = only_row(check(files, test_files=[write(test, tmp_path, "test.h5ad")]), "leakage")
    assert row.level == "warn"
    assert "data.test_files share 6 donors with data.files (D0, D1, D2 and 3 more)" in row.finding
    test.obs["donor_id"] = "E" + test.obs["donor_id"].astype(str)
    clean = check(files, test_files=[write(test, tmp_path, "test.h5ad")])
    assert only_row(clean, "leakage").level == "ok"
    assert not rows_of(check(files), "leakage")


def test_a_phenotype_that_few_donors_carry_is_confounded_with_them(tmp_path):
    adata = make_adata(n_cells=240, n_donors=12)
    number = np.arange(240) % 12
    adata.obs["disease"] = np.where(number < 6, "normal", "asthma")
    clean = rows_of(check_adata(adata, tmp_path), "confounding")
    assert [row.level for row in clean] == ["ok"]
    assert "disease" in clean[0].finding
    adata.obs["disease"] = np.where(number < 10, "normal", "asthma")
    (row,) = rows_of(check_adata(adata, tmp_path), "confounding", "warn")
    assert row.subject == "disease"
    assert "'asthma' has 2 donors" in row.finding
    # cell types vary within a donor
    assert "cell_type" not in findings(rows_of(check_adata(adata, tmp_path), "confounding"))


def test_a_phenotype_that_one_file_carries_is_confounded_with_it(tmp_path):
    def file(name, tissue, seed):
        adata = make_adata(seed=seed)
        adata.obs["tissue"] = tissue
        return write(adata, tmp_path, name)

    lung, liver = file("lung.h5ad", "lung", 0), file("liver.h5ad", "liver", 1)
    (row,) = of_subject(check([lung, liver]), "confounding", "tissue")
    assert row.level == "warn"
    assert "every file has one value" in row.finding
    both = write(make_adata(seed=2), tmp_path, "both.h5ad")
    assert not of_subject(check([lung, liver, both]), "confounding", "tissue")


def test_a_phenotype_that_the_assay_determines_is_confounded_with_it(tmp_path):
    adata = with_obs(assay=["10x 3' v2", "Smart-seq2"] * 60)
    adata.obs["tissue"] = np.where(adata.obs["assay"] == "Smart-seq2", "lung", "liver")
    adata.obs["donor_id"] = [f"D{number // 10}" for number in range(120)]
    (row,) = of_subject(check_adata(adata, tmp_path), "confounding", "tissue")
    assert "every assay has one value" in row.finding


@pytest.mark.parametrize(
    ("crossed", "groups"),
    [
        ([[5, 0, 0], [0, 5, 9]], [1, 2]),
        ([[5, 1, 0], [0, 5, 9]], None),
        ([[999, 0], [1, 500]], [1, 1]),
        ([[5, 5, 5]], None),
        ([[5, 0], [3, 0]], None),
    ],
)
def test_confounded_values(crossed, groups):
    found = confounded_values(np.array(crossed))
    assert (None if found is None else found.tolist()) == groups
