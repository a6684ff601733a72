import pytest

from core.errors import ConfigurationError
from tfx_cli.arguments import phenotype_request


def test_options_and_pairs_make_one_request():
    assert phenotype_request(
        sex="female", cell_type=" B cell", phenotype=["treatment = control=1", "sex=female"]
    ) == {"sex": "female", "cell_type": "B cell", "treatment ".strip(): "control=1"}


def test_nothing_asked_for_is_an_empty_request():
    assert phenotype_request() == {}


@pytest.mark.parametrize("pair", ["treatment", "=x", " =x"])
def test_a_pair_without_name_or_value_is_refused(pair):
    with pytest.raises(ConfigurationError, match="must be NAME=VALUE"):
        phenotype_request(phenotype=[pair])


def test_an_empty_value_is_refused():
    with pytest.raises(ConfigurationError, match="--tissue: the value is empty"):
        phenotype_request(tissue=" ")


def test_two_values_of_one_phenotype_are_refused():
    with pytest.raises(ConfigurationError, match="--phenotype sex=male: sex is already 'female'"):
        phenotype_request(sex="female", phenotype=["sex=male"])
