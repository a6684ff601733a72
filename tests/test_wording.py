"""Text of strangers, on terminals, in Markdown and in tables; and every sentence of our own."""

import csv
import io
import re
import tomllib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.files import csv_bytes
from core.presets.toml_text import write_value
from core.wording import as_markdown, visible, without_controls
from tests.sentences import FILE, collect

#: Every character that a terminal may obey, and some others.
ANY_TEXT = st.text(
    st.sampled_from("\x1b\x07\x9b\x9d\u202e\u2066\x7f\x00\r\n\t\u2028\ufeff\U000e0041aé<|`=[(") | st.characters()
)  # fmt: skip


def commands_in(text):
    """Return the characters that a terminal obeys or hides."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [one for one in text if unicodedata.category(one) in kinds and one != "\n"]


@given(text=ANY_TEXT)
def test_what_is_visible_holds_no_command(text):
    allowed = {"\u06dd", "\u070f", "\u0890", "\u0891", "\u08e2", "\U000110bd", "\U000110cd"}
    allowed |= {chr(code) for code in range(0x600, 0x606)}  # signs that are drawn, though "Cf"
    allowed |= {one for one in text if 0x13430 <= ord(one) <= 0x1D17A}  # of hieroglyphs and notes
    assert not set(commands_in(visible(text))) - allowed
    assert "\n" not in visible(text)
    assert visible(text, lines=True).count("\n") == text.count("\n")
    assert not set(commands_in(visible(text, lines=True))) - allowed - {"\t"}
    plain = "".join(one for one in text if one.isprintable() and one != "\xad")
    assert visible(plain) == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("a\x9b31mb\u202ec", "a\\u009b31mb\\u202ec"),
        ("two\r\nlines\t", "two\\r\\nlines\\t"),
        ("\ud800", "\\ud800"),
        ("γδ T cell, naïve", "γδ T cell, naïve"),
    ],
)
def test_control_characters_are_shown_as_such(text, shown):
    assert visible(text) == shown


def test_a_long_text_loses_its_middle():
    shown = visible("a" * 10**6 + "; do this", most=300)
    assert len(shown) < 400
    assert shown.startswith("aaa")
    assert shown.endswith("aaa; do this")
    assert "999,709 characters left out" in shown
    two = visible("short\n" + "b" * 5_000, lines=True, most=100)
    assert two.startswith("short\nbbb")
    assert len(two) < 200


def test_nothing_moves_where_control_characters_are_left_out():
    assert without_controls("a\x1bb\xadc", {"\x1b": 0, "\xad": 1}.__getitem__) == "ab c"


@given(text=ANY_TEXT.filter(lambda text: not any("\ud800" <= one <= "\udfff" for one in text)))
def test_toml_is_the_same_value_without_commands(text):
    written = write_value(text)
    assert tomllib.loads(f"a = {written}")["a"] == text
    assert "\x1b" not in written
    assert "\u202e" not in written


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "[a](javascript:b)", "![a](http://b)", "a|b", "`a`", "a\n# b"]
)  # fmt: skip
def test_markdown_shows_a_name_as_it_is(text):
    shown = as_markdown(text)
    assert "\n" not in shown
    for sign in "<[|`":
        assert sign not in shown.replace(f"\\{sign}", "")


def test_no_cell_of_a_table_becomes_a_formula():
    rows = [["=1+1", "+cmd", "-x", "@a", "\tb"], ["-1.5", "CD4+", "-", None, 2.5]]
    read = list(csv.reader(io.StringIO(csv_bytes(rows).decode())))
    assert read == [["'=1+1", "'+cmd", "'-x", "'@a", "'\tb"], ["-1.5", "CD4+", "-", "", "2.5"]]


# -- every sentence that tfx prints
#: "How we write": words that hide the subject of a sentence, and old names of things.
UNWANTED = re.compile(
    r"\b(told|tells?|asked|stands|lies|goes on|comes out|has its say|is given its|as many as come|so many|what there is|"
    r"nobody|skeleton|lanes|depth|the originals|may flatter)\b",
    re.IGNORECASE,
)
#: Old names, which tfx names to the user who still writes them.
OF_OLD_NAMES = "core/renamed.py"


def test_the_file_of_sentences_is_what_tfx_prints_and_how_we_write():
    text = collect()
    assert FILE.read_text(encoding="utf-8") == text, "run '.venv/bin/python -m tests.sentences'"
    for block in text.split("\n\n"):
        if not block.startswith(OF_OLD_NAMES):
            assert not UNWANTED.findall(block), block.splitlines()[0]
