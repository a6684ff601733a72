"""`tfx docs`: the pages of the documentation, which the package carries."""

import sys
from collections.abc import Iterator
from pathlib import Path

from core.errors import ConfigurationError
from core.wording import did_you_mean
from tfx_cli.command_line import argument
from tfx_cli.options import JSON_OUTPUT
from tfx_cli.output import Document, Paragraph, make_table, print_result

#: The folder docs/ of the sources, as the package carries it.
_PAGES = Path(__file__).parent / "pages"


def docs(
    page: str | None = argument("[PAGE]", "The page to print; default: a list.", default=None),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Print a page of the documentation, or the list of pages.

    On a terminal the page is laid out; in a file or a pipe it is Markdown.

    Examples
    --------
    tfx docs
    tfx docs training
    tfx docs training | less
    """
    pages = {path.stem: path for path in sorted(_PAGES.rglob("*.md"))}
    titles = {name: _title(path) for name, path in pages.items()}
    if page is None:
        print_result(
            "docs",
            {"pages": titles},
            as_json=as_json,
            text=lambda: make_table(["page", "about"], list(titles.items())),
        )
        return
    name = Path(page).name.removesuffix(".md")
    if name not in pages:
        hint = did_you_mean(name, pages) or "'tfx docs' lists the pages"
        raise ConfigurationError(f"there is no page '{page}'; {hint}")
    text = pages[name].read_text(encoding="utf-8")
    print_result(
        "docs",
        {"page": name, "title": titles[name], "markdown": text},
        as_json=as_json,
        text=lambda: _page(text),
    )


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return next((line.lstrip("# ").strip() for line in file if line.startswith("# ")), "")


def _page(text: str) -> Iterator[Paragraph]:
    if not sys.stdout.isatty():
        yield Document(text)
        return
    from rich.markdown import Markdown

    yield Markdown(text)
