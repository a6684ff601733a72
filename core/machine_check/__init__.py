"""Whether this machine is fit for tfx: what `tfx doctor` reports.

Each module is one family of checks, from facts to rows. Nothing heavy is imported before it is
tried, so that a broken installation is a row of the report and not its end.
"""

from core.machine_check.check import check_machine
from core.machine_check.report import MachineReport, MachineRow
from core.machine_check.terminal import TerminalFacts

__all__ = ["MachineReport", "MachineRow", "TerminalFacts", "check_machine"]
