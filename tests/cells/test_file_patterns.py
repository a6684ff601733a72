import glob
from pathlib import Path

import pytest

from core.cells import file_patterns
from core.cells.file_patterns import check_overlap, expand_files
from core.errors import ConfigurationError, DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("c_0", "c_1", "c_2", "c_10", "c_00", "c_01", "lung", "liver"):
        (tmp_path / f"{name}.h5ad").touch()
    return tmp_path


def expand(folder, *patterns):
    found = expand_files([str(folder / pattern) for pattern in patterns])
    return [name.removeprefix(f"{folder}/").removesuffix(".h5ad") for name in found]


def test_braces_count_and_list(folder):
    assert expand(folder, "c_{0..2}.h5ad") == ["c_0", "c_1", "c_2"]
    assert expand(folder, "c_{00..01}.h5ad") == ["c_00", "c_01"]
    assert expand(folder, "{lung,liver}.h5ad") == ["lung", "liver"]
    assert expand(folder, "{lun,live}?.h5ad") == ["lung", "liver"]


def test_globs_come_in_natural_order(folder):
    assert expand(folder, "c_[12]*.h5ad") == ["c_1", "c_2", "c_10"]
    assert expand(folder, "l*.h5ad") == ["liver", "lung"]


def test_two_stars_look_into_folders_once(folder):
    for place in ("a", "a/b", ".hidden", "c.zarr"):
        (folder / place).mkdir()
        (folder / place / "x_2.h5ad").touch()
    (folder / "a" / "x_10.h5ad").touch()
    (folder / "a" / "up").symlink_to(folder)
    assert expand(folder, "**/x_*.h5ad") == ["a/b/x_2", "a/x_2", "a/x_10"]
    assert expand(folder, "a/**/x_2.h5ad") == ["a/b/x_2", "a/x_2"]
    assert expand(folder, "**/b/**/*.h5ad") == ["a/b/x_2"]


@pytest.mark.parametrize("pattern", ["x_{1..1000000000}", "x_{1..1000}{1..1000}{1..1000}"])
def test_braces_without_end_are_refused_at_once(pattern):
    with pytest.raises(ConfigurationError, match="its braces name more than 100,000 files"):
        expand_files([pattern])


@pytest.mark.parametrize("pattern", ["**/*.h5ad", "*/*/*", "{a,b}/*", "**", "*", "[a-b]/x*"])
def test_globs_look_at_a_bounded_number_of_files(tmp_path, monkeypatch, pattern):
    """A pattern may look at every entry once; whether they match makes no difference."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for number in range(4):
            (tmp_path / place / f"x{number}.h5ad").touch()
    monkeypatch.setattr(file_patterns, "_MOST_ENTRIES", 7 if "/" in pattern else 1)
    with pytest.raises(ConfigurationError, match=r"look at more than [17] files and folders; name"):
        expand(tmp_path, pattern)


def test_globs_find_what_glob_finds(tmp_path, monkeypatch):
    tmp_path = tmp_path / "root"
    tmp_path.mkdir()
    for place in ("a", "b", "b/c", ".hidden", "s.zarr", "b[1]"):
        (tmp_path / place).mkdir()
        for name in ("x.h5ad", "x1.h5ad", ".y.h5ad", "[z].h5ad", "é.h5ad"):
            (tmp_path / place / name).touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "b" / "gone.h5ad").symlink_to("absent")
    monkeypatch.chdir(tmp_path)
    patterns = (
        "*", "*/*", "?/x*", "b/*/x.h5ad", "*/c/[x-z]*", ".*/*", "*/.*", "b/[[]z].h5ad", "./*/é*",
        f"{tmp_path}/*/x.h5ad", "../r*/a/x?.h5ad", "*/gone.h5ad", "b[[]1]/*", "[!b]/*", "**s*/*.h5ad",
    )  # fmt: skip
    for pattern in patterns:
        wanted = glob.glob(str(Path(pattern)))  # noqa: PTH207 (the reference)
        assert wanted
        assert sorted(expand_files([pattern])) == sorted(wanted), pattern


def test_plain_paths_and_builtins_pass_through_unchecked():
    assert expand_files(["absent.h5ad", "builtin:atlas?cells=10"]) == [
        "absent.h5ad",
        "builtin:atlas?cells=10",
    ]


def test_an_existing_file_is_taken_literally(tmp_path):
    odd = tmp_path / "cells[1]{a,b}.h5ad"
    odd.touch()
    assert expand_files([str(odd)]) == [str(odd)]


def test_a_pattern_that_matches_nothing_is_named(folder):
    with pytest.raises(DataError, match=r"x_\*\.h5ad: no file matches this pattern"):
        expand(folder, "x_*.h5ad")


def test_a_missing_shard_is_an_error_not_a_smaller_dataset(folder):
    with pytest.raises(DataError, match=r"1 of the 4 files it names do not exist .*c_3\.h5ad"):
        expand(folder, "c_{0..3}.h5ad")


def test_a_file_listed_twice_is_refused(folder):
    with pytest.raises(ConfigurationError, match="listed twice"):
        expand(folder, "lung.h5ad", "l*.h5ad")
    with pytest.raises(ConfigurationError, match="listed twice"):
        expand_files(["builtin:atlas", "builtin:atlas"])


def test_a_file_in_training_and_test_is_refused(folder):
    lung = str(folder / "lung.h5ad")
    with pytest.raises(ConfigurationError, match=r"lung\.h5ad: is in data\.files and in data\."):
        check_overlap({"data.files": [lung], "data.test_files": [f"{folder}/./lung.h5ad"]})
