import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.presets.toml_lines import LineFinder

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
        (("table", 0, "a"), 21),
        (("table", 1, "a"), 23),
        (("table", 1, "inner", "b"), 25),
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


@settings(deadline=None)
@given(st.text())
def test_text_that_is_not_toml_still_gets_a_line(text):
    assert LineFinder(text).line_of(("a", "b")) >= 1


KEYS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8
)


@settings(deadline=None)
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
