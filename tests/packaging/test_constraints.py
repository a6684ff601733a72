"""The two sets of versions that were tested agree with what pyproject.toml asks for."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: Not tested at their oldest: torch has no CPU build of it, and ruff formats as one version does.
NOT_OLDEST = {"torch", "ruff"}


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["test"], *extras["dask"], *extras["dev"]]
    found = [Requirement(text) for text in texts]
    return [one for one in found if one.name != "transformerics"]


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_tested_versions_are_ones_that_are_asked_for(name):
    tested = pins(name)
    assert {one.name for one in requirements()} <= set(tested)
    assert [
        str(one) for one in requirements() if Version(tested[one.name]) not in one.specifier
    ] == []


def test_the_oldest_set_holds_what_is_asked_for_at_least():
    tested = pins("constraints-oldest.txt")
    for one in requirements():
        if one.name in NOT_OLDEST:
            continue
        (least,) = [part.version for part in one.specifier if part.operator in (">=", "==")]
        release = Version(least).release
        assert Version(tested[one.name]).release[: len(release)] == release, str(one)
