"""Whatever names and labels hold, no command gives the terminal a command, and no page a tag."""

import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cells.examples import make_adata, write
from tests.cli.conftest import TINY_TOML
from tests.runlog.run_folders import write_run
from tests.test_wording import commands_in
from tfx_cli.app import run

#: Clipboard, colours, a bell, CSI in one byte, text from right to left, a line of its own, HTML, a link.
HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202egnp\nError: <b>[x](y)|"


def harmless(text):
    assert not set(commands_in(text)) - {"\t"}, text
    return text


@pytest.fixture
def hostile(tfx):
    """Run a command line, whose output must be harmless; return its result."""

    def invoke(*arguments, code=0):
        result = tfx(*arguments)
        harmless(result.stderr)
        if "--json" in arguments:
            assert result.json
        elif arguments[:2] != ("presets", "show"):  # may be saved: never cut
            harmless(result.stdout)
            assert max(map(len, result.stdout.splitlines()), default=0) < 5_000
        assert result.code == code, result.stderr
        assert "fault of tfx" not in result.stderr
        return result

    return invoke


@pytest.fixture
def cells(tmp_path):
    """Cells whose labels, donors, genes, obs columns and file are hostile."""
    adata = make_adata(n_cells=120, n_donors=12)
    for name in ("donor_id", "cell_type", "tissue"):
        adata.obs[name] = [f"{label}{HOSTILE}" for label in adata.obs[name]]
    adata.obs[f"column{HOSTILE}"] = "a"
    adata.var_names = [f"{name}{HOSTILE}" for name in adata.var["feature_name"]]
    adata.var["feature_name"] = list(adata.var_names)
    adata.obs_names = [f"={name}{HOSTILE}" for name in adata.obs_names]
    return write(adata, tmp_path, "cells\x1b[31m.h5ad")


def test_no_command_prints_a_label_as_a_command(hostile, cells, tmp_path):
    hostile("check", cells)
    hostile("check", cells, "--json")
    hostile("init", cells, "-o", "mine.toml")
    hostile("presets", "show", "mine.toml")
    hostile("presets", "validate", "mine.toml")
    preset = TINY_TOML.replace('"builtin:atlas?cells=600&seed=0"', json.dumps(cells))
    preset = preset.replace("include_genes", "# include_genes").replace(
        "max_steps = 30", "max_steps = 4"
    )
    preset = preset.replace("log_linear = true", "log_linear = false").replace(
        "eval_steps = 10", "eval_steps = 4"
    )
    (tmp_path / "tiny.toml").write_text(preset, encoding="utf-8")
    hostile("prepare", "tiny.toml")
    hostile("train", "tiny.toml", "--dry-run")
    hostile("train", "tiny.toml")
    hostile("runs", "show")
    hostile("eval", "--baselines", "none", "--split", "validation")
    hostile("predict", cells, "-o", "labels.csv")
    hostile("predict", cells, "-o", "labelled.h5ad")
    hostile("embed", cells, "-o", "embedded.h5ad")
    label = f"T cell{HOSTILE}"
    hostile("generate", "--cell-type", label, "-n", "5", "-o", "made.h5ad", "--plot", "made.png")
    hostile("generate", "--cell-type", f"{label}x", "-n", "5", "-o", "other.h5ad", code=2)
    hostile("generate", "--phenotype", f"{HOSTILE}=x", "-n", "5", "-o", "other.h5ad", code=2)
    hostile("dashboard", "--once")
    hostile("dashboard", "runs/tiny", "--once", "--svg", "x.svg", "--keys", "2,3,4")
    ET.fromstring((tmp_path / "x.svg").read_text(encoding="utf-8"))
    for page in tmp_path.rglob("*.html"):
        assert "<b>" not in harmless(page.read_text(encoding="utf-8"))
    card = (tmp_path / "runs" / "tiny" / "model" / "README.md").read_text(encoding="utf-8")
    assert "<b>" not in harmless(card)
    assert "[x](y)" not in card
    (line, *_) = (tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert line.startswith("\"'=")


NAMES = st.text(
    st.sampled_from("\x1b[]\x07\x9b\u202e\n\r\x00\x85<&=aé |") | st.characters(), max_size=40
)


@settings(max_examples=15)
@given(text=NAMES, others=st.lists(NAMES, min_size=8, max_size=8))
def test_no_text_of_a_run_is_a_command(tmp_path, capsys, text, others):
    folder = tmp_path / "run\x1b[31m"
    if not folder.exists():
        write_run(folder)
        write_run(tmp_path / "other")
    keys = ["name", "host", "device", "store", "tfx", "job"]
    record = {"format": 1} | dict(zip(keys, others, strict=False))
    record |= {"argv": others, "phenotypes": {text: others}, "simulated": True}
    (folder / "run.json").write_text(json.dumps(record))
    state = {"state": text, "error": text, "step": 3, "total": 5}
    (folder / "status.json").write_text(json.dumps(state))
    event = json.dumps({"event": text, "t": 1.0, "step": 1, text: others})
    metric = json.dumps(
        {"step": 1, "t": 1.0, "split": "validation", "loss": 1.0, f"acc/{text}": 0.5}
    )
    (folder / "events.jsonl").write_text(event + "\n")
    (folder / "metrics.jsonl").write_text(metric + "\n")
    (folder / "config.toml").write_text(
        f"name = {json.dumps(text)}  # {text!a}\n", encoding="utf-8"
    )
    where, other = str(folder), str(tmp_path / "other")
    for line in (
        ["list", str(tmp_path)],
        ["show", where],
        ["compare", where, other],
        ["export", where],
    ):
        for form in ([], ["--json"]) if line[0] != "export" else ([],):
            code = run(["runs", *line, *form])
            output = capsys.readouterr()
            assert code in (0, 2), output.err
            harmless(output.out + output.err)
            if form and not code:
                json.loads(output.out)


def test_the_dashboard_draws_no_command(hostile, tmp_path):
    write_run(tmp_path / "runs" / "a\x1b]52;c;aGk=\x07b\u202e")
    hostile("dashboard", "--once")
    hostile("dashboard", "--once", "--svg", "x.svg")
    text = harmless((tmp_path / "x.svg").read_text(encoding="utf-8"))
    ET.fromstring(text)
    assert "52;c;aGk" in text


def test_a_label_of_a_megabyte_is_not_printed_whole(hostile, tmp_path):
    adata = make_adata()
    adata.obs["cell_type"] = ["x" * 10**6, "B cell", "T cell"] * 20
    file = write(adata, tmp_path)
    hostile("check", file, code=4)
    hostile("init", file, code=4)
    assert "has 1,000,000 characters" in hostile("prepare", file, code=4).stderr
