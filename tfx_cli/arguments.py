"""Names and paths on the command line: presets, cells, runs, models, output files, phenotypes of a request."""

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cells.file_patterns import is_path, names_cells
from core.errors import ConfigurationError, DataError, TfxError
from core.files import file_names, file_text
from core.presets.phenotype_names import STANDARD_PHENOTYPES
from core.wording import cause
from tfx_cli.output import narrate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from core.cells.cell_filter import CellFilter
    from core.model.folder import CellModel
    from core.presets.loading import ResolvedPreset

#: Endings of figures, as in `core.evaluation.report.pictures`, which takes numpy.
FIGURES = (".png", ".pdf", ".svg")
SIMULATED = "The model was trained on simulated cells: these say nothing about real biology."
#: Keys of a request of cells that are no options of their own.
_NO_OPTIONS = ("id", "request", "set", "cells", "output", "overwrite")
#: The folders of runs and of stores, below the current folder.
RUNS, STORES = Path("runs"), Path("stores")


# -- presets and files of cells
def resolve_sources(
    sources: Sequence[str], config: Sequence[Path] | None, assign: Sequence[str] | None
) -> "ResolvedPreset":
    """Resolve the preset, or the files of cells, that a command reads; with --config and --set."""
    from core.presets.loading import resolve_preset

    bundled = bundled_presets()
    presets = [
        source
        for source in sources
        if source.endswith(".toml") or source.removeprefix("presets/") in bundled
    ]
    if not presets and len(sources) == 1:
        only = Path(sources[0])
        looks_like_cells = only.suffix or any(sign in sources[0] for sign in "*?[{/\\:")
        if not looks_like_cells and not only.exists():
            presets = list(sources)  # a mistyped name of a preset: the search for it says so
    if presets and len(sources) > 1:
        raise ConfigurationError(
            f"'{presets[0]}' is a preset; give either one preset or files of cells"
        )
    return resolve_preset(
        Path(presets[0]) if presets else None,
        overlays=config or (),
        environment=os.environ,
        options={} if presets else {"data.files": list(sources)},
        option_names={"data.files": "FILES"},
        assignments=assign or (),
    )


def bundled_presets() -> set[str]:
    """Return the names of the bundled presets."""
    from core.presets.catalogue import list_presets

    return {preset.name for preset in list_presets()}


# -- runs and models
def existing_run(target: str) -> Path | None:
    """Return the run that ``target`` names, as a folder or by its name; None if there is none."""
    from core.runlog.schema import RUN_FILE

    folders = (Path(target), RUNS / target)
    return next((folder for folder in folders if (folder / RUN_FILE).is_file()), None)


def new_run_folder(name: str, wanted: str | None, claim: ExitStack | None = None) -> Path:
    """Return the folder of a new run: the wanted name, else the preset's, numbered if taken.

    With ``claim`` this process owns the folder until that is closed; else nothing is made.
    """
    from core.runlog.ownership import claim_new_run, free_folders, is_run_name

    if wanted is not None and not is_run_name(wanted):
        raise ConfigurationError(
            f"--run {wanted}: use letters, digits, '_', '.' or '-' in the name of a run"
        )
    folder, is_numbered = RUNS / (wanted or name), wanted is None
    try:
        if claim is None:
            return next(free_folders(folder, may_be_numbered=is_numbered))
        return claim_new_run(claim, folder, may_be_numbered=is_numbered)
    except TfxError as error:
        raise type(error)(f"--run {wanted}: {error}" if wanted else str(error)) from None


def model_folder(run: str | None) -> Path:
    """Return the model folder of a run (default: the newest), or the model folder that is named."""
    from core.folders import is_settled
    from core.runlog.reader import find_run
    from core.runlog.schema import RUN_FILE

    if run is not None and is_settled(Path(run)) and (Path(run) / "tfx.json").is_file():
        return Path(run)
    folder = find_run(RUNS, run) / "model"
    if run is None and (n_runs := sum(1 for _ in RUNS.glob(f"*/{RUN_FILE}"))) > 1:
        narrate(f"{folder.parent} is used, the newest of {n_runs} runs; --run names another")
    if not is_settled(folder):
        raise DataError(
            f"{folder.parent} has no model yet (its first evaluation writes one); wait, or continue it by 'tfx train {folder.parent}'"
        )
    return folder


@contextlib.contextmanager
def naming_run(folder: Path) -> Iterator[None]:
    """Name the run, or the model folder, in the errors of a block that asks something of its model."""
    try:
        yield
    except (ConfigurationError, DataError) as error:
        raise type(error)(f"{name_of_model(folder)}: {error}") from error


