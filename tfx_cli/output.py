"""Everything `tfx` prints: results on stdout, narration on stderr, and an exit code at the end.

The only module that writes to stdout or decides on exit codes. A command ends by one call of
`print_result`; everything else goes through `narrate`, `warn` or a logger. rich is imported where
it draws (20 to 60 ms): most lines need no drawing.
"""

import contextlib
import errno
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import ExitCode, TfxError, TrainingInterrupted

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.table import Table

    from core.findings import FindingsReport

#: Loggers of the commands and of all others; `core` has its own, below "core".
_NARRATOR = logging.getLogger("tfx_cli")
_LOGGERS = ("", "core", "tfx_cli", "py.warnings")
#: Columns of a table that goes to a file or a pipe, where nothing is cut to a window.
_FILE_WIDTH = 400
_FINDING_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HDF5_ERRNO = re.compile(r"filename = (?P<file>'[^']*').*?errno = (?P<errno>\d+)", re.DOTALL)

_kept_errors: list[Exception] = []
_live: "Console | None" = None  # the console that draws progress bars at the moment, if any


# -- results


def print_result(
    name: str,
    data: Mapping[str, object],
    *,
    as_json: bool,
    text: "Callable[[], Iterable[RenderableType] | RenderableType]",
    version: int = 1,
) -> None:
    """Print the result of a command.

    JSON has ``"schema": "tfx.NAME/VERSION"`` (a change of meaning raises the version) and the
    data, numbers that are not finite as null. Otherwise ``text`` makes the form for people:
    strings, printed as they are, or rich objects.
    """
    if as_json:
        from core.files import plain_json

        document = {"schema": f"tfx.{name}/{version}", **plain_json(data)}
        print_text(json.dumps(document, indent=2, allow_nan=False))
        return
    made = text()
    parts = [made] if isinstance(made, str) or not isinstance(made, Iterable) else list(made)
    for part in parts:
        if isinstance(part, str):
            print_text(part)
        else:
            _print_drawing(part)


def print_text(text: str) -> None:
    """Print text to stdout as it is."""
    if not text.endswith("\n"):
        text += "\n"
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:  # a terminal of another alphabet
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()  # a closed pipe shows here, where it is still handled


def _print_drawing(drawing: "RenderableType") -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _FILE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(drawing)
    lines = capture.get().splitlines()
    print_text("\n".join(line.rstrip() for line in lines))


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    right: Collection[int] = (),
) -> "Table":
    """Make a table of text; a column of numbers, or one whose index is in ``right``, is flush right.

    Numbers get thousands separators, None is an empty cell, brackets are brackets, and a rich
    `Text` keeps its style. There is no header if all column names are empty.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_header=any(columns),
    )
    for index, column in enumerate(columns):
        values = [row[index] for row in rows if row[index] is not None]
        is_numeric = bool(values) and all(isinstance(value, int | float) for value in values)
        is_flush_right = is_numeric or index in right
        table.add_column(Text(column), justify="right" if is_flush_right else "left")
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else Text(_cell(value)) for value in row))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def findings_text(
    report: "FindingsReport[Any]", rows: "Iterable[tuple[Any, int]]"
) -> "Iterator[RenderableType]":
    """Make the table of a report of findings, by family, and its verdict.

    ``rows`` are the rows to show, each with the number of similar rows that are omitted after it.
    """
    from rich.text import Text

    cells: list[list[object]] = []
    family = ""
    for row, n_more in rows:
        if row.family != family:
            family = row.family
            cells.append([Text(family, style="bold"), "", ""])
        finding = Text(row.finding, overflow="fold")  # a path is not cut
        if row.fix:
            finding.append(f"\n-> {row.fix}", style="cyan")
        cells.append([Text(f"  {row.level}", style=_FINDING_STYLES[row.level]), row.check, finding])
        if n_more:
            cells.append(["", "", f"... and {n_more:,} more like it (--json lists all)"])
    yield make_table(["", "check", "finding"], cells)
    yield ""
    n_failures, n_warnings = len(report.of_level("fail")), len(report.of_level("warn"))
    warnings = f"{n_warnings} warning{'s' * (n_warnings != 1)}"
    if n_failures:
        yield f"not fit: {n_failures} failure{'s' * (n_failures != 1)}, {warnings}"
    else:
        yield f"fit, with {warnings} to look at" if n_warnings else "fit"


# -- narration


def narrate(message: str) -> None:
    """Print a line about the work on stderr; nothing under --quiet."""
    _NARRATOR.info("%s", message)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    _NARRATOR.warning("%s", message)


def is_quiet() -> bool:
    """Return whether only errors are printed."""
    return not _NARRATOR.isEnabledFor(logging.INFO)


class _Narration(logging.Handler):
    """Writes log records to stderr, above the progress bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # wrong arguments in a library's call
            message = str(record.msg)
        if record.levelno >= logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        _write_error_line(message)


