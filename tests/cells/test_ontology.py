"""Ontology terms: the reference is the graph of the guide, walked parent by parent."""

import numpy as np
import pytest

from core.cells.ontology import (
    find_deprecated,
    find_term,
    is_installed,
    measure_terms,
    term_id,
    term_name,
)

guide = pytest.importorskip("cellxgene_ontology_guide.ontology_parser")

VALUES = ["T cell", "B cell", "CD4-positive, alpha-beta T cell", "lymphocyte", "CL:0000540", "odd"]


@pytest.fixture(scope="module")
def parser():
    return guide.OntologyParser()


def steps_up(parser, term):
    """Steps from a term to itself and each ancestor, breadth first."""
    found, front = {term: 0}, [term]
    while front:
        one = front.pop(0)
        for parent in parser.get_term_parents(one):
            if parent not in found:
                found[parent] = found[one] + 1
                front.append(parent)
    return found


def test_distances_are_those_of_the_graph(parser):
    terms = measure_terms(VALUES, "cell_type")
    assert terms.is_term.tolist() == [True] * 5 + [False]
    up = [steps_up(parser, find_term(value, "cell_type")) for value in VALUES[:5]]
    for row, first in enumerate(up):
        for column, second in enumerate(up):
            shared = first.keys() & second.keys()
            assert terms.steps[row, column] == min(first[one] + second[one] for one in shared)
    assert np.array_equal(terms.steps, terms.steps.T)
    related = [[VALUES[column] for column in np.flatnonzero(row)] for row in terms.is_related]
    assert related[0] == ["T cell", "CD4-positive, alpha-beta T cell", "lymphocyte"]
    assert related[4:] == [["CL:0000540"], ["odd"]]


def test_terms_without_a_common_ancestor_are_far_apart():
    terms = measure_terms(["normal", "COVID-19", "pneumonia", "viral pneumonia"], "disease")
    assert terms.is_term.all()
    assert not terms.is_related[0, 1:].any()
    assert terms.steps[0, 1:].min() > terms.steps[1:, 1:].max()


@pytest.mark.parametrize(
    ("values", "phenotype"),
    [
        (["20-29", "30-39"], "age"),
        (["a", "b", "T cell"], "cell_type"),
        (["T cell"] * 2, "drug"),
        ([], "x"),
    ],
)
def test_labels_that_are_mostly_no_terms_have_no_distances(values, phenotype):
    assert measure_terms(values, phenotype) is None


def test_ids_are_recognised_in_their_usual_forms():
    assert is_installed()
    assert [term_id(one) for one in ("CL:0000236", "cl_0000236", "UBERON 0002048", "CL:x", "B cell")] == [
        "CL:0000236", "CL:0000236", "UBERON:0002048", None, None,
    ]  # fmt: skip
    assert term_name("hsapdv:0000095") == "80 year-old and over stage"
    assert term_name("CL:9999999") is None
    assert find_term("Natural_Killer cell", "cell_type") == "CL:0000623"
    assert find_term("lung", "cell_type") is None


def test_a_chain_of_replacements_ends_at_a_term_in_use(parser):
    ids = [
        one
        for one in parser.get_term_label_to_id_map("CL").values()
        if parser.is_term_deprecated(one)
    ]
    found = find_deprecated([*ids, "T cell"], "cell_type")
    assert len(found) == len(ids) > 50
    own = [term_id(text[-11:-1]) for one in found for text in one.replacements if "(CL:" in text]
    assert not any(parser.is_term_deprecated(one) for one in own)
