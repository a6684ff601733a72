"""Everything `tfx` prints: results on stdout, narration on stderr.

Every string goes through `core.wording.visible`: labels and names of other people's files cannot give the
terminal commands.

The only module that writes to stdout. A command ends by one call of `print_result`; everything else goes
through `narrate`, `warn`, `show_progress` of `progress.py` or a logger. rich is imported where it draws (20 to
60 ms): most lines need no drawing.
"""

import contextlib
import itertools
import json
import logging
import os
import shutil
import string
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

from core.errors import ConfigurationError
from core.wording import visible

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.table import Column, Table
    from rich.text import Text

#: A part of a result for people: a string, a rich object, or a list of both.
Paragraph: TypeAlias = "RenderableType | list[RenderableType]"

#: Loggers of the commands and of all others; `core` has its own, below "core".
_NARRATOR = logging.getLogger("tfx_cli")
_LOGGERS = ("", "core", "tfx_cli", "py.warnings")
#: Columns of a table that goes to a file or a pipe, where nothing is cut to a window.
_FILE_WIDTH = 400
#: Columns of the terminal between two columns of a table.
TABLE_GAP = 3
#: Characters after which a cell of a table, and a line or a sentence, lose their middle.
_LONGEST_CELL, _LONGEST_LINE = 1_000, 4_000

_live: "Console | None" = None  # the console that draws progress bars at the moment, if any


# -- results
class Document(str):
    """A result that another program may read: TOML, JSON, CSV. Its lines are printed whole."""

    __slots__ = ()


def print_result(
    name: str,
    data: Mapping[str, object],
    *,
    as_json: bool,
    text: "Callable[[], Iterator[Paragraph] | Paragraph]",
    version: int = 1,
) -> None:
    """Print the result of a command.

    JSON has ``"schema": "tfx.NAME/VERSION"`` (a change of meaning raises the version) and the
    data, numbers that are not finite as null. Otherwise ``text`` makes the form for people: one
    paragraph, or several with an empty line between them.
    """
    if as_json:
        from core.files import plain_json

        document = {"schema": f"tfx.{name}/{version}", **plain_json(data)}
        print_json(document)
        return
    made = text()
    is_first = True
    for paragraph in made if isinstance(made, Iterator) else [made]:
        parts = paragraph if isinstance(paragraph, list) else [paragraph]
        if parts and not is_first:
            print_text("")
        is_first = is_first and not parts
        for part in parts:
            if isinstance(part, str):
                print_text(part)
            else:
                _print_drawing(part)


def print_json(document: object) -> None:
    """Print a JSON document to stdout."""
    text = json.dumps(document, indent=2, allow_nan=False)
    print_text(
        Document(text.replace("\x7f", "\\u007f"))
    )  # the one control character that json keeps


def print_text(text: str) -> None:
    """Print text to stdout, control characters as such; long lines are cut and wrapped, but of a `Document`."""
    if isinstance(text, Document):
        _write(visible(text, lines=True, most=None))
    else:
        _write(_wrapped(visible(text, lines=True, most=_LONGEST_LINE), sys.stdout))


def _wrapped(text: str, stream: TextIO) -> str:
    """Break lines that are longer than a terminal between words; its own breaks split words."""
    if stream.closed or not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" -")))
        parts = textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += parts if len(line) > width else [line]
    return "\n".join(lines)


def _write(text: str) -> None:
    if not text.endswith("\n"):
        text += "\n"
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:  # a terminal of another alphabet
            encoding = sys.stdout.encoding or "ascii"
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()  # a closed pipe shows here
    except BrokenPipeError:  # the reader wants no more, as in 'tfx runs list | head -1'
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Send a standard stream that nothing reads any more to the null device, with what it still holds."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _print_drawing(drawing: "RenderableType") -> None:
    from rich.console import Console
    from rich.segment import Segment, Segments

    width = None if sys.stdout.isatty() else _FILE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)
    drawn = console.render(_as_fits(drawing, console.width))
    parts = [Segment(visible(one.text, lines=True), one.style) for one in drawn if not one.control]
    with console.capture() as capture:
        console.print(Segments(parts), end="", crop=False)
    _write("\n".join(line.rstrip() for line in capture.get().split("\n")).rstrip("\n"))


