import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.presets.toml_text import (
    LineFinder,
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


@given(SCALARS | st.lists(SCALARS) | st.dictionaries(st.text(alphabet="ab.\n\x7f"), SCALARS))
def test_written_values_read_back_equal(value):
    assert tomllib.loads(f"key = {write_value(value)}")["key"] == value


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


TEXT = '''\
# a preset
name = "a"

[data] # cells
files = [
  "a.h5ad", # one, [two]
  "b]#.h5ad",
]
note = """
genes = 3
\\"""
"""
raw = \'\'\'
[train]
\'\'\'
phenotypes = { sex = "s", "my.col" = "x" } # inline
split.by = 'q'
when = 2024-01-01 12:00:00 # a date

[[table]]
a = 1
[[table]]
a = 2
[table.inner]
b = 3
["x.y".z]
"key =" = 1
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("name",), 2),
        (("data",), 4),
        (("data", "files"), 5),
        (("data", "files", 0), 6),
        (("data", "files", 1), 7),
        (("data", "note"), 9),
        (("data", "raw"), 13),
        (("data", "phenotypes", "sex"), 16),
        (("data", "phenotypes", "my.col"), 16),
        (("data", "split", "by"), 17),
        (("data", "when"), 18),
        (("table",), 20),
        (("table", 1, "inner"), 20),
        (("table", "inner", "b"), 25),
        (("x.y", "z", "key ="), 27),
    ],
)
def test_every_form_of_key_is_found_on_its_line(key, line):
    tomllib.loads(TEXT)
    assert LineFinder(TEXT).line_of(key) == line


def test_an_absent_key_points_at_its_table_and_an_absent_table_at_the_first_line():
    finder = LineFinder(TEXT)
    assert finder.line_of(("data", "genes")) == 4
    assert finder.line_of(("data", "files", 7)) == 5
    assert finder.line_of(("train", "seed")) == 1


def test_a_header_outranks_an_earlier_header_of_its_subtable():
    assert LineFinder("[a.b]\nc = 1\n[a]\nd = 2\n").line_of(("a",)) == 3


def test_comments_after_values_are_read_but_not_those_inside_strings():
    finder = LineFinder(TEXT)
    assert finder.comment_after(("data", "phenotypes")) == "inline"
    assert finder.comment_after(("data", "files", 1)) == ""
    assert finder.comment_after(("name",)) == ""
    assert finder.comment_after(("nothing",)) == ""


@given(st.text())
def test_text_that_is_not_toml_still_gets_a_line(text):
    assert LineFinder(text).line_of(("a", "b")) >= 1


KEYS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8
)


@given(st.lists(KEYS, min_size=1, max_size=6, unique=True), st.text(alphabet="#=[]{}'\\\", ab"))
def test_keys_of_any_spelling_are_found_in_order(keys, value):
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    lines = []
    for key in keys:
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'"{escaped}" = "{quoted}"')
    text = "\n".join(lines)
    assert list(tomllib.loads(text)) == keys
    finder = LineFinder(text)
    assert [finder.line_of((key,)) for key in keys] == list(range(1, len(keys) + 1))
