"""Options that several commands share, used as annotations: ``config: ConfigFiles = None``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from core.errors import ConfigurationError
from core.presets.schema import STANDARD_PHENOTYPES, Preset

_PRESET_PANEL = "Preset"
_PHENOTYPE_PANEL = "Phenotypes"


def preset_option(key: str, *names: str, **settings: Any) -> Any:  # noqa: ANN401 - Typer's
    """Return an option that mirrors a preset key: the schema gives its help and checks its value."""
    section, _, field_name = key.partition(".")
    settings_of = Preset.model_fields[section].annotation
    text = str(settings_of.model_fields[field_name].description)  # type: ignore[union-attr]
    starts_with_value = text.split(" ", 1)[0].endswith(":")  # as in "auto: a GPU if ..."
    start = text[:1] if starts_with_value else text[:1].upper()
    return typer.Option(*names, help=f"{start}{text[1:]} ({key}).", **settings)


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="PRESET | FILES...",
        help="A preset (file or bundled name), or .h5ad files: paths, globs, "
        "'name_{0..43}.h5ad', builtin:atlas.",
    ),
]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file that changes some keys of the preset; can be repeated, later ones win.",
        rich_help_panel=_PRESET_PANEL,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the preset, as in train.batch_size=8; can be repeated, wins over "
        "all else.",
        rich_help_panel=_PRESET_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN", help="A run or a model folder; default: the newest run."),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option("--device", help="auto: a GPU where there is one, else the CPU."),
]
Matrix = Annotated[str, preset_option("data.matrix", "--matrix", metavar="NAME")]
GeneIds = Annotated[str, preset_option("data.gene_ids", "--gene-ids", metavar="COLUMN")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _phenotype_option(name: str, example: str) -> Any:  # noqa: ANN401 - Typer's
    return typer.Option(
        name, metavar="VALUE", help=f"As in {example}.", rich_help_panel=_PHENOTYPE_PANEL
    )


Sex = Annotated[str | None, _phenotype_option("--sex", "female")]
Tissue = Annotated[str | None, _phenotype_option("--tissue", "lung")]
CellType = Annotated[str | None, _phenotype_option("--cell-type", "'B cell'")]
Age = Annotated[str | None, _phenotype_option("--age", "60-69")]
Disease = Annotated[str | None, _phenotype_option("--disease", "normal")]
PhenotypePairs = Annotated[
    list[str] | None,
    typer.Option(
        "--phenotype",
        metavar="NAME=VALUE",
        help="Any phenotype of the model, as in treatment=control; can be repeated.",
        rich_help_panel=_PHENOTYPE_PANEL,
    ),
]


def phenotype_arguments(request: Mapping[str, str]) -> list[str]:
    """Return the arguments of a command line that requests these phenotypes."""
    words: list[str] = []
    for name, value in request.items():
        if name in STANDARD_PHENOTYPES:
            words += [_option_of(name), value]
        else:
            words += ["--phenotype", f"{name}={value}"]
    return words


def _option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def phenotype_request(
    *,
    sex: str | None = None,
    tissue: str | None = None,
    cell_type: str | None = None,
    age: str | None = None,
    disease: str | None = None,
    phenotype: Sequence[str] | None = None,
) -> dict[str, str]:
    """Return the requested phenotypes: name -> value; the model checks that it knows them.

    ``phenotype`` holds ``NAME=VALUE`` of every `--phenotype`.

    Raises
    ------
    ConfigurationError
        A pair is not NAME=VALUE, a value is empty, or a phenotype has two values.
    """
    standard = dict(zip(STANDARD_PHENOTYPES, (sex, tissue, cell_type, age, disease), strict=True))
    given = [
        (_option_of(name), name, value) for name, value in standard.items() if value is not None
    ]
    for pair in phenotype or ():
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            message = f"--phenotype {pair}: must be NAME=VALUE, as in treatment=control"
            raise ConfigurationError(message)
        given.append((f"--phenotype {pair}", name.strip(), value))
    request: dict[str, str] = {}
    for option, name, value in given:
        if not value.strip():
            message = f"{option}: the value is empty; omit the option to leave {name} unspecified"
            raise ConfigurationError(message)
        if request.setdefault(name, value.strip()) != value.strip():
            message = f"{option}: {name} is already '{request[name]}'; a cell has one value of it"
            raise ConfigurationError(message)
    return request


def check_unused(options: Mapping[str, object], reason: str) -> None:
    """Check that options which make no sense together with others were not given.

    Raises
    ------
    ConfigurationError
        One has a value other than "auto".
    """
    for option, value in options.items():
        if value and value != "auto":
            message = f"{option}: {reason}"
            raise ConfigurationError(message)
