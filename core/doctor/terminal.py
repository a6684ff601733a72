"""What the terminal can show: letters, colours and braille dots, and its size."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from core.findings import Finding

#: The classical terminal; below the least size the dashboard only says how much room it needs.
_GOOD_SIZE = (80, 24)
_LEAST_SIZE = (60, 16)


@dataclass(frozen=True)
class TerminalFacts:
    """What is known of the terminal."""

    #: Whether stdout is a terminal, and not a file or pipe.
    is_terminal: bool
    #: Of stdout.
    encoding: str
    #: The variables TERM and COLORTERM.
    kind: str
    colours: str
    #: Whether NO_COLOR is set.
    no_colour: bool
    columns: int
    lines: int

    @classmethod
    def read(
        cls, stream: IO[str] | None = None, environment: Mapping[str, str] = os.environ
    ) -> "TerminalFacts":
        """Read the facts from a stream (default: stdout) and the environment."""
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


def check_terminal(facts: TerminalFacts) -> list[Finding]:
    """Check what the terminal can show; nothing here keeps tfx from working."""
    rows = [_letters(facts.encoding)]
    if not facts.is_terminal:
        finding = "stdout is not a terminal: plain text, progress as lines"
        return [*rows, Finding("ok", "terminal", "kind", finding)]
    return [*rows, _colours(facts), _size(facts)]


def _letters(encoding: str) -> Finding:
    try:
        "─│█⣿é".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        finding = f"{encoding} cannot show lines, blocks and braille curves"
        fix = "export LC_ALL=C.UTF-8 PYTHONUTF8=1"
        return Finding("warn", "terminal", "letters", finding, fix)
    finding = f"{encoding}; curves use braille dots like ⣿ (if you see a box, change the font)"
    return Finding("ok", "terminal", "letters", finding)


def _colours(facts: TerminalFacts) -> Finding:
    kind = facts.kind or "unknown"
    if facts.no_colour:
        return Finding("ok", "terminal", "colours", "none, because NO_COLOR is set")
    if kind in ("dumb", "unknown"):
        finding = f"TERM is {kind}: no colours, no dashboard"
        fix = "use another terminal, or export TERM=xterm-256color if this one supports it"
        return Finding("warn", "terminal", "colours", finding, fix)
    if facts.colours in ("truecolor", "24bit"):
        return Finding("ok", "terminal", "colours", f"16 million ({kind})")
    if "256" in kind:
        return Finding("ok", "terminal", "colours", f"256 ({kind})")
    fix = "export COLORTERM=truecolor if your terminal has more"
    return Finding("ok", "terminal", "colours", f"few ({kind})", fix)


def _size(facts: TerminalFacts) -> Finding:
    finding = f"{facts.columns} x {facts.lines}"
    if facts.columns < _LEAST_SIZE[0] or facts.lines < _LEAST_SIZE[1]:
        fix = f"widen it to {_GOOD_SIZE[0]} x {_GOOD_SIZE[1]} for the dashboard"
        return Finding("warn", "terminal", "size", finding, fix)
    return Finding("ok", "terminal", "size", finding)
