"""Every block of commands in README and docs runs, or is listed here with the reason."""

import io
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import transformerics as tfx
from core.cells.atlas.simulation import simulate_cells
from tests.cli.test_eval_doubles import GUIDES, perturbed_cells
from tests.docs.pages import PAGES, ROOT, arguments_of, code_blocks
from tests.figures import blank_figures
from tests.tiny_atlas import TINY_ATLAS
from tfx_cli.app import run

#: The pages' own commands, on fewer cells and genes and for fewer steps: the environment wins over presets.
QUICK = {
    "train.max_steps": 6, "train.log_linear_steps": 2, "train.eval_steps": 3, "train.save_steps": 3,
    "train.device": "cpu", "generate.steps": 2, "data.genes": 64,
}  # fmt: skip
ENVIRONMENT = {f"TFX_{key.replace('.', '__').upper()}": str(value) for key, value in QUICK.items()}
#: What options of a page become, because they win over the environment.
SMALLER = {r"-n \d{3,}": "-n 40"}
#: The run `base` of the pages: enough macrophages for a network, and genes that pages name.
BASE = {"TFX_DATA__FILES": "builtin:atlas?cells=1500&seed=0"} | {
    "TFX_DATA__INCLUDE_GENES": '["IL1B", "CXCL8", "CD163", "RSAD2", "CD14", "LYZ", "C1QA", "C1QB", "MARCO", "APOE"]'
}
#: Files that pages take as the reader's own.
OWN = ("mine", "new", "patients", "study_a", "study_b", "cells_0", "cells_1", "cells_2")

TERMINAL = "a terminal: tests/dashboard"
TRAINS_BASE = "the fixture `trained` made this run"
MINUTES = "minutes, also when it is small"
TUTORIAL = "the tutorial runs it, for other cells"
COOKBOOK = "a page of the cookbook runs it"
INSTALLS = "installs software; .ci/run makes an environment as README says"
#: How lines (Python blocks: their text) begin that no test runs, by page; "" are all lines of a page.
NOT_RUN = {
    "README.md": {
        "python3 -m venv": INSTALLS,
        "tfx dashboard": TERMINAL,
        "tfx train mine.toml": TUTORIAL,
        "tfx interactions": "docs/interactions.md",
        "tfx perturb": "docs/perturb.md",
    },
    "docs/check.md": {"tfx check FILES...": "the form of the command, no example"},
    "docs/generate-serve.md": {"tfx generate --serve": "waits for requests: tests/cli"},
    "docs/prepare.md": {"tfx prepare mine.toml": "worker processes: tests/cells/prepare"},
    "docs/classify.md": {"tfx ": MINUTES + "; docs/cookbook/fine-tune-on-my-labels.md is small"},
    "docs/cookbook/a-network-for-my-cell-type.md": {"tfx interactions base --where \"cell_type=macrophage\" --contrast": "docs/interactions.md"},
    "docs/cookbook/a-marker-list.md": {
        "tfx train markers.toml": "the page on the assay trains such a preset",
        "tfx generate --run markers": "needs that run",
        "import scanpy": "needs its cells",
    },
    "docs/cookbook/cells-of-a-rare-type.md": {"tfx eval base --generated": MINUTES},
    "docs/cookbook/merge-several-studies.md": {"tfx train studies.toml": TUTORIAL},
    "docs/cookbook/publish-a-model.md": {"tfx eval base": "docs/evaluation.md"},
    "docs/cookbook/run-on-slurm.md": {
        "tfx dashboard": TERMINAL,
        "tfx train mine.toml --dry-run": TUTORIAL,
        "srun ": "SLURM",
        "if [ ": "SLURM",
    },
    "docs/dashboard.md": {"tfx dashboard": TERMINAL},
    "docs/evaluation.md": {
        "tfx eval --baselines all": "seconds; tests/evaluation/test_baselines.py",
        "tfx eval base --cross-validate": MINUTES,
    },
    "docs/fidelity.md": {"tfx eval ": MINUTES + "; tests/evaluation/fidelity"},
    "docs/formats.md": {
        "pip install": INSTALLS,
        "tfx ": "SOMA, and a network: tests/cells/test_soma.py",
        "export ": "a network",
    },
    "docs/index.md": {
        "tfx train mine.toml": TUTORIAL,
        "tfx eval": TUTORIAL,
    },
    "docs/install.md": {
        "python3 -m venv": INSTALLS,
        ".venv/bin/pip": INSTALLS,
        "source ": INSTALLS,
        "tfx --install-completion": "changes the start-up files of the shell",
        "docker ": "a container engine",
        "apptainer ": "a container engine",
    },
    "docs/interactions.md": {
        "tfx train presets/base.toml": TRAINS_BASE,
        "tfx interactions --where cell_type=macrophage --known": "files of reference networks: tests/interactions",
        "tfx interactions --where cell_type=macrophage --contrast": "more cells of each disease",
    },
    "docs/perturb.md": {
        "tfx train presets/base.toml": TRAINS_BASE,
        "cell-eval ": "a package of others",
        "import transformerics": "the commands of the page do the same",
    },
    "docs/published-models.md": {"tfx ": "files of others: tests/published"},
    "docs/python.md": {
        "model = tfx.train": "the notebooks train",
        "edges = tfx.interactions": "docs/interactions.md",
        "both = tfx.perturb": "docs/perturb.md",
    },
    "docs/reference-commands.md": {"": "examples of the help, which the other pages run"},
    "docs/reference-python.md": {"": "signatures"},
    "docs/start-from-other-models.md": {"python -c": "a PolyGene: tests/published"},
    "docs/training.md": {
        "tfx train mine.toml": TUTORIAL,
        "tfx train runs/mine": "needs that run; tests/training",
        "accelerate launch": "several GPUs",
        "tfx train presets/pbmc68k.toml": MINUTES,
    },
}  # fmt: skip
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NAMES = [name for name in NAMES if name.startswith(("README", "docs/"))]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
TUTORIAL_PAGE = "docs/tutorial.md"


