"""A confusion matrix in the terminal."""

import io

from rich.console import Console

from tfx_cli.confusion_text import confusion_text


def drawn(matrix, values, *, colour=False):
    console = Console(
        file=io.StringIO(), width=100, force_terminal=colour,
        color_system="truecolor" if colour else None,
    )  # fmt: skip
    parts = list(confusion_text("tissue", {"confusion": matrix, "values": values}))
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_rows_are_per_cent_of_the_true_values_cells():
    text = drawn([[3, 1, 0], [0, 8, 0], [0, 0, 0]], ["lung", "blood", "unseen"])
    title, head, _, *rows = [line.split() for line in text.splitlines()]
    assert " ".join(title) == "tissue: answers (columns) in per cent of the true value's cells"
    assert head == ["true", "value", "cells", "a", "b"]
    assert rows == [["a", "lung", "4", "75", "25"], ["b", "blood", "8", ".", "100"]]


def test_a_value_that_is_answered_and_never_true_has_an_empty_row():
    rows = drawn([[3, 1], [0, 0]], ["lung", "blood"]).splitlines()
    assert rows[-1].split() == ["b", "blood", "0"]


def test_colour_grows_with_the_share_and_only_in_a_terminal():
    matrix, values = [[1, 9], [0, 2]], ["a", "b"]
    assert "\x1b" not in drawn(matrix, values)
    text = drawn(matrix, values, colour=True)
    assert "48;2;254;232;56" in text  # 100 %: the light end of cividis
    assert "48;2;25;52;86" in text  # 10 %


def test_many_values_and_perfect_answers_are_not_drawn():
    nine = [[1] * 9 for _ in range(9)]
    assert drawn(nine, [str(i) for i in range(9)]) == ""
    assert drawn([[5, 0], [0, 5]], ["a", "b"]) == ""
    assert drawn([[0, 0], [0, 0]], ["a", "b"]) == ""


def test_long_names_are_cut():
    name = "CD4-positive, alpha-beta memory T cell"
    assert f"a {name[:23]}…" in drawn([[1, 1], [0, 1]], [name, "b"])
