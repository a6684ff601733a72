"""How a command ends: every error becomes one sentence on stderr, and an exit code."""

import errno
import os
import re
import traceback
from collections.abc import Callable

from core.errors import ExitCode, TfxError, TrainingInterrupted
from core.wording import visible
from tfx_cli.output import print_error

#: Lines of an error.
_MOST_ERRORS = 50
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HDF5_ERRNO = re.compile(r"filename = (?P<file>'[^']*').*?errno = (?P<errno>\d+)", re.DOTALL)

_kept_errors: list[Exception] = []


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
                print_error("Interrupted.")
            return int(code)
        print_error(str(stop.code))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print_error("Interrupted.")
        return ExitCode.INTERRUPTED
    except TrainingInterrupted as stop:
        message = str(stop)
        print_error(message[:1].upper() + message[1:])  # requested: not an error
        return stop.exit_code
    except TfxError as error:
        return _report_error(error, [str(one) for one in error.args], error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes one sentence
        sentence, code = explain(error)
        return _report_error(error, [sentence], code)
    return ExitCode.DONE


def _report_error(error: Exception, sentences: list[str], code: ExitCode) -> int:
    if os.environ.get("TFX_TRACEBACK") == "1":
        print_error("".join(traceback.format_exception(error)).rstrip(), lines=True)
    sentences = [*sentences, *getattr(error, "__notes__", [])]
    if (more := len(sentences) - _MOST_ERRORS - 1) > 0:
        sentences[_MOST_ERRORS:] = [f"and {more + 1:,} more errors"]
    # A list of errors begins on its own line, so that every file:line can be clicked.
    separator = "\n" if len(sentences) > 1 else " "
    print_error(f"Error:{separator}" + "\n".join(map(visible, sentences)), lines=True)
    if code == ExitCode.MACHINE:
        # Its frames hold HDF5 files: one that a full disk cut short crashes the process when it
        # is freed. `tfx_cli.app.main` ends without freeing anything.
        _kept_errors.append(error)
    return code


def explain(error: Exception) -> tuple[str, ExitCode]:
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
