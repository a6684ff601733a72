"""All checks of the machine together, and what the terminal can show."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

from core.doctor import compute, packages, resources
from core.findings import Finding, FindingsReport

#: The usual terminal; below the least size the dashboard only shows how much room it needs.
_GOOD_SIZE = (80, 24)
_LEAST_SIZE = (60, 16)


class MachineReport(FindingsReport[Finding]):
    """All findings about a machine; facts are versions, devices, and sizes in bytes."""

    FAMILIES: ClassVar[tuple[str, ...]] = (
        *("python", "compute", "attention", "memory", "disk", "terminal", "limits", "extras"),
    )


def check_machine(runs: Path) -> MachineReport:
    """Check everything that tfx needs of a machine, in a few seconds.

    ``runs`` is the folder of runs. It need not exist, and it is left as it was.
    """
    package_rows, package_versions = packages.check_packages()
    extra_rows, extra_versions = packages.check_extras()
    disk_rows, disk = resources.check_disk(runs)
    memory = resources.read_memory()
    terminal = TerminalFacts.read()
    torch_rows, torch_facts = _check_torch()
    rows = [
        *packages.check_python(),
        *package_rows,
        *extra_rows,
        *disk_rows,
        *resources.check_memory(memory),
        *resources.check_open_files(),
        *check_terminal(terminal),
        *torch_rows,
    ]
    facts = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": package_versions,
        "extras": extra_versions,
        "memory": memory,
        "disk": disk,
        "terminal": dataclasses.asdict(terminal),
        **torch_facts,
    }
    return MachineReport.of(rows, facts)


def _check_torch() -> tuple[list[Finding], dict[str, Any]]:
    driver = compute.read_driver()
    facts: dict[str, Any] = {"driver": dataclasses.asdict(driver), "torch": None, "gpus": []}
    try:
        torch_facts = compute.read_torch()
    except Exception as error:  # noqa: BLE001 - a broken installation is a finding
        finding = f"cannot be imported ({compute.one_line(error)})"
        fix = "install torch again, as pytorch.org says"
        return [Finding("fail", "compute", "torch", finding, fix)], facts
    devices, device_rows = compute.usable_devices()
    gpu_rows, gpus = resources.check_gpu_memory()
    rows = [
        *compute.check_torch_and_driver(torch_facts, driver),
        *device_rows,
        *compute.check_attention(devices),
        *gpu_rows,
    ]
    return rows, facts | {"torch": dataclasses.asdict(torch_facts), "gpus": gpus}


@dataclasses.dataclass(frozen=True)
class TerminalFacts:
    """What is known of stdout; kind and colours are the variables TERM and COLORTERM."""

    #: Not a file or pipe.
    is_terminal: bool
    encoding: str
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
