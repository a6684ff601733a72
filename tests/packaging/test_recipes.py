"""Container recipes name files that exist, and copy all that the package is built from."""

import re
from pathlib import Path

from tests.packaging.test_wheel import SOURCES

ROOT = Path(__file__).parents[2]
NEEDED = {*SOURCES, "constraints.txt"}


def test_the_dockerfile_copies_what_the_package_is_built_from():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        copied |= set(sources)
    assert copied == NEEDED
    assert all((ROOT / name).exists() for name in copied)


def test_docker_is_not_shown_more_than_that():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == NEEDED


def test_the_apptainer_recipe_copies_the_same():
    text = (ROOT / "tfx.def").read_text(encoding="utf-8")
    (files,) = re.findall(r"^%files\n((?:    .*\n)+)", text, re.MULTILINE)
    pairs = [line.split() for line in files.splitlines()]
    assert {source for source, _ in pairs} == NEEDED
    assert all(target == f"/source/{source}" for source, target in pairs)


def test_both_recipes_build_on_the_tested_python():
    from core.doctor.packages import TESTED_PYTHON

    base = f"python:{'.'.join(map(str, TESTED_PYTHON))}-slim"
    assert (ROOT / "Dockerfile").read_text(encoding="utf-8").count(f"FROM {base}") == 2
    assert f"From: {base}\n" in (ROOT / "tfx.def").read_text(encoding="utf-8")
