"""Documentation that cannot rot: links resolve, commands parse, marked blocks run."""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer.main
from typer.exceptions import TyperException

import transformerics as tfx
from core.cells.atlas.simulation import simulate_cells
from tests.docs.pages import (
    PAGES,
    ROOT,
    anchors,
    code_blocks,
    command_lines,
    links,
    mentioned_commands,
)
from tests.figures import blank_figures
from tests.tiny_atlas import TINY_ATLAS
from tfx_cli.app import app, run
from tfx_cli.command_line import as_written

#: Options that act as soon as they are parsed: by changing the shell's start-up files, too.
ACTING = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
#: Faults of a command that is named, not given.
LEFT_OUT = {"MissingParameter", "NoArgsIsHelpError"}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_link_resolves(name):
    page = ROOT / name
    for target in links(read(name)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name):
    for path in re.findall(
        r"(?<![\w/])(?:docs|benchmarks|presets|core|tfx_cli)/[\w/.-]+\.(?:md|py|toml|yaml|png)\b",
        read(name),
    ):
        assert (ROOT / path).exists(), f"{name} names {path}"


@pytest.fixture(scope="module")
def command():
    return as_written(typer.main.get_command(app))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_parses_with_the_options_that_there_are(name, command):
    for arguments in command_lines(read(name)):
        parse(command, arguments)
    for arguments in mentioned_commands(read(name)):
        try:
            parse(command, arguments)
        except TyperException as error:  # 'tfx train' is a name, 'tfx trian' is a mistake
            if type(error).__name__ not in LEFT_OUT and "requires an argument" not in str(error):
                raise


def parse(command, arguments):
    """Parse as far as Typer goes before it calls a command."""
    arguments = [word for word in arguments if word not in ACTING]
    if not arguments:
        return
    context = command.make_context("tfx", arguments)
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, inner, rest = context.command.resolve_command(context, rest)
        context = inner.make_context(name, rest, parent=context)


def test_the_parser_of_these_tests_refuses_what_is_wrong(command):
    for line in ("trian x", "train base --stpes 3", "train a b", "runs lst", "eval --split moon"):
        with pytest.raises(TyperException):
            parse(command, shlex.split(line))
    text = (
        "`tfx train x`\n\n    tfx eval    says\n    $ tfx embed > x\n\n```bash\ntfx check x\n```\n"
    )
    assert command_lines(text) == [["eval"], ["embed"], ["check", "x"]]
    assert mentioned_commands(text) == [["train", "x"]]


def test_every_page_is_in_the_navigation_of_the_site():
    text = read("mkdocs.yml")
    listed = set(re.findall(r"[\w./-]+\.md", text.partition("\nnav:")[2]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert listed == pages | {f"notebooks/{page.stem}.md" for page in NOTEBOOKS}


def test_toml_blocks_are_toml():
    for name in NAMES:
        for block in code_blocks(read(name)):
            if block.kind == "toml":
                tomllib.loads(block.text)


# --------------------------------------------------------------------------------- running them

#: The pages' own commands, on fewer cells and genes and for fewer steps: the environment wins over presets.
QUICK = {
    "train.max_steps": 6, "train.log_linear_steps": 2, "train.eval_steps": 3, "train.save_steps": 3,
    "train.device": "cpu", "generate.steps": 2, "data.genes": 64,
}  # fmt: skip
ENVIRONMENT = {f"TFX_{key.replace('.', '__').upper()}": str(value) for key, value in QUICK.items()}
#: Files that pages take as the reader's own.
OWN = ("mine", "new", "study_a", "study_b")
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
COOKBOOK = sorted(name for name in NAMES if name.startswith("docs/cookbook/"))


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
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
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("TFX_DATA__FILES", TINY_ATLAS)
        assert run(["-q", "train", "base"]) == 0
    for seed, name in enumerate(OWN, start=1):
        cells = simulate_cells(300, seed=seed, n_donors=8)
        draw = np.random.default_rng(seed)
        cells.obs["assay"] = draw.choice(["10x", "smart"], cells.n_obs)
        cells.obs["response"] = draw.choice(["yes", "no"], cells.n_obs)
        cells.obs_names = [f"{name}-{index}" for index in range(cells.n_obs)]
        cells.write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.fixture
def own(trained, quick, tmp_path):
    """Return a copy of that folder, as the folder of the test."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_blocks(name, capsys):
    """Run the blocks of a page that are marked, one after the other; write its presets."""
    names = {}
    blocks = list(code_blocks(read(name)))
    for block in blocks:
        file = re.match(r"# (\w+\.toml)\n", block.text) if block.kind == "toml" else None
        if file is not None:
            Path(file[1]).write_text(block.text, encoding="utf-8")
        if not block.runs:
            continue
        if block.kind == "python":
            exec(compile(block.text, name, "exec"), names)
            continue
        for line in block.text.strip().splitlines():
            program, *arguments = shlex.split(line)
            assert program == "tfx"
            code = run(["-q", *arguments])
            assert code == 0, f"{line}: {capsys.readouterr().err}"
    return [block for block in blocks if block.runs]


def test_the_tutorial_runs_as_it_stands(quick, tmp_path, capsys):
    assert len(run_blocks("docs/tutorial.md", capsys)) >= 9
    for made in ("pbmc.toml", "runs/pbmc/eval/report.html", "labelled.h5ad", "monocytes.png"):
        assert (tmp_path / made).exists()


def test_readme_and_the_python_page_run_on_the_base_preset(own, capsys):
    assert len(run_blocks("README.md", capsys)) >= 2  # the tutorial scores
    assert (own / "lung.png").exists()
    assert len(run_blocks("docs/python.md", capsys)) == 5


@pytest.mark.parametrize("name", COOKBOOK)
def test_a_page_of_the_cookbook_runs_and_fits_on_a_screen(name, own, capsys):
    assert run_blocks(name, capsys)
    assert len(read(name).splitlines()) <= 42


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs_and_shows_what_it_printed(page, own, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
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
