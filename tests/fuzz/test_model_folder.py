"""Whatever is done to a model folder, checksums made right or not: a model, or one DataError."""

import contextlib
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.model.folder import CellModel
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.model.examples import make_cell_model

JSON_FILES = ["config.json", "encoding.json", "genes.json", "tfx.json"]
WEIGHT_FILES = ["model.safetensors", "encoding.safetensors", "reference.safetensors"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model"
    make_cell_model(log_linear=True).save(path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzzed") / "model"
    path.mkdir()
    return path


def load(place, files, *, sign):
    for name, content in files.items():
        (place / name).write_bytes(content)
    if sign:
        try:
            record = json.loads(files["tfx.json"])
            for name in record["sha256"]:
                record["sha256"][name] = hashlib.sha256(files[name]).hexdigest()
            (place / "tfx.json").write_text(json.dumps(record))
        except (KeyError, TypeError, ValueError):
            pass
    with contextlib.suppress(DataError):
        model = CellModel.load(place)
        assert len(model.panel) == model.config.n_genes


@given(data=st.data(), sign=st.booleans())
def test_damaged_bytes(template, place, data, sign):
    name = data.draw(st.sampled_from([*JSON_FILES, *WEIGHT_FILES]))
    load(place, template | {name: data.draw(damaged_bytes(template[name]))}, sign=sign)


@given(data=st.data())
def test_damaged_json(template, place, data):
    name = data.draw(st.sampled_from(JSON_FILES))
    load(place, template | {name: data.draw(damaged_json(template[name]))}, sign=True)


@given(data=st.data())
def test_a_damaged_header_of_weights(template, place, data):
    """The length is right, and the header says something else."""
    name = data.draw(st.sampled_from(WEIGHT_FILES))
    content = template[name]
    length = int.from_bytes(content[:8], "little")
    header = data.draw(damaged_json(content[8 : 8 + length]))
    changed = len(header).to_bytes(8, "little") + header + content[8 + length :]
    load(place, template | {name: changed}, sign=True)
