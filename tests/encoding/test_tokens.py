"""Token spaces: ids that never collide, any header, and the length rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding.tokens import CLS, END, MASK, NONE, START, TokenSpace
from core.errors import ConfigurationError

FIVE = {
    "sex": ["female", "male"],
    "tissue": ["lung", "blood", "liver"],
    "cell_type": ["T cell", "B cell"],
    "age": ["third decade", "fourth decade"],
    "disease": ["normal", "COVID-19"],
}
SUBSETS = st.lists(st.sampled_from(sorted(FIVE)), unique=True).map(
    lambda names: {name: FIVE[name] for name in FIVE if name in names}
)


@given(SUBSETS, st.integers(1, 50), st.integers(1, 256))
def test_no_two_tokens_have_the_same_id_or_value(phenotypes, n_genes, n_bins):
    space = TokenSpace(phenotypes, n_genes, n_bins, layout="ranked")
    identities = [CLS, START, END]
    identities += [space.first_slot + slot for slot in range(space.n_phenotypes)]
    identities += [space.first_gene + gene for gene in range(n_genes)]
    assert sorted(identities) == list(range(space.n_token_ids))
    values = [NONE, MASK, *(space.first_bin + number for number in range(n_bins))]
    for slot, labels in enumerate(phenotypes.values()):
        values += [int(space.not_specified[slot]) + 1 + code for code in range(-1, len(labels))]
    assert sorted(values) == list(range(space.n_values))


@given(SUBSETS)
def test_the_header_holds_the_phenotypes_in_use_and_no_other(phenotypes):
    space = TokenSpace(phenotypes, 10, 4, layout="ranked")
    assert space.names == tuple(phenotypes)
    assert space.header_length == len(phenotypes) + 2
    assert len(space.not_specified) == len(phenotypes)


@given(SUBSETS, st.integers(1, 3000))
def test_a_ranked_sequence_needs_genes_plus_3_plus_phenotypes(phenotypes, n_genes):
    space = TokenSpace(phenotypes, n_genes, 4, layout="ranked")
    needed = n_genes + 3 + len(phenotypes)
    assert space.resolve_max_length(None) == needed
    assert space.resolve_max_length(needed) == needed
    with pytest.raises(ConfigurationError, match=rf"= {needed - 1} is too short: .*need {needed};"):
        space.resolve_max_length(needed - 1)


def test_the_message_gives_the_number_of_genes_that_fit():
    space = TokenSpace(FIVE, 2433, 10, layout="ranked")
    with pytest.raises(ConfigurationError, match=r"need 2441; .*lower data\.genes to 2432"):
        space.resolve_max_length(2440)
    TokenSpace(FIVE, 2432, 10, layout="ranked").resolve_max_length(2440)


def test_an_expressed_sequence_may_be_shorter_but_needs_room_for_a_gene():
    space = TokenSpace(FIVE, 2432, 10, layout="expressed")
    assert space.resolve_max_length(None) == 2440
    assert space.resolve_max_length(9) == 9
    with pytest.raises(ConfigurationError, match=r"END take 8; give at least 9"):
        space.resolve_max_length(8)
