"""Phenotypes and donors are found in obs by names and labels."""

import numpy as np
import pandas as pd
import pytest

from core.cells.obs_columns import find_columns
from tests.cells.examples import make_obs

N = 120


def named(columns):
    return {one.name: one.column for one in columns}


def obs(**columns):
    return pd.DataFrame(columns, index=[f"cell{number}" for number in range(N)])


def cycle(*values):
    return [values[number % len(values)] for number in range(N)]


def test_the_standard_five_are_found_under_their_cellxgene_names():
    found = find_columns([make_obs(N)])
    assert named(found.phenotypes) == {
        "sex": "sex", "tissue": "tissue", "cell_type": "cell_type", "age": "development_stage",
        "disease": "disease",
    }  # fmt: skip
    assert found.donors.column == "donor_id"
    assert len(found.donors.values) == 6
    assert (found.single, found.partial, found.further) == ((), (), ())


def test_other_names_are_known():
    table = make_obs(N).rename(
        columns={
            "sex": "Gender", "tissue": "Organ", "cell_type": "CellType", "disease": "diagnosis",
            "development_stage": "Age_years", "donor_id": "patient",
        }
    )  # fmt: skip
    found = find_columns([table])
    assert named(found.phenotypes) == {
        "sex": "Gender", "tissue": "Organ", "cell_type": "CellType", "age": "Age_years",
        "disease": "diagnosis",
    }  # fmt: skip
    assert found.donors.column == "patient"


def test_what_was_done_to_cells_is_a_phenotype_and_other_groupings_are_offered():
    table = obs(
        treatment=cycle("ctrl", "drug"),
        condition=cycle("a", "b", "c"),
        region=cycle("left", "right", "top", "front", "back"),
        leiden=cycle("0", "1", "2"),
        cell_type_ontology_term_id=cycle("CL:1", "CL:2"),
        is_primary_data=cycle(1, 0),
        n_genes=np.arange(N) % 7,
        score=np.linspace(0, 1, N),
        barcode=[f"ACGT{number}" for number in range(N)],
        only_one=["x"] * N,
    )
    found = find_columns([table])
    assert named(found.phenotypes) == {
        "cell_type": "cell_type_ontology_term_id",  # better than no cell types
        "treatment": "treatment", "condition": "condition",
    }  # fmt: skip
    assert named(found.further) == {"region": "region"}
    assert found.donors is None


def test_a_column_that_says_the_same_under_other_names_is_not_offered():
    table = obs(
        cell_type=cycle("T cell", "B cell", "monocyte"),
        celltype_short=cycle("T", "B", "Mono"),
        other=cycle("T", "B", "Mono", "T"),
        treatment=cycle("x", "y", "z"),
    )
    found = find_columns([table])
    assert named(found.phenotypes) == {"cell_type": "cell_type", "treatment": "treatment"}
    assert named(found.further) == {"other": "other"}


def test_one_value_and_no_value_are_told_apart_from_labels():
    found = find_columns([obs(sex=["female"] * N, tissue=[None] * N, disease=cycle("normal", "x"))])
    assert named(found.single) == {"sex": "sex", "tissue": "tissue"}
    assert [one.values for one in found.single] == [("female",), ()]
    assert named(found.phenotypes) == {"disease": "disease"}


def test_only_columns_of_every_file_are_mapped():
    first, second = make_obs(N), make_obs(N).drop(columns="disease")
    second["treatment"] = cycle("a", "b")
    found = find_columns([first, second])
    assert "disease" not in named(found.phenotypes)
    assert found.partial == ("disease",)
    assert "treatment" not in named(found.phenotypes)


def test_labels_of_all_files_count_together():
    found = find_columns([obs(sex=["female"] * N), obs(sex=["male"] * N)])
    (sex,) = found.phenotypes
    assert (set(sex.values), sex.n_known) == ({"female", "male"}, 2 * N)


@pytest.mark.parametrize(
    ("donors", "expected"),
    [
        (cycle("a", "b"), None),  # fewer than the splits
        ([f"cell{number}" for number in range(N)], None),  # one per cell
        (cycle("a", "b", "c"), "donor"),
        (cycle("a", "b", "c", None), "donor"),
    ],
)
def test_a_column_of_donors_has_enough_of_them_with_cells_enough(donors, expected):
    found = find_columns([obs(donor=donors)]).donors
    assert (found and found.column) == expected


