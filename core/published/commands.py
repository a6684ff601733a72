"""Reading the options of a run of PolyGene or PerturbGene: a JSON file, a script, a command line."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, DataError
from core.published.options import OPTIONS, PublishedOption, System, find_option
from core.wording import did_you_mean

_TASKS = ("mlm", "cls")
#: Options that PolyGene does not have; every run of PerturbGene has some of them.
_PERTURBGENES = {"bin_edges", "bin_edges_path", "num_top_genes", "vocab_path", "gene_mask_prob"}
_FROM_FILE = re.compile(r"\$\(\s*(?:<|cat)\s*([^)\s]+)\s*\)")
_PROGRAM = re.compile(r"\.py$|(^|\.)main$")


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
            message = f"{self.where}: there are no options to import"
            raise ConfigurationError(message)


def read_file(path: Path) -> PublishedRun:
    """Read a JSON configuration or a shell script.

    Raises
    ------
    DataError
        The file cannot be read.
    ConfigurationError
        It is neither, holds several commands, or an option that the systems do not have.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        message = f"{path} cannot be read ({reason})"
        raise DataError(message) from error
    if text.lstrip().startswith("{"):
        return _read_json(text, str(path))
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    commands = [
        line
        for line in "\n".join(lines).replace("\\\n", " ").splitlines()
        if " --" in line and any(_PROGRAM.search(word) for word in line.split())
    ]
    if len(commands) != 1:
        message = (
            f"{path} holds {len(commands) or 'no'} command{'s' * (len(commands) > 1)} with options; "
            f"give a JSON configuration, or a script of one command (others after '#')"
        )
        raise ConfigurationError(message)
    return read_arguments(_split(commands[0], path), where=str(path))


def read_arguments(arguments: Sequence[str], *, where: str = "the command line") -> PublishedRun:
    """Read the words of a command line; the program and its launcher may come first.

    Raises
    ------
    ConfigurationError
        An option is unknown or lacks its value, or the command line has none.
    """
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
            message = f"{where}: --{option.name} lacks its value"
            raise ConfigurationError(message)
        is_flag = option.takes == "nothing"
        options[option.name] = is_flag or (values if option.takes == "many" else values[0])
    return PublishedRun(system, options, task, where)


def _read_json(text: str, where: str) -> PublishedRun:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = (
            f"{where} is not valid JSON ({error}); give a configuration of PolyGene or PerturbGene"
        )
        raise ConfigurationError(message) from error
    record = record.get("metadata", record)  # of PerturbGene's static evaluation sets
    if not isinstance(record, dict):
        message = f"{where}: expected an object of options"
        raise ConfigurationError(message)
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
    message = f"{where}: {bare!r} is not an option of {system}" + (f"; {hint}" if hint else "")
    raise ConfigurationError(message)


def _split(command: str, script: Path) -> list[str]:
    """Split a command into words as a shell does, with the words of files that it names."""

    def of_file(match: re.Match[str]) -> str:
        named = Path(match[1])
        for path in (named, script.parent / named, script.parent / named.name):
            if path.is_file():
                return path.read_text(encoding="utf-8")
        message = (
            f"{script}: takes words from {named}, which does not exist; put it beside the script"
        )
        raise ConfigurationError(message)

    try:
        return shlex.split(_FROM_FILE.sub(of_file, command))
    except ValueError as error:
        message = f"{script}: the command line does not end ({error})"
        raise ConfigurationError(message) from error