def name_of_model(folder: Path) -> Path:
    """Return the run of a model folder, or the folder itself where it is by itself."""
    from core.runlog.schema import RUN_FILE

    return folder.parent if (folder.parent / RUN_FILE).is_file() else folder


def keep_in_run(
    model: Path, command: str, output: Sequence[Path], record: Mapping[str, Any]
) -> None:
    """Keep a result in the run of a model folder, where the dashboard shows it; a model by itself keeps none."""
    from core.interactions.kept import keep_result

    run = name_of_model(model)
    if run != model and keep_result(run, command, output, record) is None:
        narrate(f"{run} cannot be written to: the dashboard will not show this result")


def load_model(folder: Path, device: str = "cpu") -> "CellModel":
    """Load a model folder for predictions; on a CPU they compute on one thread or all (`core.training.threads`)."""
    from core.model.folder import CellModel
    from core.training.machine import choose_device
    from core.training.threads import Threads

    chosen = choose_device(device, where="--device")
    threads = Threads(can_choose=chosen == "cpu")
    if threads.n_threads < threads.n_all and threads.is_chosen:
        narrate(f"computing on one thread: {threads.n_all} are slower at the moment")
    return CellModel.load(folder, device=chosen)


def preset_of(folder: Path, *, error_type: type[TfxError] = DataError) -> "ResolvedPreset":
    """Read the preset of a run."""
    from core.presets.loading import ResolvedPreset
    from core.runlog.schema import CONFIG_FILE, RUN_FILE

    config = folder / CONFIG_FILE
    if not config.exists() and not (folder / RUN_FILE).exists():
        raise ConfigurationError(
            f"this needs the run of the model, whose {CONFIG_FILE} says how it was trained, and {folder} is no "
            f"run; name the folder of the run"
        )
    try:
        text = file_text(config)
    except OSError as error:
        raise error_type(
            f"{config} cannot be read ({error.strerror}); copy the whole run folder again"
        ) from error
    return ResolvedPreset.from_toml(text, where=str(config))


