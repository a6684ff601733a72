"""The `tfx` command: its options, its table of commands, its entry point.

Every command lives in a module of its own that is imported when that command runs. This module
and what it imports stay light: `tfx --help` answers in under 0.3 s, most of it Typer and rich.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
import typer.main
from typer.exceptions import TyperException

from core.errors import ConfigurationError, ExitCode
from tfx_cli import output
from tfx_cli.launch import is_main_process
from tfx_cli.lazy import LazyCommand, LazyGroup, as_written
from tfx_cli.usage_errors import describe_usage_error, is_request_for_help

__all__ = ["COMMANDS", "app", "main", "run"]

#: The commands in the order of the help: name, module:object, panel, what it does in one line.
COMMANDS: tuple[LazyCommand, ...] = (
    LazyCommand(
        "check",
        "tfx_cli.check_command:check",
        "Data",
        "Report whether cells are fit to prepare and train on.",
    ),
    LazyCommand(
        "prepare", "tfx_cli.prepare_command:prepare", "Data", "Make a store from .h5ad files."
    ),
    LazyCommand("train", "tfx_cli.train_command:train", "Model", "Train a model from a preset."),
    LazyCommand(
        "eval",
        "tfx_cli.eval_command:evaluate",
        "Model",
        "Score a model beside simple baselines, per phenotype.",
    ),
    LazyCommand(
        "predict",
        "tfx_cli.predict_command:predict",
        "Model",
        "Label the cells of a new file, with probabilities.",
    ),
    LazyCommand(
        "embed",
        "tfx_cli.embed_command:embed",
        "Model",
        "Add embeddings of cells and genes to a file.",
    ),
    LazyCommand(
        "generate",
        "tfx_cli.generate_command:generate",
        "Model",
        "Write synthetic cells of the phenotypes asked for.",
    ),
    LazyCommand(
        "dashboard",
        "tfx_cli.dashboard_command:dashboard",
        "Watch",
        "Watch runs, steer them, pick control tokens, see the cells.",
    ),
    LazyCommand(
        "runs", "tfx_cli.runs_command:app", "Watch", "List, show, compare and export runs."
    ),
    LazyCommand(
        "presets", "tfx_cli.presets_command:app", "Project", "List, show and check presets."
    ),
    LazyCommand(
        "init",
        "tfx_cli.init_command:init",
        "Project",
        "Write a preset for your own files, from looking at them.",
    ),
    LazyCommand(
        "doctor",
        "tfx_cli.doctor_command:doctor",
        "Project",
        "Report whether this machine is fit for tfx, with fixes.",
    ),
)


class TfxGroup(LazyGroup):
    """`tfx` and its commands."""

    entries = COMMANDS


app = typer.Typer(
    name="tfx",
    cls=TfxGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # output.exit_code_of prints errors
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from core import __version__

        output.print_text(f"tfx {__version__}")
        raise typer.Exit


@app.callback()
def tfx(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda value: _print_version(wanted=bool(value)),
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more, library warnings included.")
    ] = False,
) -> None:
    """Masked language models of single cells: train, evaluate, generate.

    Results go to stdout, the narration to stderr. Exit codes: 0 done, 1 failed, 2 usage or
    configuration, 3 the machine is not fit, 4 the data are not fit, 75 stopped early with a
    checkpoint, 130 interrupted.

    Examples
    --------
    tfx train base
    tfx generate --sex female --tissue lung -n 1000 -o cells.h5ad
    """
    # One of several processes that train together speaks for all.
    output.set_verbosity(quiet=quiet or not is_main_process(), verbose=verbose)


def run(arguments: Sequence[str]) -> int:
    """Run one `tfx` command line and return its exit code."""
    with output.narration():
        command = as_written(typer.main.get_command(app))

        def call() -> None:
            try:
                code = command.main(
                    list(arguments),
                    prog_name="tfx",
                    complete_var="_TFX_COMPLETE",
                    standalone_mode=False,  # its errors are ours to print
                )
            except TyperException as error:
                if not is_request_for_help(error):
                    raise ConfigurationError(describe_usage_error(error)) from None
                code = ExitCode.CONFIGURATION
            sys.exit(code if isinstance(code, int) else ExitCode.DONE)

        return output.exit_code_of(call)


def main() -> NoReturn:
    """Run the command line of this process and exit: the entry point of `tfx`."""
    code = run(sys.argv[1:])
    if code == ExitCode.MACHINE:
        # An HDF5 file that a full disk cut short crashes the interpreter as it is taken down.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
