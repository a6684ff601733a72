"""What a run keeps of results: foreign and damaged records are left out, numbers that are none are NaN."""

import json
import math

import pytest

from core.interactions.kept import FOLDER, keep_result, read_results

HEAT = {"sources": ["A", "B"], "targets": ["A", "B"], "weights": [[None, 0.5], [-0.5, None]]}
NETWORK = {
    "context": "all cells", "cells": 30, "donors": 3, "measure": "m", "is_baseline": False, "found": 1,
    "edges": [{"source": "A", "target": "B", "weight": 0.5, "q": 0.01}], "heat_map": HEAT,
}  # fmt: skip
RESULT = {"command": "interactions", "t": 1.0, "output": [], "networks": [NETWORK]}


def write(folder, text):
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "one.json").write_text(text)


def test_a_result_takes_the_place_of_an_earlier_one_of_the_same_files(tmp_path):
    paths = [tmp_path / "edges.csv", tmp_path / "edges.svg"]
    for n_found in (1, 2):
        networks = [{**NETWORK, "found": n_found}]
        kept = keep_result(tmp_path, "interactions", paths, {"networks": networks})
    other = keep_result(tmp_path, "interactions", paths[1:], {"networks": [NETWORK]})
    assert kept != other
    newest, older = read_results(tmp_path)
    assert (newest.networks[0].found, older.networks[0].found) == (1, 2)
    assert older.output == tuple(map(str, paths))
    assert math.isnan(older.networks[0].heat_map.weights[0][0])


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        "[]",
        "{}",
        json.dumps(RESULT | {"command": "other"}),
        json.dumps(RESULT | {"networks": [{"context": 3}]}),
        json.dumps(RESULT | {"networks": [NETWORK | {"heat_map": HEAT | {"weights": [[1.0]]}}]}),
    ],
)
def test_a_record_that_is_none_is_left_out(tmp_path, text):
    write(tmp_path, text)
    assert read_results(tmp_path) == []


def test_a_number_that_is_not_finite_is_unknown(tmp_path):
    write(
        tmp_path,
        json.dumps(RESULT).replace('"weight": 0.5, "q": 0.01', '"weight": 1e999, "q": "x"'),
    )
    (edge,) = read_results(tmp_path)[0].networks[0].edges
    assert math.isnan(edge.weight)
    assert math.isnan(edge.q)
