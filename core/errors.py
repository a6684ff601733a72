"""Errors that a user can act on, one class per exit code.

The message says what is wrong, where, and what to do, in one sentence. It is raised where the
fault is known and printed in one place (`tfx_cli.output`).
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every `tfx` command."""

    DONE = 0
    FAILED = 1
    CONFIGURATION = 2
    MACHINE = 3
    DATA = 4
    STOPPED_EARLY = 75
    INTERRUPTED = 130


class TfxError(Exception):
    """Base of all errors meant for the user; the command failed.

    Each argument is a sentence, printed on a line of its own.
    """

    exit_code = ExitCode.FAILED

    def __str__(self) -> str:
        """Return the sentences, a line each."""
        return "\n".join(map(str, self.args))


class ConfigurationError(TfxError):
    """A preset, an option or a request is wrong."""

    exit_code = ExitCode.CONFIGURATION


class MachineError(TfxError):
    """The machine lacks what is needed: a device, memory, disk space, a package."""

    exit_code = ExitCode.MACHINE


class DataError(TfxError):
    """The cells, genes or labels are not fit for the request."""

    exit_code = ExitCode.DATA


class TrainingInterrupted(TfxError):
    """Training stopped early on request, after saving a checkpoint."""

    exit_code = ExitCode.STOPPED_EARLY
