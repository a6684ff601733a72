"""`tfx doctor`: whether this machine is fit for tfx, row by row, each with its fix."""

from typing import TYPE_CHECKING

import typer

from core.errors import ExitCode
from tfx_cli.options import JsonOutput
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.run_folders import RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from core.machine_check import MachineReport, MachineRow

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(as_json: JsonOutput = False) -> None:
    """Report whether this machine is fit for tfx: ok, warn or fail, with the fix.

    Python and packages, torch against driver, attention kernels by a real call each, memory,
    the disk of runs/, terminal, open files, optional packages. Leaves nothing behind and needs no
    network. Exits with 3 if a row says fail.

    Examples
    --------
    tfx doctor
    tfx doctor --json > machine.json
    """
    # numpy and psutil here, torch later, in a check of its own.
    from core.machine_check import TerminalFacts, check_machine

    narrate("looking at this machine, torch takes some seconds")
    report = check_machine(RUNS, TerminalFacts.read())
    print_result("doctor", report.to_dict(), as_json=as_json, text=lambda: _tables(report))
    if report.level == "fail":
        raise typer.Exit(ExitCode.MACHINE)


def _tables(report: "MachineReport") -> "Iterator[RenderableType]":
    from rich.text import Text

    rows: list[list[object]] = []
    family = ""
    for row in report.rows:
        if row.family != family:
            family = row.family
            rows.append([Text(family, style="bold"), "", ""])
        rows.append([Text(f"  {row.level}", style=_COLOURS[row.level]), row.check, _told(row)])
    yield make_table(["", "check", "finding"], rows)
    yield ""
    yield _verdict(report)


def _told(row: "MachineRow") -> object:
    from rich.text import Text

    text = Text(row.finding, overflow="fold")  # a path is not cut
    if row.fix:
        text.append(f"\n-> {row.fix}", style="cyan")
    return text


def _verdict(report: "MachineReport") -> str:
    n_failures, n_warnings = len(report.of_level("fail")), len(report.of_level("warn"))
    warnings = f"{n_warnings} warning{'s' * (n_warnings != 1)}"
    if n_failures:
        return f"not fit: {n_failures} failure{'s' * (n_failures != 1)}, {warnings}"
    return f"fit, with {warnings} to look at" if n_warnings else "fit"
