"""Checks of cells before compute is spent: `tfx check`, and what prepare and train ask first."""

from core.cells.checks.model_genes import read_model_genes
from core.cells.checks.preflight import check_data, preflight, preflight_with_files
from core.cells.checks.report import (
    FAMILIES,
    CheckReport,
    CheckRow,
    Family,
    Level,
    fault_row,
    refuse_failures,
)
from core.cells.checks.survey import Depth

__all__ = [
    "FAMILIES",
    "CheckReport",
    "CheckRow",
    "Depth",
    "Family",
    "Level",
    "check_data",
    "fault_row",
    "preflight",
    "preflight_with_files",
    "read_model_genes",
    "refuse_failures",
]
