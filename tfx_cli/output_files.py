"""Files that commands write for the user: refused before any work where they cannot be."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigurationError

__all__ = ["check_output", "check_output_folder"]


def check_output(
    path: Path,
    suffixes: Sequence[str],
    *,
    what: str,
    overwrite: bool | None,
    option: str = "--output",
) -> None:
    """Check that a file can be written.

    Parameters
    ----------
    path
        Of the option.
    suffixes
        That it may end in, the usual one first.
    what
        Is written, for the message ("cells").
    overwrite
        Whether a file that is there may be replaced; None where the command never does that.

    option
        That gave the path, for the message.

    Raises
    ------
    ConfigurationError
        It is a folder, ends in something else, cannot be written, or exists.
    """
    usual = suffixes[0]
    if path.is_dir():
        message = f"{option} {path} is a folder; give a file name, as in {path / f'cells{usual}'}"
        raise ConfigurationError(message)
    if path.suffix not in suffixes:
        message = (
            f"{option} {path}: {what} are written as {' or '.join(suffixes)}; name it "
            f"{path.with_suffix(usual)}"
        )
        raise ConfigurationError(message)
    _check_place(path, option)
    if path.exists() and not overwrite:
        or_overwrite = "" if overwrite is None else " or add --overwrite"
        message = f"{option} {path} exists; choose another name{or_overwrite}"
        raise ConfigurationError(message)


def check_output_folder(path: Path, *, option: str = "--output") -> None:
    """Check that files can be written into a folder, which is made where it is not there.

    Raises
    ------
    ConfigurationError
        It is a file, or may not be made or written to.
    """
    if path.exists() and not path.is_dir():
        message = f"{option} {path} is a file; give a folder"
        raise ConfigurationError(message)
    _check_place(path, option)


def _check_place(path: Path, option: str) -> None:
    """Refuse a path whose nearest folder takes no new file; what is missing of it is made."""
    nearest = next(folder for folder in path.parents if folder.exists())
    named = "this folder" if nearest == Path() else nearest
    reason = None if nearest.is_dir() else "is not a folder"
    if reason is None:
        try:
            # Not os.access: a read-only or virtual file system shows only when written to.
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            reason = f"may not be written to ({error.strerror})"
    if reason is not None:
        message = f"{option} {path}: {named} {reason}; choose another place"
        raise ConfigurationError(message)
