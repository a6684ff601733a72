"""`tfx generate --serve`: JSON lines in, JSON lines out."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.files import plain_json
from core.generation.comparison import compare_pairs
from core.model.folder import CellModel
from tests.fuzz.damage import damaged_bytes, damaged_json
from tfx_cli.generate_service import _lines_of, _Requests, _Service, _Waiting, serve


def ask(folder, *requests):
    """Serve a model to requests, which are objects or raw lines; return the events."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in requests]
    events = []
    serve(folder, lines, events.append)
    return events


def of_kind(events, kind):
    return [event for event in events if event["event"] == kind]


@pytest.fixture(scope="module")
def service_of(tiny_training):
    """Return the service of the tiny model, to answer what its requests say."""
    folder = tiny_training[0] / "runs" / "tiny" / "model"
    return _Service(folder, CellModel.load(folder), lambda event: None)


@pytest.fixture
def model(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_run / "model"


def test_a_request_is_answered_by_progress_and_cells_with_their_profile(model, tmp_path):
    request = {"sex": "Female", "tissue": "lung"}
    events = ask(model, {"id": 1, "request": request, "cells": 30, "output": "new/lung.h5ad"})
    loading, ready, *rest = events
    assert loading == {"event": "loading", "model": str(model)}
    assert ready["event"] == "ready"
    assert ready["phenotypes"]["sex"] == ["female", "male"]
    assert sum(ready["training_cells"]["sex"]) == sum(ready["combinations"]["counts"])
    assert ready["defaults"]["steps"] == 4
    assert (ready["simulated"], ready["real_cells"], ready["notes"]) == (True, True, [])
    progress = of_kind(rest, "progress")
    assert [event["done"] for event in progress] == sorted(event["done"] for event in progress)
    assert progress[-1] == {"event": "progress", "id": 1, "done": 30, "total": 30}
    cells = rest[-1]
    assert (cells["event"], cells["id"], cells["cells"]) == ("cells", 1, 30)
    assert cells["output"] == "new/lung.h5ad"
    written = anndata.read_h5ad(tmp_path / "new" / "lung.h5ad")
    assert (written.obs["sex"] == "female").all()

    profile = cells["profile"]
    names = profile["genes"]["names"]
    xist = names.index("XIST")
    mean = np.asarray(written.X.mean(axis=0)).ravel()
    at = list(written.var["gene_symbol"]).index("XIST")
    assert profile["genes"]["generated_mean"][xist] == pytest.approx(mean[at], abs=1e-3)
    assert profile["genes"]["real_mean"][xist] > 1
    assert len(profile["detected_genes"]["generated"]) == 30
    assert len(profile["embedding"]["real"]) == profile["real_cells"] > 0
    assert profile["training_cells"] > 0
    assert profile["compared_with"] in ("held-out", "training and held-out")
    assert profile["fidelity"]["n_generated"] == 30


def test_a_changed_token_is_compared_with_the_same_cells_before(service_of, tmp_path):
    def answer(**request):
        record = {"id": 1, "cells": 20, "request": {"sex": "female"}, **request}
        return service_of.answer(_Waiting(1, record))["profile"]

    female = answer()
    paths = [tmp_path / f"{letter}.h5ad" for letter in "abc"]
    answer(output=str(paths[0]))
    male = answer(set={"sex": "male"}, output=str(paths[1]))
    again = answer(set={"sex": "male"}, seed=1)  # the cells before are not there yet
    answer(seed=1, output=str(paths[2]))
    assert (female["pairs"], female["values"]) == (None, "log1p of counts per 10,000")
    assert again["pairs"]["before_mean"] != male["pairs"]["before_mean"]
    before, after, other = (anndata.read_h5ad(path) for path in paths)
    assert (after.obs["sex"] == "male").all()
    for name in ("tissue", "cell_type", "library_size"):
        assert (after.obs[name] == before.obs[name]).all()
    model = service_of._model
    assert male["pairs"] == plain_json(compare_pairs(before.X, after.X, other.X, model.panel))
    assert male["pairs"]["before_mean"] == female["genes"]["generated_mean"]


def test_the_command_line_of_a_profile_writes_the_same_cells(tfx, model, tmp_path):
    (cells,) = of_kind(
        ask(model, {"id": 1, "request": {"cell_type": "B cell"}, "cells": 9, "seed": 3, "steps": 2,
                    "guidance": 0.5, "unspecified": "none", "set": {"sex": "male"},
                    "output": "served.h5ad"}),
        "cells",
    )  # fmt: skip
    name, *arguments = shlex.split(cells["profile"]["command"])
    assert name == "tfx"
    assert arguments[-2:] == ["-o", "served.h5ad"]
    result = tfx(*arguments[:-1], "typed.h5ad")
    assert result.code == 0, result.stderr
    served, typed = (anndata.read_h5ad(tmp_path / f"{n}.h5ad") for n in ("served", "typed"))
    np.testing.assert_array_equal(served.X.toarray(), typed.X.toarray())


def test_bin_numbers_have_no_real_cells_beside_them(model):
    asked = {"id": 1, "request": {"sex": "female"}, "cells": 9, "decode": "bins", "steps": 2}
    (cells,) = of_kind(ask(model, asked), "cells")
    profile = cells["profile"]
    assert profile["notes"][-1] == "bin numbers are not compared with real cells"
    assert (profile["genes"]["real_mean"], profile["fidelity"]) == (None, None)
    assert (profile["real_cells"], profile["compared_with"]) == (0, None)


def test_rare_values_are_filled_up_as_by_the_command(tfx, model, tmp_path):
    asked = {"id": 1, "balance": "disease", "output": "rare.h5ad", "steps": 2}
    (cells,) = of_kind(ask(model, asked), "cells")
    written = anndata.read_h5ad(tmp_path / "rare.h5ad")
    assert written.n_obs == cells["cells"]
    command = shlex.split(cells["profile"]["command"])
    assert command[command.index("--balance") + 1] == "disease"
    again = [word.replace("rare.h5ad", "again.h5ad") for word in command[1:]]
    assert tfx("-q", *again).code == 0
    same = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(same.X.toarray(), written.X.toarray())
    assert (same.obs["disease"] == written.obs["disease"]).all()


@pytest.mark.parametrize(
    ("line", "number", "words"),
    [
        (b"{", None, "one JSON object a line"),
        (b"[1]", None, "must be a JSON object"),
        ({"request": {}}, None, "request: id"),
        ({"id": 7, "request": {"sex": "femal"}}, 7, "did you mean 'female'"),
        ({"id": 7, "request": {"treatment": "x"}}, 7, "has no phenotype 'treatment'"),
        ({"id": 7, "cells": 0}, 7, "request: cells: input should be greater"),
        ({"id": 7, "cells": 10**12}, 7, "cannot generate 1,000,000,000,000 cells"),
        ({"id": 7, "stepps": 3}, 7, "request: stepps: extra inputs are not permitted"),
        ({"id": 7, "temperature": "hot"}, 7, "temperature must be a number"),
        ({"id": 7, "temperature": 0}, 7, "temperature must be greater than 0"),
        ({"id": 7, "output": "there.h5ad"}, 7, "--output there.h5ad exists"),
        ({"id": 7, "output": "cells.csv"}, 7, "written as .h5ad"),
    ],
)
def test_an_unfit_request_is_an_error_event_and_the_next_is_answered(
    model, tmp_path, line, number, words
):
    (tmp_path / "there.h5ad").write_bytes(b"precious")
    events = ask(model, line, {"id": 8, "cells": 2})
    (error,) = of_kind(events, "error")
    assert error["id"] == number
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert events[-1]["event"] == "cells"
    assert events[-1]["output"] is None
    assert (tmp_path / "there.h5ad").read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "there.h5ad"}


