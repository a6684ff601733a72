"""Documentation that cannot rot: links resolve, files exist, command lines parse."""

import re
import shlex
import tomllib

import pytest
import typer.main
from typer.exceptions import TyperException

from tests.docs.pages import (
    PAGES,
    ROOT,
    anchors,
    code_blocks,
    command_lines,
    links,
    mentioned_commands,
)
from tfx_cli.app import app
from tfx_cli.command_line import as_written

#: Options that act as soon as they are parsed: by changing the shell's start-up files, too.
ACTING = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
#: Faults of a command that is named, not given.
LEFT_OUT = {"MissingParameter", "NoArgsIsHelpError"}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_link_resolves(name):
    page = ROOT / name
    for target in links(read(name)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name):
    for path in re.findall(
        r"(?<![\w/])(?:docs|benchmarks|presets|core|tfx_cli)/[\w/.-]+\.(?:md|py|toml|yaml|png)\b",
        read(name),
    ):
        assert (ROOT / path).exists(), f"{name} names {path}"


@pytest.fixture(scope="module")
def command():
    return as_written(typer.main.get_command(app))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_parses_with_the_options_that_there_are(name, command):
    for arguments in command_lines(read(name)):
        parse(command, arguments)
    for arguments in mentioned_commands(read(name)):
        try:
            parse(command, arguments)
        except TyperException as error:  # 'tfx train' is a name, 'tfx trian' is a mistake
            if type(error).__name__ not in LEFT_OUT and "requires an argument" not in str(error):
                raise


def parse(command, arguments):
    """Parse as far as Typer goes before it calls a command."""
    arguments = [word for word in arguments if word not in ACTING]
    if not arguments:
        return
    context = command.make_context("tfx", arguments)
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, inner, rest = context.command.resolve_command(context, rest)
        context = inner.make_context(name, rest, parent=context)


def test_the_parser_of_these_tests_refuses_what_is_wrong(command):
    for line in ("trian x", "train base --stpes 3", "train a b", "runs lst", "eval --split moon"):
        with pytest.raises(TyperException):
            parse(command, shlex.split(line))
    text = (
        "`tfx train x`\n\n    tfx eval    says\n    $ tfx embed > x\n\n```bash\ntfx check x\n```\n"
    )
    assert command_lines(text) == [["eval"], ["embed"], ["check", "x"]]
    assert mentioned_commands(text) == [["train", "x"]]


def test_every_page_is_in_the_navigation_of_the_site():
    text = read("mkdocs.yml")
    listed = set(re.findall(r"[\w./-]+\.md", text.partition("\nnav:")[2]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert listed == pages | {
        f"notebooks/{page.stem}.md" for page in (ROOT / "docs/notebooks").glob("*.ipynb")
    }


def test_toml_blocks_are_toml():
    for name in NAMES:
        for block in code_blocks(read(name)):
            if block.kind == "toml":
                tomllib.loads(block.text)
