import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from core.files import (
    file_bytes,
    file_json,
    open_file,
    plain_json,
    replace_file,
    replacing,
    sha256_of,
)
from core.wording import did_you_mean, duration, listed, percentage, size


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "status.json"
    replace_file(path, "old é")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.unlink()  # nothing was written
    assert path.read_bytes() == "old é".encode()
    replace_file(path, b"new")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("status.json", b"new")]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_what_may_never_end_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name in ("pipe", "zero", "socket"):
        for read in (open_file, file_bytes, file_json, sha256_of):
            with pytest.raises(OSError, match="it is a pipe, a device or a socket"):
                read(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        open_file(tmp_path / "loop")


def test_a_file_that_is_read_whole_has_bounded_size_and_depth(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no disk
    with pytest.raises(OSError, match="more than 100 million bytes"):
        file_json(path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        file_json(path)


def test_plain_json_takes_numpy_sets_paths_and_objects():
    value = {1: np.array([1.0, np.inf]), "s": {"b", "a"}, "p": Path("x"), "b": np.array([1]).any()}
    nonfinite = []
    plain = plain_json(value, nonfinite=nonfinite)
    assert plain == {"1": [1.0, None], "s": ["a", "b"], "p": "x", "b": True}
    assert nonfinite == ["1[1]"]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1250, "1.25 kB"),
        (466_000, "466 kB"),
        (80e9, "80 GB"),
        (25.3e12, "25.3 TB"),
        (1e19, "10000 PB"),
    ],
)
def test_sizes_have_the_unit_that_fits(n_bytes, text):
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (1, 9_999, "under 0.1 %"),
        (9_999, 10_000, "99.9 %"),
        (1, 3, "33 %"),
        (1, 20, "5.0 %"),
    ],
)
def test_only_exact_percentages_are_0_and_100(part, whole, text):
    assert percentage(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (12.4, "12 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (5400, "1.5 h"),
     (86400, "24.0 h"), (2 * 86400, "2.0 d")],
)  # fmt: skip
def test_times_have_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_lists_and_suggestions_in_words():
    assert listed(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert did_you_mean("lung ", ["lung", "liver"]) == "did you mean 'lung'?"
    assert did_you_mean("x", ["lung"]) == ""
