"""What the terminal can show: letters, colours, braille dots, and how much of them."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from core.machine_check.report import MachineRow

__all__ = ["TerminalFacts", "check_terminal"]

#: The classical terminal; the dashboard says in one sentence what it needs below 60 x 16.
_GOOD_SIZE = (80, 24)
_LEAST_SIZE = (60, 16)


@dataclass(frozen=True)
class TerminalFacts:
    """What is known of the terminal.

    Attributes
    ----------
    is_terminal
        Whether stdout is one, and not a file or pipe.
    encoding
        Of stdout.
    kind, colours
        The variables TERM and COLORTERM.
    no_colour
        Whether NO_COLOR is set.
    columns, lines
        Its size.
    """

    is_terminal: bool
    encoding: str
    kind: str
    colours: str
    no_colour: bool
    columns: int
    lines: int

    @classmethod
    def read(
        cls, stream: IO[str] | None = None, environment: Mapping[str, str] = os.environ
    ) -> "TerminalFacts":
        """Ask the system; ``stream`` is stdout unless given."""
        stream = sys.stdout if stream is None else stream
        size = shutil.get_terminal_size()
        return cls(
            is_terminal=stream.isatty(),
            encoding=(getattr(stream, "encoding", None) or "ascii").lower(),
            kind=environment.get("TERM", ""),
            colours=environment.get("COLORTERM", ""),
            no_colour=bool(environment.get("NO_COLOR")),
            columns=size.columns,
            lines=size.lines,
        )


def check_terminal(facts: TerminalFacts) -> list[MachineRow]:
    """Check what the terminal can show; nothing here keeps tfx from working."""
    rows = [_letters(facts.encoding)]
    if not facts.is_terminal:
        finding = "stdout is no terminal: plain text, progress as lines"
        return [*rows, MachineRow("ok", "terminal", "kind", finding)]
    return [*rows, _colours(facts), _size(facts)]


def _letters(encoding: str) -> MachineRow:
    try:
        "─│█⣿é".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        finding = f"{encoding}: lines, blocks and braille curves cannot be shown"
        fix = "export LC_ALL=C.UTF-8 PYTHONUTF8=1"
        return MachineRow("warn", "terminal", "letters", finding, fix)
    finding = f"{encoding}; curves are braille dots, these eight: ⣿ (if you see a box, change font)"
    return MachineRow("ok", "terminal", "letters", finding)


def _colours(facts: TerminalFacts) -> MachineRow:
    kind = facts.kind or "unknown"
    if facts.no_colour:
        return MachineRow("ok", "terminal", "colours", "none, because NO_COLOR is set")
    if kind in ("dumb", "unknown"):
        finding = f"TERM is {kind}: no colours, no dashboard"
        fix = "use another terminal, or export TERM=xterm-256color if this one can"
        return MachineRow("warn", "terminal", "colours", finding, fix)
    if facts.colours in ("truecolor", "24bit"):
        return MachineRow("ok", "terminal", "colours", f"16 million ({kind})")
    if "256" in kind:
        return MachineRow("ok", "terminal", "colours", f"256 ({kind})")
    finding = f"few ({kind})"
    fix = "export COLORTERM=truecolor if your terminal has more"
    return MachineRow("ok", "terminal", "colours", finding, fix)


def _size(facts: TerminalFacts) -> MachineRow:
    finding = f"{facts.columns} x {facts.lines}"
    if facts.columns < _LEAST_SIZE[0] or facts.lines < _LEAST_SIZE[1]:
        fix = f"widen it to {_GOOD_SIZE[0]} x {_GOOD_SIZE[1]} for the dashboard"
        return MachineRow("warn", "terminal", "size", finding, fix)
    return MachineRow("ok", "terminal", "size", finding)
