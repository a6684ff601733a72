"""The page of a package index: README.md without links that lead nowhere there.

An index shows README.md alone. With an address of the repository in ``[project.urls]`` of pyproject.toml,
``Source = "..."``, relative links and pictures lead there. tfx has no public address yet: until that line is
filled in, such links become plain text, and pictures are left out.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]\n]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)")


def index_page(readme: str, address: str | None) -> str:
    """Return the README with relative links that lead to the repository at ``address``, or without them."""

    def replace(link: re.Match[str]) -> str:
        if address is not None:
            kind = "raw" if link["picture"] else "blob"
            return f"{link['picture']}[{link['text']}]({address.rstrip('/')}/{kind}/HEAD/{link['path']})"
        return "" if link["picture"] else link["text"]

    return _LINK.sub(replace, readme)


if __name__ == "__main__":
    here = Path(__file__).parent
    project = tomllib.loads((here / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (here / "README.md").read_text(encoding="utf-8")
    page = index_page(readme, project.get("urls", {}).get("Source"))
    setup(long_description=page, long_description_content_type="text/markdown")
