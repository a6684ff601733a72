"""A model folder made by an enemy, whose checksums are right: one sentence, and nothing is run."""

import hashlib
import json
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from core.errors import DataError
from core.model.folder import CellModel

from .examples import make_cell_model

#: Set by code that a pickle would run.
RUN_BY_A_PICKLE = "TFX_TEST_A_PICKLE_WAS_RUN"


class Payload:
    def __reduce__(self):
        return os.putenv, (RUN_BY_A_PICKLE, "1")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "model"
    make_cell_model(log_linear=True).save(path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def folder(template, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    for name, content in template.items():
        (path / name).write_bytes(content)
    return path


def sign(folder):
    """Make the checksums right again, as who alters a folder on purpose would."""
    record = json.loads((folder / "tfx.json").read_bytes())
    for name in record["sha256"]:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            record["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "tfx.json").write_text(json.dumps(record))


def json_of(name, **changes):
    """Change keys of a JSON file; a dotted key reaches inside, None takes it away."""

    def change(folder):
        record = json.loads((folder / name).read_bytes())
        for key, value in changes.items():
            *inside, last = key.split("__")
            part = record
            for step in inside:
                part = part[step]
            if value is None:
                del part[last]
            else:
                part[last] = value
        (folder / name).write_text(json.dumps(record))

    return change


def text_of(name, text):
    return lambda folder: (folder / name).write_text(text)


def bytes_of(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def arrays_of(name, change):
    def rewrite(folder):
        arrays = load_file(folder / name)
        change(arrays)
        save_file(
            {key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / name
        )

    return rewrite


def setting(key, make):
    def change(arrays):
        arrays[key] = make(arrays[key])

    return change


def dropping(key):
    return lambda arrays: arrays.pop(key)


def header(entries, *, length=None):
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


HUGE = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}
WEIGHT = "encoder_part.gene_output.weight"
ENCODING, REFERENCE, MODEL = "encoding.safetensors", "reference.safetensors", "model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000

#: name: (what the enemy does, words of the sentence)
CASES = {
    # weights
    "an oversized header": (bytes_of(MODEL, header({}, length=2**63)), "not a safetensors file"),
    "a header longer than the file": (bytes_of(MODEL, header({}, length=10**6)), "not a safetens"),
    "a header of nothing": (bytes_of(MODEL, struct.pack("<Q", 0)), "not a safetensors file"),
    "a tensor of exabytes": (bytes_of(MODEL, header({WEIGHT: HUGE})), "too few tensors"),
    "exabytes under every name": (
        lambda folder: (folder / MODEL).write_bytes(
            header(dict.fromkeys(load_file(folder / MODEL), HUGE))
        ), "is 1,000,000,000 x 1,000,000,000, config.json makes it"),
    "a header that is a list": (bytes_of(MODEL, header([1, 2])), "not a safetensors file"),
    "a header without shapes": (bytes_of(MODEL, header({WEIGHT: {}})), "not a safetensors file"),
    "an infinite side": (
        bytes_of(MODEL, header({WEIGHT: {"shape": [float("1e999")]}})), "not a safetensors file"),
    "a header too deep": (
        bytes_of(MODEL, struct.pack("<Q", len(DEEP)) + DEEP.encode()), "not a safetensors file"),
    "a pickle in disguise": (bytes_of(MODEL, pickle.dumps(Payload())), "not a safetensors file"),
    "a pickle for the edges": (bytes_of(ENCODING, pickle.dumps(Payload())), "cannot be read"),
    "an empty file of weights": (bytes_of(MODEL, b""), "not a safetensors file"),
    "a missing tensor": (arrays_of(MODEL, dropping(WEIGHT)), f"'{WEIGHT}' is not there"),
    "a tensor too many": (
        arrays_of(MODEL, lambda arrays: arrays.update({"../../x": np.zeros(3, np.float32)})),
        "'../../x' is 3, config.json makes it not there"),
    "a weight of another shape": (
        arrays_of(MODEL, setting(WEIGHT, lambda a: a.T)), f"'{WEIGHT}' is 12 x 4, config.json"),
    "weights that are not numbers": (
        arrays_of(MODEL, setting(WEIGHT, lambda a: a * np.nan)), "hold NaN or infinity"),
    # config.json
    "a configuration that is a list": (text_of("config.json", "[]"), "expected a JSON object"),
    "a configuration too deep": (text_of("config.json", DEEP), "nested too deeply"),
    "a configuration of nothing": (text_of("config.json", "{}"), "field required"),
    "no JSON": (text_of("config.json", "{"), "cannot be read"),
    "bytes that are no text": (bytes_of("config.json", b"\xff\xfe\x00"), "cannot be read"),
    "an integer of a million digits": (
        text_of("config.json", '{"layers": 1' + "0" * 10**6 + "}"), "cannot be read"),
    "another kind of model": (json_of("config.json", model_type="bert"), "model_type: "),
    "ten thousand layers": (json_of("config.json", layers=10_000), "too few tensors for the 10,000"),
    "a billion layers": (json_of("config.json", layers=10**9), "layers: "),
    "a model of terabytes": (
        json_of("config.json", hidden_size=999_999, heads=3), "config.json makes it"),
    "a model of half the memory": (json_of("config.json", n_genes=9_999_999), "config.json makes"),
    "a width of no heads": (json_of("config.json", heads=5), "be a multiple of heads"),
    "no heads": (json_of("config.json", heads=0), "heads: "),
    "a negative size": (json_of("config.json", hidden_size=-12), "hidden_size: "),
    "a number as text": (json_of("config.json", hidden_size="12"), "hidden_size: "),
    "a number that is infinite": (
        json_of("config.json", dropout=float("inf")), "dropout: "),
    "an unknown activation": (json_of("config.json", activation="relu"), "activation: "),
    "a part that excludes another": (json_of("config.json", head="joint"), "describes no model"),
    "phenotypes without values": (
        json_of("config.json", phenotype_values=[[], []]), "a phenotype has no values"),
    "a phenotype without values": (
        json_of("config.json", phenotype_values=[["a"]]), "differ in number"),
    "a phenotype twice": (json_of("config.json", phenotype_names=["sex", "sex"]), "occurs twice"),
    "phenotypes that are no text": (json_of("config.json", phenotype_names=[1, 2]), "should be a"),
    "a value twice": (
        json_of("config.json", phenotype_values=[["f", "f"], ["a", "b", "c"]]), "occurs twice"),
    "values more than weights": (
        json_of("config.json", phenotype_values=[["f", "m"], list("abcdefg")]), "config.json makes"),
    # genes.json
    "genes that are a list": (text_of("genes.json", "[]"), "expected a JSON object"),
    "genes that are text": (json_of("genes.json", ids="ABCDEFG"), "ids: "),
    "genes that are numbers": (json_of("genes.json", ids=[1, 2]), "ids.0: "),
    "a gene twice": (
        json_of("genes.json", ids=["A"] * 7), "a gene occurs twice"),
    "no genes": (json_of("genes.json", ids=[], symbols=[]), "ids: "),
    "fewer genes than the network": (
        json_of("genes.json", ids=["A"], symbols=["A"]), "genes.json has 1 genes, config.json 7"),
    "fewer symbols than genes": (json_of("genes.json", symbols=["A"]), "7 ids but 1 symbols"),
    # encoding
    "another encoding": (json_of("encoding.json", kind="binary"), "encoding.json says 'binary'"),
    "an encoding that is a list": (text_of("encoding.json", "[]"), "expected a JSON object"),
    "no edges": (arrays_of(ENCODING, dropping("edges")), "'edges' is not there"),
    "edges of another number": (
        arrays_of(ENCODING, setting("edges", lambda a: a[:-1])), "'edges' is 2, and must be 3"),
    "edges that decrease": (arrays_of(ENCODING, setting("edges", lambda a: a[::-1])), "decrease"),
    "edges that are not numbers": (
        arrays_of(ENCODING, setting("edges", lambda a: a * np.nan)), "NaN or infinity"),
    "edges that are whole numbers": (
        arrays_of(ENCODING, setting("edges", lambda a: a.astype(np.int32))), "decimal numbers"),
    "quantiles of fewer genes": (
        arrays_of(ENCODING, setting("quantiles", lambda a: a[:3])), "'quantiles' is 3 x 4"),
    "quantiles without any": (
        arrays_of(ENCODING, setting("quantiles", lambda a: a[..., :0])), "'quantiles' is 7 x 4 x 0"),
    # reference
    "a reference of fewer genes": (
        arrays_of(REFERENCE, setting("means", lambda a: a[:, :3])), "'means' is 5 x 3"),
    "no counts": (arrays_of(REFERENCE, dropping("counts")), "'counts' is not there"),
    "a code that there is not": (
        arrays_of(REFERENCE, setting("combinations", lambda a: a + 1000)), "a value that the model"),
    "a code below none": (
        arrays_of(REFERENCE, setting("combinations", lambda a: a - 1000)), "a value that the model"),
    "fewer than no cells": (arrays_of(REFERENCE, setting("counts", lambda a: -a)), "below zero"),
    "an array too many": (
        arrays_of(REFERENCE, lambda arrays: arrays.update(x=np.zeros(1, np.float32))),
        "cannot be read"),
}  # fmt: skip
#: What tfx.json, which holds the checksums and has none itself, may hold.
RECORD_CASES = {
    "a record that is a list": (text_of("tfx.json", "[]"), "expected a JSON object"),
    "a record too deep": (text_of("tfx.json", DEEP), "nested too deeply"),
    "a provenance that is a list": (json_of("tfx.json", provenance=[]), "provenance: "),
    "a step that is text": (json_of("tfx.json", provenance__step="seven"), "step: "),
    "sources that are no list": (json_of("tfx.json", provenance__sources=3), "sources: "),
    "checksums that are a list": (json_of("tfx.json", sha256=[]), "sha256: "),
    "a mask rate beyond one": (json_of("tfx.json", masking__genes=7), "masking.genes"),
    "a temperature of zero": (
        json_of("tfx.json", calibration={"sex": {"temperature": 0}}),
        "sex.temperature: ",
    ),
    "a threshold that is no number": (
        json_of("tfx.json", calibration={"sex": {"probabilities": ["x"], "kept_accuracies": [1]}}),
        "probabilities.0: ",
    ),
    "thresholds that fall": (
        json_of(
            "tfx.json",
            calibration={"sex": {"probabilities": [0.9, 0.1], "kept_accuracies": [1, 1]}},
        ),
        "the probabilities decrease",
    ),
    "a calibration of no phenotype": (
        json_of("tfx.json", calibration={"planet": {}}),
        "calibrates 'planet'",
    ),
    "no steps of generation": (json_of("tfx.json", generate__steps=0), "generate.steps: "),
}


@pytest.mark.parametrize("case", [*CASES, *RECORD_CASES])
def test_an_enemys_folder_is_an_error_in_one_sentence(folder, case, monkeypatch):
    monkeypatch.delenv(RUN_BY_A_PICKLE, raising=False)
    change, words = (CASES | RECORD_CASES)[case]
    change(folder)
    if case in CASES:
        sign(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as refused:
            CellModel.load(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(refused.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 600
    assert peak < 50e6, "what the folder promises is not built"
    assert RUN_BY_A_PICKLE not in os.environ
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_template_itself_is_read_and_foreign_files_beside_it_are_not(folder):
    """A pickle without a purpose is not opened, nor code that config.json names."""
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    json_of("config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})(folder)
    sign(folder)
    CellModel.load(folder)
    assert RUN_BY_A_PICKLE not in os.environ


@pytest.mark.parametrize("name", ["model.safetensors", "genes.json"])
def test_a_folder_or_a_dangling_link_in_the_place_of_a_file_is_missing(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match=f"{name} is missing"):
        CellModel.load(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(DataError, match=f"{name} is missing"):
        CellModel.load(folder)


def test_offsets_beyond_the_file_are_an_error(folder):
    """The header is right, the numbers are cut off."""
    path = folder / MODEL
    path.write_bytes(path.read_bytes()[:-64])
    sign(folder)
    with pytest.raises(DataError, match="the model folder cannot be read"):
        CellModel.load(folder)


def test_the_shapes_promised_are_those_of_a_network_that_is_built():
    model = make_cell_model(log_linear=True)
    with torch.device("meta"):
        promised = type(model.network)(model.config).state_dict()
    built = model.network.state_dict()
    assert {name: tensor.shape for name, tensor in promised.items()} == {
        name: tensor.shape for name, tensor in built.items()
    }
