"""Renaming, tagging and deleting runs; one that a process works on is left alone."""

import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigurationError, MachineError
from core.files import replace_file
from core.runlog.ownership import is_run_name, owned_run
from core.runlog.schema import TAGS_FILE
from core.runlog.work import read_work
from core.wording import naming_write_errors

#: Folder beside the runs that holds deleted ones.
TRASH = ".trash"
_LONGEST_TAG = 40  # characters


def rename_run(folder: Path, name: str) -> Path:
    """Give a run another name, and return its folder.

    ConfigurationError if the name is taken or cannot be that of a run, MachineError if the run is in use.
    """
    if not is_run_name(name):
        raise ConfigurationError(
            f"'{name}' cannot name a run: use letters, digits, '_', '.' or '-'"
        )
    target = folder.with_name(name)
    if target.exists():
        raise ConfigurationError(f"{target} exists; choose another name")
    _move(folder, target)
    return target


def delete_run(folder: Path) -> Path:
    """Move a run to the folder ``.trash`` beside it, and return its place there; MachineError if it is in use."""
    trash, number = folder.parent / TRASH, 1
    target = trash / folder.name
    while target.exists():
        number += 1
        target = trash / f"{folder.name}-{number}"
    _move(folder, target)
    return target


def _move(folder: Path, target: Path) -> None:
    if (work := read_work(folder, now=time.time())) is not None:
        raise MachineError(
            f"{folder} is {work.state} (process {work.record.get('pid')}); wait for it, or stop it first"
        )
    try:
        with owned_run(folder):
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
    except OSError as error:
        raise MachineError(f"{folder} cannot be moved to {target} ({error.strerror})") from error


def tag_run(folder: Path, tags: Sequence[str]) -> None:
    """Give a run these tags instead of those it has; ConfigurationError if one cannot be a tag."""
    for tag in tags:
        if not tag.isprintable() or not 0 < len(tag.strip()) <= _LONGEST_TAG or "," in tag:
            raise ConfigurationError(
                f"'{tag[:_LONGEST_TAG]}' cannot be a tag: use up to {_LONGEST_TAG} characters, and no comma"
            )
    path = folder / TAGS_FILE
    text = "".join(f"{tag}\n" for tag in dict.fromkeys(tag.strip() for tag in tags))
    with naming_write_errors(str(path)):
        if text:
            replace_file(path, text)
        else:
            path.unlink(missing_ok=True)
