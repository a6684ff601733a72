"""A model folder as a folder for the Hugging Face Hub: a card with metadata and licence, and no private paths."""

import json
import re
import shutil
from pathlib import Path, PurePath
from typing import Any

from core.errors import ConfigurationError
from core.files import file_json, file_text, replace_file, replacing
from core.model.folder import CHECKED_FILES, CellModel, read_record
from core.wording import as_markdown, naming_write_errors

#: Licences that the Hub knows by these ids; any other is named in the card.
_HUB_LICENCES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-4.0",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "mpl-2.0",
        "pddl",
        "odc-by",
        "odbl",
        "unlicense",
        "other",
    ]
)
_TAGS = (
    *("single-cell", "transcriptomics", "biology", "gene-expression"),
    *("masked-language-model", "tfx"),
)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LICENCE = re.compile(r"^## Licence\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_USE = re.compile(r"^## Use\n", re.MULTILINE)
_CARD = "README.md"
#: The files of the folder; others in it, as those of git, stay.
HUB_FILES = (_CARD, "tfx.json", *CHECKED_FILES)
#: Facts of a run that name folders of its machine.
_PRIVATE = ("run", "store")


def export_for_hub(folder: Path, output: Path, *, name: str, licence: str | None) -> list[Path]:
    """Write a folder that can be uploaded to the Hub, and return its files; those that exist are replaced.

    ``name`` is that of the repository, as in my-lab/lung-atlas. A damaged model folder is a DataError, a name or licence that
    cannot be written a ConfigurationError. The folder loads by `CellModel.load`, offline.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ConfigurationError(
            f"--name {name}: use letters, digits, '_', '.' or '-', as in my-lab/lung-atlas"
        )
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .+-]{0,99}", licence):
        raise ConfigurationError(f"--licence {licence}: give an id such as cc-by-4.0 or mit")
    model = CellModel.load(folder)
    record = read_record(folder).provenance | {"licence": licence or ""}
    facts = {key: value for key, value in record.items() if key not in _PRIVATE}
    facts["sources"] = [PurePath(source).name for source in facts.get("sources", [])]
    whole = file_json(folder / "tfx.json") | {"provenance": facts}
    whole.pop("origin", None)  # its name in older folders
    card = _hub_card(file_text(folder / _CARD), model, name=name, licence=licence)
    with naming_write_errors(str(output)):
        output.mkdir(parents=True, exist_ok=True)
        for one in CHECKED_FILES:
            with replacing(output / one) as temporary:
                shutil.copyfile(folder / one, temporary)
        replace_file(output / _CARD, card)
        # The last: it has the checksums of the others.
        text = json.dumps(whole, indent=1, ensure_ascii=False)
        replace_file(output / "tfx.json", f"{text}\n")
    return [output / one for one in HUB_FILES]


def _hub_card(card: str, model: CellModel, *, name: str, licence: str | None) -> str:
    """Return the model card with the Hub's metadata, the licence, and how to load the model."""
    front = _front_matter(model, name=name, licence=licence)
    rest = _FRONT_MATTER.sub("", card, count=1).lstrip("\n")
    stated = (
        f"{as_markdown(licence)}. That of the training data may bind you, too."
        if licence
        else "Not stated: ask the authors before you use the model."
    )
    rest = _LICENCE.sub(lambda _: f"## Licence\n\n{stated}\n", rest)
    repository = name if "/" in name else f"OWNER/{name}"
    example = (
        "## Use\n\n"
        "    from huggingface_hub import snapshot_download\n"
        "    import transformerics as tfx\n"
        f'    model = tfx.CellModel.load(snapshot_download("{repository}"))\n\n'
        "The same folder serves the command line, where FOLDER is the folder that `snapshot_download` returns:\n\n"
    )
    rest = _USE.sub(lambda _: example, rest, count=1).replace("\n\n\n", "\n\n")
    return f"{front}\n{rest}"


def _front_matter(model: CellModel, *, name: str, licence: str | None) -> str:
    """Return the metadata that the Hub reads, in YAML; its strings are those of JSON."""
    identifier = (licence or "other").lower()
    lines = [f"license: {identifier if identifier in _HUB_LICENCES else 'other'}"]
    if identifier not in _HUB_LICENCES or not licence:
        lines.append(f"license_name: {json.dumps(licence or 'not stated')}")
    lines += ["library_name: transformerics", f"model_name: {json.dumps(name.rpartition('/')[2])}"]
    lines += ["tags:", *(f"- {tag}" for tag in _TAGS)]
    lines += [f"- {json.dumps(one)}" for one in _kind(model)]
    return "\n".join(["---", *lines, "---", ""])


def _kind(model: CellModel) -> list[Any]:
    config = model.config
    return ["classification"] if config.classified is not None else ["generation", "annotation"]
