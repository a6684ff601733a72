"""Read what a run of PolyGene or PerturbGene was told: a JSON configuration, a script, a command line."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, DataError
from core.published.options import OPTIONS, OriginalOption, System, find_option
from core.wording import did_you_mean

__all__ = ["OriginalRun", "read_arguments", "read_file"]

_TASKS = ("mlm", "cls")
#: Options that PolyGene has not, of which every run of PerturbGene has some.
_PERTURBGENES = {"bin_edges", "bin_edges_path", "num_top_genes", "vocab_path", "gene_mask_prob"}
_FROM_FILE = re.compile(r"\$\(\s*(?:<|cat)\s*([^)\s]+)\s*\)")
_PROGRAM = re.compile(r"\.py$|(^|\.)main$")


@dataclass(frozen=True)
class OriginalRun:
    """What a run was told.

    Attributes
    ----------
    system
        Whose options these are.
    options
        Name as in `core.published.options` -> value: text, a list of texts, True for an
        option that takes nothing; of JSON, whatever stood there.
    task
        "mlm", "cls" or "inference".
    where
        The file, or "the command line".
    """

    system: System
    options: dict[str, Any]
    task: str
    where: str


def read_file(path: Path) -> OriginalRun:
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
    commands = list(_commands(text))
    if len(commands) != 1:
        message = (
            f"{path} holds {len(commands) or 'no'} command{'s' * (len(commands) > 1)} with options; "
            f"give a JSON configuration, or a script of one command (others behind '#')"
        )
        raise ConfigurationError(message)
    return read_arguments(_split(commands[0], str(path), path.parent), where=str(path))


def read_arguments(arguments: Sequence[str], *, where: str = "the command line") -> OriginalRun:
    """Read the words of a command line; what launches the program may stand in front.

    Raises
    ------
    ConfigurationError
        An option is unknown, lacks its value, or there is none.
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
        taken = [inline] if equals else []
        while at < len(words) and not words[at].startswith("--") and _wants_more(option, taken):
            if words[at] in _TASKS and taken and option.takes == "many":
                break
            taken.append(words[at])
            at += 1
        options[option.name] = _value(option, taken, where)
    return _checked(OriginalRun(system, options, task, where))


def _wants_more(option: OriginalOption, taken: Sequence[str]) -> bool:
    return option.takes == "many" or (option.takes == "one" and not taken)


def _value(option: OriginalOption, taken: list[str], where: str) -> object:
    if option.takes == "nothing":
        return True
    if not taken:
        if option.takes == "many":
            return []
        message = f"{where}: --{option.name} lacks its value"
        raise ConfigurationError(message)
    return taken if option.takes == "many" else taken[0]


def _read_json(text: str, where: str) -> OriginalRun:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = (
            f"{where} is not valid JSON ({error}); give a configuration of PolyGene or PerturbGene"
        )
        raise ConfigurationError(message) from error
    record = record.get("metadata", record)  # PerturbGene's static evaluation sets carry theirs
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
    return _checked(OriginalRun(system, options, task, where))


def _known(system: System, name: str, where: str) -> OriginalOption:
    option = find_option(system, name)
    if option is not None:
        return option
    bare = name.lstrip("-")
    hint = did_you_mean(bare, [one.name for one in OPTIONS[system]])
    message = f"{where}: {bare!r} is no option of {system}" + (f"; {hint}" if hint else "")
    raise ConfigurationError(message)


def _checked(run: OriginalRun) -> OriginalRun:
    if not run.options:
        message = f"{run.where}: there are no options to import"
        raise ConfigurationError(message)
    return run


def _commands(script: str) -> Iterator[str]:
    """Give the commands of a script that start a program with options, a line each."""
    kept = [line for line in script.splitlines() if not line.lstrip().startswith("#")]
    for command in "\n".join(kept).replace("\\\n", " ").splitlines():
        if " --" in command and any(_PROGRAM.search(word) for word in command.split()):
            yield command


def _split(command: str, where: str, folder: Path) -> list[str]:
    """Split a command into words as a shell does, with files that it takes words from."""

    def of_file(match: re.Match[str]) -> str:
        for path in (Path(match[1]), folder / match[1], folder / Path(match[1]).name):
            if path.is_file():
                return path.read_text(encoding="utf-8")
        message = (
            f"{where}: takes words from {match[1]}, which is not there; put it beside the script"
        )
        raise ConfigurationError(message)

    try:
        return shlex.split(_FROM_FILE.sub(of_file, command))
    except ValueError as error:
        message = f"{where}: the command line does not end ({error})"
        raise ConfigurationError(message) from error
