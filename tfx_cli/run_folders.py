"""Where runs are kept and how they are named on the command line."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from core.presets.schema import Preset

__all__ = [
    "RUNS",
    "existing_run",
    "model_folder",
    "new_run_folder",
    "preset_of",
    "report_folder",
]

#: The folder of runs, below the folder where tfx is started.
RUNS = Path("runs")


def existing_run(target: str) -> Path | None:
    """Return the run that ``target`` names, as a folder or by its name; None if there is none."""
    from core.runlog.schema import RUN_FILE

    for folder in (Path(target), RUNS / target):
        if (folder / RUN_FILE).is_file():
            return folder
    return None


def new_run_folder(name: str, wanted: str | None) -> Path:
    """Return the folder of a new run: the wanted name, else the preset's, numbered if taken.

    Raises
    ------
    ConfigurationError
        A run of the wanted name exists, or the name is not fit for a folder.
    """
    if wanted is not None:
        if not re.fullmatch(r"\w[\w.-]*", wanted):
            message = f"--run {wanted}: the name of a run is letters, digits, '_', '.' or '-'"
            raise ConfigurationError(message)
        folder = RUNS / wanted
        if folder.exists():
            message = f"--run {wanted}: {folder} exists; go on with it by 'tfx train {folder}', or choose another name"
            raise ConfigurationError(message)
        return folder
    folder, number = RUNS / name, 2
    while folder.exists():
        folder, number = RUNS / f"{name}-{number}", number + 1
    return folder


def model_folder(run: str | None) -> Path:
    """Return the model folder of a run (default: the newest), or the model folder that is named.

    Raises
    ------
    ConfigurationError
        There is no such run.
    DataError
        The run has no model yet.
    """
    from core.runlog.reader import find_run

    if run is not None and (Path(run) / "tfx.json").is_file():
        return Path(run)
    folder = find_run(RUNS, run) / "model"
    if not folder.is_dir():
        message = f"{folder.parent} has no model yet (its first evaluation writes one); wait, or go on with 'tfx train {folder.parent}'"
        raise DataError(message)
    return folder


def preset_of(folder: Path) -> "Preset":
    """Read the preset of a run.

    Raises
    ------
    DataError
        The run folder has lost it.
    """
    from core.presets.loading import ResolvedPreset
    from core.runlog.schema import CONFIG_FILE

    config = folder / CONFIG_FILE
    try:
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{config} cannot be read ({error.strerror}); copy the whole run folder again"
        raise DataError(message) from error
    return ResolvedPreset.from_toml(text, where=str(config)).preset


def report_folder(run: Path, file: str) -> Path:
    """Return where the report of a run on a file lies by default: RUN/eval-FILE."""
    name = file.removeprefix("builtin:") if file.startswith("builtin:") else Path(file).stem
    fit = re.sub(r"[^\w.-]+", "_", name)
    return run / f"eval-{fit}"
