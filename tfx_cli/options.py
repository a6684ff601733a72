"""Options that several commands share, used as defaults: ``as_json: bool = JSON_OUTPUT``."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from core.errors import ConfigurationError
from core.presets.schema import STANDARD_PHENOTYPES, Preset
from tfx_cli.command_line import argument, option


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

SOURCES = argument(
    "PRESET | FILES...",
    "A preset (file or bundled name), or .h5ad files: paths, globs, 'name_{0..43}.h5ad', "
    "builtin:atlas.",
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
MATRIX = preset_option("--matrix NAME", "data.matrix", default="auto")
GENE_IDS = preset_option("--gene-ids COLUMN", "data.gene_ids", default="auto")
OVERWRITE = option("--overwrite", "Replace the output file if it exists.", default=False)
JSON_OUTPUT = option("--json", "Print the result as JSON.", default=False)


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
            message = f"{pair_option} {pair}: must be NAME=VALUE, as in disease=normal"
            raise ConfigurationError(message)
        given.append((f"{pair_option} {pair}", name.strip(), value))
    request: dict[str, str] = {}
    for where, name, value in given:
        if not value.strip():
            message = f"{where}: the value is empty; omit the option to leave {name} unspecified"
            raise ConfigurationError(message)
        if request.setdefault(name, value.strip()) != value.strip():
            message = f"{where}: {name} is already '{request[name]}'; a cell has one value of it"
            raise ConfigurationError(message)
    return request


def check_unused(options: Mapping[str, object], reason: str) -> None:
    """Check that options which make no sense together with others were not given."""
    for name, value in options.items():
        if value and value != "auto":
            message = f"{name}: {reason}"
            raise ConfigurationError(message)
