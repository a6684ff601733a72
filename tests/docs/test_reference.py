"""The generated pages of docs/ say what the code says."""

import re
import runpy

import pytest

from core import __version__
from core.renamed import OPTIONS, PRESET_FOLDERS, PRESET_KEYS, REMOVED_PRESET_KEYS
from tests.docs.pages import ROOT

PAGES = runpy.run_path(str(ROOT / ".ci/generate_reference.py"))["pages"]()


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_code_says(name):
    is_current = (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name]
    assert is_current, f"docs/{name} is old: run '.venv/bin/python .ci/generate_reference.py'"


def test_the_release_notes_list_what_was_renamed_and_removed():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (notes,) = re.findall(rf"^## \[{re.escape(__version__)}\].*?(?=^## |\Z)", text, re.M | re.S)
    (renamed,) = re.findall(r"^### Renamed\n.*?(?=^### )", notes, re.M | re.S)
    for old, new in {**PRESET_KEYS, **OPTIONS}.items():
        assert f"`{old}`" in renamed
        assert f"`{new}`" in renamed
    for name in (*REMOVED_PRESET_KEYS, *PRESET_FOLDERS, *PRESET_FOLDERS.values()):
        assert name in renamed
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
