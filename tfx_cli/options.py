"""Options that several commands share, used as defaults: ``as_json: bool = JSON_OUTPUT``, or in groups (`with_groups`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.presets.schema import Preset
from tfx_cli.arguments import check_unused, name_of_option, trained_on
from tfx_cli.command_line import argument, option

if TYPE_CHECKING:
    from core.cells.store import Store
    from core.inference.evaluate_files import Reading
    from core.interactions.cells import Reader
    from core.model.folder import CellModel


def preset_option(declaration: str, key: str, *, default: str | None = None) -> Any:  # noqa: ANN401
    """Return an option that mirrors a preset key: the schema gives its help and checks its value."""
    section, _, name = key.partition(".")
    fields = Preset.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    text = f"{as_sentence(fields[name].description)} ({key})."
    return option(declaration, text, default=default)


def as_sentence(text: str | None) -> str:
    """Capitalize a description, unless it starts with a value, as in "auto: a GPU if ..."."""
    text = str(text)
    return text if text.split(" ", 1)[0].endswith(":") else text[:1].upper() + text[1:]


Device = Literal["auto", "cpu", "cuda", "mps"]
Values = Literal["auto", "counts", "linear", "log"]

SOURCES = argument(
    "PRESET | FILES...",
    "A preset (file or bundled name), or files of cells: .h5ad, .zarr, .h5mu, 10x (.h5, folders of "
    "matrix.mtx); paths, globs, 'name_{0..43}.h5ad', soma://PATH, builtin:atlas.",
)
CONFIG_FILES = option(
    "--config FILE",
    "TOML file that changes some keys of the preset; can be repeated, later ones win.",
    rich_help_panel="Preset",
)
ASSIGNMENTS = option(
    "--set KEY=VALUE",
    "Change one key of the preset, as in train.batch_size=8; can be repeated, wins over all else.",
    rich_help_panel="Preset",
)
MODEL = option("--run RUN", "A run or a model folder; default: the newest run.")
DEVICE = option("--device", "auto: a GPU where there is one, else the CPU.", default="auto")
UNSURE_AT: float | None = option(
    "--unsure-at ACCURACY",
    "Fraction of predictions that is right among those that are not unsure, on validation cells; default: 0.95.",
    min=0.0,
    max=1.0,
)
MARKERS = option(
    "--markers GENES|FILE",
    "Genes to show, separated by commas, or a text file with one a line; default: those that set the "
    "values apart in training cells.",
)
OVERWRITE = option("--overwrite", "Replace the output file if it exists.", default=False)
JSON_OUTPUT = option("--json", "Print the result as JSON.", default=False)


@dataclass(frozen=True)
class MatrixOptions:
    """Which values of a file are read."""

    matrix: str = preset_option("--matrix NAME", "data.matrix", default="auto")
    values: Values = preset_option("--values", "data.values", default="auto")

    def check_unused(self, labels: Sequence[str] | None, reason: str) -> None:
        """Check that neither these options nor --label were given."""
        given = {"label": labels, **vars(self)}
        check_unused({name_of_option(name): value for name, value in given.items()}, reason)


@dataclass(frozen=True)
class FileOptions(MatrixOptions):
    """How the cells of a file are read, and their genes joined with the model's."""

    gene_ids: str = preset_option("--gene-ids COLUMN", "data.gene_ids", default="auto")
    few_genes: bool = option(
        "--few-genes",
        "Accept a file with fewer than half of the model's genes. The missing ones are masked: labels are "
        "often wrong, with high probabilities.",
        default=False,
    )

    def reading(self, labels: Sequence[str] | None, run: Path) -> "Reading":
        """Return how labelled files are read: with the donor column of a run."""
        from core.inference.evaluate_files import Reading

        donor_column, _ = trained_on(run)
        return Reading(labels or (), donor_column, **vars(self))


@dataclass(frozen=True)
class ContextOptions:
    """The cells of one context, of the store of a run or of files."""

    where: list[str] | None = option(
        "--where NAME=VALUES",
        "Only matching cells, as in cell_type=macrophage; repeat to add conditions. Default: all cells.",
    )
    store: Path | None = option(
        "--store FOLDER", "The store the run was trained on, if it is in another place now."
    )
    labels: list[str] | None = option(
        "--label NAME=COLUMN", "FILES: the obs column of a phenotype, as in tissue=organ."
    )

    def open(
        self, model: "CellModel", run: Path, files: Sequence[str], how: FileOptions, *, seed: int
    ) -> "tuple[Store | None, Reader]":
        """Return the training store, if it is there or needed, and the function that reads the cells of a filter."""
        from core.generation.comparison import find_training_store, open_training_store
        from core.interactions.cells import file_reader, store_reader

        if not files:
            store = find_training_store(model, self.store)
            return store, store_reader(model, store, seed=seed)
        found = find_training_store(model, self.store) if self.store else open_training_store(model)
        return found, file_reader(model, files, reading=how.reading(self.labels, run), seed=seed)

    def check_unused(self, files: Sequence[str], how: FileOptions) -> None:
        """Check that options of files were given for files only."""
        if not files:
            reason = "cells of a store have theirs there; name a file of cells"
            how.check_unused(self.labels, reason)