def _write_error_line(message: str) -> None:
    if _live is not None:
        from rich.text import Text

        _live.print(Text(message), soft_wrap=True)
        return
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def narration() -> Iterator[None]:
    """Print log records while a command runs; afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    handler = _Narration()
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)
    set_verbosity()
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook, sys.unraisablehook = _note_uncaught, _note_unraisable
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(capture=False)
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _note_uncaught(
    kind: type[BaseException], error: BaseException, trace: "TracebackType | None"
) -> None:
    """Log an error that cannot be caught: h5py raises one per object of a file on a full disk."""
    _NARRATOR.debug("this could not be caught", exc_info=(kind, error, trace))


def _note_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    _NARRATOR.debug("ignored in %r", unraisable.object, exc_info=unraisable.exc_value)


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what is printed: by default our own narration and the warnings of all loggers.

    Warnings of Python libraries (deprecations and the like) are for developers: --verbose.
    """
    if verbose:
        levels = (logging.INFO, logging.DEBUG, logging.DEBUG, logging.WARNING)
    elif quiet:
        levels = (logging.ERROR, logging.ERROR, logging.ERROR, logging.CRITICAL)
    else:
        levels = (logging.WARNING, logging.INFO, logging.INFO, logging.CRITICAL)
    for name, level in zip(_LOGGERS, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def live_console() -> "Iterator[Console]":
    """Yield a console that draws on stderr; narration appears above its drawing."""
    from rich.console import Console

    global _live
    console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    before, _live = _live, console
    try:
        yield console
    finally:
        _live = before


# -- exit codes


def exit_code_of(call: Callable[[], object]) -> int:
    """Run a command and turn what it raises into one sentence on stderr and an exit code.

    With TFX_TRACEBACK=1 in the environment the traceback is printed as well.
    """
    try:
        call()
    except SystemExit as stop:  # Typer ends every command this way
        if stop.code is None or isinstance(stop.code, int):
            code = stop.code or 0
            if code == ExitCode.INTERRUPTED:
                _write_error_line("Interrupted.")
            return int(code)
        _write_error_line(str(stop.code))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        _write_error_line("Interrupted.")
        return ExitCode.INTERRUPTED
    except TrainingInterrupted as stop:
        message = str(stop)
        _write_error_line(message[:1].upper() + message[1:])  # requested: not an error
        return stop.exit_code
    except TfxError as error:
        return _report_error(error, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes one sentence
        return _report_error(error, *_explain(error))
    return ExitCode.DONE


def _report_error(error: Exception, message: str, code: ExitCode) -> int:
    if os.environ.get("TFX_TRACEBACK") == "1":
        _write_error_line("".join(traceback.format_exception(error)).rstrip())
    lines = [*message.splitlines(), *getattr(error, "__notes__", [])]
    # A list of errors begins on its own line, so that every file:line can be clicked.
    separator = "\n" if len(lines) > 1 else " "
    _write_error_line(f"Error:{separator}" + "\n".join(lines))
    if code == ExitCode.MACHINE:
        # Its frames hold HDF5 files: one that a full disk cut short crashes the process when it
        # is freed. `tfx_cli.app.main` ends without freeing anything.
        _kept_errors.append(error)
    return code


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Put an unexpected error into a sentence."""
    # torch on a CPU raises a RuntimeError that only its words set apart.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        message = "there is not enough memory; use a smaller model or batch, or fewer genes"
        return message, ExitCode.MACHINE
    if isinstance(error, OSError) and error.strerror:
        where = f": '{error.filename}'" if error.filename is not None else ""
        is_full = error.errno in _FULL_DISK
        return f"{error.strerror}{where}", ExitCode.MACHINE if is_full else ExitCode.FAILED
    hdf5 = _HDF5_ERRNO.search(str(error))  # HDF5 quotes the system's error in its own
    if hdf5 is not None and int(hdf5["errno"]) in _FULL_DISK:
        message = f"{os.strerror(int(hdf5['errno']))}: {hdf5['file']}; make room, and try again"
        return message, ExitCode.MACHINE
    detail = " ".join(str(error).split())
    message = (
        f"unexpected {type(error).__name__}{f': {detail}' if detail else ''}; this is a fault of "
        "tfx, and TFX_TRACEBACK=1 shows where"
    )
    return message, ExitCode.FAILED
