"""Options that several commands share, and reading what they hold.

Use the annotations as they are: ``config: ConfigFiles = None``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from core.errors import ConfigurationError

__all__ = [
    "Age",
    "Assignments",
    "CellType",
    "ConfigFiles",
    "Device",
    "Disease",
    "GeneIds",
    "JsonOutput",
    "Matrix",
    "ModelOption",
    "PhenotypePairs",
    "Sex",
    "Tissue",
    "phenotype_arguments",
    "phenotype_request",
]

_PRESET_PANEL = "Preset"
_PHENOTYPE_PANEL = "Phenotypes"

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
    typer.Option(
        "--device", metavar="DEVICE", help="auto (a GPU where there is one), cpu, cuda or mps."
    ),
]
Matrix = Annotated[
    str,
    typer.Option(
        "--matrix", metavar="NAME", help="X, raw, layers/NAME, or auto: counts, else log values."
    ),
]
GeneIds = Annotated[
    str,
    typer.Option(
        "--gene-ids", metavar="COLUMN", help="var_names, a var column, or auto: Ensembl ids first."
    ),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Sex = Annotated[
    str | None,
    typer.Option("--sex", metavar="VALUE", help="As in female.", rich_help_panel=_PHENOTYPE_PANEL),
]
Tissue = Annotated[
    str | None,
    typer.Option("--tissue", metavar="VALUE", help="As in lung.", rich_help_panel=_PHENOTYPE_PANEL),
]
CellType = Annotated[
    str | None,
    typer.Option(
        "--cell-type", metavar="VALUE", help="As in 'B cell'.", rich_help_panel=_PHENOTYPE_PANEL
    ),
]
Age = Annotated[
    str | None,
    typer.Option("--age", metavar="VALUE", help="As in 60-69.", rich_help_panel=_PHENOTYPE_PANEL),
]
Disease = Annotated[
    str | None,
    typer.Option(
        "--disease", metavar="VALUE", help="As in normal.", rich_help_panel=_PHENOTYPE_PANEL
    ),
]
PhenotypePairs = Annotated[
    list[str] | None,
    typer.Option(
        "--phenotype",
        metavar="NAME=VALUE",
        help="Any phenotype of the model, as in treatment=control; can be repeated.",
        rich_help_panel=_PHENOTYPE_PANEL,
    ),
]


#: The phenotypes that have an option of their own.
_STANDARD = ("sex", "tissue", "cell_type", "age", "disease")


def phenotype_arguments(request: Mapping[str, str]) -> list[str]:
    """Return the words of a command line that ask for these phenotypes."""
    words: list[str] = []
    for name, value in request.items():
        if name in _STANDARD:
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
    """Bring the phenotype options to one request.

    Parameters
    ----------
    sex, tissue, cell_type, age, disease
        The standard options; None where not given.
    phenotype
        ``NAME=VALUE`` of every `--phenotype`.

    Returns
    -------
    Phenotype name -> value, for the phenotypes that were asked for. Whether the model knows them
    is the model's to say.

    Raises
    ------
    ConfigurationError
        A pair is not NAME=VALUE, a value is empty, or a phenotype has two values.
    """
    standard = dict(zip(_STANDARD, (sex, tissue, cell_type, age, disease), strict=True))
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
            message = f"{option}: the value is empty; leave the option out to leave it open"
            raise ConfigurationError(message)
        if request.setdefault(name, value.strip()) != value.strip():
            message = f"{option}: {name} is already '{request[name]}'; a cell has one value of it"
            raise ConfigurationError(message)
    return request
