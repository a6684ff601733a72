"""The generated pages of docs/ say what the code says."""

import runpy

import pytest

from tests.docs.pages import ROOT

PAGES = runpy.run_path(str(ROOT / ".ci/generate_reference.py"))["pages"]()


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_code_says(name):
    is_current = (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name]
    assert is_current, f"docs/{name} is old: run '.venv/bin/python .ci/generate_reference.py'"
