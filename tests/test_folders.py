"""Folders that several processes use: one owner at a time, nothing left behind, found when moved."""

import errno
import os
import shutil
import subprocess
import sys
import threading

import pytest

from core import folders
from core.errors import DataError, MachineError
from core.folders import (
    DirectoryHandle,
    FolderInUseError,
    is_settled,
    locked_folder,
    read_settled,
    writing_output,
)

posix = pytest.mark.skipif(os.name == "nt", reason="links, owners and locks as POSIX has them")


def test_a_folder_has_one_owner_and_is_gone_when_it_says_so(tmp_path):
    path = tmp_path / "a" / "b"
    with locked_folder(path) as held:
        with pytest.raises(FolderInUseError), locked_folder(path):
            pass
        (path / "file").touch()
        (path / "folder").mkdir()
        held.remove()
    assert list((tmp_path / "a").iterdir()) == []
    with locked_folder(path):
        pass


def test_who_waits_gets_the_folder_even_if_it_is_removed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_POLL_SECONDS", 0.01)
    waiting, seen = threading.Event(), []

    def wait_for_it():
        with locked_folder(tmp_path / "a", on_wait=waiting.set):
            seen.append(sorted(path.name for path in (tmp_path / "a").iterdir()))

    with locked_folder(tmp_path / "a") as held:
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert waiting.wait(10)
        (tmp_path / "a" / "file").touch()
        held.remove()
    thread.join(10)
    assert seen == [[".lock"]]


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS])
def test_a_file_system_without_locks_gets_a_file_that_names_the_owner(
    tmp_path, monkeypatch, caplog, number
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with locked_folder(tmp_path / "a"):
        assert str(os.getpid()) in (tmp_path / "a" / ".lock.soft").read_text()
        assert f"has no locks ({os.strerror(number)})" in caplog.text
        with pytest.raises(FolderInUseError), locked_folder(tmp_path / "a"):
            pass
    # One whose process has died on this machine counts no more.
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    with locked_folder(tmp_path / "a"):
        own = (tmp_path / "a" / ".lock.soft").read_text()
    left = own.splitlines()[:2]
    (tmp_path / "a" / ".lock.soft").write_text(f"{dead.stdout.strip()}\n{left[1]}\n")
    with locked_folder(tmp_path / "a") as held:
        held.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_output_has_one_writer_and_leftovers_of_dead_ones_go(tmp_path):
    dead = tmp_path / ".other.h5ad.tfx-partial"
    dead.mkdir(mode=0o700)
    (dead / "other.h5ad").write_bytes(b"half")
    target = tmp_path / "cells.h5ad"
    with writing_output(target) as path:
        assert not dead.exists()
        path.write_text("whole")
        with (
            pytest.raises(MachineError, match=r"another process is writing .*cells\.h5ad"),
            writing_output(target),
        ):
            pass
        with writing_output(tmp_path / "another.h5ad") as other:
            other.write_text("another")
        assert not target.exists()
    with pytest.raises(IsADirectoryError), writing_output(target) as path:
        path.parent.write_text("fails")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {
        "cells.h5ad": "whole",
        "another.h5ad": "another",
    }


@posix
def test_an_output_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with writing_output(tmp_path / "cells.h5ad") as path:
            path.write_text("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "cells.h5ad").stat().st_mode & 0o777 == 0o640


@posix
def test_a_folder_that_was_moved_is_found_by_its_handle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    handle = DirectoryHandle(tmp_path / "a")
    assert handle.find() == tmp_path / "a"
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()  # another one of that name
    assert handle.find().resolve() == tmp_path / "b"
    shutil.rmtree(tmp_path / "b")
    assert handle.find() is None
    handle.close()


def test_a_folder_replaced_while_it_is_read_is_read_again(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    calls = []

    def read(folder):
        calls.append(folder)
        if len(calls) == 1:
            folder.rename(tmp_path / ".model.old-1")
            (tmp_path / "new").mkdir()
            threading.Timer(0.1, lambda: (tmp_path / "new").rename(path)).start()
            raise DataError("half of it")
        return "read"

    assert read_settled(path, read) == "read"
    assert len(calls) == 2

    def damaged(folder):
        calls.append(folder)
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        read_settled(path, damaged)
    assert len(calls) == 3
    assert not is_settled(tmp_path / "absent")
