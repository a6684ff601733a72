import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.presets.toml_text import (
    dotted,
    read_key,
    read_value,
    show_value,
    write_key,
    write_value,
)

SCALARS = (
    st.text(alphabet=st.characters(codec="utf-8"))
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
)


@settings(deadline=None)
@given(SCALARS | st.lists(SCALARS) | st.dictionaries(st.text(alphabet="ab.\n\x7f"), SCALARS))
def test_written_values_read_back_equal(value):
    assert tomllib.loads(f"key = {write_value(value)}")["key"] == value


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab. \"'\n"), min_size=1))
def test_written_keys_read_back_equal(parts):
    assert read_key(".".join(write_key(part) for part in parts)) == tuple(parts)


def test_values_that_toml_lacks_are_refused():
    with pytest.raises(TypeError, match="NoneType"):
        write_value(None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("1e-3", 0.001), ("true", True), ("[1, 2]", [1, 2]), ("cpu", "cpu"), ("a#b", "a#b")],
)
def test_text_is_read_as_toml_where_it_is_toml_else_as_a_string(text, value):
    assert read_value(text) == value


def test_a_value_cannot_smuggle_in_other_keys():
    assert read_value("1\nother = 2") == "1\nother = 2"
    assert read_key("[data]\ngenes") is None
    assert read_key("a b") is None


def test_key_paths_are_shown_with_list_items_in_brackets():
    assert dotted(("data", "files", 2)) == "data.files[2]"
    assert dotted(("data", "my col")) == 'data."my col"'


def test_long_values_are_cut_in_messages():
    assert len(show_value("x" * 1000)) <= 70
    assert show_value([True]) == "[true]"
    assert show_value(0x1 << 70000) == "a int"