def _as_fits(drawing: "RenderableType", width: int) -> "RenderableType":
    """Return a drawing; of a table that is too wide parts, each with its labels, so that no word is split."""
    from rich.console import Group
    from rich.table import Table

    from tfx_cli.formatting import column_groups

    if not isinstance(drawing, Table):
        return drawing
    least = [_least_width(column) for column in drawing.columns]
    if sum(least) + TABLE_GAP * (len(least) - 1) <= width:
        return drawing
    n_labels = next((n for n, one in enumerate(drawing.columns) if one.justify == "right"), 1) or 1
    parts: list[RenderableType] = []
    for group in column_groups(least, n_labels, room=width, gap=TABLE_GAP):
        shown = [drawing.columns[one] for one in [*range(n_labels), *group]]
        part = make_table(
            [column.header for column in shown],
            zip(*(column.cells for column in shown), strict=True),
            right=[place for place, column in enumerate(shown) if column.justify == "right"],
        )
        if parts:
            parts.append("")
        elif drawing.title is not None:
            parts.append(drawing.title)
        parts.append(part)
    return Group(*parts)


def _least_width(column: "Column") -> int:
    """Return the columns of the terminal below which a value or a word of a table would be split."""
    texts = [str(one) for one in (column.header, *column.cells)]
    pieces = [text.split("\n" if column.no_wrap else None) for text in texts]
    return max((len(piece) for piece in itertools.chain(*pieces)), default=0)


def make_table(
    columns: Sequence[object],
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

    rows = [list(row) for row in rows]
    table = Table(
        title=_cell(title) if title else None,
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
        justify: Literal["left", "right"] = "right" if is_flush_right else "left"
        table.add_column(_cell(column), justify=justify, no_wrap=is_flush_right)
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


class _CellFormat(string.Formatter):
    """Formats values; one that is not known, or not a number, is empty."""

    def format_field(self, value: Any, format_spec: str) -> str:  # noqa: ANN401 - as format takes it
        return (
            "" if value is None or value != value else str(super().format_field(value, format_spec))
        )


def formatted(form: str, record: Mapping[str, Any]) -> str:
    """Write values of a record in a form such as ``"{mean:.1f} (sd {sd:.1f})"``."""
    return _CellFormat().vformat(form, (), record)


def record_table(
    columns: Mapping[str, str],
    records: Iterable[Mapping[str, Any]],
    *,
    right: Collection[int] | None = None,
) -> "Table":
    """Make a table of records: head -> format of a cell, as ``"{shift:+.2f}"``; all but the first flush ``right``."""
    rows = [[formatted(cell, one) for cell in columns.values()] for one in records]
    return make_table(list(columns), rows, right=range(1, len(columns)) if right is None else right)


def _cell(value: object) -> "Text":
    from rich.text import Text

    if isinstance(value, Text):
        shown = visible(value.plain, lines=True, most=_LONGEST_CELL)
        return value if shown == value.plain else Text(shown, style=value.style)
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return Text(visible(text, most=_LONGEST_CELL))


# -- narration
def narrate(message: str) -> None:
    """Print a line about the work on stderr; nothing under --quiet."""
    _NARRATOR.info("%s", message)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    _NARRATOR.warning("%s", message)


def confirm(question: str, *, refusal: str) -> None:
    """Ask on the terminal; ConfigurationError unless the answer is yes, with ``refusal`` where nobody can answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError(refusal)
    print_error(f"{question} [y/N]")
    try:
        answer = input()
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigurationError("nothing was deleted")


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
        print_error(message, lines=record.name == "py.warnings")


@contextlib.contextmanager
def lines_above(console: "Console") -> Iterator[None]:
    """Print lines above what a console draws meanwhile."""
    global _live
    before, _live = _live, console
    try:
        yield
    finally:
        _live = before


def print_error(message: str, *, lines: bool = False) -> None:
    """Print a sentence, or with ``lines`` several lines, on stderr, above the progress bars."""
    message = _wrapped(visible(message, lines=lines, most=_LONGEST_LINE), sys.stderr)
    if _live is not None:
        from rich.text import Text

        _live.print(Text(message), soft_wrap=True)
        return
    try:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
    except BrokenPipeError:  # as in 'tfx train base 2>&1 | head'
        _discard(sys.stderr)
    except (OSError, ValueError):  # it may be closed
        pass


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
