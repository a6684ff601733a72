"""Our use of Typer: commands that are imported when they run, literal help, one-sentence errors.

A command is a function whose defaults are options and arguments, or a `typer.Typer` for a command with
sub-commands. Options that several commands share are the fields of a dataclass, which is the annotation of one parameter
(`with_groups`). Its docstring is its help; a section "Examples", underlined as in numpy docstrings,
appears at the end, after the options. There is no markup: brackets are brackets.
"""

import functools
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import typer
import typer.main
from typer.core import HAS_RICH, TyperCommand, TyperGroup
from typer.exceptions import TyperException

_EXAMPLES = re.compile(r"\n*^Examples\n-+\n", re.MULTILINE)
#: Text that rich takes for markup (rich.markup.escape, without importing rich).
_MARKUP = re.compile(r"(\\*)(\[[a-z#/@][^\[]*?\])")
#: Typer's own words, and pydantic's before its message.
_INVALID = re.compile(r"Invalid value(?: for (?P<where>.+?))?: (?:Value error, )?", re.DOTALL)
_TOO_MANY = re.compile(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)")
_POSSIBLE = re.compile(r" \(Possible options: (?P<options>[^)]*)\)")


def new_app(**settings: Any) -> typer.Typer:  # noqa: ANN401 - handed to Typer
    """Return a Typer application whose errors `exit_codes.exit_code_of` prints."""
    return typer.Typer(
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        **settings,
    )


def option(
    declaration: str,
    help_text: str,
    *,
    default: Any = None,  # noqa: ANN401 - of the option's type
    **settings: Any,  # noqa: ANN401 - Typer's
) -> Any:  # noqa: ANN401 - the value, in the eyes of the command
    """Return an option, declared as the help shows it: ``--output -o FILE``."""
    words = declaration.split()
    names = [word for word in words if word.startswith("-")]
    metavar = " ".join(words[len(names) :]) or None
    return typer.Option(default, *names, metavar=metavar, help=help_text, **settings)


def argument(metavar: str, help_text: str, *, default: Any = ...) -> Any:  # noqa: ANN401 - as above
    """Return an argument, required if it has no default."""
    return typer.Argument(default, metavar=metavar, help=help_text)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has the fields of a dataclass as options in place of the parameter that is the dataclass."""
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: one.annotation
        for name, one in signature.parameters.items()
        if is_dataclass(one.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, one in signature.parameters.items():
        parameters += [
            one.replace(name=part.name, default=part.default, annotation=part.type)
            for part in (fields(groups[name]) if name in groups else ())
        ] or [one]

    @functools.wraps(command)
    def call(**given: Any) -> None:  # noqa: ANN401 - of the options' types
        for name, group in groups.items():
            given[name] = group(**{part.name: given.pop(part.name) for part in fields(group)})
        command(**given)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


class LazyCommand(TyperCommand):
    """A command whose name, help panel and summary are known before its module is imported.

    ``target`` is ``module:object``: the function or `typer.Typer` to import.
    """

    def __init__(self, name: str, target: str, panel: str, summary: str) -> None:
        super().__init__(name=name, help=_literal(summary), rich_help_panel=panel)
        self.target = target

    def load(self) -> Any:  # noqa: ANN401 - a command of Typer's vendored Click
        """Import the target and make the command."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            made = found
        else:
            made = new_app(add_completion=False)
            made.command(self.name)(with_groups(found))
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
    """Escape what rich takes for markup; without rich Typer prints text as it is."""
    return _MARKUP.sub(r"\1\1\\\2", text) if HAS_RICH else text


# -- command lines that do not parse
def is_request_for_help(error: TyperException) -> bool:
    """Return whether a command was called without arguments and has shown its help instead."""
    return type(error).__name__ == "NoArgsIsHelpError"


def describe_usage_error(error: TyperException) -> str:
    """Return what is wrong with a command line, where, and the command that shows its usage."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = _INVALID.sub(_where, message, count=1)
    message = _POSSIBLE.sub(
        lambda found: f"; did you mean {' or '.join(found['options'].split(', '))}?", message
    )
    too_many = _TOO_MANY.search(message)
    message = _TOO_MANY.sub(r"too many arguments: \1", message)
    message = message.replace(". Did you mean ", "; did you mean ")
    message = message.replace(": Input should be ", ": must be ")  # pydantic's words
    if message[:1].isupper() and message[1:2].islower():
        message = message[0].lower() + message[1:]
    context = getattr(error, "ctx", None)
    command = "tfx" if context is None else context.command_path
    if too_many is not None and context is not None:
        given = [
            str(context.params[one.name])
            for one in context.command.params
            if one.param_type_name == "argument" and context.params.get(one.name) is not None
        ]
        if advice := _advice(command, [*given, *too_many[1].split()]):
            return f"{message}; {advice}"
    return f"{message}; '{command} --help' shows how"


def _advice(command: str, names: Sequence[str]) -> str:
    """Return what to write instead, where the arguments show what a user wants; "" otherwise."""
    from core.cells.file_patterns import names_cells  # only on the way to an error

    cells = [name for name in names if names_cells(name)]
    runs = [name for name in names if name not in cells]
    if command == "tfx train" and cells:
        return (
            f"a preset names the cells: write one by 'tfx init {shlex.join(cells)}', then run 'tfx train "
            f"preset.toml'"
        )
    if command in ("tfx predict", "tfx embed") and len(cells) > 1:
        return f"{command} takes one file: repeat it for each, or write the cells into one file"
    if command in ("tfx predict", "tfx embed") and cells and runs:
        return f"the run is an option: '{command} {shlex.quote(cells[0])} --run {shlex.quote(runs[0])}'"
    if command == "tfx generate" and cells:
        return f"a file whose cells are changed is an option: --from {shlex.quote(cells[0])}"
    if command == "tfx generate":
        return f"the run is an option: --run {shlex.quote(names[0])}"
    if command == "tfx runs show":
        return f"'tfx runs compare {shlex.join(names)}' compares runs"
    return ""


def _where(found: "re.Match[str]") -> str:
    where = found["where"]
    return "" if where is None else f"{where.replace(chr(39), '')}: "
