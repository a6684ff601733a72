import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import typer

from core import __version__
from tfx_cli import app as app_module
from tfx_cli.app import COMMANDS, _with_verbosity_first, app
from tfx_cli.arguments import phenotype_request
from tfx_cli.command_line import LazyCommand, as_written

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "anndata", "textual", "numpy", "pandas", "scanpy", "transformers")


def run_python(*arguments, folder=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_help_and_version_load_no_heavy_package():
    program = (
        "import sys\n"
        "from tfx_cli.app import run\n"
        "run(['--version']), run(['--help'])\n"
        f"print('loaded:', *{{'pydantic', *{HEAVY!r}}} & set(sys.modules))\n"
        "print('commands:', *(name for name in sys.modules if name.endswith('_command')))\n"
    )
    done = run_python("-c", program)
    assert "loaded:\n" in done.stdout, done.stdout + done.stderr
    assert "commands:\n" in done.stdout


def test_the_help_of_a_command_loads_no_torch_and_no_anndata():
    # Typer reads the arguments of commands with pydantic.
    program = (
        "import sys\n"
        "from tfx_cli.app import run\n"
        f"for name in {[command.name for command in COMMANDS]}:\n"
        "    assert run([name, '--help']) == 0\n"
        f"    assert not set({HEAVY!r}) & set(sys.modules), name\n"
        "print('loaded:')\n"
    )
    done = run_python("-c", program)
    assert "loaded:\n" in done.stdout, done.stdout + done.stderr


def test_python_without_docstrings_is_refused_in_one_sentence():
    done = run_python("-OO", "-m", "tfx_cli", "presets", "list")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: python -OO removes docstrings")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_fail_a_command(closed):
    program = f'exec "{sys.executable}" -m tfx_cli presets list {closed}'
    done = subprocess.run(["sh", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (closed == "2>&-")


def test_the_package_runs_as_a_module():
    done = run_python("-m", "tfx_cli", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tfx {__version__}\n", "")


def test_folders_of_the_user_do_not_hide_our_packages(own_folders, tmp_path):
    done = run_python("-m", "tfx_cli", "presets", "list", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "base " in done.stdout


def test_the_entry_point_exits_with_the_code_of_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tfx", "presets", "show", "no-such-preset"])
    with pytest.raises(SystemExit) as stop:
        app_module.main()
    assert stop.value.code == 2


def test_help_lists_every_command_in_its_panel(tfx):
    result = tfx("--help")
    assert (result.code, result.stderr) == (0, "")
    panels = re.split(r"╭─ (\w+) ", result.stdout)[1:]
    shown = dict(zip(panels[::2], panels[1::2], strict=True))
    assert [name for name in shown if name != "Options"] == ["Data", "Model", "Watch", "Project"]
    for command in COMMANDS:
        line = re.search(rf"│ {command.name} +(.+?) *│", shown[command.rich_help_panel])
        assert line is not None
        assert line.group(1) == command.help


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_ends_its_help_with_examples(tfx, command):
    result = tfx(command.name, "--help")
    assert result.code == 0
    *_, examples = result.stdout.partition("Examples:")
    assert examples.count(f"$ tfx {command.name} ") >= 2


def help_texts(command):
    yield command.help or ""
    for parameter in command.params:
        yield getattr(parameter, "help", None) or ""
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner)


BRACKETED = re.compile(r"\[[^\[\]\s]+\]")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_bracketed_words_survive_in_the_help_of_every_command(tfx, command):
    loaded = command.load()
    rendered = tfx(command.name, "--help").stdout
    for name in getattr(loaded, "commands", {}):
        rendered += tfx(command.name, name, "--help").stdout
    rendered = re.sub(r"\s*│\n│\s*|\s+", " ", rendered)
    for text in help_texts(loaded):
        for word in BRACKETED.findall(text.replace("\\[", "[")):
            assert word in rendered


def test_brackets_markup_and_backslashes_appear_as_written(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    words = "[sex] [CLS] [NO_SEX] [/] [/x] [bold] [red]no[/red] [a b] [@x] \\[y] \\\\[z] [0.1, 9]"
    inner = typer.Typer(add_completion=False, rich_markup_mode="rich")

    @inner.command(help=f"First {words}\n\nSecond {words}\n\nExamples\n--------\ntfx {words}\n")
    def command(option: str = typer.Option("[d]", help=f"Third {words}", metavar="[m]")):
        pass

    with pytest.raises(SystemExit):
        as_written(typer.main.get_command(inner)).main(["--help"])
    rendered = re.sub(r"\s*│\n│\s*|\s+", " ", capsys.readouterr().out)
    flat = " ".join(words.split())
    for before in ("First", "Second", "$ tfx"):
        assert f"{before} {flat}" in rendered
    for word in words.split():
        assert rendered.count(word) >= 4
    assert "[default: [d]]" in rendered


def test_paragraphs_of_docstrings_are_filled(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    inner = typer.Typer(add_completion=False, rich_markup_mode="rich")

    @inner.command()
    def command():
        """One.

        A line
        goes on.
        """

    with pytest.raises(SystemExit):
        as_written(typer.main.get_command(inner)).main(["--help"])
    assert "A line goes on." in capsys.readouterr().out


def test_no_arguments_show_the_help(tfx):
    result = tfx()
    assert result.code == 2
    assert "Usage: tfx" in result.stdout + result.stderr


def test_quiet_may_stand_after_the_command(tfx, tmp_path):
    for line in ("-q runs list", "runs list -q", "runs -q list --quiet"):
        result = tfx(*line.split())
        assert (result.code, result.stderr) == (0, "")
    assert "no runs in 'runs'" in tfx("runs", "list").stderr
    # Behind a bare -- it belongs to another command line.
    other = ["presets", "import", "--", "-q"]
    assert _with_verbosity_first(other) == other


def test_a_page_is_markdown_in_a_pipe(tfx):
    pages = tfx("docs", "--json").json["pages"]
    assert {"training", "generate"} <= set(pages)
    assert tfx("docs", "training").stdout.startswith(f"# {pages['training']}\n")


def test_a_missing_command_module_is_one_sentence(tfx, monkeypatch):
    broken = LazyCommand("broken", "tfx_cli.no_such_module:x", "Data", "Does not exist.")
    monkeypatch.setattr(app_module.TfxGroup, "entries", (*COMMANDS, broken))
    result = tfx("broken")
    assert result.code == 1
    assert "No module named 'tfx_cli.no_such_module'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_no_local_variables_are_ever_shown():
    assert app.pretty_exceptions_show_locals is False


def test_completion_knows_the_commands():
    done = run_python(
        "-m", "tfx_cli", _TFX_COMPLETE="complete_bash", COMP_WORDS="tfx pre", COMP_CWORD="1"
    )
    assert done.stdout.split() == ["prepare", "predict", "presets"]


@pytest.mark.parametrize("streams", ["stdout", "both"])
def test_a_reader_that_goes_away_is_no_error(streams):
    """As in 'tfx presets show base | head -1', and with 2>&1."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tfx_cli", "presets", "show", "base", "--set", "train.lanes=2"],
            cwd=ROOT,
            stdout=write,
            stderr=write if streams == "both" else errors,
        )
        os.close(write)
        os.close(read)
        assert process.wait() == 0
        errors.seek(0)
        said = errors.read().decode()
        assert said.count("\n") == (streams == "stdout")  # that lanes is an old name


def test_options_and_pairs_make_one_request():
    assert phenotype_request(
        sex="female", cell_type=" B cell", phenotype=["treatment = control=1", "sex=female"]
    ) == {"sex": "female", "cell_type": "B cell", "treatment ".strip(): "control=1"}
