"""The `tfx` command: its options, its table of commands, its entry point.

Every command has a module of its own, imported when that command runs. This module and what it
imports stay light: `tfx --help` takes under 0.3 s, most of it Typer and rich.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import typer
import typer.main
from typer.exceptions import TyperException

from core.errors import ConfigurationError, ExitCode
from core.renamed import OPTIONS
from tfx_cli import output
from tfx_cli.command_line import (
    LazyCommand,
    LazyGroup,
    as_written,
    describe_usage_error,
    is_request_for_help,
    new_app,
    option,
)
from tfx_cli.exit_codes import exit_code_of
from tfx_cli.launch import is_main_process

#: The commands in the order of the help, by panel: name, object of a module NAME_command, summary.
_PANELS = {
    "Data": (
        ("check", "check:check", "Check whether cells are fit for preparing and training."),
        ("prepare", "prepare:prepare", "Make a store from .h5ad files."),
        ("stores", "prepare:stores", "List and delete stores."),
    ),
    "Model": (
        ("train", "train:train", "Train a model from a preset."),
        ("eval", "eval:evaluate", "Evaluate a model, or generated cells, with baselines."),
        ("predict", "annotate:predict", "Label the cells of a new file, with probabilities."),
        ("embed", "annotate:embed", "Add embeddings of cells and genes to a file."),
        ("generate", "generate:generate", "Generate cells of the requested phenotypes."),
        (
            "interactions",
            "interactions:interactions",
            "Find interactions of genes in a context, with nulls and baselines.",
        ),
        ("perturb", "perturb:perturb", "Knock out or over-express genes of real cells."),
        ("export", "export:export", "Write a model as a folder for the Hugging Face Hub."),
    ),
    "Watch": (
        (
            "dashboard",
            "dashboard:dashboard",
            "Watch and control runs, generate cells, in the terminal.",
        ),
        ("runs", "runs:app", "List, show, compare, export and delete runs."),
    ),
    "Project": (
        ("presets", "presets:app", "List, show and check presets; list what a model knows."),
        ("init", "presets:init", "Write a preset for your own files."),
        ("doctor", "check:doctor", "Check whether this machine is fit for tfx."),
        ("docs", "docs:docs", "Read the pages of the documentation."),
    ),
}
_VERBOSITY = ("-q", "--quiet", "-v", "--verbose")
COMMANDS: tuple[LazyCommand, ...] = tuple(
    LazyCommand(name, f"tfx_cli.{target.replace(':', '_command:')}", panel, summary)
    for panel, commands in _PANELS.items()
    for name, target, summary in commands
)


class TfxGroup(LazyGroup):
    """`tfx` and its commands."""

    entries = COMMANDS


app = new_app(
    name="tfx",
    cls=TfxGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from core import __version__

        output.print_text(f"tfx {__version__}")
        raise typer.Exit


@app.callback()
def tfx(
    version: bool = option(
        "--version",
        "Print the version and exit.",
        callback=_print_version,
        is_eager=True,
        default=False,
    ),
    quiet: bool = option(
        "--quiet -q", "Print results and errors only; also after the command.", default=False
    ),
    verbose: bool = option(
        "--verbose -v",
        "Print more, library warnings included; also after the command.",
        default=False,
    ),
) -> None:
    """Masked language models of single cells: train, evaluate, generate.

    Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 failed, 2 wrong
    usage or configuration, 3 the machine is not fit, 4 the data are not fit, 75 stopped early with
    a checkpoint, 130 interrupted.

    Examples
    --------
    tfx train base
    tfx generate --sex female --tissue lung -n 1000 -o cells.h5ad
    """
    # Of several processes that train together only one prints.
    output.set_verbosity(quiet=quiet or not is_main_process(), verbose=verbose)


def run(arguments: Sequence[str]) -> int:
    """Run one `tfx` command line and return its exit code."""
    with output.narration():
        command = as_written(typer.main.get_command(app))

        def call() -> None:
            if sys.flags.optimize > 1:
                raise ConfigurationError(
                    "python -OO removes docstrings, which AnnData and the help of tfx need; start "
                    "tfx without -OO, and unset PYTHONOPTIMIZE"
                )
            try:
                code = command.main(
                    _with_verbosity_first(list(_in_present_spelling(arguments))),
                    prog_name="tfx",
                    complete_var="_TFX_COMPLETE",
                    standalone_mode=False,  # its errors are ours to print
                )
            except TyperException as error:
                if not is_request_for_help(error):
                    raise ConfigurationError(describe_usage_error(error)) from None
                code = ExitCode.CONFIGURATION
            sys.exit(code if isinstance(code, int) else ExitCode.DONE)

        return exit_code_of(call)


def _in_present_spelling(arguments: Sequence[str]) -> Iterator[str]:
    """Replace old spellings of options; what follows a bare ``--`` is not ours."""
    is_ours = True
    for argument in arguments:
        is_ours = is_ours and argument != "--"
        option, equals, value = argument.partition("=")
        if is_ours and option in OPTIONS:
            new = OPTIONS[option]
            output.warn(f"{option} is now called {new}; the old name works in this release only")
            option = new
        yield f"{option}{equals}{value}"


def _with_verbosity_first(arguments: list[str]) -> list[str]:
    """Move --quiet and --verbose, which belong to tfx, before its command; nothing behind a bare ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [argument for argument in arguments[:end] if argument in _VERBOSITY]
    rest = [argument for argument in arguments[:end] if argument not in _VERBOSITY]
    return [*ours, *rest, *arguments[end:]]


def _replace_closed_streams() -> None:
    """Open the null device in place of closed standard streams, whose numbers a data file would get."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, "r" if number == 0 else "w", encoding="utf-8"))


def main() -> NoReturn:
    """Run the command line of this process and exit: the entry point of `tfx`."""
    _replace_closed_streams()
    code = run(sys.argv[1:])
    if code == ExitCode.MACHINE:
        # An HDF5 file that a full disk cut short crashes the interpreter as it is taken down.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
