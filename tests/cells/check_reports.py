"""Running the checks on small cells and picking the rows of one check."""

from core.cells.checks.check import check_data

from .examples import settings, write


def check(files, **others):
    names = ("scope", "model_genes", "on_progress")
    options = {name: others.pop(name) for name in names if name in others}
    return check_data(settings(files, **others), **options)


def check_adata(adata, folder, **others):
    return check(write(adata, folder), **others)


def rows_of(report, name, level=None):
    return [row for row in report.rows if row.check == name and level in {None, row.level}]


def only_row(report, name):
    (row,) = rows_of(report, name)
    return row
