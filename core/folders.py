"""Folders that several processes use: locked by one at a time, found again when moved, replaced whole.

Run folders, stores that are being prepared and unfinished output files are claimed by a lock file, which
is freed when its process ends in any way, before anything else is done. The lock is the system's (flock).
A file system that has none gets a file that names its process instead.
"""

import errno
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from core.errors import DataError, MachineError

if sys.platform == "darwin":
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
#: Behind the name of the lock where the file system has no locks, and what such systems answer.
_SOFT = ".soft"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO)
#: Of the folder in which an output file is written.
_UNFINISHED = ".tfx-partial"
_POLL_SECONDS = 0.5
#: Times that a folder may vanish between making and locking it.
_MOST_VANISHED = 100
_T = TypeVar("_T")


class FolderInUseError(Exception):
    """Another process holds the lock of a folder."""


class LockedFolder:
    """A folder whose lock this process holds."""

    def __init__(self, path: Path, lock: str) -> None:
        self.path = path
        self._locks = (lock, lock + _SOFT)
        self._identity = _identity(path)

    def clear(self) -> None:
        """Remove everything but the lock, as far as possible."""
        for path in self.path.iterdir():
            if path.name in self._locks:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, its lock last; nothing if it was moved meanwhile."""
        with suppress(OSError):  # the next process may have claimed it before it is gone
            if _identity(self.path) != self._identity:
                return
            self.clear()
            self.remove_lock()
            self.path.rmdir()

    def remove_lock(self) -> None:
        """Remove the lock, which is not needed any more; who waits for it makes another."""
        for name in self._locks:
            (self.path / name).unlink(missing_ok=True)


@contextmanager
def locked_folder(
    path: Path,
    *,
    lock: str = LOCK_FILE,
    is_private: bool = False,
    on_wait: Callable[[], object] | None = None,
) -> Iterator[LockedFolder]:
    """Hold the lock of a folder, which is made if it is absent, while the block runs.

    With ``on_wait`` this waits for another process, and calls it once. A private folder is open to its
    owner alone (mode 0700), and must belong to the user of this process.

    Raises
    ------
    FolderInUseError
        Another process holds the lock, and ``on_wait`` is None.
    MachineError
        A private folder is a link, or belongs to another user.
    OSError
        The folder cannot be made or locked.
    """
    n_vanished = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir(mode=0o700 if is_private else 0o777)
            if is_private:
                _check_private(path)
            held = _acquire(path / lock)
            break
        except FolderInUseError:
            if on_wait is None:
                raise
            on_wait()
            on_wait = bool  # once
            time.sleep(_POLL_SECONDS)
        except FileNotFoundError:
            n_vanished += 1  # its last owner removed the folder meanwhile
            if n_vanished > _MOST_VANISHED:
                raise
    try:
        if is_private:
            _check_private(path)  # it may have been made anew
        yield LockedFolder(path, lock)
    finally:
        held.release()


@contextmanager
def writing_output(target: Path) -> Iterator[Path]:
    """Give a path to write a large file, or a folder, at; it is moved to ``target`` when the block ends well.

    One process at a time writes a target. What killed processes left unfinished beside it is removed.

    Raises
    ------
    MachineError
        Another process writes the target, or its unfinished file belongs to another user.
    OSError
        The target cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".*{_UNFINISHED}"):
        with (
            suppress(FolderInUseError, MachineError, OSError),
            locked_folder(left, is_private=True) as held,
        ):
            held.remove()
    try:
        with locked_folder(
            target.with_name(f".{target.name}{_UNFINISHED}"), is_private=True
        ) as held:
            try:
                new = held.path / target.name
                yield new
                if new.is_dir() and target.is_dir():  # .zarr
                    shutil.rmtree(target)
                new.replace(target)
            finally:
                held.remove()
    except FolderInUseError:
        raise MachineError(
            f"another process is writing {target}; wait for it, or choose another name"
        ) from None


def read_settled(folder: Path, read: Callable[[Path], _T]) -> _T:
    """Return what ``read`` makes of a folder; once more if the folder was replaced meanwhile.

    A folder that is replaced whole (a model folder, during training) is absent for a moment, and what
    was read before and after that moment belongs to two folders.
    """
    before = _identity(folder)
    try:
        return read(folder)
    except DataError:
        if not is_settled(folder) or _identity(folder) == before:
            raise
    return read(folder)


def is_settled(folder: Path) -> bool:
    """Return whether a folder is there, after waiting a moment for one that is being replaced."""
    for _ in range(20):
        if folder.is_dir():
            return True
        if not any(folder.parent.glob(f".{folder.name}.old-*")):
            break
        time.sleep(0.05)
    return folder.is_dir()


class DirectoryHandle:
    """An open folder, which can be found again after it was moved on its disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY) if os.name == "posix" else -1

    def find(self) -> Path | None:
        """Return where the folder is now; None if it was removed, or the system does not say where it is."""
        if self._handle < 0:
            return self.path
        own = os.fstat(self._handle)
        for path in (self.path, _path_of(self._handle)):
            with suppress(OSError):
                if path is not None and os.path.samestat(path.stat(), own):
                    self.path = path
                    return path
        return None

    def close(self) -> None:
        """Close the handle."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _path_of(handle: int) -> Path | None:
    """Ask the system for the path of an open folder, from here if it is below here."""
    path = None
    with suppress(OSError):
        if sys.platform == "darwin":
            path = Path(
                os.fsdecode(fcntl.fcntl(handle, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
            )
        else:
            path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_relative_to(Path.cwd()):
            return path.relative_to(Path.cwd())
    return path


def _acquire(path: Path) -> BaseFileLock:
    """Take a lock at once; FolderInUseError if another process has it."""
    lock: BaseFileLock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        try:
            lock.acquire()
        except Timeout:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            soft = path.with_name(path.name + _SOFT)
            logger.warning(
                "%s: the file system has no locks (%s); %s keeps other processes away. If a process "
                "is killed on another machine, delete that file",
                path.parent,
                error.strerror,
                soft.name,
            )
            lock = SoftFileLock(soft, timeout=0)
            lock.acquire()
    except Timeout:
        raise FolderInUseError(path.parent) from None
    return lock


def _check_private(path: Path) -> None:
    """Close a folder to other users; MachineError if one of them may have filled it."""
    status = path.lstat()
    other = ""
    if not stat.S_ISDIR(status.st_mode):
        other = "is no folder"
    elif hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        # Some file systems give all files to one user.
        with tempfile.TemporaryFile(dir=path.parent) as own:
            if os.fstat(own.fileno()).st_uid != status.st_uid:
                other = f"belongs to another user ({status.st_uid})"
    if other:
        raise MachineError(f"{path}: {other}; remove it, or choose another name for the output")
    if status.st_mode & 0o077:
        with suppress(OSError):
            path.chmod(0o700)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
