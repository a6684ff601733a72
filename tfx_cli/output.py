"""What `tfx` says: results on stdout, narration on stderr, an exit code at the end.

The only module that writes to stdout or decides on exit codes. A command ends by calling
`print_result` once; everything else that is worth a line goes through `narrate` or a logger.
rich is imported where it draws (20 to 60 ms): most lines need no drawing.
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
from typing import TYPE_CHECKING

from core.errors import ExitCode, TfxError, TrainingInterrupted

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = [
    "error_console",
    "exit_code_of",
    "is_quiet",
    "live_console",
    "make_table",
    "narrate",
    "narration",
    "print_result",
    "print_text",
    "set_verbosity",
    "warn",
]

#: What commands say; `core` has its own loggers, below "core".
_NARRATOR = logging.getLogger("tfx_cli")
_LOGGERS = ("", "core", "tfx_cli", "py.warnings")
#: Columns of a table that goes to a file or a pipe, where nothing is cut to a window.
_FILE_WIDTH = 400

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

    Parameters
    ----------
    name, version
        Of the JSON form: ``"schema": "tfx.NAME/VERSION"``. A change of meaning raises the version.
    data
        The result. Numbers that are not finite become null.
    as_json
        Print JSON, else what `text` returns.
    text
        Makes the form for people: strings, printed as they are, or rich objects.
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
    """Make a table of text; a column that holds numbers is set flush right.

    Numbers are shown with thousands separators, None as an empty cell, and brackets as brackets;
    a rich `Text` keeps its style.

    Parameters
    ----------
    columns
        Names, shown as the head; no head where all are empty.
    right
        Places of columns that are flush right though they hold text.
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
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


# -- narration


def narrate(message: str) -> None:
    """Say on stderr what is going on; silent under --quiet."""
    _NARRATOR.info("%s", message)


def warn(message: str) -> None:
    """Say on stderr what the user should look at."""
    _NARRATOR.warning("%s", message)


def is_quiet() -> bool:
    """Tell whether only faults are to be reported."""
    return not _NARRATOR.isEnabledFor(logging.INFO)


class _Narration(logging.Handler):
    """Writes log records to stderr, above the progress bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # wrong arguments in some library's call
            message = str(record.msg)
        if record.levelno >= logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        _write_error_line(message)


def _write_error_line(message: str) -> None:
    if _live is not None:
        from rich.text import Text

        _live.print(Text(message), soft_wrap=True)
        return
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def narration() -> Iterator[None]:
    """Listen to the loggers while a command runs; afterwards logging is as it was."""
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
    """Note what nobody can catch: h5py says so of every object of a file on a full disk."""
    _NARRATOR.debug("nobody could catch this", exc_info=(kind, error, trace))


def _note_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    error = unraisable.exc_value
    _NARRATOR.debug("ignored in %r", unraisable.object, exc_info=error)


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what is said: by default our own narration and everybody's warnings.

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


def error_console() -> "Console":
    """Return a console that draws on stderr."""
    from rich.console import Console

    return Console(file=sys.stderr, markup=False, highlight=False, emoji=False)


@contextlib.contextmanager
def live_console(console: "Console") -> Iterator[None]:
    """Let narration appear above what ``console`` is drawing."""
    global _live
    before, _live = _live, console
    try:
        yield
    finally:
        _live = before


# -- exit codes


def exit_code_of(call: Callable[[], object]) -> int:
    """Run a command and turn what it raises into one sentence on stderr and an exit code.

    With TFX_TRACEBACK=1 in the environment the traceback is printed as well.
    """
    try:
        call()
    except SystemExit as stop:  # Typer ends every command, done or not, this way
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
        _write_error_line(message[:1].upper() + message[1:])  # asked for: no error
        return stop.exit_code
    except TfxError as error:
        _print_error(str(error), error)
        _keep(error, error.exit_code)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last place: whatever it is, one sentence
        message, code = _explain(error)
        _print_error(message, error)
        _keep(error, code)
        return code
    return ExitCode.DONE


def _keep(error: Exception, code: ExitCode) -> None:
    """Keep an error's frames, and the HDF5 files in them, until the process ends.

    A file that a full disk cut short crashes the process when it is freed; `tfx_cli.app.main` ends
    without freeing anything.
    """
    if code == ExitCode.MACHINE:
        _kept_errors.append(error)


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Put an error that nobody foresaw into a sentence."""
    # torch on a CPU: a RuntimeError like any other, but for its words.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return (
            "there is not enough memory; use a smaller model or batch, or fewer genes",
            ExitCode.MACHINE,
        )
    if isinstance(error, OSError) and error.strerror:
        where = f": '{error.filename}'" if error.filename is not None else ""
        is_full = error.errno in _FULL_DISK
        return f"{error.strerror}{where}", ExitCode.MACHINE if is_full else ExitCode.FAILED
    hdf5 = _HDF5_ERRNO.search(str(error))  # HDF5 tells it in the words of other errors
    if hdf5 is not None and int(hdf5["errno"]) in _FULL_DISK:
        message = f"{os.strerror(int(hdf5['errno']))}: {hdf5['file']}; make room, and try again"
        return message, ExitCode.MACHINE
    kind = type(error).__name__
    detail = " ".join(str(error).split())
    message = (
        f"unexpected {kind}{f': {detail}' if detail else ''}; this is a fault of tfx, and "
        "TFX_TRACEBACK=1 shows where"
    )
    return message, ExitCode.FAILED


def _print_error(message: str, error: Exception) -> None:
    if os.environ.get("TFX_TRACEBACK") == "1":
        _write_error_line("".join(traceback.format_exception(error)).rstrip())
    lines = [*message.splitlines(), *getattr(error, "__notes__", [])]
    # A list of faults begins on its own line, so that every file:line can be clicked.
    separator = "\n" if len(lines) > 1 else " "
    _write_error_line(f"Error:{separator}" + "\n".join(lines))
