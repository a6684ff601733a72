"""The options of PolyGene and PerturbGene, and reading those of a run: a JSON file, a script, a command line.

The table of options is options.csv, in the order of docs/published-models.md, which the tests compare
with it: the values of each option, and the preset keys that it sets.
"""

import csv
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from core.errors import ConfigurationError, DataError
from core.files import file_text
from core.wording import did_you_mean

System = Literal["PolyGene", "PerturbGene"]

_TASKS = ("mlm", "cls")
#: Options that PolyGene does not have; every run of PerturbGene has some of them.
_PERTURBGENES = {"bin_edges", "bin_edges_path", "num_top_genes", "vocab_path", "gene_mask_prob"}
_FROM_FILE = re.compile(r"\$\(\s*(?:<|cat)\s*([^)\s]+)\s*\)")
_PROGRAM = re.compile(r"\.py$|(^|\.)main$")


@dataclass(frozen=True)
class PublishedOption:
    """One option, or key of a JSON configuration."""

    #: Without dashes, and older names of it.
    name: str
    aliases: tuple[str, ...]
    #: Values on a command line: "one", "many" or "nothing".
    takes: str
    #: Keys of a preset that it sets; none if tfx needs no such option.
    ours: tuple[str, ...]
    #: Why it sets nothing, or what differs; "" if it means the same.
    note: str


def _read_table() -> dict[System, list[PublishedOption]]:
    table: dict[System, list[PublishedOption]] = {"PolyGene": [], "PerturbGene": []}
    text = (resources.files("core.published") / "options.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        aliases, ours = tuple(row["aliases"].split()), tuple(row["ours"].split())
        system: System = "PolyGene" if row["system"] == "PolyGene" else "PerturbGene"
        option = PublishedOption(row["name"], aliases, row["takes"], ours, row["note"])
        table[system].append(option)
    return table


OPTIONS = _read_table()


def find_option(system: System, name: str) -> PublishedOption | None:
    """Return an option by its name, with or without dashes, or by an older one; None if unknown."""
    bare = name.lstrip("-").replace("-", "_")
    known = (option for option in OPTIONS[system] if bare in (option.name, *option.aliases))
    return next(known, None)


@dataclass(frozen=True)
class PublishedRun:
    """The options of a run."""

    system: System
    #: Name as in `OPTIONS` -> value: text, a list of texts, True for an option without values; of
    #: JSON, any value.
    options: dict[str, Any]
    #: "mlm", "cls" or "inference".
    task: str
    #: The file, or "the command line".
    where: str

    def __post_init__(self) -> None:
        """Check that the run has options."""
        if not self.options:
            raise ConfigurationError(f"{self.where}: there are no options to import")


def read_file(path: Path) -> PublishedRun:
    """Read a JSON configuration, or a shell script of one command."""
    try:
        text = file_text(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise DataError(f"{path} cannot be read ({reason})") from error
    if text.lstrip().startswith("{"):
        return _read_json(text, str(path))
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    commands = [
        line
        for line in "\n".join(lines).replace("\\\n", " ").splitlines()
        if " --" in line and any(_PROGRAM.search(word) for word in line.split())
    ]
    if len(commands) != 1:
        raise ConfigurationError(
            f"{path} holds {len(commands) or 'no'} command{'s' * (len(commands) > 1)} with options; "
            f"give a JSON configuration, or a script of one command (others after '#')"
        )
    return read_arguments(_split(commands[0], path), where=str(path))


def read_arguments(arguments: Sequence[str], *, where: str = "the command line") -> PublishedRun:
    """Read the words of a command line; the program and its launcher may come first."""
    words = list(arguments)
    names = {word.partition("=")[0].lstrip("-") for word in words if word.startswith("--")}
    system: System = "PerturbGene" if names & _PERTURBGENES else "PolyGene"
    options: dict[str, Any] = {}
    task = "mlm"
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("--"):
            task = word if word in _TASKS else task
            continue  # variables, the launcher, the program
        name, equals, inline = word.partition("=")
        option = _known(system, name, where)
        values = [inline] if equals else []
        most = {"nothing": 0, "one": 1}.get(option.takes, len(words))
        while at < len(words) and not words[at].startswith("--") and len(values) < most:
            if words[at] in _TASKS and values and option.takes == "many":
                break
            values.append(words[at])
            at += 1
        if option.takes == "one" and not values:
            raise ConfigurationError(f"{where}: --{option.name} lacks its value")
        is_flag = option.takes == "nothing"
        options[option.name] = is_flag or (values if option.takes == "many" else values[0])
    return PublishedRun(system, options, task, where)


def _read_json(text: str, where: str) -> PublishedRun:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{where} is not valid JSON ({error}); give a configuration of PolyGene or PerturbGene"
        ) from error
    record = record.get("metadata", record)  # of PerturbGene's static evaluation sets
    if not isinstance(record, dict):
        raise ConfigurationError(f"{where}: expected an object of options")
    system: System = "PerturbGene" if record.keys() & _PERTURBGENES else "PolyGene"
    task = str(record.pop("subcommand", None) or "mlm")
    if "label" in record:
        task = "cls"
    elif "filter_phenotypes" in record or "pretrained_model_name_or_path" in record:
        task = "inference"
    options = {}
    for name, value in record.items():
        option = _known(system, name, where)
        if value is not None and not (value is False and option.takes == "nothing"):
            options[option.name] = value
    return PublishedRun(system, options, task, where)


def _known(system: System, name: str, where: str) -> PublishedOption:
    option = find_option(system, name)
    if option is not None:
        return option
    bare = name.lstrip("-")
    hint = did_you_mean(bare, [one.name for one in OPTIONS[system]])
    raise ConfigurationError(
        f"{where}: {bare!r} is not an option of {system}" + (f"; {hint}" if hint else "")
    )


def _split(command: str, script: Path) -> list[str]:
    """Split a command into words as a shell does, with the words of files that it names."""

    def of_file(match: re.Match[str]) -> str:
        named = Path(match[1])
        for path in (named, script.parent / named, script.parent / named.name):
            if path.is_file():
                return file_text(path)
        raise ConfigurationError(
            f"{script}: takes words from {named}, which does not exist; put it beside the script"
        )

    try:
        return shlex.split(_FROM_FILE.sub(of_file, command))
    except ValueError as error:
        raise ConfigurationError(f"{script}: the command line does not end ({error})") from error
