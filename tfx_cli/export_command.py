"""`tfx export`: a model as a folder for the Hugging Face Hub."""

from collections.abc import Iterator
from pathlib import Path

from core.errors import ConfigurationError
from core.wording import listed, size
from tfx_cli.arguments import check_output_folder, model_folder, name_of_model
from tfx_cli.command_line import argument, option
from tfx_cli.options import JSON_OUTPUT, OVERWRITE
from tfx_cli.output import Paragraph, print_result, warn


def export(
    run: str | None = argument(
        "[RUN]", "A run or a model folder; default: the newest run.", default=None
    ),
    hub: Path = option("--hub FOLDER", "The folder to write.", default=...),
    name: str | None = option(
        "--name OWNER/NAME", "Name of the repository on the Hub; default: the run's name."
    ),
    licence: str | None = option(
        "--licence ID", "Licence of the model, as in cc-by-4.0; default: not stated."
    ),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Write a model as a folder for the Hugging Face Hub.

    The folder has the weights (safetensors), config.json, and a model card with metadata, licence
    and an example of three lines. Paths of your machine are left out; the names of the files of
    cells, the labels and their numbers of cells stay. 'tfx predict --run FOLDER' and
    transformerics.CellModel.load read it, without the Hub.

    Examples
    --------
    tfx export base --hub lung-atlas --name my-lab/lung-atlas --licence cc-by-4.0
    tfx export runs/base --hub lung-atlas
    """
    check_output_folder(hub, option="--hub")
    folder = model_folder(run)
    if hub.resolve() == folder.resolve():
        raise ConfigurationError(f"--hub {hub} is the model itself; choose another folder")
    # torch and transformers, 3 s: not before the options are checked.
    from core.files import folder_size
    from core.model.publish import HUB_FILES, export_for_hub

    there = [one for one in HUB_FILES if (hub / one).exists()]
    if there and not overwrite:
        raise ConfigurationError(
            f"--hub {hub} has {listed(there)} already; choose another folder or add --overwrite"
        )
    own = name_of_model(folder)
    files = export_for_hub(folder, hub, name=name or own.resolve().name, licence=licence)
    if licence is None:
        warn("the card says that the licence is not stated; give --licence, as in cc-by-4.0")
    print_result(
        "export",
        {"hub": hub, "model": folder, "name": name, "licence": licence, "files": files},
        as_json=as_json,
        text=lambda: _text(own, hub, name, folder_size(hub) or 0),
    )


def _text(own: Path, hub: Path, name: str | None, n_bytes: int) -> Iterator[Paragraph]:
    yield f"{hub}: the model of {own} for the Hugging Face Hub ({size(n_bytes)})"
    yield f"next: read {hub / 'README.md'}, then hf upload {name or 'OWNER/NAME'} {hub}"
