"""`tfx doctor`: whether this machine is fit for tfx, row by row, each with its fix."""

import typer

from core.errors import ExitCode
from tfx_cli.arguments import RUNS
from tfx_cli.options import JsonOutput
from tfx_cli.output import findings_text, narrate, print_result


def doctor(as_json: JsonOutput = False) -> None:
    """Check whether this machine is fit for tfx: ok, warn or fail, with the fix.

    Python and packages, torch against driver, attention kernels by a real call each, memory,
    the disk of runs/, terminal, open files, optional packages. Leaves nothing behind and needs no
    network. Exits with 3 if a row fails.

    Examples
    --------
    tfx doctor
    tfx doctor --json > machine.json
    """
    # numpy and psutil here, torch later, in a check of its own.
    from core.doctor.check import check_machine

    narrate("checking this machine; torch takes some seconds")
    report = check_machine(RUNS)
    print_result(
        "doctor",
        report.to_dict(),
        as_json=as_json,
        text=lambda: findings_text(report, ((row, 0) for row in report.rows)),
    )
    if report.level == "fail":
        raise typer.Exit(ExitCode.MACHINE)
