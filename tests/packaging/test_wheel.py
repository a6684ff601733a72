"""sdist and wheel: built from nothing but the source, installed where the source is not."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from core import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "tfx_cli", "presets", "transformerics")
#: What building takes; tests, docs and benchmarks are not among it.
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *PACKAGES)
SDIST, WHEEL = f"transformerics-{__version__}", f"transformerics-{__version__}-py3-none-any.whl"


def build(kind, source, output):
    """Build as `pip` does, with the setuptools of this environment."""
    program = f"from setuptools import build_meta as b; b.build_{kind}({str(output)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel, made from the unpacked sdist, which is made from a copy of the sources."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    build("sdist", source, folder)
    with tarfile.open(folder / f"{SDIST}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    build("wheel", folder / SDIST, folder)
    return folder / WHEEL


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Make an environment of the wheel and our dependencies, which does not know the source tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(folder), "platbase": str(folder)})
    packages = Path(paths["purelib"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # A path, not an environment: its own .pth files, the editable install among them, do not count.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Path(paths["scripts"]) / "python"


def run_installed(environment, folder, *arguments):
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TFX_"))
    }
    return subprocess.run(
        [environment, "-P", *arguments], cwd=folder, env=clean, capture_output=True, text=True
    )


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.partition("/")[0] in PACKAGES}
    source = wheel.parent / "source"
    expected = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and ("pages" not in path.parts or path.suffix == ".md")
    }
    assert packed == expected


def test_the_metadata_name_licence_command_and_readme(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"transformerics-{__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "License-Expression: MIT\n" in metadata
    assert "# tfx" in metadata
    assert not re.search(r"\]\((?![a-z]+:|#)", metadata)  # an index shows no other file
    assert "tfx = tfx_cli.app:main" in entry_points


def test_the_installed_command_runs_without_the_source_tree(environment, tmp_path):
    tfx = ("-m", "tfx_cli")
    version = run_installed(environment, tmp_path, *tfx, "--version")
    assert (version.returncode, version.stdout) == (0, f"tfx {__version__}\n"), version.stderr
    program = "import transformerics, core; print(transformerics.__file__, core.__file__)"
    where = run_installed(environment, tmp_path, "-c", program)
    assert str(ROOT) not in where.stdout
    assert str(environment.parents[1]) in where.stdout
    listed = run_installed(environment, tmp_path, *tfx, "presets", "list")
    for path in (ROOT / "presets").rglob("*.toml"):
        assert path.stem in listed.stdout
    assert run_installed(environment, tmp_path, *tfx, "presets", "show", "base").returncode == 0
    page = run_installed(environment, tmp_path, *tfx, "docs", "training")
    assert page.stdout == (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert not list(tmp_path.iterdir())


def test_links_of_the_readme_lead_to_the_repository_on_a_package_index():
    index_page = runpy.run_path(str(ROOT / "setup.py"))["index_page"]
    readme = "![Cells](docs/c.png) [Install](docs/i.md#a) [AnnData](https://a.org) [below](#x)"
    assert index_page(readme, "https://h.org/o/r") == (
        "![Cells](https://h.org/o/r/raw/HEAD/docs/c.png) "
        "[Install](https://h.org/o/r/blob/HEAD/docs/i.md#a) [AnnData](https://a.org) [below](#x)"
    )
    assert index_page(readme, None) == " Install [AnnData](https://a.org) [below](#x)"


@pytest.mark.slow
def test_the_installed_package_trains_evaluates_and_generates(environment, tmp_path):
    commands = [
        ["train", "base", "--set", "data.files=builtin:atlas?cells=600&seed=0", "--set", "data.genes=24",
         "--set", "train.log_linear_steps=0", "--steps", "4", "--device", "cpu"],
        ["eval", "--baselines", "none", "--max-cells", "20"],
        ["generate", "-n", "3", "-o", "cells.h5ad"],
    ]  # fmt: skip
    program = f"from tfx_cli.app import run; raise SystemExit(any([run(c) for c in {commands}]))"
    done = run_installed(environment, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cells.h5ad").is_file()
