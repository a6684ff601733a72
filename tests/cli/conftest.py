import contextlib
import io
import json
import shutil

import pytest

from tests.figures import blank_figures
from tfx_cli.app import run

#: The smallest preset that trains and generates: 600 simulated cells, 32 genes and those of sex.
TINY_TOML = """\
[data]
files = "builtin:atlas?cells=600&seed=0"
genes = 32
include_genes = ["XIST", "RPS4Y1"]
[encoding]
bins = 6
edges = "gene_quantile"
threshold = 0.0
[masking]
genes = "uniform"
[model]
layers = 1
hidden_size = 32
heads = 4
log_linear = true
log_linear_rank = 8
[train]
max_steps = 30
batch_size = 32
eval_steps = 10
eval_cells = 40
save_steps = 10
log_steps = 5
device = "cpu"
precision = "fp32"
[generate]
steps = 4
"""


class Result:
    def __init__(self, code, stdout, stderr):
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def json(self):
        return json.loads(self.stdout)


@pytest.fixture(scope="package", autouse=True)
def _save_figure():
    """Leave figures empty, except where a test asks for `drawn_figures`."""
    with blank_figures() as save:
        yield save


@pytest.fixture
def drawn_figures(_save_figure, monkeypatch):
    """Draw the figures of this test."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", _save_figure)


@pytest.fixture
def tfx(capsys, monkeypatch, tmp_path):
    """Run a command line in this process, in an empty folder, on a terminal of known width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("TFX_TRACEBACK", raising=False)
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return invoke


def run_in(folder, *arguments):
    """Run a command line in a folder, for fixtures that live longer than `tfx`; return its result."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("COLUMNS", "100")
        code = run([str(argument) for argument in arguments])
    return Result(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory):
    """Train the tiny preset once, by the command line: its folder (runs/ and stores/) and output."""
    folder = tmp_path_factory.mktemp("tiny-training")
    (folder / "tiny.toml").write_text(TINY_TOML, encoding="utf-8")
    return folder, run_in(folder, "train", "tiny.toml", "--json")


@pytest.fixture
def tiny_store_folder(tiny_training):
    """Return the store that the tiny run was trained on; for reading only."""
    (store,) = (tiny_training[0] / "stores").iterdir()
    return store


@pytest.fixture
def tiny_preset_file(tiny_store_folder, tmp_path):
    """Return the tiny preset, without a log-linear part to fit and with the store that is there already."""
    text = TINY_TOML.replace("log_linear = true", "log_linear = false")
    path = tmp_path / "tiny.toml"
    path.write_text(text.replace("genes = 32", f"genes = 32\nstore = '{tiny_store_folder}'"))
    return path


@pytest.fixture
def tiny_run(tiny_training, tmp_path):
    """Return a copy of the finished run, runs/tiny in the folder of the test, to do anything with."""
    shutil.copytree(tiny_training[0] / "runs" / "tiny", tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"