def run_and_files(targets: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the run from the files of cells."""
    has_run = bool(targets) and not names_cells(targets[0])
    files = list(targets[1:] if has_run else targets)
    if others := [file for file in files if not names_cells(file)]:
        raise ConfigurationError(
            f"'{others[0]}' names no file of cells ('tfx docs formats'); give one run, then files"
        )
    return targets[0] if has_run else None, files


def trained_on(run: Path) -> tuple[str, "CellFilter | None"]:
    """Return the donor column and the training cells of a run.

    A model folder alone knows neither: CELLxGENE has its donors in "donor_id".
    """
    from core.cells.cell_filter import CellFilter
    from core.runlog.schema import CONFIG_FILE

    if not (run / CONFIG_FILE).is_file():
        return "donor_id", None
    data = preset_of(run).preset.data
    donors = "donor_id" if data.split.by == "cells" else data.split.by
    return donors, CellFilter.parse(data.where, where="data.where")


def gene_file(path: Path, option: str) -> list[str]:
    """Read the genes of a text file that an option names."""
    try:
        names = file_names(path)
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be read ({cause(error)})") from error
    except ValueError:
        raise DataError(f"{option} {path}: is no text; give one name of a gene in a line") from None
    if not names:
        raise DataError(f"{option} {path}: names no gene; give one name in a line")
    return names


def genes_or_file(text: str, option: str) -> list[str]:
    """Return genes that an option names: separated by commas, or in a text file."""
    return gene_file(Path(text), option) if Path(text).is_file() else names_in([text])


def names_in(texts: Sequence[str] | None) -> list[str]:
    """Return the names in texts, separated by commas."""
    return [name for text in texts or () for word in text.split(",") if (name := word.strip())]


def report_folder(run: Path, file: str) -> Path:
    """Return the default folder of the report of a run on a file: RUN/eval-FILE."""
    name = Path(file).stem if is_path(file) else file.partition(":")[2].strip("/")
    fit = re.sub(r"[^\w.-]+", "_", name)
    return run / f"eval-{fit}"


# -- output files, checked before any work
def check_output(
    path: Path,
    suffixes: Sequence[str],
    *,
    what: str,
    overwrite: bool | None,
    option: str = "--output",
) -> None:
    """Check that a file can be written.

    ``suffixes`` lists the allowed endings, the usual one first. ``what`` names the content in
    messages. ``overwrite`` is None where the command never replaces a file.
    """
    usual = suffixes[0]
    if "\0" in str(path):
        raise ConfigurationError(f"{option}: no file name holds a NUL character; remove it")
    if path.is_dir() and not (path.suffix == ".zarr" and _is_zarr(path)):
        raise ConfigurationError(
            f"{option} {path} is a folder; give a file name, as in {path / f'cells{usual}'}"
        )
    if path.suffix not in suffixes:
        endings = " or ".join([", ".join(suffixes[:-1]), suffixes[-1]][len(suffixes) < 2 :])
        raise ConfigurationError(
            f"{option} {path}: {what} are written as {endings}; name it {path.with_suffix(usual)}"
        )
    _check_place(path, option)
    if path.exists() and not overwrite:
        or_overwrite = "" if overwrite is None else " or add --overwrite"
        raise ConfigurationError(f"{option} {path} exists; choose another name{or_overwrite}")


def _is_zarr(path: Path) -> bool:
    from core.cells.reading import is_zarr  # scipy, 100 ms

    return is_zarr(path)


def check_outputs(
    paths: Sequence[Path], suffixes: Sequence[str], *, what: str, overwrite: bool
) -> None:
    """Check that several files can be written, as `check_output` checks one."""
    for path in paths:
        check_output(path, suffixes, what=what, overwrite=overwrite)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigurationError("--output: two files have the same name; give each its own")


def save_figure(path: Path, figure: "Figure", what: str, *, is_tight: bool = False) -> None:
    """Write a figure, and say what it shows."""
    from core.evaluation.report.pictures import figure_bytes
    from core.files import replace_file

    replace_file(path, figure_bytes(figure, path.suffix, is_tight=is_tight))
    narrate(f"{path}: {what}")


def check_output_folder(path: Path, *, option: str = "--output") -> None:
    """Check that files can be written into a folder, which may be missing."""
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{option} {path} is a file; give a folder")
    _check_place(path, option, folders=[path, *path.parents])


def _check_place(path: Path, option: str, *, folders: Sequence[Path] | None = None) -> None:
    """Check that the first existing one of the folders (default: those above a path) accepts a new file."""
    nearest = next(folder for folder in folders or path.parents if folder.exists())
    named = "this folder" if nearest == Path() else nearest
    reason = None if nearest.is_dir() else "is not a folder"
    if reason is None:
        try:
            # Not os.access: a read-only or virtual file system shows only when written to.
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            reason = f"cannot be written to ({error.strerror})"
    if reason is not None:
        raise ConfigurationError(f"{option} {path}: {named} {reason}; choose another place")


# -- phenotypes of a request
def name_of_option(name: str) -> str:
    """Return the option of a phenotype or a setting: ``cell_type`` -> ``--cell-type``."""
    return f"--{name.replace('_', '-')}"


def phenotype_arguments(request: Mapping[str, str]) -> list[str]:
    """Return the arguments of a command line that requests these phenotypes."""
    words: list[str] = []
    for name, value in request.items():
        if name in STANDARD_PHENOTYPES:
            words += [name_of_option(name), value]
        else:
            words += ["--phenotype", f"{name}={value}"]
    return words


def generating_command(run: str, record: Mapping[str, Any], output: str) -> str:
    """Return the command that makes the cells of a request (docs/generate-serve.md)."""
    words = ["tfx", "generate", "--run", run, *phenotype_arguments(record["request"])]
    for name, value in (record.get("set") or {}).items():
        words += ["--set", f"{name}={value}"]
    words += ["-n", str(record.get("cells") or 200)]
    options = {name: value for name, value in record.items() if name not in _NO_OPTIONS}
    for name, value in options.items():
        if value is not None and (name, value) != ("unspecified", "sample"):
            words += [name_of_option(name), str(value)]
    return shlex.join([*words, "-o", output])


def phenotype_request(
    *,
    phenotype: Sequence[str] | None = None,
    pair_option: str = "--phenotype",
    **standard: str | None,
) -> dict[str, str]:
    """Return the requested phenotypes: name -> value; the model checks that it knows them.

    ``phenotype`` holds ``NAME=VALUE`` of every ``pair_option``.
    """
    given = [
        (name_of_option(name), name, value) for name, value in standard.items() if value is not None
    ]
    for pair in phenotype or ():
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigurationError(
                f"{pair_option} {pair}: must be NAME=VALUE, as in disease=normal"
            )
        given.append((f"{pair_option} {pair}", name.strip(), value))
    request: dict[str, str] = {}
    for where, name, value in given:
        if not value.strip():
            raise ConfigurationError(
                f"{where}: the value is empty; omit the option to leave {name} unspecified"
            )
        if request.setdefault(name, value.strip()) != value.strip():
            raise ConfigurationError(
                f"{where}: {name} is already '{request[name]}'; a cell has one value of it"
            )
    return request


def check_unused(options: Mapping[str, object], reason: str) -> None:
    """Check that options which make no sense together with others were not given."""
    for name, value in options.items():
        if value and value != "auto":
            raise ConfigurationError(f"{name}: {reason}")
