"""Command lines that do not parse, as one sentence like every other error."""

import re

from typer.exceptions import TyperException

__all__ = ["describe_usage_error", "is_request_for_help"]

#: Typer's own words, and what pydantic puts before its complaint.
_INVALID = re.compile(r"Invalid value(?: for (?P<where>.+?))?: (?:Value error, )?", re.DOTALL)
_TOO_MANY = re.compile(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)")
_POSSIBLE = re.compile(r" \(Possible options: (?P<options>[^)]*)\)")


def is_request_for_help(error: TyperException) -> bool:
    """Tell whether a command was called without anything, and has shown its help instead."""
    return type(error).__name__ == "NoArgsIsHelpError"


def describe_usage_error(error: TyperException) -> str:
    """Return what is wrong with a command line, where, and what shows the right ones.

    Parameters
    ----------
    error
        As Typer raises it: an unknown command or option, a missing or wrong value.
    """
    message = " ".join(error.format_message().split()).rstrip(".")
    message = _INVALID.sub(_where, message, count=1)
    message = _POSSIBLE.sub(
        lambda found: f"; did you mean {' or '.join(found['options'].split(', '))}?", message
    )
    message = _TOO_MANY.sub(r"more arguments than there are: \1", message)
    message = message.replace(". Did you mean ", "; did you mean ")
    message = message.replace(": Input should be ", ": must be ")  # pydantic's words
    if message[:1].isupper() and message[1:2].islower():
        message = message[0].lower() + message[1:]
    context = getattr(error, "ctx", None)
    command = "tfx" if context is None else context.command_path
    return f"{message}; '{command} --help' shows how"


def _where(found: "re.Match[str]") -> str:
    where = found["where"]
    return "" if where is None else f"{where.replace(chr(39), '')}: "