def reason_not_to_run(name, text):
    """Why no test runs a line or Python block of a page; None: it runs."""
    reasons = NOT_RUN.get(name, {})
    return next((reasons[start] for start in reasons if text.startswith(start)), None)


def steps(name):
    """Give command lines and Python blocks of a page that run, and files that it writes, in order."""
    for block in code_blocks((ROOT / name).read_text(encoding="utf-8")):
        file = re.match(r"# (\w+\.toml)\n", block.text) if block.kind == "toml" else None
        if file is not None:
            yield file[1], block.text
        for text in [block.text] if block.kind == "python" else block.commands:
            if reason_not_to_run(name, text) is None:
                yield block.kind, text


#: Pages on which something runs.
RUNNING = [name for name in NAMES if any(kind in ("bash", "python") for kind, _ in steps(name))]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with blank_figures():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make a folder with a run of the base preset, and with files of a reader's own."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in (ENVIRONMENT | BASE).items():
            patch.setenv(name, value)
        assert run(["-q", "train", "base"]) == 0
    for seed, name in enumerate(OWN, start=1):
        cells = simulate_cells(300, seed=seed, n_donors=8)
        draw = np.random.default_rng(seed)
        cells.obs["assay"] = draw.choice(["10x", "smart"], cells.n_obs)
        cells.obs["response"] = draw.choice(["yes", "no"], cells.n_obs)
        cells.obs_names = [f"{name}-{index}" for index in range(cells.n_obs)]
        cells.write_h5ad(folder / f"{name}.h5ad")
    screen().write_h5ad(folder / "perturb_seq.h5ad")
    return folder


def screen():
    """Draw controls, single and double perturbations, their names joined."""
    singles, pairs = ((one, "control") for one in GUIDES), itertools.combinations(GUIDES, 2)
    groups = [(("control", "control"), 100), *((pair, 30) for pair in (*singles, *pairs))]
    cells = perturbed_cells(groups, 0)
    columns = (cells.obs.pop(f"guide_{place}") for place in (1, 2))
    cells.obs["perturbation"] = [
        "+".join(guide for guide in pair if guide != "control") or "control"
        for pair in zip(*columns, strict=True)
    ]
    return cells


@pytest.fixture
def own(trained, quick, tmp_path):
    """Return a copy of that folder, as the folder of the test."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_page(name, capsys, monkeypatch):
    """Run what is to run of a page, one after the other; write its presets."""
    names = {}
    for kind, text in steps(name):
        if kind == "python":
            exec(compile(text, name, "exec"), names)
        elif kind == "bash":
            for longer, shorter in SMALLER.items():
                text = re.sub(longer, shorter, text)
            (arguments,) = arguments_of([text])  # anything but a tfx command has to be listed
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
            code = run(["-q", *arguments])
            assert code == 0, f"{name}: {text}: {capsys.readouterr().err}"
        else:
            Path(kind).write_text(text, encoding="utf-8")


def test_the_tutorial_runs_as_it_stands(quick, tmp_path, capsys, monkeypatch):
    run_page(TUTORIAL_PAGE, capsys, monkeypatch)
    for made in ("pbmc.toml", "runs/pbmc/eval/report.html", "labelled.h5ad", "monocytes.png"):
        assert (tmp_path / made).exists()


@pytest.mark.parametrize("name", [name for name in RUNNING if name != TUTORIAL_PAGE])
def test_a_page_runs_beside_a_model_and_files_of_a_reader(name, own, capsys, monkeypatch):
    run_page(name, capsys, monkeypatch)
    if name.startswith("docs/cookbook/"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 42


def test_what_does_not_run_is_on_the_pages():
    for name, reasons in NOT_RUN.items():
        blocks = list(code_blocks((ROOT / name).read_text(encoding="utf-8")))
        lines = [line for block in blocks for line in block.commands]
        lines += [block.text for block in blocks if block.kind == "python"]
        for start in reasons:
            assert any(line.startswith(start) for line in lines), f"{name} has no {start!r}"
    assert {f"docs/cookbook/{page.name}" for page in (ROOT / "docs/cookbook").glob("*.md")} < {
        *RUNNING
    }


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs_and_shows_what_it_printed(page, quick, monkeypatch):
    small = QUICK | {"data.files": TINY_ATLAS}
    train = tfx.train
    monkeypatch.setattr(
        tfx,
        "train",
        lambda preset, run, settings=None: train(preset, run, small | (settings or {})),
    )
    names = {}
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and "not-in-tests" not in cell["metadata"].get("tags", ()):
            exec(compile("".join(cell["source"]), page.name, "exec"), names)
        if cell["cell_type"] == "code":
            kinds = {output["output_type"] for output in cell["outputs"]}
            assert kinds <= {"stream", "execute_result", "display_data"}
    assert names["model"].config.n_genes == 64
