"""Commands that are imported when they run, and help that shows text as it was written.

A command is a function with Typer annotations, or a `typer.Typer` for a command with
sub-commands. Its docstring is its help; a section "Examples", underlined as in numpy docstrings,
is shown at the end, after the options. No markup: brackets mean brackets.
"""

import importlib
import inspect
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import typer
import typer.main
from typer.core import HAS_RICH, TyperCommand, TyperGroup

__all__ = ["LazyCommand", "LazyGroup", "as_written"]

_EXAMPLES = re.compile(r"\n*^Examples\n-+\n", re.MULTILINE)
#: What rich would take for markup (rich.markup.escape, without importing rich).
_MARKUP = re.compile(r"(\\*)(\[[a-z#/@][^\[]*?\])")


class LazyCommand(TyperCommand):
    """A command of which only the name, the panel and one line of help are known so far.

    Parameters
    ----------
    name
        As typed.
    target
        ``module:object``, the function or `typer.Typer` to import.
    panel
        The part of the help that lists it.
    summary
        One line of help, which must hold without importing the target.
    """

    def __init__(self, name: str, target: str, panel: str, summary: str) -> None:
        super().__init__(name=name, help=_literal(summary), rich_help_panel=panel)
        self.target = target

    def load(self) -> Any:  # noqa: ANN401 - a command of Typer's vendored Click
        """Import the target and make the command of it."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            made = found
        else:
            made = typer.Typer(
                add_completion=False,
                rich_markup_mode="rich",
                pretty_exceptions_enable=False,
                pretty_exceptions_show_locals=False,
            )
            made.command(self.name)(found)
        command = as_written(typer.main.get_command(made))
        command.name = self.name
        return command


class LazyGroup(TyperGroup):
    """A group whose commands are loaded when they are called, not when they are listed."""

    entries: ClassVar[Sequence[LazyCommand]] = ()

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - handed through
        super().__init__(**settings)
        for entry in self.entries:
            self.add_command(entry)

    def resolve_command(
        self,
        ctx: Any,  # noqa: ANN401 - Typer's vendored Click
        args: list[str],
    ) -> tuple[str | None, Any, list[str]]:
        """Find the command to call and load it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def as_written(command: Any) -> Any:  # noqa: ANN401 - a command of Typer's vendored Click
    """Make the help of a command, its options and its sub-commands appear as it was written."""
    text, *examples = _EXAMPLES.split(inspect.cleandoc(command.help or ""), maxsplit=1)
    # Typer keeps the line ends of all paragraphs but the first.
    command.help = _literal("\n\n".join(" ".join(part.split("\n")) for part in text.split("\n\n")))
    if examples:
        lines = [f"$ {line}" for line in examples[0].splitlines() if line]
        command.epilog = _literal("\n".join(["Examples:", *lines]))
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = _literal(parameter.help)
    for inner in getattr(command, "commands", {}).values():
        if not isinstance(inner, LazyCommand):
            as_written(inner)
    return command


def _literal(text: str) -> str:
    """Escape what rich would take for markup; without rich Typer prints text as it is."""
    return _MARKUP.sub(r"\1\1\\\2", text) if HAS_RICH else text
