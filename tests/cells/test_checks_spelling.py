import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.checks.phenotype_rows import find_variants, is_one_slip


def pairs(*labels, common=1_000, rare=10):
    """Variants among labels of which the first has many cells."""
    counts = {label: common if index == 0 else rare for index, label in enumerate(labels)}
    return [(variant.rare, variant.common, variant.kind) for variant in find_variants(counts)]


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ("T cell", "t cell"),
        ("T cell", "T_cell"),
        ("T cell", "T-cell"),
        ("T cell", "T  cell"),
        ("T cell", "T cells"),
        ("CD4-positive T cell", "CD4 positive t-cells"),
        ("30-39", "30_39"),
    ],
)
@pytest.mark.parametrize("n_rare", [10, 1_000])
def test_labels_that_differ_in_form_alone_are_one_however_frequent(common, rare, n_rare):
    assert len(pairs(common, rare, rare=n_rare)) == 1
    assert pairs(common, rare) == [(rare, common, "form")]


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ("monocyte", "monocye"),
        ("monocyte", "monoccyte"),
        ("monocyte", "mnoocyte"),
        ("monocyte", "monocite"),
        ("monocyte", "monocites"),
        ("classical monocyte", "classcal monocyte"),
        ("female", "femal"),
    ],
)
def test_a_rare_label_one_slip_from_a_frequent_one_is_found(common, rare):
    assert pairs(common, rare) == [(rare, common, "slip")]
    assert pairs(common, rare, rare=1_000) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("CD4 T cell", "CD8 T cell"),
        ("T cell", "B cell"),
        ("alpha cell", "beta cell"),
        ("stage 1", "stage 2"),
        ("age 31", "age 32"),
        ("stage I", "stage II"),
        ("30-39", "30-35"),
        ("CD4+ T cell", "CD4- T cell"),
        ("male", "female"),
        ("groupA", "groupB"),
        ("microglial cell", "macroglial cell"),
        ("afferent", "efferent"),
        ("inferior", "interior"),
        ("Th1 cell", "Th2 cell"),
        ("mass", "mas"),
        ("normal", "asthma"),
        ("left lung", "right lung"),
    ],
)
def test_names_that_are_alike_on_purpose_are_left_alone(first, second):
    assert pairs(first, second) == []
    assert pairs(second, first) == []


def test_each_label_is_paired_with_the_most_frequent_of_its_spellings():
    counts = {"B cell": 500, "b cell": 20, "B_cell": 3, "monocyte": 900, "monocyt": 2}
    found = {(variant.rare, variant.common) for variant in find_variants(counts)}
    assert found == {("b cell", "B cell"), ("B_cell", "B cell"), ("monocyt", "monocyte")}


@given(st.text("abcdefgh", min_size=6, max_size=10), st.integers(1, 9), st.sampled_from("xyz"))
def test_a_slip_is_symmetric_and_found_wherever_it_happens(word, place, letter):
    place = min(place, len(word) - 1)
    for slipped in (
        word[:place] + word[place + 1 :],
        word[:place] + letter + word[place:],
        word[:place] + letter + word[place + 1 :],
    ):
        assert is_one_slip(word, slipped)
        assert is_one_slip(slipped, word)
    assert not is_one_slip(word, word)


def test_thousands_of_labels_are_compared_in_form_only():
    counts = {f"clone {number}": 1_000 for number in range(3_000)} | {"Clone 7": 1}
    assert [(variant.rare, variant.kind) for variant in find_variants(counts)] == [
        ("Clone 7", "form")
    ]
