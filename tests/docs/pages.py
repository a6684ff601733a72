"""Reading the documentation: code blocks, links, headings, command lines."""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
_FENCE = re.compile(r"^```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|\n\n)(?P<text>(?:    .*(?:\n|\Z)|\n(?=    ))+)")
_PROGRAMS = ("tfx ", "pip ", "python", "accelerate ", "docker ", "cell-eval ", "srun ")
_INLINE = re.compile(r"(?<!`)`(tfx [^`\n]+)`(?!`)")
#: Where a command line ends: an explanation behind it, a redirection, another command.
_END = re.compile(r"\s{2,}(?=\S)|\s+[#>|;&](?:\s|$)|\s+2>")


@dataclass(frozen=True)
class Block:
    """A block of code; indented ones and those that name no language have the kind "bash"."""

    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Command lines to run; none in a block that shows output, a formula or a file."""
        lines = [line.strip().removeprefix("$ ") for line in self.text.splitlines()]
        if self.kind != "bash" or not any(line.startswith(_PROGRAMS) for line in lines):
            return []
        return [line for line in lines if line and not line.startswith("#")]


def code_blocks(text: str) -> Iterator[Block]:
    """Give fenced and indented blocks in the order of the page."""
    found = [(match.start(), match) for match in _FENCE.finditer(text)]
    blanked = _FENCE.sub(lambda match: re.sub(r"[^\n]", "x", match.group()), text)
    found += [(match.start(), match) for match in _INDENTED.finditer(blanked)]
    for _, match in sorted(found, key=lambda pair: pair[0]):
        kind, content = match.groupdict().get("kind"), match["text"]
        if kind is None:
            content = re.sub(r"^    ", "", content, flags=re.MULTILINE)
        yield Block(kind or "bash", content)


def command_lines(text: str) -> list[list[str]]:
    """Give the arguments of every ``tfx`` command in a block of code, as a shell would read them."""
    lines = [line for block in code_blocks(text) for line in block.text.splitlines()]
    return arguments_of(lines)


def mentioned_commands(text: str) -> list[list[str]]:
    """Give the same for commands within sentences, which may leave arguments out."""
    return arguments_of(_INLINE.findall(_FENCE.sub("", text)))


def arguments_of(lines: Iterable[str]) -> list[list[str]]:
    """Give the arguments of those of the lines that are ``tfx`` commands."""
    commands = [line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in lines]
    found = [_arguments(command) for command in commands if command.startswith("tfx ")]
    return [one for one in found if one is not None]


def _arguments(line: str) -> list[str] | None:
    """Split a command line; None for a synopsis (``[--quick]``, ``PRESET | FILES...``)."""
    command = _END.split(line, maxsplit=1)[0]
    if any(sign in command for sign in ("...", " [", "…", "COMMAND")) or " | " in line:
        return None
    return ["1" if word == "N" else word for word in shlex.split(command)[1:]]


def links(text: str) -> list[str]:
    """Targets of the links of a page, those in code left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(text: str) -> set[str]:
    """Names that headings are reached by."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in headings
    }