#: Nested, endless, huge, and not text: each line with the words of its error.
HOSTILE_LINES = [
    (b"[" * 100_000, "not nested deeply"),
    (b'{"id": 1, "request": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "not nested deeply"),
    (b'{"id": ' + b"9" * 5_000 + b"}", "one JSON object a line"),
    (b'{"id": 1e999}', "request: id: must be a whole number, or a text"),
    (b'{"id": [[1]]}', "request: id: must be a whole number, or a text"),
    (b'{"id": true}', "request: id: must be a whole number, or a text"),
    (b'{"id": "' + b"x" * 201 + b'"}', "request: id: must be a whole number, or a text"),
    (b'{"id": 1, "seed": ' + b"9" * 400 + b"}", "request: seed: input should be less"),
    (b'{"id": 2, "cells": ' + b"9" * 400 + b"}", "cannot generate"),
    (b'{"id": 3, "cells": NaN}', "request: cells: input should be a valid integer"),
    (b'{"id": 4, "library_size": 1e999}', "request: library_size: input should be a finite"),
    (b'{"id": 5, "library_size": 1e30}', "must be a number of counts above 0, from 1 to"),
    (b'{"id": 6, "temperature": -1e308}', "temperature must be greater than 0"),
    (b"\xff\xfe\x00", "a request is UTF-8 text"),
    (b'{"id": "\\ud800"}', "a request is UTF-8 text"),
    (b'{"id": 7, "output": "a\\u0000.h5ad"}', "no file name holds a NUL"),
    (b'{"id": 8, "output": "' + b"x" * 5_000 + b'.h5ad"}', "File name too long"),
    (b'{"id": 9, "request": {"sex": "\\u001b]52;c;x\\u0007"}}', "\\x1b]52;c;x"),
    (b'{"id": 10, "request": {"tissue": "' + b"x" * 900_000 + b'"}}', "characters left out"),
    (b'{"id": 11, "cells": 1' + b" " * 10**6 + b"}", "a line has at most 1 MB"),
    (b"NaN", "must be a JSON object"),
]  # fmt: skip


def test_no_line_ends_the_server(model):
    cancellations = [b'{"cancel": [1]}', b'{"cancel": {}}', b'{"cancel": 99}', b"\r"]
    last = {"id": 12, "cells": 2, "steps": 2}
    events = ask(model, *(line for line, _ in HOSTILE_LINES), *cancellations, last)
    errors = of_kind(events, "error")
    for (line, words), error in zip(HOSTILE_LINES, errors, strict=True):
        assert words in error["message"], line[:40]
        assert len(error["message"]) < 3_000
        assert error["message"].isprintable()
        json.dumps(error, allow_nan=False)
    assert events[-1]["event"] == "cells"


@settings(max_examples=15)
@given(data=st.data())
def test_whatever_the_lines_hold_each_gets_one_event(service_of, data):
    valid = b'{"id": 1, "request": {"sex": "female"}, "cells": 1, "steps": 1, "seed": 3}'
    damage = damaged_bytes(valid) | damaged_json(valid) | st.binary(max_size=40)
    lines = data.draw(st.lists(damage.map(lambda line: line.replace(b"\n", b" ")), max_size=4))
    events = [service_of.answer(one) for one in _Requests(lines)]
    n_cancelled = sum(b"cancel" in line for line in lines)
    assert len(events) >= sum(bool(line.strip()) for line in lines) - n_cancelled
    for event in events:
        json.dumps(plain_json(event), allow_nan=False)
        assert "fault of tfx" not in event.get("message", "")


def test_a_long_line_without_an_end_is_read_once_and_forgotten():
    readable, writable = os.pipe()

    def write():
        with os.fdopen(writable, "wb") as stream:
            stream.write(b"x" * 20_000_000 + b'\n{"id": 1}\n\n{"id": 2}')

    threading.Thread(target=write).start()
    first, *others = _lines_of(readable)
    os.close(readable)
    assert len(first) == 10**6 + 1
    assert others == [b'{"id": 1}', b"", b'{"id": 2}']


def test_an_id_means_one_request_and_a_late_cancellation_none(model):
    """The id of an answered request is free; a cancellation that comes after the answer does nothing."""
    answered = threading.Event()

    def lines():
        yield b'{"id": 1, "cells": 2, "steps": 2}'
        yield b'{"id": 1, "cells": 3, "steps": 2}'
        assert answered.wait(60)
        yield b'{"cancel": 1}'
        yield b'{"id": 1, "cells": 4, "steps": 2}'

    events = []

    def listen(event):
        events.append(event)
        if event["event"] == "cells":
            answered.set()

    serve(model, lines(), listen)
    assert [event["cells"] for event in of_kind(events, "cells")] == [2, 4]
    (error,) = of_kind(events, "error")
    assert error["id"] is None
    assert "a request of the id 1 is not answered yet" in error["message"]
    assert not of_kind(events, "cancelled")


def test_old_names_of_settings_are_understood_with_a_note(model):
    old = {"id": 1, "cells": 2, "steps": 2, "depth": "none", "order": "random", "remask": 0.1}
    (cells,) = of_kind(ask(model, old), "cells")
    command = cells["profile"]["command"]
    assert "--genes-per-cell none" in command
    assert "remask" not in command
    renamed, order, remask = cells["profile"]["notes"][:3]
    assert renamed.startswith("depth is now called genes_per_cell")
    assert order.startswith("order is ignored: ")
    assert remask.startswith("remask is ignored: ")


def test_a_request_can_be_taken_back_while_its_cells_are_drawn(model, tmp_path):
    events, may_cancel, is_cancelled = [], threading.Event(), threading.Event()

    def lines():
        yield b'{"id": "a", "cells": 500, "steps": 4, "output": "a.h5ad"}'
        assert may_cancel.wait(60)
        yield b'{"cancel": "a"}'
        yield b'{"id": "b", "cells": 2}'
        is_cancelled.set()

    def listen(event):
        events.append(event)
        if event["event"] == "progress" and event["id"] == "a":
            may_cancel.set()
            assert is_cancelled.wait(60)

    serve(model, lines(), listen)
    assert of_kind(events, "cancelled") == [{"event": "cancelled", "id": "a"}]
    assert [event["id"] for event in of_kind(events, "cells")] == ["b"]
    assert not (tmp_path / "a.h5ad").exists()


def test_a_model_that_cannot_be_loaded_is_told_and_ends_the_process(tmp_path):
    events = []
    with pytest.raises(DataError, match="not a model folder"):
        serve(tmp_path, [], events.append)
    assert [event["event"] for event in events] == ["loading", "error"]
    assert "not a model folder" in events[1]["message"]


@pytest.mark.parametrize("arguments", [("--sex", "male"), ("--json",), ("--plot", "a.png")])
def test_serving_takes_its_requests_from_stdin_alone(tfx, tiny_run, arguments):
    result = tfx("generate", "--serve", *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert "--serve takes its requests from stdin" in result.stderr


def test_the_command_prints_json_alone_and_ends_on_eof(tfx, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "lines").write_text('{"id": 1, "cells": 2}\n{"id": 2, "cells": 2}')
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        served = tfx("generate", "--serve", "--run", tiny_run)
    assert served.code == 0, served.stderr
    kinds = [json.loads(line)["event"] for line in served.stdout.splitlines()]
    assert kinds[:2] == ["loading", "ready"]
    assert kinds.count("cells") == 2


def test_the_process_prints_json_alone_and_ends_on_sigterm(tiny_run, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-m", "tfx_cli", "generate", "--serve", "--run", str(tiny_run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert [json.loads(child.stdout.readline())["event"] for _ in range(2)] == ["loading", "ready"]
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
    assert "Traceback" not in child.communicate()[1]
