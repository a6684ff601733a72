"""Files that commands write for the user: refused before any work where they cannot be."""

import os
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigurationError

__all__ = ["check_output"]


def check_output(path: Path, suffixes: Sequence[str], *, what: str, overwrite: bool | None) -> None:
    """Check that a file can be written.

    Parameters
    ----------
    path
        Of ``--output``.
    suffixes
        That it may end in, the usual one first.
    what
        Is written, for the message ("cells").
    overwrite
        Whether a file that is there may be replaced; None where the command never does that.

    Raises
    ------
    ConfigurationError
        It is a folder, ends in something else, cannot be written, or exists.
    """
    usual = suffixes[0]
    if path.is_dir():
        message = f"--output {path} is a folder; give a file name, as in {path / f'cells{usual}'}"
        raise ConfigurationError(message)
    if path.suffix not in suffixes:
        message = (
            f"--output {path}: {what} are written as {' or '.join(suffixes)}; name it "
            f"{path.with_suffix(usual)}"
        )
        raise ConfigurationError(message)
    nearest = next(folder for folder in path.parents if folder.exists())  # the rest is made
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "may not be written to" if nearest.is_dir() else "is not a folder"
        message = f"--output {path}: {nearest} {reason}; choose another place"
        raise ConfigurationError(message)
    if path.exists() and not overwrite:
        or_overwrite = "" if overwrite is None else " or add --overwrite"
        message = f"--output {path} exists; choose another name{or_overwrite}"
        raise ConfigurationError(message)