def test_the_next_name_is_tried_where_the_first_does_not_name_donors():
    found = find_columns([obs(donor_id=["one"] * N, sample=cycle("a", "b", "c", "d"))])
    assert found.donors.column == "sample"


def test_a_name_that_is_taken_is_not_given_twice():
    found = find_columns([obs(cell_type=cycle("a", "b"), **{"Cell type": cycle("x", "y", "z")})])
    assert named(found.phenotypes) == {"cell_type": "cell_type"}
    assert named(found.further) == {"cell_type_2": "Cell type"}


def test_a_perturbation_of_any_number_of_genes_is_a_phenotype():
    """The layout of scPerturb, see its case: 'control' beside a label for every gene."""
    genes = ["control", *(f"GENE{number}" for number in range(110))]
    table = pd.DataFrame({"perturbation": np.repeat(genes, 6)})
    table["gene_target"] = table["perturbation"]
    table["guide"] = table["perturbation"] + np.tile(["_a", "_b"], len(table) // 2)
    table["nperts"] = (table["perturbation"] != "control").astype(int)
    table["gemgroup"] = np.arange(len(table)) % 8
    table["ncounts"] = np.random.default_rng(0).random(len(table))
    found = find_columns([table])
    (perturbation,) = found.phenotypes
    assert (perturbation.column, len(perturbation.values)) == ("perturbation", 111)
    assert perturbation.twins == ("gene_target",)
    assert [(one.column, len(one.values)) for one in found.further] == [("guide", 222)]


@pytest.mark.parametrize(
    ("columns", "phenotypes", "donors", "further"),
    [
        (  # muscat
            {
                "cluster_id": cycle("B cells", "T cells"), "group_id": cycle("ctrl", "stim", "stim"),
                "sample_id": cycle("s1", "s2", "s3", "s4"),
            },
            {"cell_type": "cluster_id", "group_id": "group_id"}, "sample_id", set(),
        ),
        (  # Seurat and Azimuth
            {
                "orig.ident": cycle("p1", "p2", "p3", "p4"), "nCount_RNA": np.arange(N) % 40,
                "nFeature_RNA": np.arange(N) % 30, "percent.mt": np.linspace(0, 1, N),
                "RNA_snn_res.0.8": cycle("0", "1", "2"), "seurat_clusters": cycle("0", "1", "2"),
                "predicted.celltype.l2": cycle("B", "T", "NK"), "S.Score": np.linspace(0, 1, N),
                "Phase": cycle("G1", "S"), "stim": cycle("CTRL", "STIM"),
            },
            {"cell_type": "predicted.celltype.l2", "stim": "stim"}, "orig.ident", set(),
        ),
        (  # the Human Cell Atlas
            {
                "donor_organism.sex": cycle("male", "female"),
                "donor_organism.provenance.document_id": cycle("x-1", "x-2", "x-3"),
                "derived_organ_label": cycle("lung", "liver"),
                "annotated_cell_identity.ontology_label": cycle("B cell", "T cell", "monocyte"),
                "donor_organism.development_stage.ontology_label": cycle("adult", "child"),
            },
            {
                "sex": "donor_organism.sex", "tissue": "derived_organ_label",
                "cell_type": "annotated_cell_identity.ontology_label",
                "age": "donor_organism.development_stage.ontology_label",
            },
            "donor_organism.provenance.document_id", set(),
        ),
        # numbers of clusters are no cell types; a column of an unknown name is listed
        (
            {"cluster_id": cycle("0", "1"), "my_states": [f"s{n % 24}" for n in range(N)]},
            {}, None, {"my_states"},
        ),
    ],
    ids=["muscat", "seurat", "hca", "unknown"],
)  # fmt: skip
def test_the_usual_names_of_other_tools_are_known(columns, phenotypes, donors, further):
    found = find_columns([obs(**columns)])
    assert named(found.phenotypes) == phenotypes
    assert (found.donors and found.donors.column) == donors
    assert {one.column for one in found.further} == further
